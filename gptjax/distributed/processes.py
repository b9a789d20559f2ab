"""Many hosts as one program: what its processes compare and agree on, and how each learns that another is gone.

What one process cannot go on with ends all, each with the same line: an error, a death, or that nothing moves any more.
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

from gptjax.config import command, overrides
from gptjax.config.schema import Config
from gptjax.distributed import rendezvous

T = TypeVar("T")

LOST = 4  # exit status of a process that ends because another died or nothing moves: the same command continues
GRACE = 5.0  # seconds in which the word that another process is gone may overtake the error which that caused here
# What jax's errors say when another process has not taken part in time: Gloo after 30 s, its coordinator, NCCL.
PEER_ERRORS = r"Gloo|gloo|DEADLINE_EXCEEDED|UNAVAILABLE|NCCL|Connection (reset|closed) by peer"


class Disagreement(ValueError):
    """What processes that should say the same say: known to all of them."""


class Hosts:
    """The processes of a run and what they do together; alone, each of these returns at once. Made by `joined`; a context manager.

    All processes must call `gathered`, `first`, `in_turn` and `agree` in the same order, and from one thread."""

    def __init__(self, process: int = 0, names: list[str] | None = None, links: dict[int, rendezvous.Link] | None = None):
        """names: the host of each process; links: to all others on process 0, to process 0 on the others."""
        self._names, self._links = names or ["this machine"], links or {}
        self.process, self.processes = process, len(self._names)
        self._doing, self._since, self._ending = "its start", time.monotonic(), threading.Lock()
        for other, link in self._links.items():
            link.follow(self._finish, functools.partial(self._gone, other))

    def gathered(self, value: Any, goodbye: bool = False, until: float | None = None) -> list:
        """The JSON value of every process, in the order of their numbers, when all have given theirs. until: of time.monotonic, when all
        must have, or ValueError; None: as long as they live and `watched` lets them, for some prepare their data meanwhile."""
        if self.process:
            self._links[0].send(value=value, goodbye=goodbye)
            values = self._receive(0, until)
            if not isinstance(values, list) or len(values) != self.processes:
                self._gone(0)  # as for other nonsense: see Link.follow
            return values
        values = [value, *(self._receive(process, until) for process in range(1, self.processes))]
        for link in self._links.values():
            link.send(value=values, goodbye=goodbye)
        return values

    def _receive(self, process: int, until: float | None) -> Any:
        try:
            return self._links[process].values.get(timeout=None if until is None else max(0.001, until - time.monotonic()))
        except queue.Empty:
            raise ValueError(f"{self._named(process)} came, and has said nothing since; --join_seconds waits longer") from None

    def first(self, act: Callable[[], Any]) -> Any:
        """What act() returns, as JSON, on process 0, which alone does it; the others wait."""
        return self.gathered(act() if self.process == 0 else None)[0]

    def in_turn(self, act: Callable[[], T]) -> T:
        """act() on every process: on process 0, then on one of each other host, then on the rest. So what it leaves on disk is made once
        where hosts share the disk, and once a host where they do not."""
        leads = self._names.index(self._names[self.process]) == self.process
        turn = 0 if self.process == 0 else 1 if leads else 2
        for _ in range(turn):
            self.gathered(None)
        result = act()
        for _ in range(turn, 2):
            self.gathered(None)
        return result

    def agree(self, says: dict[str, Any], advice: str, until: float | None = None) -> None:
        """Disagreement, on every process, if one says something else than process 0: which, about what, and the difference. until: see
        `gathered`."""
        every = self.gathered(says, until=until)
        for process, others in enumerate(every):
            for topic, expected in every[0].items():
                there = others[topic] if isinstance(others, dict) and topic in others else None
                if there != expected:
                    raise Disagreement(
                        f"{self._named(process)} has another {topic} than process 0: {_difference(expected, there)}; {advice}"
                    )

    def doing(self, what: str) -> None:
        """Say that something moves: what this process does now, as in "step 12"."""
        self._doing, self._since = what, time.monotonic()

    @contextlib.contextmanager
    def watched(self, seconds: float | None) -> Iterator[None]:
        """While entered: all processes end, and say what this one was doing, if it does not call `doing` for so long. None: it may hang.
        Time in which the process was stopped (SIGSTOP, a suspended job, a machine asleep) does not count."""
        over = threading.Event()

        def watch(seconds: float) -> None:
            every = min(seconds / 4, 10)
            woke = time.monotonic()
            while not over.wait(every):
                woke, before = time.monotonic(), woke
                self._since = skip_pause(self._since, before, woke, every)
                if woke - self._since > seconds:
                    faulthandler.dump_traceback()
                    self._finish(LOST, f"{self._named(self.process)} has not moved for {seconds:g} s (loop.hang_seconds) in {self._doing}")

        if seconds is not None:
            self.doing(self._doing)
            threading.Thread(target=watch, args=(seconds,), daemon=True, name="watch").start()
        try:
            yield
        finally:
            over.set()

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(self, kind, error: BaseException | None, trace) -> None:
        if self.processes == 1:
            return
        if error is None:
            self.gathered(None, goodbye=True)
            for link in self._links.values():
                link.part()
            return
        status, line = command.verdict(error)
        if status == 1:
            time.sleep(GRACE)  # the word that another is gone, if that is why, ends this process meanwhile
            if isinstance(error, RuntimeError) and re.search(PEER_ERRORS, str(error)):
                status, line = LOST, f"the processes lost each other, or one was too late ({line}); the same command continues"
            else:
                traceback.print_exception(error)
        known = isinstance(error, Disagreement)
        self._finish(status, line if known else f"{self._named(self.process)} ended in {self._doing}: {line}")

    def _gone(self, other: int) -> None:
        line = f"{self._named(other)} is gone without a word, when process {self.process} was in {self._doing}"
        self._finish(LOST, f"{line}; the same command continues")

    def _finish(self, status: int, line: str) -> NoReturn:
        """End this process and tell the others, through process 0. The first reason counts."""
        self._ending.acquire()
        for link in self._links.values():
            link.send(end=line, status=status)
        sys.stdout.flush()
        os.write(2, f"error: {' '.join(line.split())}\n".encode())
        os._exit(status)  # not sys.exit: jax would wait for the others

    def _named(self, process: int) -> str:
        return "this process" if self.processes == 1 else f"process {process} of {self.processes}, on {self._names[process]},"


def skip_pause(since: float, before: float, now: float, every: float) -> float:
    """Returns `since`, moved later by the time for which this process was stopped. The watch should wake `every` seconds after `before` and
    woke at `now`: if it is later by more than `every`, the process was stopped; if by less, the machine is busy."""
    late = now - before - every
    return min(since + late, now) if late > every else since


def joined(here: rendezvous.Place | None, config: Config, seconds: float) -> Hosts:
    """Meet the other processes, compare what all must have, and start jax.distributed. Call it before jax is used.

    ValueError if some do not come within `seconds`; if one has another config, code or jax, all end in a line that says so."""
    if here is None:
        return Hosts()
    until = time.monotonic() + seconds
    party = Hosts(here.process, *rendezvous.meet(here, seconds))
    try:
        import jax

        party.agree(
            {"config": overrides.flat(config), "code": code(), "jax": jax.__version__},
            "start the same command with the same installation everywhere",
            until + rendezvous.PATIENCE,
        )
        jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
        jax.distributed.initialize(
            here.coordinator,
            here.processes,
            here.process,
            here.local_device_ids,
            cluster_detection_method="deactivate",
            initialization_timeout=max(1, int(seconds)),
        )
    except BaseException as error:
        party.__exit__(type(error), error, error.__traceback__)
    return party


def code() -> str:
    """A digest of the package's source: its version, also for those who edit it."""
    root = Path(__file__).parents[1]
    found = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        found.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes())
    return found.hexdigest()[:12]


def _difference(expected: Any, there: Any) -> str:
    if not isinstance(expected, dict) or not isinstance(there, dict):
        return f"{there} and not {expected}"
    names = [name for name in {**expected, **there} if expected.get(name) != there.get(name)]
    shown = ", ".join(f"{name} is {there.get(name)!r} and not {expected.get(name)!r}" for name in names[:3])
    return f"{shown}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
