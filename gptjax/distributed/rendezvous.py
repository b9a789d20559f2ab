"""How the processes of a run find each other: by flags or by what jax detects, and then over connections to process 0.

They meet before jax.distributed starts, on the port below the coordinator's: its service ends a process with a trace of C++ when another is
late. Messages are lines of JSON. The connections stay open as long as the run lasts: one that closes is a process that died.

That port is open to whoever reaches it. A first line that is not that of a process of this run, or longer than HELLO bytes, or not there
after PATIENCE, is answered by nothing; any number of such strangers cost neither time nor memory, and the config is never sent to one. A
launcher hands all processes one secret word in the environment (NONCE), and each proves that it knows it. Without it whoever knows how
processes greet one another may pass for one, as at jax's own coordinator, which asks for nothing: keep both ports within the cluster.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import hmac
import itertools
import json
import os
import queue
import re
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from gptjax.config import command, parse

NONCE = "GPTJAX_NONCE"  # the environment variable
HELLO, LINE = 2**16, 2**26  # bytes of a line, at most: of one who is not known yet, and of a process
STRANGERS = 64  # connections beside the processes' own that may be open before they have said anything: then the oldest is closed
MAX_PROCESSES = 100_000
HOST = r"(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}|\[?[0-9A-Fa-f.]*:[0-9A-Fa-f:.]{1,44}\]?"
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}  # seconds, and probes: a host without power is noticed after 30 s
PATIENCE = 10.0  # seconds for a first message: whoever connects and says nothing is not one of us
RETRY = 2.0  # seconds in which one whom process 0 has turned away tries again: it may have been taken for a stranger among many
SEND_SECONDS = 30  # seconds until one who does not read any more counts as gone


@dataclasses.dataclass(frozen=True)
class Place:
    """One process's place among all, as jax.distributed.initialize is told it. coordinator: HOST:PORT of process 0. nonce: what all
    processes of the run know, and nobody else."""

    coordinator: str
    processes: int
    process: int
    local_device_ids: list[int] | None = None
    nonce: str = ""

    def proof(self, process: int) -> str:
        """What that process of this run says, and no stranger can."""
        return hmac.new(self.nonce.encode("utf-8", "replace"), f"gptjax {process} of a run".encode(), hashlib.sha256).hexdigest()


def flags(parser: argparse.ArgumentParser) -> None:
    """The arguments of a program that may run on many hosts; `place` reads them."""
    many = parser.add_argument_group("many hosts", "Found by itself on TPU pods, GKE and Slurm; elsewhere each process is told.")
    many.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens, on this port and the one below")
    many.add_argument("--processes", metavar="N", type=parse.whole_argument(1, MAX_PROCESSES), help="how many there are; 1 asks no cluster")
    many.add_argument("--process", metavar="I", type=parse.whole_argument(0, MAX_PROCESSES - 1), help="which one this is, from 0")
    seconds = parse.number_argument(0, 1e7, above=True)
    many.add_argument("--join_seconds", metavar="S", type=seconds, default=300.0, help="how long they wait for each other (default: 300)")


def place(coordinator: str | None, processes: int | None, process: int | None, seconds: float) -> Place | None:
    """The place that the flags give, else the one that jax detects: TPU pods, GKE, Slurm, Open MPI, Kubernetes jobs. None: alone.

    ValueError if they say half of it, or if the coordinator's name is not known to this machine within `seconds`."""
    if processes == 1:
        return None
    coordinator, ids = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"), None
    if None in (coordinator, processes, process):
        coordinator, processes, process, ids = _detected(coordinator, processes, process, seconds)
    if processes == 1 or (coordinator, processes, process) == (None, None, None):
        return None
    if coordinator is None or processes is None or process is None:
        given = [
            f"--{name}={value}"
            for name, value in zip(("coordinator", "processes", "process"), (coordinator, processes, process), strict=True)
            if value is not None
        ]
        raise ValueError(f"{' '.join(given)}: give --coordinator, --processes and --process, or none of them on a TPU pod, GKE or Slurm")
    host, _, port = coordinator.rpartition(":")
    if not re.fullmatch(HOST, host) or not re.fullmatch("[0-9]{1,5}", port) or not 2 <= int(port) < 65536:
        raise ValueError(f"--coordinator={parse.line(coordinator, 100)}: give HOST:PORT of process 0; the port below is used too")
    if not 0 <= process < processes <= MAX_PROCESSES:
        raise ValueError(f"--process={process}: with --processes={processes} give one from 0 to {min(processes, MAX_PROCESSES) - 1}")
    return Place(coordinator, processes, process, ids, os.environ[NONCE] if NONCE in os.environ else "")


