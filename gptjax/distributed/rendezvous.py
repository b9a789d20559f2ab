"""Rendezvous: the processes of a run find each other by flags or by what jax detects, and connect
to process 0.

They meet before jax.distributed starts, on the port below the coordinator's, because jax's service
ends a late process with a C++ trace. Messages are lines of JSON. The connections stay open for the
whole run: a closed connection means a dead process.

The port is open to anyone who can reach it. A first line that is not a greeting of this run, is
longer than MAX_HELLO_BYTES or takes longer than HELLO_TIMEOUT is dropped without a reply; any
number of such strangers cost neither time nor memory, and the config is never sent to one. A
launcher gives all processes one secret in the environment (NONCE_ENV), and each proves that it
knows it. Without the secret, anyone who knows the protocol can pose as a process, as at jax's own
coordinator, which has no authentication: keep both ports within the cluster.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import hmac
import itertools
import os
import re
import selectors
import socket
import time
from collections.abc import Iterator

from gptjax.config import parse
from gptjax.distributed.connection import Connection
from gptjax.runtime import errors

NONCE_ENV = "GPTJAX_NONCE"
MAX_HELLO_BYTES = 2**16  # the longest first line, from a peer that is not identified yet
# Unidentified connections that may be open in addition to the processes' own; beyond that the
# oldest is closed.
MAX_UNKNOWN_PEERS = 64
MAX_PROCESSES = 100_000
HOST_PATTERN = (
    r"(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}|\[?[0-9A-Fa-f.]*:[0-9A-Fa-f:.]{1,44}\]?"
)
HELLO_TIMEOUT = 10.0  # seconds for a first message, after which a silent peer is dropped
# Seconds during which a peer that process 0 dropped retries: it may have been taken for one of
# many strangers.
RETRY_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """One process's place among all, as for jax.distributed.initialize. coordinator: HOST:PORT of
    process 0. nonce: a secret that only the processes of the run know.
    """

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: list[int] | None = None
    nonce: str = ""

    def proof(self, process_id: int) -> str:
        """HMAC by which the process with this id proves that it knows the nonce."""
        return hmac.new(
            self.nonce.encode("utf-8", "replace"),
            f"gptjax {process_id} of a run".encode(),
            hashlib.sha256,
        ).hexdigest()


def add_distributed_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a program that may run on multiple hosts; `detect` interprets them."""
    group = parser.add_argument_group(
        "many hosts", "Found by itself on TPU pods, GKE and Slurm; elsewhere each process is told."
    )
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="where process 0 listens, on this port and the one below",
    )
    group.add_argument(
        "--num_processes",
        metavar="N",
        type=parse.int_argument(1, MAX_PROCESSES),
        help="how many there are; 1 asks no cluster",
    )
    group.add_argument(
        "--process_id",
        metavar="I",
        type=parse.int_argument(0, MAX_PROCESSES - 1),
        help="which one this is, from 0",
    )
    seconds = parse.float_argument(0, 1e7, above=True)
    group.add_argument(
        "--initialization_timeout",
        metavar="S",
        type=seconds,
        default=300.0,
        help="how long they wait for each other (default: 300)",
    )


