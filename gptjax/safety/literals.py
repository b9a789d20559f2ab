"""Planted secrets and words of one's own, found as they are written, in either case and with any
white space between words."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence

from gptjax.safety import fold
from gptjax.safety.detector import Span

MIN_CHARS, MAX_CHARS = 3, 500  # of a secret
N_HEAD = MIN_CHARS  # characters by which secrets are looked up, so that any number takes equal time
MAX_SPACES = 16  # in sequence that count as one; more do not, so that delay is bounded
SPACES = re.compile(rf" {{2,{MAX_SPACES}}}")


class _Lower(dict[int, str]):
    """Code point -> its lower case where that is one character; any white space is a space."""

    def __missing__(self, code: int) -> str:
        lower = chr(code).lower()
        self[code] = lower = " " if lower.isspace() else lower if len(lower) == 1 else chr(code)
        return lower


LOWER = _Lower()


@dataclasses.dataclass(frozen=True)
class Literals:
    """A detector of given texts. by_head: first N_HEAD characters -> the texts. parts: all
    beginnings of the texts."""

    kind: str
    reason: str
    longest: int
    by_head: dict[str, list[str]]
    parts: frozenset[str]

    def find(self, text: str, start: int, stop: int) -> Iterator[Span]:
        """See Detector. Of several that begin at one place, the longest."""
        text, places = _normalize(text[start : stop + self.longest])
        for i, place in enumerate(places):
            if place >= stop - start:
                break
            head = text[i : i + N_HEAD]
            if head in self.by_head:
                for literal in self.by_head[head]:
                    if text.startswith(literal, i):
                        yield start + place, start + places[i + len(literal) - 1] + 1
                        break

    def find_partial(self, text: str, start: int) -> int:
        """See Detector."""
        first = max(start, len(text) - self.longest + 1)
        rest, places = _normalize(text[first:])
        parts = (place for i, place in enumerate(places) if rest[i:] in self.parts)
        return next((first + place for place in parts), len(text))


def _normalize(text: str) -> tuple[str, Sequence[int]]:
    """Returns (the text in lower case with one space for several, of each character its place)."""
    text = text.translate(LOWER)
    if "  " not in text:
        return text, range(len(text))
    later = {i for run in SPACES.finditer(text) for i in range(run.start() + 1, run.end())}
    places = [i for i in range(len(text)) if i not in later]
    return "".join(text[i] for i in places), places


def detector(texts: Iterable[str], where: str, kind: str = "secret") -> Literals:
    """Returns the detector. where: names their source in errors. Raises ValueError for a text that
    is too short or too long."""
    literals = set()
    for text in texts:
        literal = " ".join(fold.Folder().fold(text)[0].translate(LOWER).split())
        if not MIN_CHARS <= len(literal) <= MAX_CHARS:
            raise ValueError(
                f"{where}: a secret has {len(literal)} characters; give {MIN_CHARS} to {MAX_CHARS}"
            )
        literals.add(literal)
    by_head: dict[str, list[str]] = {}
    for literal in sorted(literals, key=len, reverse=True):
        by_head.setdefault(literal[:N_HEAD], []).append(literal)
    parts = frozenset(literal[:n] for literal in literals for n in range(1, len(literal)))
    longest = max((len(x) + x.count(" ") * (MAX_SPACES - 1) for x in literals), default=1)
    return Literals(kind, "a text that is kept secret", longest, by_head, parts)


def read(content: str) -> Sequence[str]:
    """Returns the secrets of a file: a line each, empty ones left out."""
    return [line for line in content.splitlines() if line.strip()]
