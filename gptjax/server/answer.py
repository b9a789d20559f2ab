"""How generations become a response: one JSON object, or server-sent events as they run."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from gptjax.server import openai_types, work
from gptjax.server.access_log import CLIENT_GONE
from gptjax.server.generation import GenerationRequest, Piece
from gptjax.server.generation_stream import GenerationStream
from gptjax.server.openai_errors import ApiError, server_error, shutting_down

SEND_S = 5.0  # seconds that the last of a stream may take to be sent
DONE = b"data: [DONE]\n\n"
T = TypeVar("T")


class Format(Protocol):
    """The form of the answers of a route. requests: of its choices, in order. n_prompt: tokens of
    its prompts. head: id, created and the like, of every object. kind, event_kind: OpenAI's
    `object` of the whole answer and of an event."""

    requests: list[GenerationRequest]
    n_prompt: int
    head: dict[str, Any]
    kind: str
    event_kind: str

    def text_before(self, number: int) -> str:
        """What a choice continues, in whose light its text is filtered."""
        ...

    def choice(self, number: int, piece: Piece) -> dict[str, Any]:
        """A whole choice. piece: all that has come of it."""
        ...

    def event(self, number: int, piece: Piece) -> dict[str, Any]:
        """A choice of an event, of the next piece of it."""
        ...


async def respond(
    request: Request, body: openai_types.SamplingRequest, form: Format, stream: GenerationStream
) -> Response:
    """Submits the generations and answers. Whatever becomes of the answer, none runs on after it:
    also if the client goes away."""
    try:
        await until_disconnect(request, stream.submit())
        if body.stream:
            return EventStream(events(form, stream, body.stream_options), stream)
        whole = await until_disconnect(request, _collect(form, stream))
    except BaseException:
        stream.cancel()
        raise
    return json_response(whole)


def json_response(value: Any) -> Response:
    """JSON in ASCII, in which any text may stand, also half of a surrogate pair."""
    return Response(json.dumps(value), media_type="application/json")


async def until_disconnect(request: Request, awaitable: Awaitable[T]) -> T:
    """Returns what an awaitable does; if the client goes away first it is canceled, and
    ClientDisconnect raised. The body must have been read."""
    task = asyncio.ensure_future(awaitable)
    watcher = asyncio.ensure_future(work.wait_for_disconnect(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        watcher.cancel()
        task.cancel()


async def _collect(form: Format, stream: GenerationStream) -> dict[str, Any]:
    """The whole answer."""
    parts: list[list[Piece]] = [[] for _ in form.requests]
    async for number, piece in stream.pieces():
        parts[number].append(piece)
    wholes = [_join(pieces) for pieces in parts]
    choices = [form.choice(number, piece) for number, piece in enumerate(wholes)]
    usage = _usage(form.n_prompt, sum(piece.n_tokens for piece in wholes))
    return {**form.head, "object": form.kind, "choices": choices, "usage": usage}


def _join(pieces: list[Piece]) -> Piece:
    return Piece(
        "".join(piece.text for piece in pieces),
        tuple(score for piece in pieces for score in piece.scores),
        sum(piece.n_tokens for piece in pieces),
        pieces[-1].finish_reason,
    )


def _usage(n_prompt: int, n_new: int) -> dict[str, int]:
    return {"prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new}


# --- server-sent events ---------------------------------------------------------------------------


class EventStream(StreamingResponse):
    """A stream whose generations end with it, however it ends: read to its end, left by the
    client, or never begun."""

    def __init__(self, events: AsyncIterator[bytes], stream: GenerationStream):
        # X-Accel-Buffering: nginx would keep what is sent for itself.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout_at(self._stream.deadline + SEND_S):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            pass  # the client does not read; the connection is closed, the answer being incomplete
        except asyncio.CancelledError:  # the server ends, and has waited for as long as it may
            if scope["state"]["record"].status == CLIENT_GONE:
                raise  # nothing was sent: AccessLog answers
            last = event(shutting_down().body())
            await send({"type": "http.response.body", "body": last, "more_body": False})
        finally:
            self._stream.cancel()


class Pieces(Protocol):
    """Yields pieces as a GenerationStream does."""

    def pieces(self) -> AsyncIterator[tuple[int, Piece]]: ...


async def events(
    form: Format, stream: Pieces, options: openai_types.StreamOptions | None
) -> AsyncIterator[bytes]:
    """Yields the events of a stream, up to the one that says that it is done."""
    options = options or openai_types.StreamOptions()
    head, n_new = {**form.head, "object": form.event_kind}, 0
    try:
        async for number, piece in stream.pieces():
            n_new += piece.n_tokens
            chunk = {**head, "choices": [form.event(number, piece)]}
            if options.continuous_usage_stats:
                chunk["usage"] = _usage(form.n_prompt, n_new)
            elif options.include_usage:
                chunk["usage"] = None
            yield event(chunk)
        if options.include_usage:
            yield event({**head, "choices": [], "usage": _usage(form.n_prompt, n_new)})
        yield DONE
    except ApiError as error:
        yield event(error.body())
    except Exception:
        yield event(server_error().body())
        raise  # into the log


def event(value: dict[str, Any]) -> bytes:
    """One of server-sent events."""
    return b"data: %b\n\n" % json.dumps(value).encode()
