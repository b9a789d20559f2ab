"""Hashed words and n-grams against plain Python ones, on random texts."""

import random
import unicodedata

import numpy as np
import pytest

from gptjax.curation import ngrams

PIECES = [
    "the",
    "The",
    "cat",
    "caf\u00e9",
    "CAFE\u0301",
    "x",
    "1871",
    "don't",
    "\u0130stanbul",
    "\u4e2d\u6587",
    "a_b",
    "\U0001f600",
    "e.g.",
]
PIECES += [
    "\u00df",
    "Stra\u00dfe",
    "\ud800",
    "well-known",
    "(so)",
    "..",
    "\n\n",
    "\t",
    "--",
    "\u0939\u093f",
]


def text(chance: random.Random) -> str:
    return "".join(
        chance.choice(PIECES) + chance.choice(["", " ", "  ", "\n"])
        for _ in range(chance.randrange(40))
    )


def letter(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character)[0] == "M"


def plain(one: str) -> list[tuple[str, int, int]]:
    """The words with where they start and end, by a loop."""
    words, start = [], None
    for at, character in enumerate(one + " "):
        if letter(character) and start is None:
            start = at
        if not letter(character) and start is not None:
            words.append(("".join(c.lower()[0] for c in one[start:at]), start, at))
            start = None
    return words


@pytest.mark.parametrize("chunk", [2**18, 3])
def test_words_and_their_places_are_those_of_a_plain_loop(monkeypatch, chunk):
    monkeypatch.setattr(ngrams, "CHUNK_CHARS", chunk)
    chance = random.Random(0)
    seen = {}
    for _ in range(60):
        texts = [text(chance) for _ in range(chance.randrange(6))]
        found = ngrams.hash_words(texts)
        wanted = [
            (word, start, end, number)
            for number, one in enumerate(texts)
            for word, start, end in plain(one)
        ]
        places = [(start, end, number) for _, start, end, number in wanted]
        assert (
            list(zip(found.starts.tolist(), found.ends.tolist(), found.texts.tolist(), strict=True))
            == places
        )
        for (word, *_), value in zip(wanted, found.hashes.tolist(), strict=True):
            assert seen.setdefault(word, value) == value
    assert len(set(seen.values())) == len(seen) > 50


def test_ngrams_are_equal_when_their_words_are():
    chance = random.Random(1)
    by_words: dict[tuple[str, ...], int] = {}
    for _ in range(200):
        texts = [
            " ".join(chance.choice("abc") for _ in range(chance.randrange(30))) for _ in range(4)
        ]
        words = [[word for word, _, _ in plain(one)] for one in texts]
        before = np.cumsum([0, *map(len, words)])
        for n, hashes, first in ngrams.hash_ngrams(ngrams.hash_words(texts), [1, 2, 5, 13]):
            wanted = [
                (int(before[t] + i), tuple(w[i : i + n]))
                for t, w in enumerate(words)
                for i in range(len(w) - n + 1)
            ]
            assert first.tolist() == [at for at, _ in wanted]
            for (_, gram), value in zip(wanted, hashes.tolist(), strict=True):
                assert by_words.setdefault(gram, value) == value
    assert len(set(by_words.values())) == len(by_words) > 3000


def test_anagrams_and_repeated_words_differ():
    """A weak hash would take these for the same."""
    words = ngrams.hash_words(
        [" ".join("".join(c) for c in __import__("itertools").permutations("abcdefg"))]
    )
    assert len(set(words.hashes.tolist())) == 5040
    rows = [" ".join(order) for order in __import__("itertools").permutations("abcdefg")]
    ((_, hashes, _),) = ngrams.hash_ngrams(ngrams.hash_words(rows), [7])
    assert len(set(hashes.tolist())) == 5040


@pytest.mark.parametrize("n", [0, 1, 7, 5000])
def test_the_hash_set_finds_its_members_and_nothing_else(n):
    chance = np.random.default_rng(0)
    hashes = np.unique(chance.integers(0, 2**64, n, np.uint64))
    known = ngrams.HashSet(hashes)
    others = chance.integers(0, 2**64, 20_000, np.uint64)
    asked = chance.permutation(np.concatenate([hashes, hashes, others]))
    at, number = known.lookup(asked)
    assert (hashes[number] == asked[at]).all() and len(at) == 2 * len(hashes) == np.isin(
        asked, hashes
    ).sum()


def test_no_text_has_no_words():
    for texts in ([], [""], ["", " .,"]):
        found = ngrams.hash_words(texts)
        assert len(found.hashes) == len(found.starts) == len(found.texts) == 0
        assert list(ngrams.hash_ngrams(found, [3])) == []