def _detected(coordinator: str | None, processes: int | None, process: int | None, seconds: float) -> tuple:
    """The three, what is None taken from the cluster that jax finds here, and the devices that are this process's own."""
    if "KUBERNETES_SERVICE_HOST" in os.environ and not {"JOB_COMPLETION_INDEX", "TPU_WORKER_HOSTNAMES"} & {*os.environ}:
        return coordinator, processes, process, None  # a pod by itself, of which jax would demand that it be one of an indexed job
    from jax._src import clusters  # jax.distributed.initialize asks it too, but fails where there is no cluster

    try:
        return clusters.ClusterEnv.auto_detect_unset_distributed_params(coordinator, processes, process, None, None, max(1, int(seconds)))
    except (RuntimeError, ValueError, LookupError, TypeError, OSError) as error:  # odd words in the environment, too
        raise ValueError(
            f"jax found a cluster here but not its processes ({command.first_line(error)}); give --coordinator, --processes and --process"
        ) from error


class Link:
    """A connection to another process."""

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):  # not on every system
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_SECONDS, 0))
        self._connection, self._unread, self._sending = connection, bytearray(), threading.Lock()
        self.values: queue.Queue[Any] = queue.Queue()

    def send(self, **message) -> None:
        """Sends a line of JSON. Does nothing if the other process is gone, or has read nothing for SEND_SECONDS: `follow` says so."""
        with self._sending:
            try:
                self._connection.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                self.part()

    def receive(self, seconds: float | None, most: int = LINE) -> dict | None:
        """The next message, or None if none comes within `seconds`, the connection closes, or something else is said, or more than that."""
        until, begin = None if seconds is None else time.monotonic() + seconds, 0
        try:
            while (end := self._unread.find(b"\n", begin)) < 0:
                begin = len(self._unread)
                if begin > most:
                    return None
                self._connection.settimeout(None if until is None else max(0.001, until - time.monotonic()))
                if not (part := self._connection.recv(2**16)):
                    return None
                self._unread += part
            message = parse.json_object(bytes(self._unread[:end]), "a message")
        except (OSError, ValueError):
            return None
        del self._unread[: end + 1]
        return message

    def close(self) -> None:
        self._connection.close()

    def part(self) -> None:
        """Nothing more is said or read."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def follow(self, ended: Callable[[int, str], None], gone: Callable[[], None]) -> None:
        """Read on in a thread: values into `values`; ended(status, line) when the other process says that all must end, gone() when it
        closes before it has said goodbye."""

        def read() -> None:
            goodbye = False
            while message := self.receive(None):
                match message:
                    case {"end": str(line), "status": int(status)}:
                        ended(status, line)
                    case {"value": value, "goodbye": bool(goodbye)}:
                        self.values.put(value)
                    case _:
                        break
            if not goodbye:
                gone()
            self.close()

        threading.Thread(target=read, daemon=True, name="link").start()


def meet(here: Place, seconds: float) -> tuple[list[str], dict[int, Link]]:
    """(the host of each process, links: process 0's to all others, the others' to process 0), once all are there.

    ValueError, in each process that waits, if some do not come within `seconds` or do not fit together."""
    host, port = here.coordinator.rsplit(":", 1)
    until = time.monotonic() + seconds
    if here.process:
        return _visited(here, (host.strip("[]"), int(port) - 1), seconds, until)
    links: dict[int, Link] = {}
    with _server(here, int(port) - 1) as server:
        try:
            names = _awaited(here, server, links, seconds, until)
        except ValueError as error:
            for link in links.values():
                link.send(trouble=str(error), proof=here.proof(0))
                link.close()
            raise
    for link in links.values():
        link.send(names=names, proof=here.proof(0))
    return names, links


def _server(here: Place, port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), backlog=here.processes + 2 * STRANGERS, family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port), backlog=here.processes + 2 * STRANGERS)
    except OSError as error:
        raise ValueError(
            f"process 0 cannot listen on port {port}, below that of --coordinator={here.coordinator}: {error.strerror}; give another port"
        ) from error


class _Handshakes:
    """Process 0's port while the others come: connections whose first line is not whole yet, all at once, and none for long."""

    def __init__(self, server: socket.socket, most: int):
        self._server, self._most = server, most
        self._waiting: dict[socket.socket, tuple[float, bytearray]] = {}  # when it came, and what it has said; the oldest first
        self._selector = selectors.DefaultSelector()
        server.setblocking(False)
        self._selector.register(server, selectors.EVENT_READ)

    def first_lines(self, until: float) -> Iterator[tuple[socket.socket, bytes]]:
        """Each connection with its first line, as they come, up to the time `until`."""
        while (left := until - time.monotonic()) > 0:
            for key, _ in self._selector.select(min(left, 1.0)):
                if key.fileobj is self._server:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket) and (line := self._read(key.fileobj)) is not None:
                    self._unregister(key.fileobj)
                    yield key.fileobj, line
            late = [connection for connection, (came, _) in self._waiting.items() if came + PATIENCE < time.monotonic()]
            for connection in late:
                self._drop(connection)

    def close(self) -> None:
        for connection in list(self._waiting):
            self._drop(connection)
        self._selector.close()

    def _accept(self) -> None:
        if len(self._waiting) >= self._most:
            self._drop(next(iter(self._waiting)))
        try:
            connection = self._server.accept()[0]
        except OSError:  # it has gone again; or this process may open no more files
            if self._waiting:
                self._drop(next(iter(self._waiting)))
            time.sleep(0.01)
            return
        connection.setblocking(False)
        self._waiting[connection] = time.monotonic(), bytearray()
        self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, connection: socket.socket) -> bytes | None:
        """Its first line, once whole and as long as nothing follows; else None: it goes on waiting, or is dropped."""
        if connection not in self._waiting:  # dropped since the selector named it
            return None
        buffer = self._waiting[connection][1]
        try:
            part = connection.recv(HELLO)
        except OSError:
            part = b""
        buffer += part
        if part and len(buffer) <= HELLO and b"\n" not in buffer:
            return None
        if part and buffer.find(b"\n") == len(buffer) - 1:
            return bytes(buffer)
        self._drop(connection)
        return None

    def _drop(self, connection: socket.socket) -> None:
        self._unregister(connection)
        connection.close()

    def _unregister(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._waiting[connection]


def _awaited(here: Place, server: socket.socket, links: dict[int, Link], seconds: float, until: float) -> list[str]:
    """Process 0's part: the hosts of all, when all have come; each one's link goes into `links`."""
    names = {0: socket.gethostname()}
    with contextlib.closing(_Handshakes(server, here.processes + STRANGERS)) as handshakes:
        for connection, line in handshakes.first_lines(until):
            hello = _parse_hello(here, line)
            if hello is None:
                connection.close()
                continue
            process, processes, host = hello
            known = process in names
            connection.setblocking(True)
            links[-1 if known else process] = Link(connection)  # to be told, too
            names[process] = host
            if known or processes != here.processes:
                raise ValueError(
                    f"process {process} of {processes}, on {host}, does not fit process 0, which expects {here.processes} processes, each "
                    f"once; correct --processes or --process"
                )
            if len(names) == here.processes:
                return [names[process] for process in range(here.processes)]
    missing = list(itertools.islice((str(process) for process in range(here.processes) if process not in names), 9))
    raise ValueError(
        f"of {here.processes} processes {', '.join(missing[:8])}{', ...' if len(missing) > 8 else ''} did not come to process 0 within "
        f"{seconds:g} s; start them with the same --coordinator (and {NONCE}, if it is set), or wait longer with --join_seconds"
    )


def _parse_hello(here: Place, line: bytes) -> tuple[int, int, str] | None:
    """(process, processes, host) as a process of this run says them of itself; None for a stranger's line."""
    with contextlib.suppress(ValueError):
        match parse.json_value(line, "a greeting"):
            case {"process": int(process), "processes": int(processes), "host": str(host), "proof": str(proof), **more} if not more:
                fits = 0 <= process < MAX_PROCESSES and 0 <= processes <= MAX_PROCESSES and bool not in (type(process), type(processes))
                if fits and _equal(proof, here.proof(process)):
                    return process, processes, parse.line(host, 100)
    return None


def _visited(here: Place, address: tuple[str, int], seconds: float, until: float) -> tuple[list[str], dict[int, Link]]:
    """The others' part: go to process 0, and wait there until all have come."""
    there, first_refusal = f"process 0 at {address[0]}, port {address[1]},", None
    while True:
        try:
            link = Link(socket.create_connection(address, max(0.001, until - time.monotonic())))
        except OSError as error:
            why = error.strerror or str(error)
        else:
            link.send(process=here.process, processes=here.processes, host=socket.gethostname(), proof=here.proof(here.process))
            # Process 0 may have begun to wait a little later than this one, and says who is missing.
            answer = link.receive(until + PATIENCE - time.monotonic(), HELLO + 512 * here.processes)
            try:
                if answer is not None:
                    return _parse_answer(here, answer, there), {0: link}
            except ValueError:
                link.close()
                raise
            link.close()
            first_refusal, why = first_refusal or time.monotonic(), "it closed the connection"
        now = time.monotonic()
        if first_refusal is not None and now > min(until, first_refusal + RETRY):
            raise ValueError(
                f"{there} ended while the processes gathered: its own output says why; or it is another run's, and {NONCE} is not the same "
                f"there; or not all came within {seconds:g} s"
            )
        if now > until:
            raise ValueError(
                f"process {here.process} did not reach {there} within {seconds:g} s ({why}); is it running, and are this port and "
                f"{address[1] + 1} open? --join_seconds waits longer"
            )
        time.sleep(0.2)


def _parse_answer(here: Place, answer: dict, there: str) -> list[str]:
    """The hosts of all, from process 0's answer. ValueError with the trouble that it tells, or if it is not process 0 who answers."""
    match answer:
        case {"proof": str(proof), "names": list(names)} if _equal(proof, here.proof(0)) and len(names) == here.processes:
            return [parse.line(str(name), 100) for name in names]
        case {"proof": str(proof), "trouble": str(trouble)} if _equal(proof, here.proof(0)):
            raise ValueError(trouble)
    raise ValueError(f"what answers as {there} is not process 0 of this run; is --coordinator right, and {NONCE} the same everywhere?")


def _equal(proof: str, expected: str) -> bool:
    return hmac.compare_digest(proof.encode("utf-8", "replace"), expected.encode())
