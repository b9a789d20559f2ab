"""Detectors: where a text holds something of a kind, and where its end may be the beginning of one.

A detector decides about each position alone whether a match begins there, and looks at most
`longest` characters ahead and CONTEXT behind. A position is undecided while all of the text after
it may be the beginning of a match; what is decided does not depend on what follows.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

CONTEXT = 40  # characters before a match that may decide
Match = re.Match[str]
Span = tuple[int, int]  # start and end


class Detector(Protocol):
    """Finds what is of one kind in a folded text (fold.py). reason: what it is, in words.
    longest: most characters of a match, with those after it that are looked at."""

    @property
    def kind(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def longest(self) -> int: ...

    def find(self, text: str, start: int, stop: int) -> Iterator[Span]:
        """Yields the matches that begin at `start` or later, before `stop`; they may overlap."""
        ...

    def find_partial(self, text: str, start: int) -> int:
        """Returns the first position from `start` on at which a match may begin that the end of
        the text cuts off; the length of the text if there is none."""
        ...


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A regular expression and a check. hint: quick to search, and there is one in every match.
    pattern: where matches may begin. beginning: matches every part of a match, and of what is
    looked at after it, that begins where it does and ends with the text. find_end: where a match
    of `pattern` ends, None if it is none."""

    kind: str
    reason: str
    hint: re.Pattern[str]
    pattern: re.Pattern[str]
    beginning: re.Pattern[str]
    longest: int
    find_end: Callable[[Match], int | None] = re.Match.end

    def find(self, text: str, start: int, stop: int) -> Iterator[Span]:
        """See Detector."""
        if not self.hint.search(text, start):
            return
        while (match := self.pattern.search(text, start)) and match.start() < stop:
            end = self.find_end(match)
            if end is not None:
                yield match.start(), end
            start = match.start() + 1

    def find_partial(self, text: str, start: int) -> int:
        """See Detector."""
        match = self.beginning.search(text, max(start, len(text) - self.longest))
        return match.start() if match else len(text)


def beginnings(words: Sequence[str]) -> str:
    """Returns a pattern of all beginnings of some words, at the end of the text."""
    parts = {word[:n] for word in words for n in range(1, len(word))}
    return rf"(?:{'|'.join(map(re.escape, sorted(parts)))})\Z"
