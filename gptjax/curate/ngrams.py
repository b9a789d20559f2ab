"""Words and n-grams of many texts at once, as 64-bit hashes: NumPy does the work, so that corpora
can be looked through.

A word is a run of letters, digits and combining marks, in lower case: GPT-3 Appendix C says
"lowercase, whitespace delimited word with no punctuation", and the 13-grams that OpenAI released
("i m going to go out", github.com/openai/gpt-3, overlap_frequency.md) show that punctuation parts
words. GPT-2 section 4 has the same words.

Hashes are polynomials modulo 2^64 of random numbers, a number a letter and, of n-grams, a hash a
word. Two different n-grams have the same with a probability near 2^-64 (below 2^-56 for any two of
ordinary words: differences of odd powers are divisible by few twos): of 4e11 words of GPT-3's
corpus looked up among 1e7 n-grams, 0.2 are expected to match wrongly."""

import dataclasses
import functools
import unicodedata
from collections.abc import Collection, Iterator, Sequence

import numpy as np

Array = np.ndarray
LETTER_BASE = np.uint64(
    0x9E3779B97F4A7C15
)  # of letters in a word; 5 modulo 8, so that its powers go all the way round
WORD_BASE = np.uint64(0xD1342543DE82EF95)  # of words in an n-gram
N_CODE_POINTS = 0x32400  # no letter's code point is above
CHUNK_CHARS = 2**18  # characters worked on at once: what the caches hold


@dataclasses.dataclass(frozen=True)
class Words:
    """Of several texts, one after the other: each word's hash, where it starts and ends in its
    text, and the number of that text."""

    hashes: Array
    starts: Array
    ends: Array
    texts: Array


def hash_words(texts: Sequence[str]) -> Words:
    """The words of `texts`."""
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
    """For each n of `lengths`, the least first: n, the hashes of all n-grams that lie in one
    text, and the number of each's first word."""
    hashes = np.zeros(len(words.hashes), np.uint64)
    for n in range(1, min(max(lengths, default=0), len(words.hashes)) + 1):
        hashes = hashes[: len(words.hashes) - n + 1] * WORD_BASE
        hashes += words.hashes[n - 1 :]
        if n in lengths:
            first = np.flatnonzero(words.texts[: len(hashes)] == words.texts[n - 1 :])
            yield n, mix(hashes[first] + np.uint64(n)), first


def mix(x: Array) -> Array:
    """Each 64-bit number as another that looks like chance: splitmix64's last steps. In place."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return x


class HashSet:
    """A sorted array of hashes, none twice, and a table of bits that says of most others that they
    are not among them.

    Memory: 8 bytes a hash, and 4 to 8 more."""

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
        """(which of `hashes` are known, and the number of each among the known ones)."""
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
    """Parts of about CHUNK_CHARS characters that cut no word."""
    start, total = 0, len(codes)
    while start < total:
        end = min(start + CHUNK_CHARS, total)
        while end < total and _letter_values(codes[end : end + 1])[0]:
            rest = _letter_values(codes[end : end + CHUNK_CHARS]) == 0
            end += int(np.argmax(rest)) if rest.any() else len(rest)
        yield start, end
        start = end


def _hash_chunk(codes: Array, offset: int) -> tuple[Array, Array, Array]:
    """The words of a chunk: hash, start, end."""
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
    """A random number for each code point that words are made of, the same for capital and small
    letters; 0 for all others."""
    letters = np.zeros(N_CODE_POINTS + 1, np.uint64)
    for code in range(N_CODE_POINTS):
        letter = chr(code)
        if letter.isalnum() or unicodedata.category(letter)[0] == "M":
            letters[code] = ord(letter.lower()[0])
    return np.where(letters > 0, mix(letters * LETTER_BASE), np.uint64(0))


_power_cache = [np.ones(1, np.uint64), np.ones(1, np.uint64)]


def _powers(n: int) -> tuple[Array, Array]:
    """LETTER_BASE to the powers 0 ... n - 1 or more, and their inverses modulo 2^64."""
    if len(_power_cache[0]) < n:
        inverse = np.uint64(pow(int(LETTER_BASE), -1, 2**64))
        for number, base in enumerate((LETTER_BASE, inverse)):
            _power_cache[number] = np.cumprod(
                np.concatenate([np.ones(1, np.uint64), np.full(n - 1, base, np.uint64)])
            )
    return _power_cache[0], _power_cache[1]
