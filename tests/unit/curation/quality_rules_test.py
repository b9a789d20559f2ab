"""Gopher's rules: each at its limit and beyond, and repetition against plain loops."""

import collections
import itertools
import random
import string

import numpy as np
import pytest

from gptjax.config.curation import QualityRules
from gptjax.curation import quality_rules
from gptjax.curation.page import Dropped, Page

WORDS = ["".join(letters) for letters in itertools.product("bcdfg", repeat=5)]  # no stop words
DEFAULT = QualityRules()
GOOD = ["the", "and", *WORDS[:98]]


def text(words, lines=1):
    size = -(-len(words) // lines)
    return "\n".join(" ".join(words[at : at + size]) for at in range(0, len(words), size))


def lines(n, mark, bad):
    """n lines of ten words, of which the first `bad` are marked."""
    made = text([*GOOD, *WORDS[98:]][: 10 * n], n).split("\n")
    return "\n".join(mark(line) if at < bad else line for at, line in enumerate(made))


def drop(content, rule=DEFAULT):
    outcome = quality_rules.apply_quality_rules(rule)(Page(0, "a#0", "", content))
    return (outcome.reason, outcome.detail) if isinstance(outcome, Dropped) else None


def measure(content):
    return {
        reason: (value, broken) for reason, value, broken in quality_rules.check(content, DEFAULT)
    }


def of_length(length, n):
    return ["".join(letters) for letters in itertools.islice(combine(length), n)]


def combine(length):
    return itertools.product(string.ascii_lowercase[5:], repeat=length)


LIMITS = {
    "too few words": (text(GOOD[:50]), text(GOOD[:49])),
    "too many words": (text(GOOD), text([*GOOD, "more"]), QualityRules(words=(1, 100))),
    "words too short": (
        text(["to", "of", *of_length(2, 48), *of_length(4, 50)]),
        text(["to", "of", *of_length(2, 48), *of_length(4, 49), "ggg"]),
    ),
    "words too long": (
        text(["that", "with", *of_length(10, 96), "b" * 16, "b" * 16]),
        text(["that", "with", *of_length(10, 96), "b" * 16, "b" * 17]),
    ),
    "too many hashes": tuple(
        text([word + "#" * (at < n) for at, word in enumerate(GOOD)]) for n in (10, 11)
    ),
    "too many ellipses": tuple(
        text([word + ["...", "…"][at % 2] * (at < n) for at, word in enumerate(GOOD)])
        for n in (10, 11)
    ),
    "too many bullets": tuple(lines(10, lambda line: f"  - {line}", n) for n in (9, 10)),
    "too many lines end with an ellipsis": tuple(
        lines(10, lambda line: f"{line}… ", n) for n in (3, 4)
    ),
    "too few alphabetic words": tuple(
        text(["the", "don't", "and", *WORDS[: n - 3], *map(str, range(1000, 1100 - n))])
        for n in (80, 79)
    ),
    "too few stop words": (
        text(["The", *WORDS[:98], "(and)"]),
        text(["The", "the", *WORDS[:97], "often"]),
    ),
    "duplicate lines": tuple(
        f"{lines(6, str, 0)}\n\n" + "\n  one".join([""] * (n + 1)) for n in (4, 5)
    ),
}


@pytest.mark.parametrize("reason", LIMITS)
def test_a_rule_holds_up_to_its_limit(reason):
    at_limit, beyond, *rule = LIMITS[reason]
    assert drop(at_limit, *rule) is None
    found = drop(beyond, *rule)
    assert found is not None and found[0] == reason


def test_the_detail_is_how_much_there_is():
    assert drop(LIMITS["too few words"][1]) == ("too few words", "49")
    assert drop(LIMITS["too few stop words"][1]) == ("too few stop words", "1")
    assert drop(LIMITS["too few alphabetic words"][1]) == ("too few alphabetic words", "0.79")
    assert drop("") == ("too few words", "0") == drop("", QualityRules(words=(0, 10)))


def test_half_of_what_is_there_twice_is_duplicate():
    one, other = "b" * 30, "c" * 10
    found = measure(f"{one}\n {one} \n\n{other}\n{other}\n \t\n{other}\n{other}")
    assert found["duplicate lines"] == (4 / 6, True)
    assert found["characters of duplicate lines"] == (60 / 100, True)
    assert found["duplicate paragraphs"] == (1 / 3, True)
    assert found["characters of duplicate paragraphs"] == (21 / 103, True)


@pytest.mark.parametrize("what, between", [("lines", "\n"), ("paragraphs", "\n\n")])
def test_of_lines_and_paragraphs_three_tenths_and_a_fifth_of_the_characters(what, between):
    short = between.join(["one"] * 4 + WORDS[:6])
    assert measure(short)[f"duplicate {what}"] == (0.3, False)
    assert measure(f"{short}{between}one")[f"duplicate {what}"][1]
    equal = between.join([*WORDS[:8], *WORDS[:2]])
    assert measure(equal)[f"characters of duplicate {what}"] == (0.2, False)
    assert measure(f"{equal}{between}{WORDS[0]}")[f"characters of duplicate {what}"][1]


def test_without_repetition_only_the_other_rules_apply():
    content = " ".join([text(GOOD)] * 2)
    assert drop(content) == ("duplicate 5-grams", "0.5")
    assert drop(content, QualityRules(repetition=False)) is None


def plain_most_frequent(words, n):
    grams = collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    most = max(grams.values(), default=0)
    sizes = [len("".join(gram)) * most for gram, count in grams.items() if count == most > 1]
    return max(sizes, default=0) / len("".join(words))


def plain_duplicates(words, n):
    seen, covered = set(), set()
    for i in range(len(words) - n + 1):
        gram = tuple(words[i : i + n])
        if gram in seen:
            covered |= set(range(i, i + n))
        seen.add(gram)
    return sum(len(words[i]) for i in covered) / len("".join(words))


def test_repeated_ngrams_are_those_of_plain_loops():
    chance = random.Random(0)
    duplicates = []
    for _ in range(60):
        words = [chance.choice(["a", "bb", "ccc", "dd"]) for _ in range(chance.randrange(1, 40))]
        for _ in range(chance.randrange(4)):
            at, size = chance.randrange(len(words)), chance.randrange(20)
            words += [*words[at : at + size], chance.choice(WORDS)]
        found = measure(text(words, chance.randrange(1, 9)))
        for n in (2, 3, 4):
            value = plain_most_frequent(words, n)
            assert found[f"most frequent {n}-gram"] == (value, value > [0.2, 0.18, 0.16][n - 2])
        for n in range(5, 11):
            value = plain_duplicates(words, n)
            duplicates.append(value)
            assert found[f"duplicate {n}-grams"] == (value, value > round(0.2 - n / 100, 2))
    assert 0.2 < np.mean(np.array(duplicates) > 0) < 0.9
