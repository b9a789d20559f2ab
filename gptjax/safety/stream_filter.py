"""Filters a text that comes in parts, so that no character of a match leaves, wherever it is split.

Text is held back from the first position at which a match may begin that is not whole yet; so what
leaves does not depend on how the text was split. At most `max_held` folded characters are held.
"""

import bisect
import dataclasses
import hmac
import json
from collections.abc import Callable, Sequence
from typing import Any

from gptjax.config import parse, safety
from gptjax.safety import (
    credentials,
    detector,
    fold,
    literals,
    personal_data,
    phone,
    word_classifier,
)

TRIM = 1024  # characters that are done with, after which they are dropped


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is searched for, and what is done about it."""

    detector: detector.Detector
    action: safety.Action


@dataclasses.dataclass(frozen=True)
class Intervention:
    """A match, without its text. position: its first character, counted from the beginning of the
    text; negative for one that begins before it. reason: what it is, in words. digest: 16
    hexadecimal digits, the same for the same letters and digits under the same key."""

    kind: str
    action: safety.Action
    position: int
    reason: str
    digest: str

    def to_json(self, **more: Any) -> str:
        """Returns a line of JSON. more: further entries, such as the request's id."""
        return json.dumps(more | dataclasses.asdict(self))


PERSONAL_DATA = {
    pattern.kind: pattern
    for pattern in (
        personal_data.EMAIL,
        personal_data.IP,
        personal_data.IBAN,
        personal_data.CARD,
        personal_data.SSN,
    )
}
CREDENTIALS = {pattern.kind: pattern for pattern in (credentials.API_KEY, credentials.PRIVATE_KEY)}


def load_nothing(path: str) -> word_classifier.WordScorer:
    """Loads no classifier of words."""
    raise TypeError(f"nothing was given that loads {path}")


def rules(
    filters: Sequence[safety.Filter],
    load: Callable[[str], word_classifier.WordScorer] = load_nothing,
) -> tuple[Rule, ...]:
    """Returns the rules of filters, in order: of matches that begin together the first one counts.
    load: from a run's path to its classifier of words (word_classifier.opener). Raises ValueError
    for a file of secrets that cannot be read, an unknown region, a label that a run lacks, and as
    `load`."""
    result = []
    for part in filters:
        match part:
            case safety.PersonalData():
                patterns = PERSONAL_DATA | {"phone": phone.detector(part.region)}
                detectors = [patterns[kind] for kind in patterns if kind in part.kinds]
            case safety.Credentials():
                detectors = [CREDENTIALS[kind] for kind in part.kinds]
            case safety.Secrets():
                texts, where = part.texts, "Secrets"
                if part.file is not None:
                    where = part.file
                    texts = (*texts, *literals.read(parse.read_text(parse.path(part.file))))
                detectors = [literals.detector(texts, where)]
            case safety.WordClassifier():
                detectors = word_classifier.detectors(part, load)
        result += [Rule(found, part.action) for found in detectors]
    return tuple(result)


