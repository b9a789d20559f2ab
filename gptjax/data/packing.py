"""Packing of tokenized documents into rows of n_ctx + 1 tokens: documents are shuffled every epoch
and concatenated, and any row can be read by its number. numpy only.

A row is a pure function of (lengths, n_ctx, key) and its number, so a run resumes from the number
alone.
"""

import functools
import hashlib
import threading
from collections.abc import Iterator
from typing import Protocol

import numpy as np

ROUNDS = 4  # of the Feistel network in Permutation


class Documents(Protocol):
    """Tokenized documents with random access.

    lengths: int64 array of shape (documents,), the number of tokens of each, end-of-text included.
    """

    lengths: np.ndarray

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        """Returns tokens start..stop-1 of a document, an unsigned integer array."""
        ...


class Permutation:
    """A keyed permutation of range(n), computed entry by entry in constant memory.

    A Feistel network permutes a power of 4 that is at least n and at most 4 n; results outside the
    range are permuted again until one is inside (cycle walking: Black and Rogaway, "Ciphers with
    arbitrary finite domains", 2002).
    """

    def __init__(self, n: int, key: str):
        self.n = n
        # Bits in each half of the network's input.
        self.half = max(1, ((n - 1).bit_length() + 1) // 2)
        digest = hashlib.sha256(key.encode()).digest()
        self.keys = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") | 1 for i in range(ROUNDS)]

    def __call__(self, i: int) -> int:
        """Returns entry i, 0 <= i < n."""
        assert 0 <= i < self.n
        mask = (1 << self.half) - 1
        while True:
            left, right = i >> self.half, i & mask
            for key in self.keys:
                mixed = (right + 1) * key & 0xFFFFFFFFFFFFFFFF
                # A constant of splitmix64.
                mixed = (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
                left, right = right, left ^ mixed >> 32 & mask
            i = left << self.half | right
            if i < self.n:
                return i


class Epoch:
    """The two orders of one epoch: of the documents, whose concatenation is cut into rows, and of
    these rows, so that parts of one document are not all in one batch.
    """

    def __init__(self, lengths: np.ndarray, n_rows: int, key: str):
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")
        dtype = np.uint32 if len(lengths) < 2**32 else np.uint64
        self.order = (
            np.random.Generator(np.random.PCG64(seed)).permutation(len(lengths)).astype(dtype)
        )
        self.ends = np.cumsum(lengths[self.order])  # where each document ends in the epoch's stream
        self.rows = Permutation(n_rows, key)


def iter_spans(
    documents: Documents, order: np.ndarray, ends: np.ndarray, position: int, length: int
) -> Iterator[tuple[int, int, int]]:
    """Yields (document, start, stop) of the parts of documents that `length` tokens consist of.

    The documents are concatenated in `order`, and each ends at its entry of `ends`; the tokens
    start at `position` of that stream.
    """
    index = int(np.searchsorted(ends, position, side="right"))
    filled = 0
    while filled < length:
        document = int(order[index])
        size = int(documents.lengths[document])
        start = position + filled - (int(ends[index]) - size)
        stop = min(size, start + length - filled)
        yield document, start, stop
        filled += stop - start
        index += 1


def gather(
    documents: Documents, order: np.ndarray, ends: np.ndarray, position: int, out: np.ndarray
) -> None:
    """Fills `out`, of shape (length,), with the tokens of `iter_spans`."""
    filled = 0
    for document, start, stop in iter_spans(documents, order, ends, position, len(out)):
        out[filled : filled + stop - start] = documents.tokens(document, start, stop)
        filled += stop - start


class Rows:
    """The rows of a source over an endless sequence of epochs, each of n_ctx + 1 tokens.

    An epoch concatenates all documents into one stream, and its row r is stream[r * n_ctx :
    (r + 1) * n_ctx + 1]. The one token of overlap makes every token but the first a target exactly
    once an epoch; the last tokens, which do not fill a row, are left out of that epoch. Memory: two
    epochs, about 12 bytes a document each.
    """

    def __init__(self, documents: Documents, n_ctx: int, key: str, name: str = "the data"):
        """key: what the order depends on (seed and source). name: of the documents, for errors.
        Raises ValueError if the documents do not fill one row."""
        self.documents = documents
        self.n_ctx = n_ctx
        self.total = int(documents.lengths.sum())
        check_size(self.total, n_ctx, name)
        self.per_epoch = (self.total - 1) // n_ctx
        self.key = key
        self._epoch = functools.lru_cache(maxsize=2)(
            lambda epoch: Epoch(documents.lengths, self.per_epoch, f"{key} epoch {epoch}")
        )
        self._lock = threading.Lock()  # one thread at a time computes an epoch

    def fill(self, number: int, out: np.ndarray) -> None:
        """Writes row `number`, counted over all epochs, into `out`, an integer array of shape
        (n_ctx + 1,)."""
        gather(self.documents, *self._locate(number), out)

    def spans(self, number: int) -> Iterator[tuple[int, int, int]]:
        """Yields (document, start, stop) of the parts of documents that row `number` consists
        of."""
        return iter_spans(self.documents, *self._locate(number), self.n_ctx + 1)

    def _locate(self, number: int) -> tuple[np.ndarray, np.ndarray, int]:
        epoch, row = divmod(number, self.per_epoch)
        with self._lock:
            order = self._epoch(epoch)
        return order.order, order.ends, order.rows(row) * self.n_ctx

    def row(self, number: int) -> np.ndarray:
        """Returns row `number` as an int32 array of shape (n_ctx + 1,)."""
        out = np.empty(self.n_ctx + 1, np.int32)
        self.fill(number, out)
        return out


def check_size(n_tokens: int, n_ctx: int, name: str) -> None:
    """Raises ValueError if n_tokens tokens, which `name` has, do not fill one row."""
    if n_tokens < n_ctx + 1:
        raise ValueError(
            f"{name} has {n_tokens:,} tokens, fewer than one row of model.n_ctx={n_ctx:,} tokens "
            "and its next: give more text or "
            f"--set model.n_ctx={max(1, n_tokens - 1)}"
        )


def evenly_spaced_rows(documents: Documents, n_ctx: int, n_rows: int) -> np.ndarray:
    """Returns at most n_rows rows, evenly spread over the documents in their own order, as int32
    of shape (rows, n_ctx + 1)."""
    ends = np.cumsum(documents.lengths)
    available = max(0, (int(ends[-1]) - 1) // n_ctx) if len(ends) else 0
    rows = np.empty((min(n_rows, available), n_ctx + 1), np.int32)
    order = np.arange(len(ends))
    for number, out in enumerate(rows):
        gather(documents, order, ends, number * available // len(rows) * n_ctx, out)
    return rows
