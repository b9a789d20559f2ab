"""Words and n-grams of many texts as 64-bit hashes, computed in NumPy so that large corpora can be
searched.

A word is a run of letters, digits and combining marks, in lower case: GPT-3 Appendix C says
"lowercase, whitespace delimited word with no punctuation", and the 13-grams that OpenAI released
("i m going to go out", github.com/openai/gpt-3, overlap_frequency.md) show that punctuation
separates words. GPT-2 section 4 uses the same words.

Hashes are polynomials modulo 2^64 of random numbers, one per letter, and for n-grams of the words'
hashes. Two different n-grams collide with a probability near 2^-64 (below 2^-56 for any two of
ordinary words: differences of odd powers are divisible by few twos): of the 4e11 words of GPT-3's
corpus looked up among 1e7 n-grams, 0.2 false matches are expected.
"""

import dataclasses
import functools
import unicodedata
from collections.abc import Collection, Iterator, Sequence

import numpy as np

Array = np.ndarray
# For letters in a word; 5 modulo 8, so that its powers have the longest period.
LETTER_BASE = np.uint64(0x9E3779B97F4A7C15)
WORD_BASE = np.uint64(0xD1342543DE82EF95)  # for words in an n-gram
N_CODE_POINTS = 0x32400  # above the code point of every letter
CHUNK_CHARS = 2**18  # characters processed at once: fits CPU caches


@dataclasses.dataclass(frozen=True)
class Words:
    """The words of several texts in sequence: hash, start and end in the text, and index of the
    text.
    """

    hashes: Array
    starts: Array
    ends: Array
    texts: Array


def hash_words(texts: Sequence[str]) -> Words:
    """Returns the words of `texts`."""
    codes = np.frombuffer("\n".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    parts = [_hash_chunk(codes[start:end], start) for start, end in _chunk_bounds(codes)]
    hashes, starts, ends = (
        (np.concatenate(part) for part in zip(*parts, strict=True))
        if parts
        else (np.zeros(0, np.int64),) * 3
    )
    offsets = np.cumsum([0, *(len(text) + 1 for text in texts)])
    counts = np.diff(np.searchsorted(starts, offsets))
    text_starts = np.repeat(offsets[:-1], counts)
    return Words(
        hashes.astype(np.uint64, copy=False),
        starts - text_starts,
        ends - text_starts,
        np.repeat(np.arange(len(texts)), counts),
    )


def hash_ngrams(words: Words, lengths: Collection[int]) -> Iterator[tuple[int, Array, Array]]:
    """Yields for each n in `lengths`, in ascending order: n, the hashes of all n-grams within a
    text, and the index of the first word of each.
    """
    hashes = np.zeros(len(words.hashes), np.uint64)
    for n in range(1, min(max(lengths, default=0), len(words.hashes)) + 1):
        hashes = hashes[: len(words.hashes) - n + 1] * WORD_BASE
        hashes += words.hashes[n - 1 :]
        if n in lengths:
            first = np.flatnonzero(words.texts[: len(hashes)] == words.texts[n - 1 :])
            yield n, mix(hashes[first] + np.uint64(n)), first


def mix(x: Array) -> Array:
    """Scrambles 64-bit numbers with the last steps of splitmix64, in place."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return x


class HashSet:
    """A sorted array of distinct hashes, with a bit table that rules out most others quickly.

    Memory: 8 bytes per hash, and 4 to 8 more.
    """

    def __init__(self, hashes: Array, bits: Array | None = None):
        self.hashes = hashes
        self.shift = np.uint64(64 - max(16, int(32 * len(hashes)).bit_length()))
        self.bits = self._build_bits() if bits is None else bits

    def _build_bits(self) -> Array:
        bits = np.zeros(2 ** (64 - int(self.shift) - 3), np.uint8)
        position = self.hashes >> self.shift
        np.bitwise_or.at(
            bits,
            position >> np.uint64(3),
            np.left_shift(1, position & np.uint64(7)).astype(np.uint8),
        )
        return bits

    def __len__(self) -> int:
        return len(self.hashes)

    def lookup(self, hashes: Array) -> tuple[Array, Array]:
        """Returns (indices of those of `hashes` that are in the set, index of each in the set)."""
        position = hashes >> self.shift
        table = self.bits[position >> np.uint64(3)] >> (position & np.uint64(7)).astype(np.uint8)
        candidates = np.flatnonzero(table & np.uint8(1))
        if not len(self.hashes) or not len(candidates):
            return candidates[:0], candidates[:0]
        index = np.minimum(np.searchsorted(self.hashes, hashes[candidates]), len(self.hashes) - 1)
        is_match = self.hashes[index] == hashes[candidates]
        return candidates[is_match], index[is_match]


# --- letters --------------------------------------------------------------------------------------


def _chunk_bounds(codes: Array) -> Iterator[tuple[int, int]]:
    """Yields the bounds of chunks of about CHUNK_CHARS characters that split no word."""
    start, total = 0, len(codes)
    while start < total:
        end = min(start + CHUNK_CHARS, total)
        while end < total and _letter_values(codes[end : end + 1])[0]:
            rest = _letter_values(codes[end : end + CHUNK_CHARS]) == 0
            end += int(np.argmax(rest)) if rest.any() else len(rest)
        yield start, end
        start = end


def _hash_chunk(codes: Array, offset: int) -> tuple[Array, Array, Array]:
    """Hashes, starts and ends of the words in a chunk."""
    values = _letter_values(codes)
    in_word = np.zeros(len(codes) + 2, np.int8)
    in_word[1:-1] = values != 0
    edges = np.flatnonzero(in_word[1:] != in_word[:-1])
    starts, ends = edges[::2], edges[1::2]
    powers, inverses = _powers(len(codes))
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(values * powers[: len(codes)], out=sums[1:])
    hashes = mix((sums[ends] - sums[starts]) * inverses[starts])
    return hashes, starts + offset, ends + offset


def _letter_values(codes: Array) -> Array:
    return _letter_table().take(codes, mode="clip")


@functools.cache
def _letter_table() -> Array:
    """A random number for each code point that words consist of, the same for upper and lower case;
    0 for all others.
    """
    letters = np.zeros(N_CODE_POINTS + 1, np.uint64)
    for code in range(N_CODE_POINTS):
        letter = chr(code)
        if letter.isalnum() or unicodedata.category(letter)[0] == "M":
            letters[code] = ord(letter.lower()[0])
    return np.where(letters > 0, mix(letters * LETTER_BASE), np.uint64(0))


_power_cache = [np.ones(1, np.uint64), np.ones(1, np.uint64)]


def _powers(n: int) -> tuple[Array, Array]:
    """Returns at least n powers of LETTER_BASE, from 0, and their inverses modulo 2^64."""
    if len(_power_cache[0]) < n:
        inverse = np.uint64(pow(int(LETTER_BASE), -1, 2**64))
        for number, base in enumerate((LETTER_BASE, inverse)):
            _power_cache[number] = np.cumprod(
                np.concatenate([np.ones(1, np.uint64), np.full(n - 1, base, np.uint64)])
            )
    return _power_cache[0], _power_cache[1]
