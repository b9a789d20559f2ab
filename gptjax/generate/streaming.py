"""From tokens to text as they come: no character is shown before it is whole, and nothing of a string that is to stop the text."""

import functools
from collections.abc import Iterator, Sequence

import jax

from gptjax.data import unicode
from gptjax.data.tokenizers import build
from gptjax.generate import decode, sampling
from gptjax.model import inference

REPLACEMENT = "\ufffd"  # what tokenizers decode bytes to that are not, or not yet, UTF-8
INCOMPLETE = 3  # the most bytes of a character that is not whole, so the most replacements that the next token may take back


class Telling:
    """The new text of one row. A stop string, as the tokenizer writes it, counts only in the new text, so that a prompt may contain it; the
    text ends before it."""

    def __init__(self, tokens: build.Tokenizer, prompt: Sequence[int], stops: Sequence[str] = ()):
        self.stopped = False
        self._decode, self._stops = tokens.decode, normalize_stops(tokens, stops)
        self._before, self._new = list(prompt[-1:]), []  # the new ones are decoded after one before: some tokenizers trim a text's start
        self._shown = 0  # characters of the new ones
        self._held = ""  # whole characters that may be the beginning of a stop string

    def add(self, tokens: Sequence[int]) -> str:
        """The text that is certain after these tokens and was not before: perhaps none."""
        self._new += tokens
        text = self._text()
        whole = len(text) - min(INCOMPLETE, len(text) - len(text.rstrip(REPLACEMENT)))
        new, self._shown = text[self._shown : whole], max(self._shown, whole)
        if whole == len(text) and self._new:
            self._before, self._new, self._shown = self._new[-1:], [], 0
        return self._certain(new)

    def end(self) -> str:
        """The text that was held back: there are no more tokens."""
        rest = self._certain(self._text()[self._shown :]) + self._held
        self._new, self._shown, self._held = [], 0, ""
        return rest

    def _text(self) -> str:
        return self._decode([*self._before, *self._new])[len(self._decode(self._before)) :]

    def _certain(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [i for i in (text.find(stop) for stop in self._stops) if i >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        beginnings = (n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
        certain = len(text) - max(beginnings, default=0)
        self._held = text[certain:]
        return text[:certain]


def normalize_stops(tokens: build.Tokenizer, stops: Sequence[str]) -> list[str]:
    """The stop strings as the tokenizer writes them: GPT-1's writes "Q:" as "q :". Raises ValueError for one that it can never write, and
    for one that is in every text."""
    if "" in stops:
        raise ValueError("an empty stop string would stop before the first character: give at least one")
    return [_normalize_stop(tokens, stop) for stop in stops]


@functools.lru_cache(64)  # it may look at every token
def _normalize_stop(tokens: build.Tokenizer, stop: str) -> str:
    if tokens.decode(tokens.encode(stop)) == stop:
        return stop
    between = _between(tokens, stop)
    if between:
        return between
    if unicode.valid(stop) == stop and any(stop in tokens.decode([i]) for i in range(tokens.n_vocab)):
        return stop  # no text is encoded so, as with a newline that the tokenizer drops, but a model may write it
    raise ValueError(f"the stop string {stop!r} is nothing that the tokenizer of this model can write: leave it out, or give another")


def _between(tokens: build.Tokenizer, stop: str) -> str:
    """How a tokenizer writes `stop` between two words, with the spaces at its ends that it was given; "" if it cannot."""
    ids = tokens.encode(f"a {stop} a")
    text = "" if tokens.unknown in ids or unicode.valid(stop) != stop else tokens.decode(ids).strip()
    inner = text[1:-1] if len(text) > 1 and text[0] == text[-1] == "a" else ""
    inner = inner if stop.startswith(" ") else inner.lstrip(" ")
    return inner if stop.endswith(" ") else inner.rstrip(" ")


def stream(
    reader: inference.Reader,
    tokens: build.Tokenizer,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
    sampling: sampling.Sampling,
    key: jax.Array,
    stops: Sequence[str] = (),
    at_once: int = decode.AT_ONCE,
) -> Iterator[list[str]]:
    """decode.stream as text: each time what is new in every row, "" where nothing is certain. A row ends before end-of-text and before the
    first of the `stops`, as the tokenizer writes them."""
    telling, closed = [Telling(tokens, prompt, stops) for prompt in prompts], set()
    for new in decode.stream(reader, prompts, n_tokens, sampling, key, tokens.end_of_text, closed, at_once):
        yield [row.add(ids) for row, ids in zip(telling, new, strict=True)]
        closed |= {i for i, row in enumerate(telling) if row.stopped}
    yield [row.end() for row in telling]
