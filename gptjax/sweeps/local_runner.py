"""The points of a sweep on this machine: each a process of gptjax.train, so many at a time, each with its share of cores or devices."""

import collections
import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gptjax.config.sweep import Point
from gptjax.runtime import child
from gptjax.sweeps import run_status

COMPILED = "JAX_COMPILATION_CACHE_DIR"  # the seeds of an arm are the same programs: starting micro takes half as long
LOG = "log.txt"  # in the run's directory: all that it says
TICK = 0.25  # seconds between two looks
REFUSED, GAVE_UP = 2, 3  # exit status of what a user can mend, and of updates that are not finite: to try it again would change nothing


@dataclasses.dataclass(frozen=True)
class Slot:
    """The part of the machine that a point gets. cores: their numbers; devices: of accelerators; None: all there are."""

    cores: frozenset[int]
    devices: tuple[int, ...] | None = None

    @property
    def environment(self) -> dict[str, str]:
        if self.devices is None:
            return {}
        numbers = ",".join(map(str, self.devices))
        return {"CUDA_VISIBLE_DEVICES": numbers, "TPU_VISIBLE_CHIPS": numbers}


def slots(jobs: int, devices: int | None) -> list[Slot]:
    """The machine in `jobs` equal parts, each with `devices` accelerators. ValueError if a part would have no core."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if not 1 <= jobs <= len(cores):
        raise ValueError(f"--jobs={jobs}: give 1 to {len(cores)}, the cores of this machine")
    parts = [frozenset(cores[i * len(cores) // jobs : (i + 1) * len(cores) // jobs]) for i in range(jobs)]
    taken = [None if devices is None else tuple(range(i * devices, (i + 1) * devices)) for i in range(jobs)]
    return [Slot(part, mine) for part, mine in zip(parts, taken, strict=True)]


@dataclasses.dataclass
class Running:
    point: Point
    process: subprocess.Popen
    began: float
    first: int = 0  # steps that were done before

    def whole(self, now: run_status.Standing) -> float | None:
        """Seconds that the whole point takes at this speed; None before its first step here."""
        spent, steps = time.monotonic() - self.began, now.step - self.first
        return spent * now.n_steps / steps if steps > 0 else None


@dataclasses.dataclass
class Progress:
    """What is known of the points besides what lies on disk; `run` keeps it up to date."""

    waiting: collections.deque[Point]
    running: dict[Slot, Running] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)  # name of the point -> why
    seconds: list[float] = dataclasses.field(default_factory=list)  # that the whole of each point took which ended in this session


def run(
    recipe: str, points: list[Point], directory: Path, parts: list[Slot], retries: int, show: Callable[[Progress], None]
) -> tuple[Progress, bool]:
    """Run every point that is not done, the first ones first; (what became of them, whether all was gone through). Ctrl-C, SIGTERM and a
    terminal that closes stop each run with a checkpoint, so the same sweep goes on from there; a second one kills them. However this
    process ends, they end with it."""
    progress = Progress(collections.deque())
    for point in points:
        now = run_status.standing(point, directory)
        why = now.why or run_status.claim(point, directory)
        if now.state == "done":
            continue
        if why:
            progress.failed[point.name] = why
        else:
            progress.waiting.append(point)
    left = dict.fromkeys((point.name for point in points), retries)
    with signals() as received:
        told = 0  # signals passed on
        while progress.running or (progress.waiting and not received):
            if len(received) > told:
                told = len(received)
                for running in progress.running.values():
                    running.process.send_signal(signal.SIGTERM if told == 1 else signal.SIGKILL)
            for slot in parts:
                if slot in progress.running and progress.running[slot].process.poll() is not None:
                    _ended(progress, progress.running.pop(slot), directory, left, bool(received))
                if slot not in progress.running and not received:
                    point = _next(progress, directory)
                    if point is not None:
                        try:
                            progress.running[slot] = _started(recipe, point, directory, slot)
                        except OSError as error:  # of this point's directory: the others may go on
                            progress.failed[point.name] = f"cannot begin: {error.filename}: {error.strerror}"
            with contextlib.suppress(*[OSError] if received else []):  # the terminal may be gone
                show(progress)
            time.sleep(TICK)
        return progress, not received


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Ctrl-C, SIGTERM and SIGHUP append to the list, and do nothing else, within it; one that is ignored, as by nohup, stays so."""
    received: list[int] = []
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in heard}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _next(progress: Progress, directory: Path) -> Point | None:
    """The first point whose data nobody is preparing: points of the same data share what is prepared."""
    busy = {data(r.point) for r in progress.running.values() if not (directory / r.point.name / "data.json").exists()}
    point = next((point for point in progress.waiting if data(point) not in busy), None)
    if point is not None:
        progress.waiting.remove(point)
    return point


def data(point: Point) -> str:
    return repr(point.config and point.config.data)


def _started(recipe: str, point: Point, directory: Path, slot: Slot) -> Running:
    there = directory / point.name
    there.mkdir(parents=True, exist_ok=True)
    (directory / "data").mkdir(exist_ok=True)
    if not (there / "data").exists():
        (there / "data").symlink_to("../data")
    command = child.command(["-m", "gptjax.train", f"--config={recipe}", f"--run={there}", *point.arguments])
    with (there / LOG).open("a") as log:
        # A session of its own: the terminal's Ctrl-C is for this program alone, which passes it on.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={COMPILED: str((directory / "compiled").resolve())} | os.environ | slot.environment,
            start_new_session=True,
        )
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, slot.cores)
    return Running(point, process, time.monotonic(), run_status.standing(point, directory).step)


def _ended(progress: Progress, running: Running, directory: Path, left: dict[str, int], stopping: bool) -> None:
    point, status = running.point, running.process.returncode
    now = run_status.standing(point, directory)
    if now.state == "done":
        whole = running.whole(now)
        progress.seconds += [] if whole is None else [whole]
    elif stopping:
        progress.waiting.append(point)
    elif status not in (REFUSED, GAVE_UP) and left[point.name]:
        left[point.name] -= 1
        progress.waiting.append(point)
    else:
        progress.failed[point.name] = now.why or reason(directory / point.name / LOG, status)


def reason(log: Path, status: int) -> str:
    """Why a process ended: its error line, or the last line that it wrote."""
    said = log.read_text(errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    error = next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), None)
    if error is not None:
        return error
    ended = f"killed by signal {-status}" if status < 0 else f"ended with {status}"
    return f"{ended}: {lines[-1][:200] if lines else 'it said nothing'}; {log} has all"
