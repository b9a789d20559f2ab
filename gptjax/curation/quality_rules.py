"""The rules of Gopher (Rae et al. 2021, arXiv 2112.11446, Appendix A.1.1) for the quality of a
document, and against repetition in it (Table A1).

The thresholds of Table A1 are those of the copy in datatrove (github.com/huggingface/datatrove);
the table itself was not available here. The paper does not say what a word, a line or a paragraph
is, nor which of several equal ones are duplicates. Chosen here: a word is what is between white
space, punctuation included, since the paper's words need not have a letter; lines of only white
space do not count, and end a paragraph;
lines are compared without white space around them; a duplicate is one that has been there before,
so that half of a text that is there twice is duplicate. An n-gram's share is that of its words'
characters in those of all words; an n-gram that is there once is not the most frequent.
"""

import itertools
import re
from collections.abc import Iterator, Sequence

import numpy as np

from gptjax.config.curation import QualityRules
from gptjax.curation.page import Dropped, Page, StageFn

BULLETS = tuple("-*•‣⁃◦▪▫●○■□▶►–·")
ELLIPSES = ("...", "…")
STOP_WORD = re.compile(r"\b(?:the|be|to|of|and|that|have|with)\b", re.IGNORECASE)

# Table A1: greatest fractions of a document.
DUPLICATES, DUPLICATE_CHARACTERS = 0.30, 0.20  # of lines or paragraphs
MOST_FREQUENT = {2: 0.20, 3: 0.18, 4: 0.16}  # characters of the most frequent n-gram, by n
DUPLICATE_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}  # of all duplicate ones

# What may be wrong; how much of it there is; whether that is too much, or too little.
Reasons = Iterator[tuple[str, float, bool]]


def apply_quality_rules(rule: QualityRules) -> StageFn:
    """Returns a stage that drops a document for the first rule that it breaks: Dropped("too few
    words", "17")."""

    def stage(page: Page) -> Page | Dropped:
        for reason, value, broken in check(page.text, rule):
            if broken:
                return Dropped(reason, f"{value:.4g}")
        return page

    return stage


def check(text: str, rule: QualityRules) -> Reasons:
    """Yields (reason for dropping a text; its value, as a number of words or a share; whether the
    rule is broken) for each rule, up to the first for a text without words."""
    words = text.split()
    n_words = len(words)
    yield "too few words", n_words, n_words < max(1, rule.words[0])
    if not words:
        return
    yield "too many words", n_words, n_words > rule.words[1]

    unique = list(dict.fromkeys(words))
    number = dict(zip(unique, range(len(unique)), strict=True))
    ids = np.fromiter(map(number.__getitem__, words), np.int64, n_words)
    lengths = np.fromiter(map(len, unique), np.int64, len(unique))[ids]
    mean = float(lengths.mean())
    yield "words too short", mean, mean < rule.word_length[0]
    yield "words too long", mean, mean > rule.word_length[1]

    for reason, symbols in (("too many hashes", ("#",)), ("too many ellipses", ELLIPSES)):
        ratio = sum(map(text.count, symbols)) / n_words
        yield reason, ratio, ratio > rule.symbol_ratio

    lines = [line.strip() for line in text.split("\n")]
    n_lines = sum(map(bool, lines))
    bullets = sum(line.startswith(BULLETS) for line in lines) / n_lines
    yield "too many bullets", bullets, bullets > rule.bullet_lines
    cut = sum(line.endswith(ELLIPSES) for line in lines) / n_lines
    yield "too many lines end with an ellipsis", cut, cut > rule.ellipsis_lines

    alphabetic = [word.isalpha() or any(map(str.isalpha, word)) for word in unique]
    share = float(np.array(alphabetic)[ids].mean())
    yield "too few alphabetic words", share, share < rule.alphabetic_words
    n_stop_words = _count_stop_words(text, rule.stop_words)
    yield "too few stop words", n_stop_words, n_stop_words < rule.stop_words
    if rule.repetition:
        yield from _check_repetition(lines, ids, lengths)


def _count_stop_words(text: str, enough: int) -> int:
    """Number of different stop words in a text, or `enough` if there are more."""
    found: set[str] = set()
    for match in STOP_WORD.finditer(text):
        found.add(match[0].lower())
        if len(found) >= enough:
            break
    return len(found)


def _check_repetition(lines: Sequence[str], ids: np.ndarray, lengths: np.ndarray) -> Reasons:
    paragraphs = ["\n".join(group) for full, group in itertools.groupby(lines, bool) if full]
    for what, parts in (("lines", [*filter(None, lines)]), ("paragraphs", paragraphs)):
        unique = set(parts)
        share = (len(parts) - len(unique)) / len(parts)  # 3 of 10 are 0.3; 1 - 7 / 10 is more
        yield f"duplicate {what}", share, share > DUPLICATES
        n_characters = sum(map(len, parts))
        share = (n_characters - sum(map(len, unique))) / n_characters
        yield f"characters of duplicate {what}", share, share > DUPLICATE_CHARACTERS

    ends = np.cumsum(lengths)
    for n, starts, group in _repeated_ngrams(ids):
        characters = ends[starts + n - 1] - ends[starts] + lengths[starts]
        if n in MOST_FREQUENT:
            count = np.bincount(group)
            share = 0.0
            if len(count):
                of_group = np.zeros(len(count), np.int64)
                of_group[group] = characters
                share = int((of_group * count)[count == count.max()].max()) / int(ends[-1])
            yield f"most frequent {n}-gram", share, share > MOST_FREQUENT[n]
        elif n in DUPLICATE_NGRAMS:
            first = np.unique(group, return_index=True)[1]
            covered = np.zeros(len(ids) + 1, np.int64)
            again = np.delete(starts, first)
            np.add.at(covered, again, 1)
            np.add.at(covered, again + n, -1)
            share = int(lengths[np.cumsum(covered)[:-1] > 0].sum()) / int(ends[-1])
            yield f"duplicate {n}-grams", share, share > DUPLICATE_NGRAMS[n]


def _repeated_ngrams(ids: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields for n = 2 to 10: n; where the n-grams that occur more than once start, in order; a
    number for each, the same for equal ones. An n-gram is repeated only if both (n-1)-grams in it
    are, so there are ever fewer to compare. Exact: no hashes."""
    starts, group = np.arange(len(ids)), ids
    for n in range(2, max(DUPLICATE_NGRAMS) + 1):
        follows = np.flatnonzero(np.diff(starts) == 1)
        starts = starts[follows]
        pair = group[follows] * (len(ids) + 1) + group[follows + 1]
        _, group, count = np.unique(pair, return_inverse=True, return_counts=True)
        repeated = count[group] > 1
        starts, group = starts[repeated], group[repeated]
        yield n, starts, group