def detect(
    coordinator: str | None, num_processes: int | None, process_id: int | None, seconds: float
) -> ProcessInfo | None:
    """Returns this process's place: from the flags or else from what jax detects (TPU pods, GKE,
    Slurm, Open MPI, Kubernetes jobs). None: a single process.

    Raises ValueError if only part of it is given, or if the coordinator's name cannot be resolved
    within `seconds`.
    """
    if num_processes == 1:
        return None
    coordinator, ids = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"), None
    if None in (coordinator, num_processes, process_id):
        coordinator, num_processes, process_id, ids = _detect_cluster(
            coordinator, num_processes, process_id, seconds
        )
    if num_processes == 1 or (coordinator, num_processes, process_id) == (None, None, None):
        return None
    if coordinator is None or num_processes is None or process_id is None:
        flags = [
            f"--{name}={value}"
            for name, value in zip(
                ("coordinator", "num_processes", "process_id"),
                (coordinator, num_processes, process_id),
                strict=True,
            )
            if value is not None
        ]
        raise ValueError(
            f"{' '.join(flags)}: give --coordinator, --num_processes and --process_id, or none of "
            "them on "
            "a TPU pod, GKE or Slurm"
        )
    host, _, port = coordinator.rpartition(":")
    if (
        not re.fullmatch(HOST_PATTERN, host)
        or not re.fullmatch("[0-9]{1,5}", port)
        or not 2 <= int(port) < 65536
    ):
        raise ValueError(
            f"--coordinator={parse.one_line(coordinator, 100)}: give HOST:PORT of process 0; the "
            "port below is used too"
        )
    if not 0 <= process_id < num_processes <= MAX_PROCESSES:
        raise ValueError(
            f"--process_id={process_id}: with --num_processes={num_processes} give one from 0 to "
            f"{min(num_processes, MAX_PROCESSES) - 1}"
        )
    return ProcessInfo(
        coordinator,
        num_processes,
        process_id,
        ids,
        os.environ[NONCE_ENV] if NONCE_ENV in os.environ else "",
    )


def _detect_cluster(
    coordinator: str | None, num_processes: int | None, process_id: int | None, seconds: float
) -> tuple:
    """Returns (coordinator, num_processes, process_id, local device ids), each None filled in from
    the cluster that jax detects.
    """
    if "KUBERNETES_SERVICE_HOST" in os.environ and not {
        "JOB_COMPLETION_INDEX",
        "TPU_WORKER_HOSTNAMES",
    } & {*os.environ}:
        # A standalone pod: jax would fail, since it expects one of an indexed job.
        return coordinator, num_processes, process_id, None
    # jax.distributed.initialize uses it too, but fails if there is no cluster.
    from jax._src import clusters

    try:
        return clusters.ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, num_processes, process_id, None, None, max(1, int(seconds))
        )
    # Malformed environment variables raise any of these.
    except (RuntimeError, ValueError, LookupError, TypeError, OSError) as error:
        raise ValueError(
            f"jax found a cluster here but not its processes ({errors.first_line(error)}); give "
            "--coordinator, --num_processes and --process_id"
        ) from error


def connect(process_info: ProcessInfo, seconds: float) -> tuple[list[str], dict[int, Connection]]:
    """Connects all processes and returns (the host of each, connections): process 0's connections
    to all others, or the others' one to process 0.

    Raises ValueError, in each waiting process, if some do not arrive within `seconds` or do not fit
    together.
    """
    host, port = process_info.coordinator.rsplit(":", 1)
    deadline = time.monotonic() + seconds
    if process_info.process_id:
        return _connect_to_zero(process_info, (host.strip("[]"), int(port) - 1), seconds, deadline)
    connections: dict[int, Connection] = {}
    with _listen(process_info, int(port) - 1) as server:
        try:
            names = _wait_for_peers(process_info, server, connections, seconds, deadline)
        except ValueError as error:
            for connection in connections.values():
                connection.send(error=str(error), proof=process_info.proof(0))
                connection.close()
            raise
    for connection in connections.values():
        connection.send(names=names, proof=process_info.proof(0))
    return names, connections


def _listen(process_info: ProcessInfo, port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", port),
                backlog=process_info.num_processes + 2 * MAX_UNKNOWN_PEERS,
                family=socket.AF_INET6,
                dualstack_ipv6=True,
            )
        return socket.create_server(
            ("", port), backlog=process_info.num_processes + 2 * MAX_UNKNOWN_PEERS
        )
    except OSError as error:
        raise ValueError(
            f"process 0 cannot listen on port {port}, below that of "
            f"--coordinator={process_info.coordinator}: {error.strerror}; give "
            "another port"
        ) from error


