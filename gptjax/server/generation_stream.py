"""The generations of one HTTP request, from the engine's thread to the event loop."""

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import AsyncIterator, Sequence

from starlette import concurrency

from gptjax.server.access_log import RequestRecord
from gptjax.server.generation import Full, GenerationRequest, Generator, GrammarError, Handle, Piece
from gptjax.server.metrics import Metrics
from gptjax.server.openai_errors import invalid, timed_out, unavailable
from gptjax.server.policy_filter import AnswerFilter

MAX_PENDING_PIECES = 512  # of each generation: what a client that reads slowly may leave unread
PARAMS = {"json_schema": "response_format", "regex": "structured_outputs"}  # of each Grammar.kind


class GenerationStream:
    """Runs generations, and yields their pieces as they come. What it holds is bounded: if pieces
    are not taken, all of its generations are canceled. deadline: by the event loop's clock.
    filters: None, or of each generation's text."""

    def __init__(
        self,
        generator: Generator,
        requests: Sequence[GenerationRequest],
        record: RequestRecord,
        metrics: Metrics,
        deadline: float,
        limit_s: float,
        filters: Sequence[AnswerFilter] | None = None,
    ):
        self._generator, self._requests = generator, requests
        self._record, self._metrics = record, metrics
        self.deadline, self._limit_s, self._filters = deadline, limit_s, filters
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue(
            MAX_PENDING_PIECES * len(requests)
        )
        self._lock = threading.Lock()  # of the next two
        self._handles: list[Handle] = []
        self._is_canceled = False
        self._is_slow = False
        self._times: dict[int, float] = {}  # of each generation's last token

    async def submit(self) -> None:
        """Puts them into the engine's queue. Raises ApiError if it has no room for all, or for a
        request that it cannot run; those before it are to be canceled."""
        try:
            await concurrency.run_in_threadpool(self._submit)
        except Full:
            raise unavailable(
                "the queue of this server is full: try again later", "overloaded", 1
            ) from None
        except GrammarError as error:
            raise invalid(str(error), PARAMS[error.kind]) from None
        except ValueError as error:
            raise invalid(str(error)) from None

    def _submit(self) -> None:
        for number, request in enumerate(self._requests):
            on_item = functools.partial(self._post, number)
            handle = self._generator.submit(request, on_item, on_item)
            with self._lock:
                self._handles.append(handle)
            if self._is_canceled:  # the client has gone in the meantime
                return self.cancel()

    def cancel(self) -> None:
        """Ends those that still run; their slots are free for others."""
        with self._lock:
            self._is_canceled, handles = True, list(self._handles)
        for handle in handles:
            handle.cancel()

    def end(self) -> None:
        """Ends those that still run, in order: `pieces` ends with an empty piece of each."""
        self.cancel()
        for number in range(len(self._requests)):
            self._put(number, Piece(finish_reason="stop"))

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Yields (number of the generation, what has come of it), until all have ended. Raises
        ApiError if that takes too long, and what the engine raised."""
        running = set(range(len(self._requests)))
        while running:
            if self._is_slow and self._pieces.empty():
                raise invalid("the stream was not read as fast as it came: read it faster")
            try:
                async with asyncio.timeout_at(self.deadline):
                    number, item = await self._pieces.get()
            except TimeoutError:
                raise timed_out(self._limit_s) from None
            if isinstance(item, GrammarError):
                raise invalid(str(item), PARAMS[item.kind])
            if isinstance(item, Exception):
                raise item
            if number not in running:
                continue  # what had come when its filter ended it
            if self._filters is not None:
                answer = self._filters[number]
                if answer.is_slow:
                    item = await concurrency.run_in_threadpool(answer.add, item)
                else:
                    item = answer.add(item)
            if item.finish_reason is not None:
                running.remove(number)
            if item.finish_reason == "content_filter":
                self._handles[number].cancel()
            yield number, item

    def _post(self, number: int, item: Piece | Exception) -> None:
        """Takes a piece in the engine's thread."""
        if isinstance(item, Piece) and item.n_tokens:
            self._observe(number, item.n_tokens)
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self._put, number, item)

    def _put(self, number: int, item: Piece | Exception) -> None:
        if isinstance(item, Piece):
            self._record.count(item.n_tokens)
        try:
            self._pieces.put_nowait((number, item))
        except asyncio.QueueFull:
            self._is_slow = True
            self.cancel()

    def _observe(self, number: int, n_tokens: int) -> None:
        now = time.monotonic()
        if number in self._times:
            for _ in range(n_tokens):
                self._metrics.between_tokens_seconds.observe((now - self._times[number]) / n_tokens)
        else:
            first = now - self._record.start
            self._metrics.first_token_seconds.observe(first)
            if self._record.first_token_s is None:
                self._record.first_token_s = first
        self._times[number] = now
