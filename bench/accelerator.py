"""What gptjax does on this machine's accelerator, measured in some minutes, the most valuable
questions first.

    python -m bench.accelerator [--minutes=9] [--out=accelerator] [--parts=a,b,c,d,e,f]
    [--nanogpt=DIR]
    python -m bench.accelerator --report [--out=accelerator]

a: is every kernel right? b: does a run train, survive SIGKILL, and generate text? c: how fast are
training steps of 124M, 350M and 1.3B parameters, also against nanoGPT (a clone of karpathy/nanoGPT,
and torch)? d: what does banded attention gain at 2,048, 8,192 and 32,768 tokens? e: how fast are
prefill and decoding, against the bandwidth of memory and transformers? f: where does the time of a
step go?

Each part has processes of its own, which are killed when their share of the time is over; time that
one leaves goes to those after it. Each measurement is a row of OUT/rows.jsonl as soon as it is
known, with card, versions, date and command; a part that lacks time or memory leaves a row that
says so. OUT/report.md is written at the end, and by --report anew; OUT/log.txt is what the parts
print. Exit status 1 if a row is WRONG or failed. Without an accelerator the same parts run at toy
sizes on CPU, in minutes: figures of the script, not of gptjax.
"""

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench import accelerator_report, accelerator_rows
from bench.accelerator_rows import Row
from gptjax.config import parse
from gptjax.runtime import child, errors

PROBE_SECONDS = 90  # for the first process that meets the device
STOP_SECONDS = 3  # a part ends itself so much before it is killed
POLL_SECONDS = 0.1
# 8% of the memory is left to libraries and to the context.
ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "XLA_PYTHON_CLIENT_MEM_FRACTION": ".92"}
MODELS = ("350m", "124m", "1.3b")


class NoDevice(Exception):
    """There is no device to measure."""


class Job(NamedTuple):
    """A process of a part. names: what it measures. weight: its share of the time. missing: why it
    is left out, "" if it is not."""

    part: str
    title: str
    module: str
    names: tuple[str, ...]
    weight: float
    missing: str = ""


def jobs(parts: list[str], nanogpt: str | None, is_toy: bool) -> list[Job]:
    """The processes of the parts, in order; weights are seconds, if nine minutes are given and a
    part of one is spent before the first."""
    has_torch, has_transformers = map(importlib.util.find_spec, ("torch", "transformers"))
    no_nanogpt = "" if nanogpt else "give nanoGPT's source with --nanogpt=DIR"
    no_nanogpt = no_nanogpt if has_torch else "torch is not installed"
    no_transformers = "" if has_torch and has_transformers else "transformers is not installed"
    models = ("toy",) if is_toy else MODELS
    small, large = models[min(1, len(models) - 1)], models[-1]
    train, torch = "bench.accelerator_train", "bench.accelerator_torch"
    training = [
        job
        for name, weight in zip(models, (80, 30, 45), strict=False)
        for job in (
            Job("c", f"steps of {name}", train, (name,), weight),
            Job("c", f"steps of nanoGPT, {name}", torch, (name, str(nanogpt)), 40, no_nanogpt),
        )
    ]
    generated = tuple(dict.fromkeys((large, small)))
    found = [
        Job("a", "kernels", "bench.accelerator_kernels", (), 60),
        Job("b", "a run", "bench.accelerator_resume", (), 75),
        *training,
        Job("d", f"lengths, {small}", train, (small,), 45),
        Job("e", "generation", "bench.accelerator_generation", generated, 35),
        Job("e", "generation by transformers", torch, generated, 20, no_transformers),
        Job("f", "a trace", "bench.accelerator_trace", models[:1], 20),
    ]
    return [job for job in found if job.part in parts]


def run(command: list[str], log, seconds: float, poll: Callable[[], None]) -> int | None:
    """Runs a command in a process group of its own, its output appended to `log`. Returns its exit
    status, None if it was killed after `seconds`. The group ends in any case."""
    deadline = time.monotonic() + seconds
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            poll()
        return process.poll()
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        poll()


def last_line(path: Path) -> str:
    """The last line of a log that is not empty."""
    lines = [text for text in path.read_text(errors="replace").splitlines() if text.strip()]
    return lines[-1].strip()[:200] if lines else ""


def end_of_job(status: int | None, seconds: float, last: str) -> Row | None:
    """The row of a process that ended with this status, None if nothing is to be reported."""
    if status == 0:
        return None
    if status is None:
        return {"verdict": "out of time", "note": f"killed after {seconds:.0f} s, at: {last}"}
    if status == -signal.SIGKILL:
        return {"verdict": "out of memory", "note": f"killed from outside, at: {last}"}
    return {"verdict": "failed", "note": f"exit status {status}: {last}"}


