"""Streaming detokenization: tokens to text as they are generated, in whole characters and without
any part of a stop string.
"""

import functools
from collections.abc import Iterator, Sequence

import jax

from gptjax.data import unicode
from gptjax.data.tokenizers import build
from gptjax.generate import decode, sampling
from gptjax.model import inference

REPLACEMENT_CHAR = "\ufffd"  # how tokenizers decode bytes that are not, or not yet, UTF-8
# The most bytes of an incomplete character, and so the most replacement characters that the next
# token may change.
MAX_INCOMPLETE = 3


class StreamingDetokenizer:
    """Turns the new tokens of one row into text.

    stops: strings before which the text ends, as the tokenizer writes them. Only new text is
    searched, so a prompt may contain them.
    """

    def __init__(
        self, tokenizer: build.Tokenizer, prompt: Sequence[int], stops: Sequence[str] = ()
    ):
        self.is_stopped = False
        self._decode, self._stops = tokenizer.decode, normalize_stops(tokenizer, stops)
        # The new tokens are decoded after the one before them, since some tokenizers trim the start
        # of a text.
        self._prefix, self._new = list(prompt[-1:]), []
        self._n_emitted = 0  # characters of self._new
        self._pending = ""  # whole characters that may be the start of a stop string

    def add(self, tokens: Sequence[int]) -> str:
        """Adds tokens and returns the text that has become certain, possibly ""."""
        self._new += tokens
        text = self._decode_new()
        n_whole = len(text) - min(MAX_INCOMPLETE, len(text) - len(text.rstrip(REPLACEMENT_CHAR)))
        new, self._n_emitted = text[self._n_emitted : n_whole], max(self._n_emitted, n_whole)
        if n_whole == len(text) and self._new:
            self._prefix, self._new, self._n_emitted = self._new[-1:], [], 0
        return self._release(new)

    def end(self) -> str:
        """Returns the rest of the text, once there are no more tokens."""
        rest = self._release(self._decode_new()[self._n_emitted :]) + self._pending
        self._new, self._n_emitted, self._pending = [], 0, ""
        return rest

    def _decode_new(self) -> str:
        """The text of the new tokens, including characters that are still incomplete."""
        return self._decode([*self._prefix, *self._new])[len(self._decode(self._prefix)) :]

    def _release(self, new: str) -> str:
        """Adds whole characters and returns those that cannot be part of a stop string."""
        if self.is_stopped:
            return ""
        text = self._pending + new
        positions = [i for i in (text.find(stop) for stop in self._stops) if i >= 0]
        if positions:
            self.is_stopped, self._pending = True, ""
            return text[: min(positions)]
        overlaps = (
            n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])
        )
        n_safe = len(text) - max(overlaps, default=0)
        self._pending = text[n_safe:]
        return text[:n_safe]


def normalize_stops(tokens: build.Tokenizer, stops: Sequence[str]) -> list[str]:
    """Returns the stop strings as the tokenizer writes them: GPT-1's writes "Q:" as "q :".

    Raises ValueError for an empty string and for one that the tokenizer can never write.
    """
    if "" in stops:
        raise ValueError(
            "an empty stop string would stop before the first character: give at least one"
        )
    return [_normalize_stop(tokens, stop) for stop in stops]


@functools.lru_cache(64)  # it may scan the vocabulary
def _normalize_stop(tokens: build.Tokenizer, stop: str) -> str:
    if tokens.decode(tokens.encode(stop)) == stop:
        return stop
    between = _decode_between_words(tokens, stop)
    if between:
        return between
    if unicode.replace_surrogates(stop) == stop and any(
        stop in tokens.decode([i]) for i in range(tokens.n_vocab)
    ):
        # No text encodes to it, like a newline that the tokenizer drops, but a model may generate
        # it.
        return stop
    raise ValueError(
        f"this model's tokenizer cannot write the stop string {stop!r}: leave it out, or give "
        "another"
    )


def _decode_between_words(tokenizer: build.Tokenizer, stop: str) -> str:
    """How the tokenizer writes `stop` between two words, with its own leading and trailing spaces;
    "" if it cannot.
    """
    ids = tokenizer.encode(f"a {stop} a")
    text = (
        ""
        if tokenizer.unknown in ids or unicode.replace_surrogates(stop) != stop
        else tokenizer.decode(ids).strip()
    )
    inner = text[1:-1] if len(text) > 1 and text[0] == text[-1] == "a" else ""
    inner = inner if stop.startswith(" ") else inner.lstrip(" ")
    return inner if stop.endswith(" ") else inner.rstrip(" ")


def stream(
    inference_model: inference.InferenceModel,
    tokenizer: build.Tokenizer,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
    sampling_params: sampling.SamplingParams,
    key: jax.Array,
    stops: Sequence[str] = (),
    steps_per_call: int = decode.STEPS_PER_CALL,
) -> Iterator[list[str]]:
    """Yields decode.stream as text: each time the new text of every row, "" if none is certain yet.
    A row ends before end-of-text and before the first of `stops`.
    """
    detokenizers, done_rows = (
        [StreamingDetokenizer(tokenizer, prompt, stops) for prompt in prompts],
        set(),
    )
    for new in decode.stream(
        inference_model,
        prompts,
        n_tokens,
        sampling_params,
        key,
        tokenizer.end_of_text,
        done_rows,
        steps_per_call,
    ):
        yield [row.add(ids) for row, ids in zip(detokenizers, new, strict=True)]
        done_rows |= {i for i, row in enumerate(detokenizers) if row.is_stopped}
    yield [row.end() for row in detokenizers]
