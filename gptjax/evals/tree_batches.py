"""Requests as batches of token trees: a context stands in a row once for all its completions, as
does a prefix that several contexts share, and short texts are packed side by side.

`plan_batches` decides what stands where, from the longest row to the shortest; `make_batch` writes
a batch as arrays. model/attention/tree.py computes such rows."""

import bisect
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from gptjax.sharding import rules

# Tokens of a row, unless a single text is longer: longer rows cost more attention, shorter ones
# pack less well.
ROW_TOKENS = 512
BATCH_TOKENS = 1024  # tokens per device and program, or one row per device if that is more


@dataclasses.dataclass(frozen=True)
class Request:
    """Tokens of a context and of its possible completions, each at least one token."""

    context: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One completion of a unit, with the request's context: its first n_shared tokens are shared
    with the texts before it."""

    request: int
    completion: int
    n_shared: int
    n_own: int


def _build_units(requests: Sequence[Request]) -> list[list[Leaf]]:
    """Groups completions that share a prefix: those of a request, and of the next requests in
    sorted order if they share at least half of the context, up to three times the length of the
    first text (beyond that, a longer row's attention costs as much as sharing saves)."""
    units, size, limit = [], 0, 0
    last_context, last_completion = np.zeros(0, np.int32), ()
    for index in sorted(range(len(requests)), key=lambda index: requests[index].context):
        request = requests[index]
        context = np.array(request.context, np.int32)
        n_shared, is_new_request = _n_shared_tokens(last_context, context), True
        for completion in sorted(
            range(len(request.completions)), key=lambda i: request.completions[i]
        ):
            tokens = request.completions[completion]
            length = len(context) + len(tokens) - 1
            if not is_new_request:
                n_shared = len(context) + min(
                    _n_shared_tokens(np.array(last_completion[:-1]), np.array(tokens[:-1])),
                    length - len(context),
                )
            if not units or 2 * n_shared < len(context) or size + length - n_shared > limit:
                units.append([])
                n_shared, size, limit = 0, 0, max(ROW_TOKENS, 3 * length)
            units[-1].append(Leaf(index, completion, n_shared, length - n_shared))
            size += length - n_shared
            last_completion, is_new_request = tokens, False
        last_context = context
    return units


def _n_shared_tokens(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common prefix."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def _unit_length(unit: Sequence[Leaf]) -> int:
    return sum(leaf.n_own for leaf in unit)


def _bucket_length(n: int, parts: int) -> int:
    """Padded length of a row of n tokens: one of eight steps between a power of two and the next,
    and a multiple of `parts`."""
    step = max(16, 1 << max(0, (n - 1).bit_length() - 4))
    return -(-n // step) * step if step % parts == 0 else -(-n // (step * parts)) * step * parts


def _pack_rows(
    units: list[list[Leaf]], sharding: rules.Sharding
) -> list[tuple[int, list[list[Leaf]]]]:
    """Packs units into rows, largest unit first, each into the fullest row that has space. Returns
    (padded length, units) of each row, longest first."""
    parts = sharding.n_shards("P")
    usual_length = (
        _bucket_length(
            min(ROW_TOKENS, -(-sum(map(_unit_length, units)) // sharding.n_shards("B"))), parts
        )
        if units
        else 0
    )
    rows: list[tuple[int, list[list[Leaf]]]] = []
    free_rows: list[tuple[int, int]] = []  # (free tokens, number of the row), sorted
    for unit in sorted(units, key=_unit_length, reverse=True):
        size = _unit_length(unit)
        position = bisect.bisect_left(free_rows, (size, 0))
        if position < len(free_rows):
            free, row = free_rows.pop(position)
        else:
            free, row = max(usual_length, _bucket_length(size, parts)), len(rows)
            rows.append((free, []))
        rows[row][1].append(unit)
        bisect.insort(free_rows, (free - size, row))
    return sorted(rows, key=lambda row: -row[0])


def plan_batches(
    requests: Sequence[Request], sharding: rules.Sharding
) -> Iterator[tuple[int, int, list[list[list[Leaf]]]]]:
    """Yields batches, longest rows first: (rows of the program, padded length, contents of the
    rows, fewer in the last batch)."""
    rows = _pack_rows(_build_units(requests), sharding)
    done, shards = 0, sharding.n_shards("B")
    while done < len(rows):
        length = rows[done][0]
        n = min(max(1, BATCH_TOKENS // length), -(-len(rows) // shards)) * shards
        yield n, length, [units for _, units in rows[done : done + n]]
        done += n


@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch: rows as token trees; for each scored token, the node that it follows (counted
    through the batch), the token, and whether it is the first of a completion; and the range of
    each leaf in these lists."""

    tokens_BT: np.ndarray
    positions_BT: np.ndarray
    ends_BT: np.ndarray
    source_M: np.ndarray
    target_M: np.ndarray
    is_first_M: np.ndarray
    leaves: list[tuple[Leaf, int, int]]


def make_batch(
    requests: Sequence[Request], n_rows: int, length: int, rows: list[list[list[Leaf]]]
) -> Batch:
    """Writes one of the batches that `plan_batches` yields for these requests as arrays: tokens_BT,
    positions_BT and ends_BT (n_rows, length), the others one entry for each scored token."""
    tokens_BT, positions_BT = np.zeros((2, n_rows, length), np.int32)
    ends_BT = np.tile(np.arange(1, length + 1, dtype=np.int32), (n_rows, 1))
    sources, targets, leaves, n_targets = [], [], [], 0
    for row, units in enumerate(rows):
        position = 0
        for unit in units:
            path, depth = np.zeros(0, np.int32), 0
            for leaf in unit:
                request = requests[leaf.request]
                completion = request.completions[leaf.completion]
                text, end = (*request.context, *completion[:-1]), position + leaf.n_own
                ends_BT[row, path[leaf.n_shared :]] = position
                path = np.concatenate(
                    [path[: leaf.n_shared], np.arange(position, end, dtype=np.int32)]
                )
                depth = len(text)
                assert len(path) == depth, (leaf, len(path), depth)
                tokens_BT[row, position:end] = text[leaf.n_shared :]
                positions_BT[row, position:end] = np.arange(leaf.n_shared, depth)
                sources.append(row * length + path[len(request.context) - 1 :])
                targets.append(np.array(completion, np.int32))
                leaves.append((leaf, n_targets, n_targets + len(completion)))
                n_targets += len(completion)
                position = end
            ends_BT[row, path] = position
    is_first_M = np.zeros(n_targets, bool)
    is_first_M[[begin for _, begin, _ in leaves]] = True
    return Batch(
        tokens_BT,
        positions_BT,
        ends_BT,
        np.concatenate(sources),
        np.concatenate(targets),
        is_first_M,
        leaves,
    )
