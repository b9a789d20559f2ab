"""Words of a label, such as names of people, found by a classifier of words in their context.

A word is decided from the CONTEXT characters before it and the N_AFTER after it, up to a line break
on either side, so that what is found does not depend on how a text was split. Only words with a
capital letter, a digit or a letter of a script without capitals are read; adjacent ones are decided
together, at most MAX_WORDS.
"""

import dataclasses
import functools
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from gptjax.config import parse, safety
from gptjax.safety import fold, prompt_classifier
from gptjax.safety.detector import CONTEXT, Span

FIELDS = ("left", "right")  # of a training example: the text up to a word's end, and from its start
NO_LABEL = "none"
N_AFTER = 24  # characters after a word
MAX_CHARS, MAX_WORDS = 32, 6  # of a word (of a longer one each part is a word), of adjacent words
MAX_CACHE = 100_000  # windows
WORD = re.compile(rf"[^\W_]{{1,{MAX_CHARS}}}")
JOINT = re.compile(r"[ .'-]?|(?<!\w\w)\. ")  # between adjacent words; "J. Doe", and no sentence end
REASON = "words that a classifier takes for {}"

Window = tuple[str, str]  # FIELDS


class WordScorer(Protocol):
    """Windows -> of each, label -> probability; training.classification.text_classifier's
    PairClassifier, or another in tests."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    def __call__(self, pairs: Sequence[Window]) -> Sequence[Mapping[str, float]]: ...


class CachedScorer:
    """Scores each window once, in any thread."""

    def __init__(self, scorer: WordScorer):
        self.labels = scorer.labels
        self._scorer, self._lock = scorer, threading.Lock()
        self._scores: dict[Window, Mapping[str, float]] = {}

    def __call__(self, pairs: Sequence[Window]) -> Sequence[Mapping[str, float]]:
        """See WordScorer."""
        with self._lock:
            known = {pair: self._scores[pair] for pair in pairs if pair in self._scores}
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in known]
        if missing:
            new = dict(zip(missing, self._scorer(missing), strict=True))
            known |= new
            with self._lock:
                self._scores |= new
                while len(self._scores) > MAX_CACHE:
                    del self._scores[next(iter(self._scores))]
        return [known[pair] for pair in pairs]


def opener(load: Callable[[str], WordScorer]) -> Callable[[str], CachedScorer]:
    """Returns what loads each run once, with a cache. load: from a run's path to its scorer."""
    return functools.cache(lambda path: CachedScorer(load(path)))


def is_candidate(word: str) -> bool:
    """Whether a word may have a label."""
    return any(char.isalnum() and not char.islower() for char in word)


def window(text: str, start: int, end: int) -> Window:
    """Returns what is read of a word in a folded text, in training and in use."""
    word = text[start:end]
    before = text[max(0, start - CONTEXT) : start].rpartition("\n")[2]
    return before + word, word + text[end : end + N_AFTER].partition("\n")[0]


def groups(text: str, start: int, is_end: bool) -> Iterator[list[Span]]:
    """Yields adjacent words that may have a label, from `start` on, which is not within a group.
    is_end: whether the text ends; else its last word may go on, and so may have one."""
    group: list[Span] = []
    for match in WORD.finditer(text, start):
        first, end = match.span()
        may_go_on = not is_end and end == len(text) and end - first < MAX_CHARS
        if not (may_go_on or is_candidate(match[0])):
            continue
        is_adjacent = group and JOINT.fullmatch(text, group[-1][1], first)
        if group and not (is_adjacent and len(group) < MAX_WORDS):
            yield group
            group = []
        group.append((first, end))
    if group:
        yield group


@dataclasses.dataclass(frozen=True)
class WordDetector:
    """A detector of words of a label: kind."""

    kind: str
    threshold: float
    scorer: WordScorer
    longest: int = MAX_WORDS * (MAX_CHARS + 2) + N_AFTER

    @property
    def reason(self) -> str:
        """See Detector."""
        return REASON.format(self.kind)

    def find(self, text: str, start: int, stop: int) -> Iterator[Span]:
        """See Detector. Adjacent words with the label are one match."""
        if start >= stop:
            return
        found = [group for group in groups(text, start, True) if group[0][0] < stop]
        pairs = [window(text, *word) for group in found for word in group]
        scores = iter(self.scorer(pairs) if pairs else ())
        for group in found:
            match = None
            for first, end in group:
                if next(scores)[self.kind] >= self.threshold:
                    match = (first if match is None else match[0], end)
                elif match is not None:
                    yield match
                    match = None
            if match is not None:
                yield match

    def find_partial(self, text: str, start: int) -> int:
        """See Detector. A group is decided when what is read after its last word has come."""
        for group in groups(text, start, False):
            end = group[-1][1]
            after = text[end : end + N_AFTER]
            if len(after) < N_AFTER and "\n" not in after:
                return group[0][0]
        return len(text)


def detectors(spec: safety.WordClassifier, load: Callable[[str], WordScorer]) -> list[WordDetector]:
    """Returns a detector for each label. Raises ValueError for a label that the run lacks, and as
    `load`."""
    scorer = load(spec.model)
    prompt_classifier.check_labels(spec.labels, scorer.labels, spec.model)
    return [WordDetector(label, spec.threshold, scorer) for label in spec.labels]


def examples(row: dict[str, Any], where: str) -> Iterator[dict[str, str]]:
    """Yields a training example, FIELDS and label, for each word of an annotated text that may have
    a label: {"text": "I met Jane.", "spans": [[6, 10, "person"]]}, with positions in characters.
    Raises ValueError for spans that are not in the text."""
    text = parse.member(row, "text", str, where)
    labels = [NO_LABEL] * len(text)
    for span in parse.member(row, "spans", list, where):
        match span:
            case [int(start), int(end), str(label)] if 0 <= start < end <= len(text):
                if label.strip() in ("", NO_LABEL):
                    raise ValueError(
                        f"{where}: a span has the label {parse.quote(label)}, which is that of all "
                        "other words: leave it out, or give another label"
                    )
                labels[start:end] = [label] * (end - start)
            case _:
                raise ValueError(
                    f"{where}: a span is {parse.quote(span)}; give [start, end, label] with "
                    f"positions from 0 to {len(text)}"
                )
    folded, places = fold.Folder().fold(text)
    for group in groups(folded, 0, True):
        for start, end in group:
            found = [labels[place] for place in places[start:end] if labels[place] != NO_LABEL]
            pair = window(folded, start, end)
            yield dict(zip(FIELDS, pair, strict=True)) | {"label": (found or [NO_LABEL])[0]}