class Bench:
    """Runs jobs one after the other and shows their rows.

    facts: what each row holds; deadline: of time.monotonic, of all jobs together."""

    def __init__(self, out: Path, work: Path, facts: Row, deadline: float):
        self._out, self._work, self._facts, self._deadline = out, work, facts, deadline
        self._width = shutil.get_terminal_size().columns
        self._n_shown = len(accelerator_rows.read(out))

    def show(self) -> None:
        """Prints the rows that are new."""
        rows = accelerator_rows.read(self._out)
        for row in rows[self._n_shown :]:
            print(accelerator_report.line(row, self._width), flush=True)
        self._n_shown = len(rows)

    def add(self, job: Job, figures: Row) -> None:
        """Records and prints a row about a job as a whole."""
        row = {"part": job.part, "what": job.title, "job": job.title} | figures | self._facts
        accelerator_rows.append(self._out, row | {"date": accelerator_rows.today()})
        self.show()

    def run(self, jobs: list[Job]) -> None:
        """Runs the jobs, each within its share of the time that is left."""
        part = ""
        for i, job in enumerate(jobs):
            if job.part != part:
                part = job.part
                print(f"{part}. {accelerator_report.PARTS[part]}", flush=True)
            if job.missing:
                self.add(job, {"verdict": "not measured", "note": job.missing})
                continue
            rest = sum(other.weight for other in jobs[i:] if not other.missing)
            seconds = (self._deadline - time.monotonic()) * job.weight / rest
            if seconds <= STOP_SECONDS:
                self.add(job, {"verdict": "out of time", "note": "not begun"})
                continue
            self._run(job, seconds)

    def _run(self, job: Job, seconds: float) -> None:
        arguments = [
            f"--part={job.part}",
            f"--out={self._out}",
            f"--work={self._work}",
            f"--facts={json.dumps(self._facts | {'job': job.title})}",
            f"--seconds={seconds - STOP_SECONDS:.1f}",
        ]
        command = child.command(["-m", job.module, *arguments, *job.names])
        path = self._work / "job.log"
        try:
            with path.open("wb") as log:
                status = run(command, log, seconds, self.show)
        finally:
            with (self._out / "log.txt").open("ab") as whole:
                whole.write(f"== {job.part} {job.title}\n".encode() + path.read_bytes())
        if row := end_of_job(status, seconds, last_line(path)):
            self.add(job, row)


def probe(work: Path) -> Row:
    """The card and versions, from a process of its own, so that this one holds no memory of the
    device. NoDevice with the last line of what it prints if it fails or hangs."""
    paths = work / "facts.json", work / "facts.log"
    with paths[0].open("wb") as out, paths[1].open("wb") as log:
        command = child.command(["-m", "bench.accelerator_rows"])
        try:
            done = subprocess.run(command, stdout=out, stderr=log, timeout=PROBE_SECONDS)
        except subprocess.TimeoutExpired:
            raise NoDevice(f"jax found no device within {PROBE_SECONDS} s") from None
    if done.returncode:
        raise NoDevice(f"jax found no device: {last_line(paths[1])}")
    facts = json.loads(paths[0].read_text().splitlines()[-1])
    if facts["device"] == "cpu" and "JAX_PLATFORMS" not in os.environ and (gpu := nvidia_gpu()):
        raise NoDevice(
            f"nvidia-smi lists {gpu}, but jax sees the CPU alone: install requirements-gpu.txt, "
            f"or set JAX_PLATFORMS=cpu to measure the CPU. jax says: {last_line(paths[1])}"
        )
    return facts


def nvidia_gpu() -> str:
    """The first GPU that nvidia-smi lists, "" if none."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.partition("\n")[0] if done.returncode == 0 else ""


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """The arguments of main."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--minutes",
        type=parse.float_argument(0.1, 1e4),
        default=9,
        help="for all parts (default: 9)",
    )
    parser.add_argument(
        "--out",
        type=parse.path_argument,
        default=Path("accelerator"),
        help="a folder (default: accelerator)",
    )
    names = ",".join(accelerator_report.PARTS)
    parser.add_argument("--parts", default=names, help=f"comma-separated (default: {names})")
    parser.add_argument("--nanogpt", metavar="DIR", help="a clone of karpathy/nanoGPT")
    parser.add_argument("--report", action="store_true", help="only write OUT/report.md anew")
    args = parser.parse_args(arguments)
    if unknown := set(args.parts.split(",")) - set(accelerator_report.PARTS):
        parser.error(f"--parts: {', '.join(map(repr, sorted(unknown)))}: give some of {names}")
    model = Path(args.nanogpt or "", "model.py")
    if args.nanogpt and not (model.is_file() and "class GPT(" in model.read_text(errors="replace")):
        parser.error(
            f"--nanogpt: {model} with `class GPT` is not there: give a clone of karpathy/nanoGPT"
        )
    if args.report and not (args.out / accelerator_rows.FILE_NAME).exists():
        parser.error(f"--report: {args.out} has no {accelerator_rows.FILE_NAME}")
    return args


def main(arguments: list[str]) -> int:
    """Runs the program; returns its exit status."""
    args, start = read_arguments(arguments), time.monotonic()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        n_before = len(accelerator_rows.read(args.out))
    except (OSError, ValueError) as error:
        errors.print_error(f"--out: {error}")
        return 2
    try:
        status = 0 if args.report else measure(args, start, arguments)
    except NoDevice as error:
        errors.print_error(str(error))
        return 2
    rows = accelerator_rows.read(args.out)
    (args.out / "report.md").write_text(accelerator_report.page(rows))
    new = [] if args.report else accelerator_report.newest(rows[n_before:])
    words = [accelerator_report.summary(new)] * (not args.report)
    print("; ".join([*words, str(args.out / "report.md")]), flush=True)
    return status or int(any(row.get("verdict") in accelerator_rows.FAILURES for row in new))


def measure(args: argparse.Namespace, start: float, arguments: list[str]) -> int:
    """Runs the parts. Returns 0, or 130 after Ctrl-C. NoDevice as `probe`."""
    out = args.out.resolve()
    with tempfile.TemporaryDirectory(prefix="accelerator-") as folder:
        work = Path(folder)
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(work / "cache"))
        facts = probe(work)
        facts["command"] = " ".join(["python -m bench.accelerator", *map(shlex.quote, arguments)])
        facts["call"] = accelerator_rows.today()
        print(accelerator_report.header(facts, shutil.get_terminal_size().columns), flush=True)
        todo = jobs(args.parts.split(","), args.nanogpt, facts["device"] == "cpu")
        try:
            Bench(out, work, facts, start + 60 * args.minutes).run(todo)
        except KeyboardInterrupt:
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
