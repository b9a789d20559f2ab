"""Near-duplicates by MinHash and locality-sensitive hashing: sketches of documents, the pairs that
agree in a band, and their exact Jaccard similarity.

A document is the set of its shingles: n words in sequence (curation/ngrams.py), each hashed to 32
bits. Of two sets with Jaccard similarity s, each of the independent hash functions has the same
smallest value with probability s (Broder 1997), so that with b bands of r hashes a pair is found
with probability 1 - (1 - s^r)^b. Spark's MinHashLSH, which GPT-3 used with 10 hashes, has r = 1.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gptjax.config.curation import FuzzyDuplicates
from gptjax.curation import ngrams
from gptjax.curation.page import CORPUS_SHIFT
from gptjax.runtime import checksums

Array = np.ndarray
BLOCK = 2048  # documents whose sets are compared at once


# --- sketches -------------------------------------------------------------------------------------


def shingle_sets(texts: Sequence[str], n: int) -> tuple[Array, Array]:
    """Returns (the shingles of all texts as uint32, each text's sorted and distinct; the index at
    which each text's end, int64). A text of fewer than n words, but one, is one shingle."""
    words = ngrams.hash_words(texts)
    counts = np.bincount(words.texts, minlength=len(texts))
    features, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for _, hashes, firsts in ngrams.hash_ngrams(words, [n]):
        features.append(hashes)
        owners.append(words.texts[firsts])
    for length in np.unique(counts[(counts > 0) & (counts < n)]).tolist():
        for _, hashes, firsts in ngrams.hash_ngrams(words, [length]):
            is_whole = counts[words.texts[firsts]] == length
            features.append(hashes[is_whole])
            owners.append(words.texts[firsts[is_whole]])
    pairs = np.unique(
        np.concatenate(owners).astype(np.uint64) << np.uint64(32)
        | np.concatenate(features) >> np.uint64(32)
    )
    ends = np.cumsum(np.bincount((pairs >> np.uint64(32)).astype(int), minlength=len(texts)))
    return pairs.astype(np.uint32), ends


def band_keys(sets: Array, ends: Array, rule: FuzzyDuplicates) -> Array:
    """Returns the key of each band of each text, uint64 of shape (texts, bands); of an empty set
    0."""
    lengths = np.diff(ends, prepend=0)
    starts = (ends - lengths)[lengths > 0]
    seeds = np.random.default_rng(rule.seed).integers(
        2**64, size=(rule.bands, rule.rows), dtype=np.uint64
    )
    keys = np.zeros((len(ends), rule.bands), np.uint64)
    if not len(starts):
        return keys
    wide = sets.astype(np.uint64)
    for band in range(rule.bands):
        key = np.zeros(len(starts), np.uint64)
        for seed in seeds[band]:
            key = ngrams.mix(key ^ np.minimum.reduceat(ngrams.mix(wide ^ seed), starts))
        keys[lengths > 0, band] = key
    return keys


def sketch(
    texts: Sequence[str], numbers: Sequence[int], rule: FuzzyDuplicates
) -> tuple[Array, Array]:
    """Returns (the sets of all texts, uint32; int64 of shape (texts, 2 + bands): number, index at
    which its set ends, keys of its bands)."""
    sets, ends = shingle_sets(texts, rule.shingle)
    keys = band_keys(sets, ends, rule).view(np.int64)
    return sets, np.concatenate([np.stack([np.array(numbers), ends], 1), keys], 1)


def save_sketches(stem: pathlib.Path, sketches: Sequence[tuple[Array, Array]]) -> None:
    """Saves what `sketch` returned for the pages of a part: STEM.sets.npy and STEM.keys.npy."""
    offset = 0
    for sets, table in sketches:
        table[:, 1] += offset
        offset += len(sets)
    for name, column in (("sets", 0), ("keys", 1)):
        array = np.concatenate([arrays[column] for arrays in sketches])
        checksums.save_array(_file(stem, name), array)


def are_intact(stem: pathlib.Path) -> bool:
    """Whether the files of `save_sketches` are there and undamaged."""
    try:
        for name in ("sets", "keys"):
            checksums.read_array(_file(stem, name))
    except ValueError:
        return False
    return True


def _file(stem: pathlib.Path, name: str) -> pathlib.Path:
    return stem.with_name(f"{stem.name}.{name}.npy")


class Sketches:
    """Sketches of several parts, memory-mapped. stems: as given to `save_sketches`."""

    def __init__(self, stems: Sequence[pathlib.Path]):
        self._tables = [_memory_map(_file(stem, "keys")) for stem in stems]
        self._sets = [_memory_map(_file(stem, "sets")) for stem in stems]
        self._first = np.cumsum([0, *(len(table) for table in self._tables)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def column(self, index: int) -> Array:
        """Returns a column of the tables: 0 is the number, 2 + b the key of band b."""
        columns = [np.asarray(table[:, index]) for table in self._tables]
        return np.concatenate(columns or [np.zeros(0, np.int64)])

    def keys(self, row: int) -> Array:
        """Returns the keys of all bands of a document."""
        part = int(np.searchsorted(self._first, row, "right")) - 1
        return self._tables[part][row - self._first[part], 2:]

    def shingles(self, row: int) -> Array:
        """Returns the set of a document."""
        part = int(np.searchsorted(self._first, row, "right")) - 1
        index = row - int(self._first[part])
        table = self._tables[part]
        start = int(table[index - 1, 1]) if index else 0
        return np.asarray(self._sets[part][start : int(table[index, 1])])


def _memory_map(path: pathlib.Path) -> Array:
    empty = path.stat().st_size <= 256  # no data, which cannot be memory-mapped
    return np.load(path, mmap_mode=None if empty else "r")


# --- pairs ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class BandTask:
    """A band of all sketches, whose agreeing documents are compared."""

    stems: tuple[pathlib.Path, ...]
    band: int
    rule: FuzzyDuplicates

    def __str__(self) -> str:
        return f"band {self.band}"


def compare_band(task: BandTask) -> Array:
    """Returns the pairs of numbers of duplicates that agree in a band, int64 of shape (n, 2)."""
    sketches = Sketches(task.stems)
    numbers, keys = sketches.column(0), sketches.column(2 + task.band)
    rows = np.flatnonzero(keys != 0)
    order = rows[np.lexsort((numbers[rows], keys[rows]))]
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    pairs = [np.zeros((0, 2), np.int64)]
    for start, end in zip([0, *edges], [*edges, len(order)], strict=True):
        group = order[start:end]
        if len(group) == 2:  # the usual case; a pair that agrees in an earlier band was compared
            a, b = (sketches.keys(int(row))[: task.band] for row in group)
            group = group[: 2 * (not (a == b).any())]
        if len(group) > 1:
            sets = [sketches.shingles(int(row)) for row in group]
            pairs += compare_group(numbers[group], sets, task.rule.similarity)
    return np.concatenate(pairs)


def compare_group(
    numbers: Array, sets: Sequence[Array], least_similarity: float
) -> Iterator[Array]:
    """Yields the pairs of numbers of a group, smaller first, whose sets of shingles are similar.
    numbers: ascending."""
    if len(numbers) == 2:  # the usual case, which this is quicker for
        common = len(np.intersect1d(sets[0], sets[1], assume_unique=True))
        similarity = _similarity(common, len(sets[0]), len(sets[1]))
        yield numbers[None][: int(0 < similarity >= least_similarity)]
        return
    for i in range(0, len(numbers), BLOCK):
        for j in range(i, len(numbers), BLOCK):
            a, b, similarity = jaccard(sets[i : i + BLOCK], sets[j : j + BLOCK])
            pairs = np.stack([numbers[i + a], numbers[j + b]], 1)
            yield pairs[(pairs[:, 0] < pairs[:, 1]) & (similarity >= least_similarity)]


def jaccard(a: Sequence[Array], b: Sequence[Array]) -> tuple[Array, Array, Array]:
    """Returns (index in a, index in b, Jaccard similarity) of every pair of sets that have an
    element in common."""
    import scipy.sparse

    vocabulary, columns = np.unique(np.concatenate([*a, *b]), return_inverse=True)
    lengths = np.array([len(elements) for elements in [*a, *b]])
    rows = scipy.sparse.csr_array(
        (np.ones(len(columns), np.int32), columns, np.concatenate([[0], np.cumsum(lengths)])),
        shape=(len(lengths), len(vocabulary)),
    )
    common = (rows[: len(a)] @ rows[len(a) :].T).tocoo()
    i, j = common.coords
    return i, j, _similarity(common.data, lengths[i], lengths[len(a) + j])


def _similarity(common: Any, n_a: Any, n_b: Any) -> Any:
    """Returns the Jaccard similarity of sets of n_a and n_b elements, as a quotient that is rounded
    once: the same float as the decimal that a user writes, if it is equal to that."""
    return common / (n_a + n_b - common)


def clusters(pairs: Array) -> Array:
    """Returns (number, smallest number of its cluster), int64 of shape (n, 2), of every number in
    the pairs that is not the smallest of its cluster: pairs that share a number are joined."""
    import scipy.sparse
    from scipy.sparse import csgraph

    numbers, indices = np.unique(pairs, return_inverse=True)
    indices = indices.reshape(-1, 2)
    graph = scipy.sparse.coo_array(
        (np.ones(len(indices), np.int8), (indices[:, 0], indices[:, 1])),
        shape=(len(numbers), len(numbers)),
    )
    _, labels = csgraph.connected_components(graph, directed=False)
    first = np.full(labels.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, labels, numbers)
    return np.stack([numbers, first[labels]], 1)[first[labels] < numbers]


def duplicates(pairs: Array, across: Sequence[tuple[int, int]]) -> Array:
    """Returns (number, number of the document that is kept in its place), int64 of shape (n, 2), of
    every document to drop, by number.

    Within a data set the smallest number of a cluster is kept. Of a pair across data sets that of
    the second is dropped, whether or not that of the first is kept.
    """
    corpora = pairs >> CORPUS_SHIFT
    drops = [clusters(pairs[corpora[:, 0] == corpora[:, 1]])]
    for first, second in across:
        for kept, dropped in ((0, 1), (1, 0)):
            is_across = (corpora[:, kept] == first) & (corpora[:, dropped] == second)
            drops.append(pairs[is_across][:, [dropped, kept]])
    table = np.concatenate(drops)
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    is_first = np.ones(len(table), bool)
    is_first[1:] = table[1:, 0] != table[:-1, 0]
    return table[is_first]
