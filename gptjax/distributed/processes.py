"""Many hosts as one program: what its processes compare and agree on, and how each learns that
another is gone.

What one process cannot go on with ends all, each with the same line: an error, a death, or that
nothing moves any more.
"""

import contextlib
import faulthandler
import functools
import hashlib
import os
import queue
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from gptjax.config import overrides
from gptjax.config.schema import Config
from gptjax.distributed import rendezvous
from gptjax.runtime import errors

T = TypeVar("T")
PACKAGE = Path(__file__).parents[1]

# exit status of a process that ends because another died or nothing moves: the same command
# continues
EXIT_LOST = 4
# seconds in which the word that another process is gone may overtake the error which that caused
# here
GRACE_SECONDS = 5.0
# What jax's errors say when another process has not taken part in time: Gloo after 30 s, its
# coordinator, NCCL.
PEER_ERRORS = r"Gloo|gloo|DEADLINE_EXCEEDED|UNAVAILABLE|NCCL|Connection (reset|closed) by peer"


class Disagreement(ValueError):
    """What processes that should say the same say: known to all of them."""


class ProcessGroup:
    """The processes of a run and what they do together; alone, each of these returns at once. Made
    by `initialize`; a context manager.

    All processes must call `all_gather`, `broadcast_from_zero`, `zero_first` and `assert_equal`
    in the same order, and from one thread."""

    def __init__(
        self,
        process_id: int = 0,
        names: list[str] | None = None,
        connections: dict[int, rendezvous.Connection] | None = None,
    ):
        """names: the host of each process; connections: to all others on process 0, to process 0
        on the others."""
        self._host_names, self._connections = names or ["this machine"], connections or {}
        self.process_id, self.num_processes = process_id, len(self._host_names)
        self._activity, self._last_heartbeat, self._abort_lock = (
            "its start",
            time.monotonic(),
            threading.Lock(),
        )
        for other, connection in self._connections.items():
            connection.start_reader(self._abort_all, functools.partial(self._on_lost_peer, other))

    def all_gather(self, value: Any, goodbye: bool = False, deadline: float | None = None) -> list:
        """The JSON value of every process, in the order of their numbers, when all have given
        theirs. deadline: of time.monotonic, when all must have, or ValueError; None: as long as
        they live and `watchdog` lets them, for some prepare their data meanwhile."""
        if self.process_id:
            self._connections[0].send(value=value, goodbye=goodbye)
            values = self._receive(0, deadline)
            if not isinstance(values, list) or len(values) != self.num_processes:
                self._on_lost_peer(0)  # as for other nonsense: see Connection.start_reader
            return values
        values = [
            value,
            *(self._receive(process_id, deadline) for process_id in range(1, self.num_processes)),
        ]
        for connection in self._connections.values():
            connection.send(value=values, goodbye=goodbye)
        return values

    def _receive(self, process_id: int, deadline: float | None) -> Any:
        try:
            return self._connections[process_id].values.get(
                timeout=None if deadline is None else max(0.001, deadline - time.monotonic())
            )
        except queue.Empty:
            raise ValueError(
                f"{self._describe(process_id)} came, and has said nothing since; --join_seconds "
                "waits longer"
            ) from None

    def broadcast_from_zero(self, act: Callable[[], Any]) -> Any:
        """What act() returns, as JSON, on process 0, which alone does it; the others wait."""
        return self.all_gather(act() if self.process_id == 0 else None)[0]

    def zero_first(self, act: Callable[[], T]) -> T:
        """act() on every process: on process 0, then on one of each other host, then on the rest.
        So what it leaves on disk is made once where hosts share the disk, and once a host where
        they do not."""
        is_host_leader = (
            self._host_names.index(self._host_names[self.process_id]) == self.process_id
        )
        rank = 0 if self.process_id == 0 else 1 if is_host_leader else 2
        for _ in range(rank):
            self.all_gather(None)
        result = act()
        for _ in range(rank, 2):
            self.all_gather(None)
        return result

    def assert_equal(
        self, values: dict[str, Any], advice: str, deadline: float | None = None
    ) -> None:
        """Disagreement, on every process, if one says something else than process 0: which, about
        what, and the difference. deadline:
        see `all_gather`."""
        all_values = self.all_gather(values, deadline=deadline)
        for process_id, other in enumerate(all_values):
            for topic, expected in all_values[0].items():
                actual = other[topic] if isinstance(other, dict) and topic in other else None
                if actual != expected:
                    raise Disagreement(
                        f"{self._describe(process_id)} has another {topic} than process 0: "
                        f"{_describe_difference(expected, actual)}; "
                        f"{advice}"
                    )

    def heartbeat(self, activity: str) -> None:
        """Say that something moves: what this process does now, as in "step 12"."""
        self._activity, self._last_heartbeat = activity, time.monotonic()

    @contextlib.contextmanager
    def watchdog(self, seconds: float | None) -> Iterator[None]:
        """While entered: all processes end, and say what this one was doing, if it does not call
        `heartbeat` for so long. None: it may hang. Time in which the process was stopped
        (SIGSTOP, a suspended job, a machine asleep) does not count."""
        done = threading.Event()

        def watch(seconds: float) -> None:
            interval = min(seconds / 4, 10)
            woke = time.monotonic()
            while not done.wait(interval):
                woke, before = time.monotonic(), woke
                self._last_heartbeat = skip_pause(self._last_heartbeat, before, woke, interval)
                if woke - self._last_heartbeat > seconds:
                    faulthandler.dump_traceback()
                    self._abort_all(
                        EXIT_LOST,
                        f"{self._describe(self.process_id)} has not moved for {seconds:g} s "
                        f"(loop.hang_seconds) in {self._activity}",
                    )

        if seconds is not None:
            self.heartbeat(self._activity)
            threading.Thread(target=watch, args=(seconds,), daemon=True, name="watch").start()
        try:
            yield
        finally:
            done.set()

    def __enter__(self) -> "ProcessGroup":
        return self

    def __exit__(self, kind, error: BaseException | None, trace) -> None:
        if self.num_processes == 1:
            return
        if error is None:
            self.all_gather(None, goodbye=True)
            for connection in self._connections.values():
                connection.shutdown()
            return
        status, line = errors.classify_error(error)
        if status == 1:
            time.sleep(
                GRACE_SECONDS
            )  # the word that another is gone, if that is why, ends this process meanwhile
            if isinstance(error, RuntimeError) and re.search(PEER_ERRORS, str(error)):
                status, line = (
                    EXIT_LOST,
                    f"the processes lost each other, or one was too late ({line}); the same "
                    "command continues",
                )
            else:
                traceback.print_exception(error)
        is_shared = isinstance(error, Disagreement)
        self._abort_all(
            status,
            line
            if is_shared
            else f"{self._describe(self.process_id)} ended in {self._activity}: {line}",
        )

    def _on_lost_peer(self, other: int) -> None:
        line = (
            f"{self._describe(other)} is gone without a word, when process {self.process_id} was "
            f"in {self._activity}"
        )
        self._abort_all(EXIT_LOST, f"{line}; the same command continues")

    def _abort_all(self, status: int, line: str) -> NoReturn:
        """End this process and tell the others, through process 0. The first reason counts."""
        self._abort_lock.acquire()
        for connection in self._connections.values():
            connection.send(end=line, status=status)
        sys.stdout.flush()
        os.write(2, f"error: {' '.join(line.split())}\n".encode())
        os._exit(status)  # not sys.exit: jax would wait for the others

    def _describe(self, process_id: int) -> str:
        return (
            "this process"
            if self.num_processes == 1
            else f"process {process_id} of {self.num_processes}, on {self._host_names[process_id]},"
        )


