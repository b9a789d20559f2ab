"""Answers of the chat page: a turn -> a stream that is stored as it is written."""

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from gptjax.server import answer, openai_types
from gptjax.server.chat_completions import ChatFormat
from gptjax.server.chat_page import uploads
from gptjax.server.chat_page.conversations import Conversations, Message, Turn
from gptjax.server.chat_page.page_types import AnswerRequest, Settings
from gptjax.server.generation import Piece
from gptjax.server.generation_stream import GenerationStream
from gptjax.server.openai_errors import ApiError, invalid

N_ALTERNATIVES = 5  # for each token, in the token view
SAVE_S = 1.0  # seconds between stores of an answer that is being written


def plan_turn(messages: list[Message], body: AnswerRequest) -> tuple[list[Message], Turn]:
    """Returns the messages that stay, and the turn. Raises ApiError for a message to replace that
    is not there, and for a turn without content."""
    files = [{"name": uploads.clean_name(file.name), "text": file.text} for file in body.files]
    is_empty = not (body.content.strip() or files)
    if body.replaces is None:
        kept, is_again = messages, False
    else:
        kept = [message for message in messages if message.id < body.replaces]
        old = next((message for message in messages if message.id == body.replaces), None)
        if old is None:
            raise ApiError(404, "there is no such message: load the conversation anew", "replaces")
        is_again = old.role == "assistant"
    if is_again and not is_empty:
        raise invalid("replaces is an answer, which is written again: give no content", "content")
    if is_again and not kept:
        raise invalid("there is no message to answer: write one", "replaces")
    if is_empty and not is_again:
        raise invalid("the message is empty: write something, or add a file", "content")
    return kept, Turn(
        replaces=body.replaces, content=None if is_again else body.content, files=files
    )


def make_request(
    kept: list[Message], turn: Turn, settings: Settings, model: str
) -> openai_types.ChatRequest:
    """Returns the request for the answer to a turn, by OpenAI's API."""
    messages = [(m.role, uploads.add_to_prompt(m.files, m.content)) for m in kept]
    if turn.content is not None:
        messages.append(("user", uploads.add_to_prompt(turn.files, turn.content)))
    if settings.system_prompt:
        messages.insert(0, ("system", settings.system_prompt))
    return openai_types.ChatRequest.model_validate(
        {
            "model": model,
            "messages": [{"role": role, "content": content} for role, content in messages],
            "stream": True,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": settings.max_tokens,
            "seed": settings.seed,
            "logprobs": settings.token_view,
            "top_logprobs": N_ALTERNATIVES if settings.token_view else None,
        }
    )


class StoredAnswer:
    """An answer that is being written: the pieces of a stream, which are stored as they pass, at
    the latest after SAVE_S, and all of them before the last piece is yielded."""

    def __init__(
        self,
        stream: GenerationStream,
        form: ChatFormat,
        conversations: Conversations,
        message_id: int,
    ):
        self._stream, self._form = stream, form
        self._conversations, self._message_id = conversations, message_id
        self._texts: list[str] = []
        self._tokens: list[dict[str, Any]] = []
        self._finish_reason: str | None = None
        self._is_stopped = self._is_whole = False
        self._stored_at = time.monotonic()

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Yields (0, piece)."""
        async for number, piece in self._stream.pieces():
            self._texts.append(piece.text)
            logprobs = self._form.choice(number, piece)["logprobs"]
            self._tokens += logprobs["content"] if logprobs else []
            if piece.finish_reason is not None:
                self._finish_reason = "stopped" if self._is_stopped else piece.finish_reason
            if piece.finish_reason is not None or time.monotonic() - self._stored_at > SAVE_S:
                await run_in_threadpool(self._store)
            yield number, piece

    def stop(self) -> None:
        """Ends it where it is; the stream ends in order."""
        self._is_stopped = True
        self._stream.end()

    def close(self) -> None:
        """Stores what there is of an answer that came to no end, or whose end was not stored."""
        if not self._is_whole:
            unfinished = "stopped" if self._is_stopped else "interrupted"
            self._finish_reason = self._finish_reason or unfinished
            self._store()

    def _store(self) -> None:
        self._conversations.save_answer(
            self._message_id, "".join(self._texts), self._finish_reason, self._tokens or None
        )
        self._stored_at, self._is_whole = time.monotonic(), self._finish_reason is not None


class AnswerStream(answer.EventStream):
    """The response with an answer as OpenAI's events, after one with `ids`. on_end: called however
    it ends."""

    def __init__(
        self,
        form: ChatFormat,
        stream: GenerationStream,
        stored: StoredAnswer,
        ids: dict[str, Any],
        on_end: Callable[[], None],
    ):
        super().__init__(_events(form, stored, ids), stream)
        self._stored, self._on_end = stored, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            try:  # to store may take long, and is to be done though the request is canceled
                with anyio.CancelScope(shield=True):
                    await run_in_threadpool(self._stored.close)
            finally:
                self._on_end()


async def _events(
    form: ChatFormat, stored: StoredAnswer, ids: dict[str, Any]
) -> AsyncIterator[bytes]:
    yield answer.event(ids)
    async for event in answer.events(form, stored, None):
        yield event


class RunningAnswers:
    """The answers that are being written: one in each conversation at a time."""

    MAX_OF_USER = 4

    def __init__(self) -> None:
        self._running: dict[tuple[int, str], StoredAnswer | None] = {}

    def reserve(self, user_id: int, conversation_id: str) -> None:
        """Notes that an answer begins. Raises ApiError if one is being written there, or too many
        for this user."""
        if (user_id, conversation_id) in self._running:
            raise ApiError(
                409, "an answer is being written in this conversation: wait, or stop it first"
            )
        if sum(owner == user_id for owner, _ in self._running) >= self.MAX_OF_USER:
            raise ApiError(
                429,
                f"{self.MAX_OF_USER} answers to you are being written: wait, or stop one first",
                headers={"Retry-After": "1"},
            )
        self._running[user_id, conversation_id] = None

    def start(self, user_id: int, conversation_id: str, stored: StoredAnswer) -> None:
        """Makes a reserved one stoppable."""
        self._running[user_id, conversation_id] = stored

    def release(self, user_id: int, conversation_id: str) -> None:
        """Notes the end."""
        self._running.pop((user_id, conversation_id), None)

    def stop(self, user_id: int, conversation_id: str | None = None) -> None:
        """Ends the answer in a conversation, or all of a user."""
        for (owner, place), stored in self._running.items():
            if owner == user_id and conversation_id in (place, None) and stored is not None:
                stored.stop()
