"""Train on Cloud TPUs, by queued resources.

`create` makes a slice, `run` trains a config on all its hosts, `logs` follows it, `delete` removes
it. Each action is a few gcloud commands; --dry_run prints them. TPU7x and clusters: launch/gke.py.
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

from gptjax import cli, train
from gptjax.config import parse
from gptjax.distributed import cluster
from gptjax.launch import checks
from gptjax.sharding import topology

EXAMPLE = """python -m gptjax.launch.tpu create --name=pod --zone=us-east5-a --accelerator=v5p-1024
  python -m gptjax.launch.tpu run --name=pod --zone=us-east5-a -- --config=gpt3_175b --run_dir=gs://bucket/gpt3
  python -m gptjax.launch.tpu logs --name=pod --zone=us-east5-a
  python -m gptjax.launch.tpu delete --name=pod --zone=us-east5-a"""
NAME_PATTERN = "[a-z]([a-z0-9-]{0,60}[a-z0-9])?"  # of Google Cloud's resources
RUNTIMES = {
    "v4-": "tpu-ubuntu2204-base",
    "v5litepod-": "v2-alpha-tpuv5-lite",
    "v5p-": "v2-alpha-tpuv5",
    "v6e-": "v2-alpha-tpuv6e",
}
CHECKOUT = Path(cli.__file__).parents[1]
FOLDER, ARCHIVE, LOG_FILE = "gptjax", "gptjax.tgz", "gptjax.log"
# The image's own Python is too old: uv brings one.
INSTALL = (
    f"mkdir -p {FOLDER} && tar -xzf {ARCHIVE} -C {FOLDER} && cd {FOLDER} && python3 -m pip install "
    "--quiet --user uv && "
    "~/.local/bin/uv venv --quiet --allow-existing --python 3.13 .venv && "
    "~/.local/bin/uv pip install --quiet -r requirements.txt -r requirements-tpu.txt"
)


def main(arguments: list[str]) -> int:
    """Exit status: gcloud's, or 2 if there is none, when the commands are only printed."""
    parser = cli.make_parser(
        "tpu", "Train on Cloud TPU slices; gptjax.train is given what stands after --.", EXAMPLE
    )
    parser.prog = "python -m gptjax.launch.tpu"
    parser.add_argument(
        "action",
        choices=["create", "run", "logs", "delete"],
        help="what to do; create waits until the slice is there",
    )
    parser.add_argument("--name", required=True, help="of the slice and its request")
    parser.add_argument("--zone", required=True, help="Google Cloud's zone, as us-east5-a")
    parser.add_argument("--project", help="Google Cloud's project (default: gcloud's)")
    parser.add_argument(
        "--accelerator",
        metavar="TYPE",
        help="to create: v4-128, v5litepod-16, v5p-1024, v6e-256, ...",
    )
    count = parse.int_argument(1, checks.MAX_COUNT)
    parser.add_argument(
        "--slices", metavar="N", type=count, default=1, help="how many of that type (default: 1)"
    )
    parser.add_argument(
        "--spot",
        action="store_true",
        help="create what may be taken away at any time; the same run command continues",
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands and run none")
    own_args, train_args = cli.split_at_dashes(arguments)
    args = parser.parse_args(own_args, argparse.Namespace(arguments=train_args))
    if args.action == "run":
        checks.split_arguments(arguments, "tpu", "--config=gpt3_small --run_dir=gs://bucket/run")
        check_checkout(train.read_arguments(train_args, local=False)[0].config)
    elif train_args:
        raise ValueError(
            f"{shlex.join(train_args)}: what stands after -- is for run, and not for {args.action}"
        )
    for flag, pattern in (
        ("name", NAME_PATTERN),
        ("zone", NAME_PATTERN),
        ("project", "[a-z][a-z0-9.:-]{0,100}"),
    ):
        if vars(args)[flag] is not None:
            checks.check_match(
                vars(args)[flag],
                pattern,
                f"--{flag}",
                "letters a to z, digits and -, a letter first and no - last, at most 62",
            )
    commands = {"create": create, "run": run, "logs": logs, "delete": delete}[args.action](args)
    has_gcloud = shutil.which("gcloud") is not None
    if args.dry_run or not has_gcloud:
        print("\n".join(shlex.join(command_line) for command_line in commands))
        if not args.dry_run:
            print(
                "error: gcloud is not installed, so these commands were only printed; see "
                "cloud.google.com/sdk",
                file=sys.stderr,
            )
        return 0 if args.dry_run else 2
    for command_line in commands:
        status = (
            wait_until_active(command_line)
            if "describe" in command_line
            else subprocess.run(command_line).returncode
        )
        if status:
            return status
    return 0


def gcloud_command(args: argparse.Namespace, *words: str) -> list[str]:
    """Returns `gcloud compute tpus WORD ...` for the zone and project of the arguments."""
    return [
        "gcloud",
        "compute",
        "tpus",
        *words,
        f"--zone={args.zone}",
        *([f"--project={args.project}"] if args.project else []),
    ]


def create(args: argparse.Namespace) -> list[list[str]]:
    """Commands that request the slices and wait for them."""
    prefix, size = (args.accelerator or "").rpartition("-")[::2]
    shown_type = "None" if args.accelerator is None else parse.one_line(args.accelerator, 100)
    if f"{prefix}-" not in RUNTIMES or not re.fullmatch("[1-9][0-9]{0,5}", size):
        raise ValueError(
            f"--accelerator={shown_type}: give one of "
            f"{', '.join(f'{prefix}N' for prefix in RUNTIMES)}"
        )
    sizes = [
        int(name.rpartition("-")[2])
        for name in topology.slice_layouts(topology.ALIASES.get(prefix, prefix))
    ]
    if int(size) not in sizes:
        near = sorted(sorted(sizes, key=lambda n: abs(n - int(size)))[:3])
        raise ValueError(
            f"--accelerator={shown_type}: there is no such slice; nearest: "
            f"{', '.join(f'{prefix}-{size}' for size in near)}"
        )
    runtime = RUNTIMES[f"{prefix}-"]
    nodes = (
        [f"--node-id={args.name}"]
        if args.slices == 1
        else [f"--node-count={args.slices}", f"--node-prefix={args.name}"]
    )
    request_flags = [
        f"--accelerator-type={args.accelerator}",
        f"--runtime-version={runtime}",
        *nodes,
        *(["--spot"] if args.spot else []),
    ]
    return [
        [*gcloud_command(args, "queued-resources", "create", args.name), *request_flags],
        [
            *gcloud_command(args, "queued-resources", "describe", args.name),
            "--format=value(state.state)",
        ],
    ]


def check_checkout(config: str) -> None:
    """ValueError if there is no checkout to send, or if --config names a file that the hosts
    would not find where they run."""
    if not (CHECKOUT / "requirements-tpu.txt").is_file():
        raise ValueError(
            f"run sends a checkout to the hosts, and {CHECKOUT} is none: run it in a clone of "
            "gptjax, as python -m gptjax.launch.tpu"
        )
    file = Path(config.rpartition(":")[0])
    if file.name and (file.is_absolute() or file.resolve() != (CHECKOUT / file).resolve()):
        raise ValueError(
            f"--config={parse.one_line(config, 300)}: the hosts run in their copy of {CHECKOUT}: "
            "put the file into it, and give its path "
            "from there"
        )


def run(args: argparse.Namespace) -> list[list[str]]:
    """Commands that copy this checkout to every host, install it, and start training on all; it
    continues when this program ends.
    """
    nonce = f"{cluster.NONCE_ENV}={checks.new_nonce()}"
    train_command = (
        f"cd {FOLDER} && {nonce} nohup .venv/bin/python -m gptjax.train "
        f"{shlex.join(args.arguments)} > ../{LOG_FILE} 2>&1 < /dev/null &"
    )
    archive = str(Path(tempfile.gettempdir()) / ARCHIVE)
    pack_command = [
        "sh",
        "-c",
        f"cd {shlex.quote(str(CHECKOUT))} && "
        "git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- -czf "
        f"{shlex.quote(archive)}",
    ]
    copy_commands = [
        [*gcloud_command(args, "tpu-vm", "scp", archive, f"{node}:"), "--worker=all"]
        for node in node_names(args)
    ]
    return [pack_command, *copy_commands, *ssh_all(args, INSTALL), *ssh_all(args, train_command)]


def logs(args: argparse.Namespace) -> list[list[str]]:
    """Commands that follow process 0's output; the other processes' is in the same file on their
    hosts.
    """
    return [
        [
            *gcloud_command(args, "tpu-vm", "ssh", node_names(args)[0]),
            "--worker=0",
            f"--command=tail -n +1 -F {LOG_FILE}",
        ]
    ]


def delete(args: argparse.Namespace) -> list[list[str]]:
    """Command that deletes the slices and their request."""
    return [[*gcloud_command(args, "queued-resources", "delete", args.name), "--force", "--quiet"]]


def node_names(args: argparse.Namespace) -> list[str]:
    """Returns the names of the slices' nodes."""
    return [args.name] if args.slices == 1 else [f"{args.name}-{i}" for i in range(args.slices)]


def ssh_all(args: argparse.Namespace, shell_command: str) -> list[list[str]]:
    """Commands that run a shell command on all hosts of every slice."""
    return [
        [*gcloud_command(args, "tpu-vm", "ssh", node), "--worker=all", f"--command={shell_command}"]
        for node in node_names(args)
    ]


def wait_until_active(describe: list[str]) -> int:
    """Polls every 30 seconds until the request is granted (0) or has failed (1)."""
    state = ""
    while True:
        result = subprocess.run(describe, capture_output=True, text=True)
        if result.returncode:
            print(result.stderr, end="", file=sys.stderr)
            return result.returncode
        if result.stdout.strip() != state:
            state = result.stdout.strip()
            print(f"{time.strftime('%H:%M:%S')} {state}", flush=True)
        if state == "ACTIVE":
            return 0
        if state in ("FAILED", "SUSPENDING", "SUSPENDED"):
            return 1
        time.sleep(30)


if __name__ == "__main__":
    cli.run(main)
