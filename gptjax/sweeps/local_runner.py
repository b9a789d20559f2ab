"""Runs the points of a sweep on this machine: each in a process of gptjax.train, several at a time,
each with its share of cores or accelerators."""

import collections
import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gptjax.runtime import child
from gptjax.sweeps import run_status
from gptjax.sweeps.points import Point

# the seeds of an arm are the same programs: starting micro takes half as long
COMPILE_CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
LOG_FILE = "log.txt"  # in the run's directory: all that it says
POLL_SECONDS = 0.25  # seconds between two looks
# Exit statuses for which a retry would change nothing: an error of the user's, and non-finite
# updates.
USER_ERROR_STATUS = 2
NON_FINITE_STATUS = 3


@dataclasses.dataclass(frozen=True)
class Slot:
    """The share of the machine that one point uses. cores: their numbers; devices: numbers of
    accelerators, None for all."""

    cores: frozenset[int]
    devices: tuple[int, ...] | None = None

    @property
    def environment(self) -> dict[str, str]:
        if self.devices is None:
            return {}
        numbers = ",".join(map(str, self.devices))
        return {"CUDA_VISIBLE_DEVICES": numbers, "TPU_VISIBLE_CHIPS": numbers}


def make_slots(jobs: int, devices: int | None) -> list[Slot]:
    """Divides the machine into `jobs` equal slots with `devices` accelerators each. ValueError if a
    slot would have no core."""
    cores = (
        sorted(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else list(range(os.cpu_count() or 1))
    )
    if not 1 <= jobs <= len(cores):
        raise ValueError(f"--jobs={jobs}: give 1 to {len(cores)}, the cores of this machine")
    parts = [
        frozenset(cores[i * len(cores) // jobs : (i + 1) * len(cores) // jobs]) for i in range(jobs)
    ]
    device_groups = [
        None if devices is None else tuple(range(i * devices, (i + 1) * devices))
        for i in range(jobs)
    ]
    return [Slot(part, group) for part, group in zip(parts, device_groups, strict=True)]


@dataclasses.dataclass
class RunningPoint:
    """A point whose process runs. start_time: of `time.monotonic()`, in seconds."""

    point: Point
    process: subprocess.Popen
    start_time: float
    first_step: int = 0  # steps that were done before

    def total_seconds(self, status: run_status.RunStatus) -> float | None:
        """Returns the seconds that the whole point takes at its speed so far; None before its first
        step in this session."""
        elapsed, steps = time.monotonic() - self.start_time, status.step - self.first_step
        return elapsed * status.n_steps / steps if steps > 0 else None


@dataclasses.dataclass
class Progress:
    """The state of a sweep that is not on disk; `run` keeps it up to date."""

    queue: collections.deque[Point]
    active: dict[Slot, RunningPoint] = dataclasses.field(default_factory=dict)
    failures: dict[str, str] = dataclasses.field(default_factory=dict)  # name of the point -> why
    point_seconds: list[float] = dataclasses.field(
        default_factory=list
    )  # that the whole of each point took which ended in this session


def run(
    recipe: str,
    points: list[Point],
    directory: Path,
    slots: list[Slot],
    retries: int,
    show: Callable[[Progress], None],
) -> tuple[Progress, bool]:
    """Runs every point that is not done, in order; returns (progress, whether all points were
    processed). Ctrl-C, SIGTERM or a closed terminal stops each run with a checkpoint, from which
    the same sweep continues; a second signal kills the runs. The runs end whenever this process
    ends."""
    progress = Progress(collections.deque())
    for point in points:
        status = run_status.read_status(point, directory)
        reason = status.reason or run_status.find_conflict(point, directory)
        if status.state == "done":
            continue
        if reason:
            progress.failures[point.name] = reason
        else:
            progress.queue.append(point)
    retries_left = dict.fromkeys((point.name for point in points), retries)
    with catch_signals() as signals:
        n_forwarded = 0  # signals passed on
        while progress.active or (progress.queue and not signals):
            if len(signals) > n_forwarded:
                n_forwarded = len(signals)
                for running_point in progress.active.values():
                    running_point.process.send_signal(
                        signal.SIGTERM if n_forwarded == 1 else signal.SIGKILL
                    )
            for slot in slots:
                if slot in progress.active and progress.active[slot].process.poll() is not None:
                    _finish(
                        progress, progress.active.pop(slot), directory, retries_left, bool(signals)
                    )
                if slot not in progress.active and not signals:
                    point = _next_point(progress, directory)
                    if point is not None:
                        try:
                            progress.active[slot] = _start(recipe, point, directory, slot)
                        except OSError as error:  # of this point's directory: the others may go on
                            progress.failures[point.name] = (
                                f"cannot begin: {error.filename}: {error.strerror}"
                            )
            with contextlib.suppress(*[OSError] if signals else []):  # the terminal may be gone
                show(progress)
            time.sleep(POLL_SECONDS)
        return progress, not signals


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """A context in which Ctrl-C, SIGTERM and SIGHUP are appended to the list that it yields, and
    have no other effect. Signals that are ignored, as nohup ignores SIGHUP, stay ignored."""
    signals: list[int] = []
    numbers = [
        getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
    ]
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    old_handlers = {
        number: signal.signal(number, lambda number, _: signals.append(number))
        for number in handled
    }
    try:
        yield signals
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)


def _next_point(progress: Progress, directory: Path) -> Point | None:
    """Returns the first point whose data no other process is preparing; points with the same data
    share what is prepared."""
    busy_data = {
        data_key(r.point)
        for r in progress.active.values()
        if not (directory / r.point.name / "data.json").exists()
    }
    point = next((point for point in progress.queue if data_key(point) not in busy_data), None)
    if point is not None:
        progress.queue.remove(point)
    return point


def data_key(point: Point) -> str:
    """Returns text that is equal for points that read the same data."""
    return repr(point.config and point.config.data)


def make_run_dir(run_path: Path) -> None:
    """Makes the directory of a point. Its data/ is a link to the sweep's, so that points with the
    same data tokenize them once."""
    run_path.mkdir(parents=True, exist_ok=True)
    (run_path.parent / "data").mkdir(exist_ok=True)
    if not (run_path / "data").exists():
        (run_path / "data").symlink_to("../data")


def _start(recipe: str, point: Point, directory: Path, slot: Slot) -> RunningPoint:
    run_path = directory / point.name
    make_run_dir(run_path)
    command = child.command(
        ["-m", "gptjax.train", f"--config={recipe}", f"--run_dir={run_path}", *point.arguments]
    )
    with (run_path / LOG_FILE).open("a") as log:
        # A session of its own: the terminal's Ctrl-C is for this program alone, which passes it on.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={COMPILE_CACHE_VARIABLE: str((directory / "compiled").resolve())}
            | os.environ
            | slot.environment,
            start_new_session=True,
        )
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, slot.cores)
    return RunningPoint(
        point, process, time.monotonic(), run_status.read_status(point, directory).step
    )


def _finish(
    progress: Progress,
    running_point: RunningPoint,
    directory: Path,
    retries_left: dict[str, int],
    is_stopping: bool,
) -> None:
    point, exit_status = running_point.point, running_point.process.returncode
    status = run_status.read_status(point, directory)
    if status.state == "done":
        total = running_point.total_seconds(status)
        progress.point_seconds += [] if total is None else [total]
    elif is_stopping:
        progress.queue.append(point)
    elif exit_status not in (USER_ERROR_STATUS, NON_FINITE_STATUS) and retries_left[point.name]:
        retries_left[point.name] -= 1
        progress.queue.append(point)
    else:
        progress.failures[point.name] = status.reason or failure_reason(
            directory / point.name / LOG_FILE, exit_status
        )


def failure_reason(log: Path, exit_status: int) -> str:
    """Returns why a process ended: its error line, or the last line of its log."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    error = next(
        (line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")),
        None,
    )
    if error is not None:
        return error
    outcome = f"killed by signal {-exit_status}" if exit_status < 0 else f"ended with {exit_status}"
    return f"{outcome}: {lines[-1][:200] if lines else 'it said nothing'}; {log} has all"
