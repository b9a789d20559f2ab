"""The group of processes of a multi-host run: exchange of values, consistency checks, and detection
of lost peers.

An error in one process, its death, or a hang ends all processes, each with the same error line.
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
from gptjax.distributed import cluster, rendezvous
from gptjax.distributed.connection import Connection
from gptjax.runtime import errors

T = TypeVar("T")
PACKAGE = Path(__file__).parents[1]

# Exit status of a process that ends because another died or nothing progresses: the same command
# resumes the run.
EXIT_LOST = 4
# Seconds for the news of a lost peer to arrive before the local error that the loss caused is
# reported.
GRACE_SECONDS = 5.0
# Parts of jax's error messages when a peer does not respond in time: Gloo after 30 s, the
# coordinator, NCCL.
PEER_ERRORS = r"Gloo|gloo|DEADLINE_EXCEEDED|UNAVAILABLE|NCCL|Connection (reset|closed) by peer"


class Disagreement(ValueError):
    """Processes differ in something that must be the same on all. Every process raises it."""


class ProcessGroup:
    """The processes of a run. Made by `initialize`; a context manager. With a single process every
    method returns at once.

    All processes must call `all_gather`, `broadcast_from_zero`, `zero_first` and `assert_equal` in
    the same order, and from one thread.
    """

    def __init__(
        self,
        process_id: int = 0,
        names: list[str] | None = None,
        connections: dict[int, Connection] | None = None,
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
        """Returns the JSON value of every process, in order of process id, once all have sent
        theirs.

        deadline: a time.monotonic() by which all must have sent, or ValueError; None waits while
        the processes live and `watchdog` permits, since some may take long to prepare their data.
        """
        if self.process_id:
            self._connections[0].send(value=value, goodbye=goodbye)
            values = self._receive(0, deadline)
            if not isinstance(values, list) or len(values) != self.num_processes:
                self._on_lost_peer(0)  # like any malformed message: see Connection.start_reader
            return values
        values = [
            value,
            *(self._receive(process_id, deadline) for process_id in range(1, self.num_processes)),
        ]
        for connection in self._connections.values():
            connection.send(value=values, goodbye=goodbye)
        return values

    def _receive(self, process_id: int, deadline: float | None) -> Any:
        """The next value from a process. Raises ValueError after the deadline."""
        try:
            return self._connections[process_id].values.get(
                timeout=None if deadline is None else max(0.001, deadline - time.monotonic())
            )
        except queue.Empty:
            raise ValueError(
                f"{self._describe(process_id)} connected but has not answered since; wait longer "
                "with --initialization_timeout"
            ) from None

    def broadcast_from_zero(self, act: Callable[[], Any]) -> Any:
        """Runs act() on process 0 only and returns its JSON result on every process; the others
        wait.
        """
        return self.all_gather(act() if self.process_id == 0 else None)[0]

    def zero_first(self, act: Callable[[], T]) -> T:
        """Runs act() on every process: first on process 0, then on one process of each other host,
        then on the rest.

        So files that it writes are made once where hosts share a disk, and once per host where they
        do not.
        """
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
        """Raises Disagreement on every process if one has other values than process 0, with the
        topic and the difference. deadline: see `all_gather`.
        """
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
        """Reports progress to the watchdog. activity: what this process does now, such as "step
        12".
        """
        self._activity, self._last_heartbeat = activity, time.monotonic()

    @contextlib.contextmanager
    def watchdog(self, seconds: float | None) -> Iterator[None]:
        """While entered, ends all processes, naming this one's activity, if this process does not
        call `heartbeat` for `seconds`. None: no limit.

        Time in which the process was stopped (SIGSTOP, a suspended job, a sleeping machine) does
        not count.
        """
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
                        f"{self._describe(self.process_id)} has made no progress for {seconds:g} s "
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
            # If a lost peer caused the error, its news ends this process meanwhile.
            time.sleep(GRACE_SECONDS)
            if isinstance(error, RuntimeError) and re.search(PEER_ERRORS, str(error)):
                status, line = (
                    EXIT_LOST,
                    f"the processes lost contact, or one was too late ({line}); the same command "
                    "continues",
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
        """Ends all processes because `other` closed its connection unexpectedly."""
        line = (
            f"{self._describe(other)} died without a message, while process {self.process_id} was "
            f"in {self._activity}"
        )
        self._abort_all(EXIT_LOST, f"{line}; the same command continues")

    def _abort_all(self, status: int, line: str) -> NoReturn:
        """Ends this process and, through process 0, the others. Only the first reason counts."""
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
    """Returns `since`, moved later by the time for which this process was stopped.

    The watchdog expected to wake `interval` seconds after `before` and woke at `now`. More than
    `interval` too late means that the process was stopped; less, that the machine is busy.
    """
    late = now - before - interval
    return min(since + late, now) if late > interval else since


def initialize(
    process_info: cluster.ProcessInfo | None, config: Config, seconds: float
) -> ProcessGroup:
    """Connects the processes, checks that they agree, and starts jax.distributed; call it before
    using jax.

    Raises ValueError if some processes do not connect within `seconds`. If one has a different
    config, code or jax version, all end with a line that says so.
    """
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
        # The service would handle SIGTERM itself.
        jax.config.update("jax_enable_preemption_service", False)
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
    """Returns a digest of the package's source: a version that also changes with local edits. A
    checkout, where configs/ and launch/ are links, and an installed package, where they are
    directories, have the same.
    """
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
