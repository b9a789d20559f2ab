"""How the processes of a run find each other: by flags or by what jax detects, and then over connections to process 0.

They meet before jax.distributed starts, on the port below the coordinator's: its service ends a process with a trace of C++ when another is
late. Messages are lines of JSON. The connections stay open as long as the run lasts: one that closes is a process that died.
"""

import contextlib
import dataclasses
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from gptjax.config import command

KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}  # seconds, and probes: a host without power is noticed after 30 s
PATIENCE = 10.0  # seconds for a first message: whoever connects and says nothing is not one of us


@dataclasses.dataclass(frozen=True)
class Place:
    """One process's place among all, as jax.distributed.initialize is told it. coordinator: HOST:PORT of process 0."""

    coordinator: str
    processes: int
    process: int
    local_device_ids: list[int] | None = None


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
    if not host or not port.isdecimal() or not 2 <= int(port) < 65536:
        raise ValueError(f"--coordinator={coordinator}: give HOST:PORT of process 0; the port below is used too")
    if not 0 <= process < processes:
        raise ValueError(f"--process={process}: with --processes={processes} give one from 0 to {processes - 1}")
    return Place(coordinator, processes, process, ids)


def _detected(coordinator: str | None, processes: int | None, process: int | None, seconds: float) -> tuple:
    """The three, what is None taken from the cluster that jax finds here, and the devices that are this process's own."""
    if "KUBERNETES_SERVICE_HOST" in os.environ and not {"JOB_COMPLETION_INDEX", "TPU_WORKER_HOSTNAMES"} & {*os.environ}:
        return coordinator, processes, process, None  # a pod by itself, of which jax would demand that it be one of an indexed job
    from jax._src import clusters  # jax.distributed.initialize asks it too, but fails where there is no cluster

    try:
        return clusters.ClusterEnv.auto_detect_unset_distributed_params(coordinator, processes, process, None, None, max(1, int(seconds)))
    except RuntimeError as error:
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
        self._connection, self._lines, self._sending = connection, connection.makefile("rb"), threading.Lock()
        self.values: queue.Queue[Any] = queue.Queue()

    def send(self, **message) -> None:
        """Does nothing if the other process is gone: `follow` says so."""
        with self._sending, contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float | None) -> dict | None:
        """The next message, or None if none comes, the connection closes or something else is said."""
        try:
            self._connection.settimeout(seconds)
            message = json.loads(self._lines.readline() or b"null")
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        self._lines.close()
        self._connection.close()

    def part(self) -> None:
        """After goodbyes: nothing more is said or read."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def follow(self, ended: Callable[[int, str], None], gone: Callable[[], None]) -> None:
        """Read on in a thread: values into `values`; ended(status, line) when the other process says that all must end, gone() when it
        closes before it has said goodbye."""

        def read() -> None:
            goodbye = False
            while message := self.receive(None):
                if "end" in message:
                    ended(message["status"], message["end"])
                goodbye = message["goodbye"]
                self.values.put(message["value"])
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
                link.send(trouble=str(error))
                link.close()
            raise
    for link in links.values():
        link.send(names=names)
    return names, links


def _server(here: Place, port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), backlog=here.processes, family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port), backlog=here.processes)
    except OSError as error:
        raise ValueError(
            f"process 0 cannot listen on port {port}, below that of --coordinator={here.coordinator}: {error.strerror}; give another port"
        ) from error


def _awaited(here: Place, server: socket.socket, links: dict[int, Link], seconds: float, until: float) -> list[str]:
    """Process 0's part: the hosts of all, when all have come; each one's link goes into `links`."""
    names = {0: socket.gethostname()}
    while len(names) < here.processes:
        server.settimeout(max(0.001, until - time.monotonic()))
        try:
            link = Link(server.accept()[0])
        except TimeoutError:
            missing = [str(process) for process in range(here.processes) if process not in names]
            raise ValueError(
                f"of {here.processes} processes {', '.join(missing[:8])}{', ...' if len(missing) > 8 else ''} did not come to process 0 "
                f"within {seconds:g} s; start them with the same --coordinator, or wait longer with --join_seconds"
            ) from None
        hello = link.receive(PATIENCE)
        if hello is None or hello.keys() != {"process", "processes", "host"}:
            link.close()  # something that scans ports
            continue
        process = hello["process"]
        known = process in names
        links[-1 if known else process] = link  # to be told, too
        names[process] = hello["host"]
        if known or hello["processes"] != here.processes:
            raise ValueError(
                f"process {process} of {hello['processes']}, on {hello['host']}, does not fit process 0, which expects {here.processes} "
                f"processes, each once; correct --processes or --process"
            )
    return [names[process] for process in range(here.processes)]


def _visited(here: Place, address: tuple[str, int], seconds: float, until: float) -> tuple[list[str], dict[int, Link]]:
    """The others' part: go to process 0, and wait there until all have come."""
    while True:
        try:
            link = Link(socket.create_connection(address, max(0.001, until - time.monotonic())))
            break
        except OSError as error:
            if time.monotonic() > until:
                raise ValueError(
                    f"process {here.process} did not reach process 0 at {address[0]}, port {address[1]}, within {seconds:g} s "
                    f"({error.strerror or error}); is it running, and are this port and {address[1] + 1} open? --join_seconds waits longer"
                ) from None
            time.sleep(0.2)
    link.send(process=here.process, processes=here.processes, host=socket.gethostname())
    answer = link.receive(seconds + PATIENCE)  # process 0 may have begun to wait later than this one
    if answer is not None and "names" in answer:
        return answer["names"], {0: link}
    link.close()
    silent = f"process 0 at {address[0]} ended while the processes gathered; its own output says why"
    raise ValueError(silent if answer is None else answer["trouble"])
