"""Messages between two processes of a run: lines of JSON over a TCP connection."""

import contextlib
import json
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from gptjax.config import parse

MAX_LINE_BYTES = 2**26  # of a message
# Seconds and number of probes: a host that loses power is noticed after 30 s.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
SEND_SECONDS = 30  # after which a process that reads nothing counts as gone


class Connection:
    """A TCP connection to another process of the run; a message is an object on a line of JSON."""

    def __init__(self, sock: socket.socket):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):  # not on every system
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_SECONDS, 0))
        self._socket, self._buffer, self._send_lock = sock, bytearray(), threading.Lock()
        self.values: queue.Queue[Any] = queue.Queue()

    def send(self, **message) -> None:
        """Sends a message. Nothing is raised if the other process is gone or has read nothing for
        SEND_SECONDS; the reader thread of `start_reader` then reports it as lost."""
        with self._send_lock:
            try:
                self._socket.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                self.shutdown()

    def receive(self, seconds: float | None, max_bytes: int = MAX_LINE_BYTES) -> dict | None:
        """Returns the next message; None if none arrives within `seconds`, the connection
        closes, or the line is no JSON object or longer than max_bytes."""
        deadline, begin = None if seconds is None else time.monotonic() + seconds, 0
        try:
            while (end := self._buffer.find(b"\n", begin)) < 0:
                begin = len(self._buffer)
                if begin > max_bytes:
                    return None
                self._socket.settimeout(
                    None if deadline is None else max(0.001, deadline - time.monotonic())
                )
                if not (part := self._socket.recv(2**16)):
                    return None
                self._buffer += part
            message = parse.json_object(bytes(self._buffer[:end]), "a message")
        except (OSError, ValueError):
            return None
        del self._buffer[: end + 1]
        return message

    def close(self) -> None:
        self._socket.close()

    def shutdown(self) -> None:
        """Ends the connection in both directions, which wakes a thread that reads from it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def start_reader(self, on_end: Callable[[int, str], None], on_lost: Callable[[], None]) -> None:
        """Reads messages in a thread: values go to the queue `values`. on_end(status, line) is
        called when the other process ends the run, on_lost() when the connection closes without
        a goodbye."""

        def read() -> None:
            goodbye = False
            while message := self.receive(None):
                match message:
                    case {"end": str(line), "status": int(status)}:
                        on_end(status, line)
                    case {"value": value, "goodbye": bool(goodbye)}:
                        self.values.put(value)
                    case _:
                        break
            if not goodbye:
                on_lost()
            self.close()

        threading.Thread(target=read, daemon=True, name="link").start()
