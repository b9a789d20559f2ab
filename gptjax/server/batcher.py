"""Continuous batching: one thread runs generations in cache slots, which are taken and freed
between steps.
"""

import collections
import dataclasses
import itertools
import threading
from collections.abc import Callable

import numpy as np

from gptjax.data.tokenizers import build
from gptjax.generate import sampling, streaming
from gptjax.model import inference
from gptjax.server import grammar, slots
from gptjax.server.generation import (
    MAX_LOGPROBS,
    FinishReason,
    Full,
    GenerationRequest,
    GrammarError,
    Piece,
    Stats,
    TokenScore,
)
from gptjax.server.row_sampling import MAX_BIASES, Scores


class Shutdown(RuntimeError):
    """The batcher was closed before a generation ended."""


class Batcher:
    """Runs generations on a model, n_slots at a time; at most max_queue others wait, first come,
    first served.

    Between two steps of the generations in progress at most one piece of a prompt is read, of each
    prompt in turn, so that no prompt stalls the others for longer than that.

    The tokens of a generation depend on its request, the model, n_slots and the capacity alone: not
    on what else runs, nor on the slot (in float32 on one kind of device; tested).
    """

    def __init__(
        self,
        lm: inference.InferenceModel,
        tokenizer: build.Tokenizer,
        n_slots: int = 8,
        capacity: int | None = None,
        max_queue: int = 256,
        chunk: int = slots.CHUNK,
    ):
        """Compiles what the generations need. capacity: tokens of a prompt and its continuation, at
        most (default: the model's context). chunk: tokens of a prompt that are read at once, and
        the unit of prefixes that are shared."""
        self.n_ctx = capacity or lm.model.config.n_ctx
        self.tokenizer = tokenizer
        self._slots = slots.Slots(lm, n_slots, self.n_ctx, chunk)
        self._slots.compile()
        self._grammars = grammar.GrammarCompiler(tokenizer, self._slots.n_vocab)
        self.max_generations = n_slots + max_queue
        self._condition = threading.Condition()  # of what follows
        self._queue: collections.deque[_Generation] = collections.deque()
        self._end: Exception | None = None  # why nothing is run any more
        self._n_running = self._n_prompt = self._n_cached = self._n_new = 0
        self._running: dict[int, _Generation] = {}  # slot -> generation; of the thread alone
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def submit(
        self,
        request: GenerationRequest,
        on_piece: Callable[[Piece], None],
        on_error: Callable[[Exception], None],
    ) -> "_Generation":
        """As `generation.Generator.submit`."""
        check(request, self._slots.n_vocab, self.n_ctx)
        generation = _Generation(request, self.tokenizer, on_piece, on_error)
        if request.grammar is not None:
            generation.matcher = self._grammars.compile(request.grammar, request.end_ids)
        with self._condition:
            if self._end is not None:
                raise self._end
            if self._n_running + len(self._queue) >= self.max_generations:
                self._purge_queue()
            if self._n_running + len(self._queue) >= self.max_generations:
                raise Full
            self._queue.append(generation)
            self._condition.notify()
        return generation

    def stats(self) -> Stats:
        """As `generation.Generator.stats`."""
        with self._condition:
            return Stats(
                self._end is None,
                self._slots.n_slots,
                self._n_running,
                len(self._queue),
                self._n_prompt,
                self._n_cached,
                self._n_new,
            )

    def close(self) -> None:
        """Ends the thread, and with an error what is not finished."""
        with self._condition:
            self._end = self._end or Shutdown("the server is shutting down")
            self._condition.notify()
        self._thread.join()

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        error: Exception | None = None
        try:
            turns = itertools.count()
            while self._admit():
                self._purge_slots()
                reading = [slot for slot, g in self._running.items() if not g.is_read]
                if reading:
                    self._prefill(reading[next(turns) % len(reading)])
                writing = [slot for slot, g in self._running.items() if g.is_read]
                if writing:
                    self._generate(writing)
        except Exception as cause:  # of the device, as its memory: nothing can go on
            error = cause
        with self._condition:
            self._end = error = error or self._end or Shutdown("the server is shutting down")
            left = [*self._running.values(), *self._queue]
            self._running.clear()
            self._queue.clear()
            self._n_running = 0
        for generation in left:
            generation.fail(error)

    def _admit(self) -> bool:
        """Puts generations from the queue into free slots; waits if there is nothing to do. False
        once the batcher is closed."""
        while True:
            with self._condition:
                while not self._queue and not self._running and self._end is None:
                    self._condition.wait()
                if self._end is not None:
                    return False
                self._purge_queue()
                free = self._slots.free_slots[: len(self._queue)]
                taken = [self._queue.popleft() for _ in free]
                self._n_running += len(taken)
            for generation, slot in zip(taken, free, strict=True):
                self._insert(slot, generation)
            if self._running:
                return True

    def _insert(self, slot: int, generation: "_Generation") -> None:
        request = generation.request
        share = not request.echo  # all of a prompt that is scored must be read
        n = self._slots.insert(slot, request.prompt, request.sampling, share)
        self._running[slot] = generation
        with self._condition:
            self._n_prompt += len(request.prompt)
            self._n_cached += n

    def _purge_queue(self) -> None:
        """Drops generations that wait and were canceled. The lock must be held."""
        self._queue = collections.deque(g for g in self._queue if not g.is_canceled)

    def _purge_slots(self) -> None:
        for slot, generation in [*self._running.items()]:
            if generation.is_canceled:
                self._free(slot)

    def _free(self, slot: int) -> None:
        del self._running[slot]
        self._slots.free(slot)
        with self._condition:
            self._n_running = len(self._running)

    def _prefill(self, slot: int) -> None:
        """Reads a piece of a slot's prompt, and adds the first token if that was the last piece."""
        generation = self._running[slot]
        masks = self._masks([slot])
        if slot not in self._running:
            return
        tokens, scores = self._slots.prefill(slot, generation.request.echo, masks.get(slot))
        if scores is not None:
            generation.add_prompt_scores(scores.first, scores.scores)
        if tokens is not None:
            generation.is_read = True
            self._add(slot, int(tokens.token_B[0]), tokens.scores, 0)

    def _generate(self, writing: list[int]) -> None:
        """Adds a token to each slot that is read."""
        wants_scores = any(self._running[s].request.logprobs is not None for s in writing)
        masks = self._masks(writing)
        writing = [slot for slot in writing if slot in self._running]
        tokens = self._slots.generate(writing, wants_scores, masks)
        for slot in writing:
            self._add(slot, int(tokens.token_B[slot]), tokens.scores, slot)

    def _masks(self, some: list[int]) -> dict[int, np.ndarray]:
        """The tokens that the grammars of some slots allow. A slot whose grammar fails is freed."""
        masks = {}
        for slot in some:
            generation = self._running[slot]
            if generation.matcher is not None:
                try:
                    masks[slot] = generation.matcher.mask()
                except GrammarError as error:
                    generation.fail(error)
                    self._free(slot)
        return masks

    def _add(self, slot: int, token: int, scores: Scores, row: int) -> None:
        generation = self._running[slot]
        n_before = generation.n_tokens
        if token == sampling.NONE:
            self._slots.clear(slot)
            generation.fail(inference.NonFiniteLogits())
            self._free(slot)
            return
        is_last = generation.add_token(token, scores, row)
        with self._condition:
            self._n_new += generation.n_tokens - n_before
        if is_last:
            self._free(slot)


