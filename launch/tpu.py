"""Train on Cloud TPUs by queued resources: `create` a slice, `run` a config on all its hosts, follow its `logs`, `delete` it.

Each action is a few gcloud commands; --dry_run prints them. TPU7x and clusters: launch/gke.py.
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gptjax.config import command, parse
from gptjax.distributed import rendezvous
from gptjax.sharding import topology
from launch import checks

EXAMPLE = """python -m launch.tpu create --name=pod --zone=us-east5-a --accelerator=v5p-1024
  python -m launch.tpu run --name=pod --zone=us-east5-a -- --config=gpt3_175b --run=gs://bucket/gpt3
  python -m launch.tpu logs --name=pod --zone=us-east5-a
  python -m launch.tpu delete --name=pod --zone=us-east5-a"""
ID = "[a-z]([a-z0-9-]{0,60}[a-z0-9])?"  # of Google Cloud's resources
RUNTIMES = {"v4-": "tpu-ubuntu2204-base", "v5litepod-": "v2-alpha-tpuv5-lite", "v5p-": "v2-alpha-tpuv5", "v6e-": "v2-alpha-tpuv6e"}
FOLDER, ARCHIVE, LOG = "gptjax", "gptjax.tgz", "gptjax.log"
# The image's own Python is too old: uv brings one.
INSTALL = (
    f"mkdir -p {FOLDER} && tar -xzf {ARCHIVE} -C {FOLDER} && cd {FOLDER} && python3 -m pip install --quiet --user uv && "
    "~/.local/bin/uv venv --quiet --allow-existing --python 3.13 .venv && ~/.local/bin/uv pip install --quiet -r requirements-tpu.txt"
)


def main(arguments: list[str]) -> int:
    """Exit status: gcloud's, or 2 if there is none, when the commands are only printed."""
    parser = command.bare_parser("tpu", "Train on Cloud TPU slices; gptjax.train is given what stands after --.", EXAMPLE)
    parser.prog = "python -m launch.tpu"
    parser.add_argument("action", choices=["create", "run", "logs", "delete"], help="what to do; create waits until the slice is there")
    parser.add_argument("--name", required=True, help="of the slice and its request")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project", help="(default: gcloud's)")
    parser.add_argument("--accelerator", metavar="TYPE", help="to create: v4-128, v5litepod-16, v5p-1024, v6e-256, ...")
    few = parse.whole_argument(1, checks.MAX_COUNT)
    parser.add_argument("--slices", metavar="N", type=few, default=1, help="how many of that type (default: 1)")
    parser.add_argument("--spot", action="store_true", help="create what may be taken away at any time; the same run command continues")
    parser.add_argument("--dry_run", action="store_true", help="print the commands and run none")
    own, theirs = command.passed_on(arguments)
    args = parser.parse_args(own, argparse.Namespace(arguments=theirs))
    if args.action == "run":
        checks.split_arguments(arguments, "tpu", "--config=gpt3_small --run=gs://bucket/run")
    elif theirs:
        raise ValueError(f"{shlex.join(theirs)}: what stands after -- is for run, and not for {args.action}")
    for flag, pattern in (("name", ID), ("zone", ID), ("project", "[a-z][a-z0-9.:-]{0,100}")):
        if vars(args)[flag] is not None:
            checks.check_match(
                vars(args)[flag], pattern, f"--{flag}", "letters a to z, digits and -, a letter first and no - last, at most 62"
            )
    steps = {"create": create, "run": run, "logs": logs, "delete": delete}[args.action](args)
    there = shutil.which("gcloud") is not None
    if args.dry_run or not there:
        print("\n".join(shlex.join(step) for step in steps))
        if not args.dry_run:
            print("error: gcloud is not installed, so these commands were only printed; see cloud.google.com/sdk", file=sys.stderr)
        return 0 if args.dry_run else 2
    for step in steps:
        status = until_active(step) if "describe" in step else subprocess.run(step).returncode
        if status:
            return status
    return 0


def gcloud(args: argparse.Namespace, *words: str) -> list[str]:
    return ["gcloud", "compute", "tpus", *words, f"--zone={args.zone}", *([f"--project={args.project}"] if args.project else [])]


def create(args: argparse.Namespace) -> list[list[str]]:
    """Ask for the slices, and wait for them."""
    start, number = (args.accelerator or "").rpartition("-")[::2]
    given = "None" if args.accelerator is None else parse.line(args.accelerator, 100)
    if f"{start}-" not in RUNTIMES or not re.fullmatch("[1-9][0-9]{0,5}", number):
        raise ValueError(f"--accelerator={given}: give one of {', '.join(f'{start}N' for start in RUNTIMES)}")
    sizes = [int(name.rpartition("-")[2]) for name in topology.sizes(topology.ALIASES.get(start, start))]
    if int(number) not in sizes:
        near = sorted(sorted(sizes, key=lambda size: abs(size - int(number)))[:3])
        raise ValueError(f"--accelerator={given}: there is no such slice; nearest: {', '.join(f'{start}-{size}' for size in near)}")
    runtime = RUNTIMES[f"{start}-"]
    nodes = [f"--node-id={args.name}"] if args.slices == 1 else [f"--node-count={args.slices}", f"--node-prefix={args.name}"]
    asked = [f"--accelerator-type={args.accelerator}", f"--runtime-version={runtime}", *nodes, *(["--spot"] if args.spot else [])]
    return [
        [*gcloud(args, "queued-resources", "create", args.name), *asked],
        [*gcloud(args, "queued-resources", "describe", args.name), "--format=value(state.state)"],
    ]


def run(args: argparse.Namespace) -> list[list[str]]:
    """Send this checkout to every host, install it, and start training on all; it goes on when this program ends."""
    word = f"{rendezvous.NONCE}={checks.nonce()}"
    train = f"cd {FOLDER} && {word} nohup .venv/bin/python -m gptjax.train {shlex.join(args.arguments)} > ../{LOG} 2>&1 < /dev/null &"
    archive = str(Path(tempfile.gettempdir()) / ARCHIVE)
    pack = ["sh", "-c", f"git ls-files -z | tar --null --files-from=- -czf {shlex.quote(archive)}"]
    send = [[*gcloud(args, "tpu-vm", "scp", archive, f"{node}:"), "--worker=all"] for node in nodes(args)]
    return [pack, *send, *everywhere(args, INSTALL), *everywhere(args, train)]


def logs(args: argparse.Namespace) -> list[list[str]]:
    """Process 0's lines, as they come; the other processes' are in the same file on their hosts."""
    return [[*gcloud(args, "tpu-vm", "ssh", nodes(args)[0]), "--worker=0", f"--command=tail -n +1 -F {LOG}"]]


def delete(args: argparse.Namespace) -> list[list[str]]:
    return [[*gcloud(args, "queued-resources", "delete", args.name), "--force", "--quiet"]]


def nodes(args: argparse.Namespace) -> list[str]:
    return [args.name] if args.slices == 1 else [f"{args.name}-{i}" for i in range(args.slices)]


def everywhere(args: argparse.Namespace, line: str) -> list[list[str]]:
    return [[*gcloud(args, "tpu-vm", "ssh", node), "--worker=all", f"--command={line}"] for node in nodes(args)]


def until_active(describe: list[str]) -> int:
    """Ask every 30 seconds until the request is granted: 0; or has failed: 1."""
    said = ""
    while True:
        asked = subprocess.run(describe, capture_output=True, text=True)
        if asked.returncode:
            print(asked.stderr, end="", file=sys.stderr)
            return asked.returncode
        if asked.stdout.strip() != said:
            said = asked.stdout.strip()
            print(f"{time.strftime('%H:%M:%S')} {said}", flush=True)
        if said == "ACTIVE":
            return 0
        if said in ("FAILED", "SUSPENDING", "SUSPENDED"):
            return 1
        time.sleep(30)


if __name__ == "__main__":
    command.run(main)
