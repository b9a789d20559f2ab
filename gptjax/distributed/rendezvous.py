"""Rendezvous: the processes of a run connect to process 0, and each proves that it is one of them.

They meet before jax.distributed starts, on the port below the coordinator's, because jax's service
ends a late process with a C++ trace. Messages are lines of JSON. The connections stay open for the
whole run: a closed connection means a dead process.

The port is open to anyone who can reach it. A first line that is not a greeting of this run, is
longer than MAX_HELLO_BYTES or takes longer than HELLO_TIMEOUT is dropped without a reply; any
number of such strangers cost neither time nor memory, and the config is never sent to one. A
launcher gives all processes one secret in the environment (cluster.NONCE_ENV), and each proves that
it knows it. Without the secret, anyone who knows the protocol can pose as a process, as at jax's
own coordinator, which has no authentication: keep both ports within the cluster.
"""

import contextlib
import hmac
import itertools
import selectors
import socket
import time
from collections.abc import Iterator

from gptjax.config import parse
from gptjax.distributed import cluster
from gptjax.distributed.connection import Connection

MAX_HELLO_BYTES = 2**16  # the longest first line, from a peer that is not identified yet
# Unidentified connections that may be open in addition to the processes' own; beyond that the
# oldest is closed.
MAX_UNKNOWN_PEERS = 64
HELLO_TIMEOUT = 10.0  # seconds for a first message, after which a silent peer is dropped
# Seconds during which a peer that process 0 dropped retries: it may have been taken for one of
# many strangers.
RETRY_SECONDS = 2.0


def connect(
    process_info: cluster.ProcessInfo, seconds: float
) -> tuple[list[str], dict[int, Connection]]:
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


def _listen(process_info: cluster.ProcessInfo, port: int) -> socket.socket:
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
    process_info: cluster.ProcessInfo,
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
        f"process 0 within {seconds:g} s; start them with the same --coordinator (and "
        f"{cluster.NONCE_ENV}, if it is set), or wait longer with --initialization_timeout"
    )


def _parse_hello(process_info: cluster.ProcessInfo, line: bytes) -> tuple[int, int, str] | None:
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
                    0 <= process < cluster.MAX_PROCESSES
                    and 0 <= processes <= cluster.MAX_PROCESSES
                    and bool not in (type(process), type(processes))
                )
                if fits and _equal(proof, process_info.proof(process)):
                    return process, processes, parse.one_line(host, 100)
    return None


def _connect_to_zero(
    process_info: cluster.ProcessInfo, address: tuple[str, int], seconds: float, deadline: float
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
                f"run and its {cluster.NONCE_ENV} differs; or not all arrived within {seconds:g} s"
            )
        if now > deadline:
            raise ValueError(
                f"process {process_info.process_id} did not reach {peer} within {seconds:g} s "
                f"({reason}); is it running, and are this port "
                f"and {address[1] + 1} open? --initialization_timeout waits longer"
            )
        time.sleep(0.2)


def _parse_answer(process_info: cluster.ProcessInfo, reply: dict, peer: str) -> list[str]:
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
        f"and {cluster.NONCE_ENV} the same everywhere?"
    )


def _equal(proof: str, expected: str) -> bool:
    return hmac.compare_digest(proof.encode("utf-8", "replace"), expected.encode())