def check(request: GenerationRequest, n_vocab: int, n_ctx: int) -> None:
    """Raises ValueError for a request that cannot be run."""
    n = len(request.prompt)
    if not n:
        raise ValueError("the prompt is empty: give at least one token")
    if n + request.max_tokens > n_ctx + 1 or n > n_ctx:  # the last token is not read
        raise ValueError(
            f"a prompt of {n:,} tokens with max_tokens={request.max_tokens:,}: there is room for "
            f"{n_ctx:,} tokens"
        )
    if not all(0 <= token < n_vocab for token in request.prompt):
        raise ValueError(f"a token of the prompt is none of 0 to {n_vocab - 1:,}")
    if request.max_tokens < 0 or request.max_tokens == 0 and not request.echo:
        raise ValueError("max_tokens is 0: give at least 1, or echo")
    if request.logprobs is not None and not 0 <= request.logprobs <= MAX_LOGPROBS:
        raise ValueError(f"logprobs={request.logprobs}: give 0 to {MAX_LOGPROBS}")
    bias = request.sampling.logit_bias
    if len(bias) > MAX_BIASES or not all(0 <= token < n_vocab for token in bias):
        raise ValueError(
            f"logit_bias: give at most {MAX_BIASES}, of tokens from 0 to {n_vocab - 1:,}"
        )


