"""One line of JSON for each request, without prompt or answer; prompts only where wanted."""

import asyncio
import dataclasses
import json
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptjax.server.api_keys import ApiKey
from gptjax.server.metrics import Metrics
from gptjax.server.openai_errors import shutting_down

CLIENT_GONE = 499  # nginx's status for a client that closed the connection before the answer


@dataclasses.dataclass
class RequestRecord:
    """What becomes known of a request while it is answered. start: time.monotonic(). route: of the
    table of routes. status: of HTTP. user: of the chat page. body_bytes: read of its body. prompts:
    to be logged. id: OpenAI's x-request-id."""

    start: float
    route: str = "other"
    status: int = CLIENT_GONE
    key: ApiKey | None = None
    user: str | None = None
    body_bytes: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    first_token_s: float | None = None
    prompts: list[str] | None = None
    id: str = dataclasses.field(default_factory=lambda: f"req_{uuid.uuid4().hex}")

    def count(self, n_new: int) -> None:
        """Counts new tokens, also against the key's limit."""
        self.new_tokens += n_new
        if self.key is not None:
            self.key.take("tokens", n_new)


@dataclasses.dataclass
class Load:
    """What a server is at. n_active: requests that are being answered. body_bytes: of their bodies.
    is_draining: no new ones are taken."""

    n_active: int = 0
    body_bytes: int = 0
    is_draining: bool = False


class AccessLog:
    """ASGI middleware: counts and logs every request, and keeps a RequestRecord of it in
    request.state.record and the Load in request.state.load. write: takes a line."""

    def __init__(self, app: ASGIApp, *, write: Callable[[str], None], metrics: Metrics, load: Load):
        self._app, self._write, self._metrics, self._load = app, write, metrics, load

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        record = RequestRecord(time.monotonic())
        scope.setdefault("state", {}).update(record=record, load=self._load)

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = record.id
            await send(message)

        self._load.n_active += 1
        try:
            await self._app(scope, receive, send_and_note)
        except asyncio.CancelledError:  # the server ends, and has waited for as long as it may
            if record.status == CLIENT_GONE:  # nothing was sent
                await shutting_down().response()(scope, receive, send_and_note)
        except Exception:
            record.status = 500
            raise
        finally:
            self._load.n_active -= 1
            self._load.body_bytes -= record.body_bytes
            seconds = time.monotonic() - record.start
            self._metrics.requests.labels(record.route, str(record.status)).inc()
            self._metrics.request_seconds.labels(record.route).observe(seconds)
            self._write(format_line(scope, record, seconds))


def format_line(scope: Scope, record: RequestRecord, seconds: float) -> str:
    """The line of a request. The query of its URL, in which clients put what is secret, is left
    out."""
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "id": record.id,
        "client": scope["client"][0] if scope.get("client") else None,
        "key": record.key.name if record.key else None,
        "method": scope["method"],
        "path": scope["path"][:200],
        "status": record.status,
        "seconds": round(seconds, 4),
        "first_token_seconds": record.first_token_s and round(record.first_token_s, 4),
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.new_tokens,
    }
    if record.user is not None:
        line["user"] = record.user
    return json.dumps(line | ({"prompts": record.prompts} if record.prompts is not None else {}))
