"""The HTTP server: uvicorn, with limits for headers and connections, and an end that waits for the
answers that run."""

import asyncio
import socket
import sys
import time
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http import h11_impl

from gptjax.server.access_log import Load
from gptjax.server.openai_errors import ApiError

MAX_HEADER_BYTES = 32 << 10
HEADER_S = 20.0  # seconds in which a connection must have sent the headers of its first request
KEEP_ALIVE_S = 30  # seconds that a connection may be idle between requests
LINGER_S = 20.0  # seconds for which the rest of a body is read that was refused before its end
PEER_S = 60  # seconds for which the other end may be silent where it has to answer
CANCEL_S = 1  # seconds more that answers have before they are canceled


class H11Protocol(h11_impl.H11Protocol):
    """Closes a connection that does not send its headers, or goes on with a body long after the
    answer; answers what is no HTTP in OpenAI's form."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _end_when_peer_is_gone(transport.get_extra_info("socket"))
        self.loop.call_later(HEADER_S, self._check_request)

    def _check_request(self) -> None:
        if self.cycle is None:
            self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # A client that writes on would not read the answer if the connection were closed at once.
        if self.conn.their_state is h11.SEND_BODY:
            self.loop.call_later(LINGER_S, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        response = ApiError(400, "this is not a valid HTTP request, or its headers are too long")
        content = bytes(response.response().body)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            (b"connection", b"close"),
        ]
        events: list[Any] = [
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=content),
            h11.EndOfMessage(),
        ]
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _end_when_peer_is_gone(connection: socket.socket) -> None:
    """Lets the kernel end a connection whose other end has vanished without a word, or takes no
    data, after PEER_S seconds."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PEER_S // 2)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PEER_S // 6)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PEER_S * 1000)


class Server(uvicorn.Server):
    """Serves until SIGTERM or Ctrl-C, then drains: new requests get 503 while those that run have
    drain_s seconds to end. A second signal ends them at once."""

    def __init__(self, app: ASGIApp, load: Load, host: str, port: int, drain_s: float = 60.0):
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=H11Protocol,
                ws="none",
                lifespan="off",
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,  # anyone could name another client's address
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=CANCEL_S,
            )
        )
        self._load, self._drain_s = load, drain_s
        self._deadline = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None = None) -> None:
        """Begins to drain; called by a signal's handler. uvicorn would raise the signal again after
        the end, which is an orderly one."""
        if self._load.is_draining:
            self._deadline = 0.0
        else:
            self._load.is_draining = True
            self._deadline = time.monotonic() + self._drain_s

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop; uvicorn asks ten times a second."""
        await super().on_tick(counter)
        is_over = self._load.n_active == 0 or time.monotonic() > self._deadline
        return self.should_exit or self._load.is_draining and is_over