@dataclasses.dataclass(eq=False)
class _Generation:
    """A generation in the queue or in a slot; also the handle that `submit` returns."""

    request: GenerationRequest
    tokenizer: build.Tokenizer
    on_piece: Callable[[Piece], None]
    on_error: Callable[[Exception], None]
    is_read: bool = False  # whether its prompt is
    is_canceled: bool = False
    n_tokens: int = 0
    matcher: grammar.Matcher | None = None

    def __post_init__(self):
        stops = self.request.stops
        self._text = streaming.StreamingDetokenizer(self.tokenizer, self.request.prompt, stops)
        self._scores: list[TokenScore] = []  # that are not given yet
        if self.request.echo:
            self._scores.append(self._score(self.request.prompt[0], None, (), ()))

    def cancel(self) -> None:
        """As `generation.Handle.cancel`."""
        self.is_canceled = True

    def fail(self, error: Exception) -> None:
        """Ends it with an error."""
        if not self.is_canceled:
            self.on_error(error)

    def add_prompt_scores(self, first: int, scores: Scores) -> None:
        """Adds the scores of tokens of the prompt, from number `first` on."""
        tokens = self.request.prompt[first : first + len(scores.token_B)]
        for row, token in enumerate(tokens):
            self._scores.append(
                self._score(
                    token, float(scores.token_B[row]), scores.ids_BK[row], scores.logprobs_BK[row]
                )
            )

    def add_token(self, token: int, scores: Scores, row: int) -> bool:
        """Adds a new token and gives what is certain of the text; whether that was the last."""
        if self.request.max_tokens == 0:  # the prompt was only scored
            self._give(Piece("", tuple(self._scores), 0, "length"))
            return True
        if self.request.logprobs is not None:
            self._scores.append(
                self._score(
                    token, float(scores.token_B[row]), scores.ids_BK[row], scores.logprobs_BK[row]
                )
            )
        ends = self.request.end_ids if self.matcher is None else self.matcher.end_ids
        if token in ends:
            self._end("stop", 0)
            return True
        self.n_tokens += 1
        if self.matcher is not None:
            self.matcher.add(token)
        text = self._text.add([token])
        if self.matcher is not None and self.matcher.is_whole():
            self._end("stop", 1, text)
            return True
        if self._text.is_stopped or self.n_tokens == self.request.max_tokens:
            self._end("stop" if self._text.is_stopped else "length", 1, text)
            return True
        self._give(Piece(text, tuple(self._scores), 1, None))
        self._scores.clear()
        return False

    def _end(self, reason: FinishReason, n_tokens: int, text: str = "") -> None:
        text += self._text.end()
        reason = "stop" if self._text.is_stopped else reason
        self._give(Piece(text, tuple(self._scores), n_tokens, reason))

    def _give(self, piece: Piece) -> None:
        if not self.is_canceled:
            self.on_piece(piece)

    def _score(self, token: int, logprob: float | None, ids, logprobs) -> TokenScore:
        n = self.request.logprobs or 0
        pairs = zip(np.asarray(ids)[:n].tolist(), np.asarray(logprobs)[:n].tolist(), strict=True)
        return TokenScore(token, self.tokenizer.decode([token]), logprob, tuple(pairs))