class StreamFilter:
    """Filters one text. key: secret key of the digests of interventions; who knows it can find
    short secrets by trying them all. before: what the text goes on with; of a match that begins
    there, what is in the text is hidden.

    interventions: what was found so far. is_refused: whether the text was ended by a rule.
    """

    def __init__(self, rules: Sequence[Rule], key: bytes, before: str = ""):
        self.interventions: list[Intervention] = []
        self.is_refused = False
        self._rules, self._key = rules, key
        self._folder = fold.Folder()
        self._text, self._folded = "", ""  # the last part of the text, and as it is searched
        self._places: list[int] = []  # of each folded character, its position in _text
        self._n_before = len(before)  # characters of _text that are not of the text
        self._n_dropped = -len(before)  # characters of the text before _text
        self._n_done = 0  # characters of _text that have left, or never will
        n = len(fold.Folder().fold(before)[0])
        # From where on each rule has not decided; what begins earlier ends before the text.
        self._starts = [max(0, n - rule.detector.longest) for rule in rules]
        self._ends = [0] * len(rules)  # of the last match of each
        self._matches: list[tuple[int, int, int]] = []  # start, end and rule, still to be applied
        self.add(before)

    @property
    def n_held(self) -> int:
        """Characters that have come, and may leave later."""
        return max(0, len(self._text) - max(self._n_done, self._n_before))

    def add(self, text: str) -> str:
        """Adds text and returns what may leave, possibly ""."""
        return self._filter(text, is_end=False)

    def end(self, text: str = "") -> str:
        """Adds the last text, if any, and returns the rest."""
        return self._filter(text, is_end=True)

    def _filter(self, text: str, is_end: bool) -> str:
        if self.is_refused:
            return ""
        folded, places = self._folder.fold(text)
        n_before = len(self._text)
        self._places += [n_before + place for place in places] if n_before else places
        self._text += text
        self._folded += folded
        limit = len(self._folded)  # before it, all is decided
        for i, rule in enumerate(self._rules):
            start, search = self._starts[i], rule.detector
            stop = len(self._folded) if is_end else search.find_partial(self._folded, start)
            self._matches += [(*span, i) for span in search.find(self._folded, start, stop)]
            self._starts[i] = stop
            if rule.action != "log":
                limit = min(limit, stop)
        released = self._apply(limit)
        self._drop()
        return released

    def _apply(self, limit: int) -> str:
        """Applies the matches that begin before `limit` and returns the text up to there."""
        self._matches.sort()
        n_ready = bisect.bisect_left(self._matches, (limit,))
        ready, self._matches = self._matches[:n_ready], self._matches[n_ready:]
        parts = []
        for start, end, i in ready:
            rule = self._rules[i]
            first, after = self._places[start], self._places[end - 1] + 1
            if after <= self._n_before:
                continue
            if end > self._ends[i]:  # a match within one before is none of its own
                self._record(rule, start, end)
                self._ends[i] = end
            if rule.action == "log":
                continue
            if first >= self._n_done:
                parts.append(self._text[max(self._n_done, self._n_before) : first])
                if rule.action == "mask":
                    parts.append(f"<{rule.detector.kind}>")
            if rule.action == "refuse":
                self.is_refused = True
                self._text, self._n_done, self._matches = "", 0, []
                return "".join(parts)
            self._n_done = max(self._n_done, after)
        stop = self._places[limit] if limit < len(self._places) else len(self._text)
        parts.append(self._text[max(self._n_done, self._n_before) : stop])
        self._n_done = max(self._n_done, stop)
        return "".join(parts)

    def _record(self, rule: Rule, start: int, end: int) -> None:
        kind, secret = rule.detector.kind, self._folded[start:end]
        content = f"{kind}:{''.join(filter(str.isalnum, secret)).lower()}"
        self.interventions.append(
            Intervention(
                kind,
                rule.action,
                self._n_dropped + self._places[start],
                rule.detector.reason,
                hmac.digest(self._key, content.encode(), "sha256").hex()[:16],
            )
        )

    def _drop(self) -> None:
        """Drops text that is no longer needed, with what a match may look back at."""
        n_needed = bisect.bisect_left(self._places, self._n_done)
        n_folded = min([n_needed, *self._starts]) - detector.CONTEXT
        if n_folded < TRIM:
            return
        n = self._places[n_folded]
        self._text, self._folded = self._text[n:], self._folded[n_folded:]
        self._places = [place - n for place in self._places[n_folded:]]
        self._n_dropped, self._n_done = self._n_dropped + n, self._n_done - n
        self._n_before = max(0, self._n_before - n)
        self._starts = [start - n_folded for start in self._starts]
        self._ends = [end - n_folded for end in self._ends]
        self._matches = [(a - n_folded, b - n_folded, i) for a, b, i in self._matches]


def filter_text(text: str, rules: Sequence[Rule], key: bytes) -> tuple[str, StreamFilter]:
    """Returns (a whole text after the rules, the filter, which has the interventions)."""
    stream = StreamFilter(rules, key)
    return stream.end(text), stream