class _Handshakes:
    """Pending connections at process 0's port: accepts and reads any number of them concurrently,
    each until its first line is complete.
    """

    def __init__(self, server: socket.socket, max_pending: int):
        self._server, self._max_pending = server, max_pending
        # When each arrived and what it has sent, oldest first.
        self._pending: dict[socket.socket, tuple[float, bytearray]] = {}
        self._selector = selectors.DefaultSelector()
        server.setblocking(False)
        self._selector.register(server, selectors.EVENT_READ)

    def first_lines(self, deadline: float) -> Iterator[tuple[socket.socket, bytes]]:
        """Yields each connection with its first line as they arrive, until `deadline`."""
        while (remaining := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(min(remaining, 1.0)):
                if key.fileobj is self._server:
                    self._accept()
                elif (
                    isinstance(key.fileobj, socket.socket)
                    and (line := self._read(key.fileobj)) is not None
                ):
                    self._unregister(key.fileobj)
                    yield key.fileobj, line
            expired = [
                sock
                for sock, (arrival, _) in self._pending.items()
                if arrival + HELLO_TIMEOUT < time.monotonic()
            ]
            for sock in expired:
                self._drop(sock)

    def close(self) -> None:
        for sock in list(self._pending):
            self._drop(sock)
        self._selector.close()

    def _accept(self) -> None:
        if len(self._pending) >= self._max_pending:
            self._drop(next(iter(self._pending)))
        try:
            sock = self._server.accept()[0]
        except OSError:  # the peer has left again, or this process has too many open files
            if self._pending:
                self._drop(next(iter(self._pending)))
            time.sleep(0.01)
            return
        sock.setblocking(False)
        self._pending[sock] = time.monotonic(), bytearray()
        self._selector.register(sock, selectors.EVENT_READ)

    def _read(self, sock: socket.socket) -> bytes | None:
        """Reads from a connection and returns its first line if that is complete and nothing
        follows. Otherwise returns None, and drops the connection if it is malformed.
        """
        if sock not in self._pending:  # dropped after the selector reported it
            return None
        buffer = self._pending[sock][1]
        try:
            part = sock.recv(MAX_HELLO_BYTES)
        except OSError:
            part = b""
        buffer += part
        if part and len(buffer) <= MAX_HELLO_BYTES and b"\n" not in buffer:
            return None
        if part and buffer.find(b"\n") == len(buffer) - 1:
            return bytes(buffer)
        self._drop(sock)
        return None

    def _drop(self, sock: socket.socket) -> None:
        self._unregister(sock)
        sock.close()

    def _unregister(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        del self._pending[sock]


def _wait_for_peers(
    process_info: ProcessInfo,
    server: socket.socket,
    connections: dict[int, Connection],
    seconds: float,
    deadline: float,
) -> list[str]:
    """Accepts the other processes at process 0; returns the hosts of all once they are there. Fills
    `connections`.
    """
    hosts = {0: socket.gethostname()}
    with contextlib.closing(
        _Handshakes(server, process_info.num_processes + MAX_UNKNOWN_PEERS)
    ) as handshakes:
        for sock, line in handshakes.first_lines(deadline):
            greeting = _parse_hello(process_info, line)
            if greeting is None:
                sock.close()
                continue
            process_id, num_processes, host = greeting
            is_duplicate = process_id in hosts
            sock.setblocking(True)
            connections[-1 if is_duplicate else process_id] = Connection(sock)  # it gets the error
            hosts[process_id] = host
            if is_duplicate or num_processes != process_info.num_processes:
                raise ValueError(
                    f"process {process_id} of {num_processes}, on {host}, does not fit process 0, "
                    "which expects "
                    f"{process_info.num_processes} processes, each once; correct --num_processes "
                    "or "
                    "--process_id"
                )
            if len(hosts) == process_info.num_processes:
                return [hosts[process_id] for process_id in range(process_info.num_processes)]
    missing = list(
        itertools.islice(
            (
                str(process_id)
                for process_id in range(process_info.num_processes)
                if process_id not in hosts
            ),
            9,
        )
    )
    raise ValueError(
        f"of {process_info.num_processes} processes "
        f"{', '.join(missing[:8])}{', ...' if len(missing) > 8 else ''} did not connect to "
        f"process 0 within {seconds:g} s; start them with the same --coordinator (and {NONCE_ENV}, "
        "if it is set), or wait longer with --initialization_timeout"
    )


def _parse_hello(process_info: ProcessInfo, line: bytes) -> tuple[int, int, str] | None:
    """Parses a greeting into (process id, number of processes, host); None unless it proves to be
    of this run.
    """
    with contextlib.suppress(ValueError):
        match parse.json_value(line, "a greeting"):
            case {
                "process": int(process),
                "processes": int(processes),
                "host": str(host),
                "proof": str(proof),
                **more,
            } if not more:
                fits = (
                    0 <= process < MAX_PROCESSES
                    and 0 <= processes <= MAX_PROCESSES
                    and bool not in (type(process), type(processes))
                )
                if fits and _equal(proof, process_info.proof(process)):
                    return process, processes, parse.one_line(host, 100)
    return None


def _connect_to_zero(
    process_info: ProcessInfo, address: tuple[str, int], seconds: float, deadline: float
) -> tuple[list[str], dict[int, Connection]]:
    """Connects to process 0 and waits until all processes have arrived."""
    peer, first_refusal = f"process 0 at {address[0]}, port {address[1]},", None
    while True:
        try:
            connection = Connection(
                socket.create_connection(address, max(0.001, deadline - time.monotonic()))
            )
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            connection.send(
                process=process_info.process_id,
                processes=process_info.num_processes,
                host=socket.gethostname(),
                proof=process_info.proof(process_info.process_id),
            )
            # Process 0 may have started its wait a little later than this process, and reports
            # which are missing.
            reply = connection.receive(
                deadline + HELLO_TIMEOUT - time.monotonic(),
                MAX_HELLO_BYTES + 512 * process_info.num_processes,
            )
            try:
                if reply is not None:
                    return _parse_answer(process_info, reply, peer), {0: connection}
            except ValueError:
                connection.close()
                raise
            connection.close()
            first_refusal, reason = first_refusal or time.monotonic(), "it closed the connection"
        now = time.monotonic()
        if first_refusal is not None and now > min(deadline, first_refusal + RETRY_SECONDS):
            raise ValueError(
                f"{peer} ended during the rendezvous: see its own output; or it belongs to another "
                f"run and its {NONCE_ENV} differs; or not all arrived within {seconds:g} s"
            )
        if now > deadline:
            raise ValueError(
                f"process {process_info.process_id} did not reach {peer} within {seconds:g} s "
                f"({reason}); is it running, and are this port "
                f"and {address[1] + 1} open? --initialization_timeout waits longer"
            )
        time.sleep(0.2)


def _parse_answer(process_info: ProcessInfo, reply: dict, peer: str) -> list[str]:
    """Returns the hosts of all processes from process 0's answer. Raises ValueError with the error
    that it reports, or if the answer is not from process 0.
    """
    match reply:
        case {"proof": str(proof), "names": list(names)} if (
            _equal(proof, process_info.proof(0)) and len(names) == process_info.num_processes
        ):
            return [parse.one_line(str(name), 100) for name in names]
        case {"proof": str(proof), "error": str(error)} if _equal(proof, process_info.proof(0)):
            raise ValueError(error)
    raise ValueError(
        f"the program that answers as {peer} is not process 0 of this run; is --coordinator right, "
        f"and {NONCE_ENV} the same everywhere?"
    )


def _equal(proof: str, expected: str) -> bool:
    return hmac.compare_digest(proof.encode("utf-8", "replace"), expected.encode())