def skip_pause(since: float, before: float, now: float, interval: float) -> float:
    """Returns `since`, moved later by the time for which this process was stopped. The watch should
    wake `interval` seconds after `before` and woke at `now`: if it is later by more than
    `interval`, the process was stopped; if by less, the machine is busy."""
    late = now - before - interval
    return min(since + late, now) if late > interval else since


def initialize(
    process_info: rendezvous.ProcessInfo | None, config: Config, seconds: float
) -> ProcessGroup:
    """Meet the other processes, compare what all must have, and start jax.distributed. Call it
    before jax is used.

    ValueError if some do not come within `seconds`; if one has another config, code or jax, all
    end in a line that says so."""
    if process_info is None:
        return ProcessGroup()
    deadline = time.monotonic() + seconds
    processes = ProcessGroup(process_info.process_id, *rendezvous.connect(process_info, seconds))
    try:
        import jax

        processes.assert_equal(
            {"config": overrides.flatten(config), "code": source_digest(), "jax": jax.__version__},
            "start the same command with the same installation everywhere",
            deadline + rendezvous.HELLO_TIMEOUT,
        )
        jax.config.update(
            "jax_enable_preemption_service", False
        )  # it would take SIGTERM for itself
        jax.distributed.initialize(
            process_info.coordinator,
            process_info.num_processes,
            process_info.process_id,
            process_info.local_device_ids,
            cluster_detection_method="deactivate",
            initialization_timeout=max(1, int(seconds)),
        )
    except BaseException as error:
        processes.__exit__(type(error), error, error.__traceback__)
    return processes


def source_digest(root: Path = PACKAGE) -> str:
    """A digest of the package's source: its version, also for those who edit it. The same of a
    checkout, where configs/ and launch/ are links, and of an installed package, where they are
    directories."""
    folders = os.walk(root, followlinks=True)
    files = [Path(folder, name) for folder, _, names in folders for name in names]
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file.suffix == ".py"):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _describe_difference(expected: Any, actual: Any) -> str:
    if not isinstance(expected, dict) or not isinstance(actual, dict):
        return f"{actual} and not {expected}"
    names = [name for name in {**expected, **actual} if expected.get(name) != actual.get(name)]
    text = ", ".join(
        f"{name} is {actual.get(name)!r} and not {expected.get(name)!r}" for name in names[:3]
    )
    return f"{text}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
