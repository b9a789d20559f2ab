"""Rows: every token once an epoch, every epoch another order, any row at any time."""

import numpy as np
import pytest

from gptjax.data import packing


class Listed:
    """Documents in memory; every token of all of them is a different number."""

    def __init__(self, lengths):
        self.lengths = np.array(lengths, np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths

    def tokens(self, document, start, stop):
        assert 0 <= start <= stop <= self.lengths[document]
        return np.arange(start, stop) + self.starts[document]


SHAPES = {
    "many short": np.random.default_rng(0).integers(1, 9, 300),
    "one long": [1000],
    "mixed": [1, 700, 1, 1, 40, 3, 255, 2],
    "exact rows": [16] * 10 + [1],
    "one row": [17],
    "empty ones": [5, 0, 0, 30, 0, 9],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_ctx", [1, 5, 16])
def test_no_token_is_lost_or_read_twice_in_an_epoch(shape, n_ctx):
    documents = Listed(SHAPES[shape])
    rows = packing.Rows(documents, n_ctx, "key")
    total = int(documents.lengths.sum())
    assert rows.per_epoch == (total - 1) // n_ctx
    for epoch in range(3):
        drawn = np.stack([rows.row(epoch * rows.per_epoch + r) for r in range(rows.per_epoch)])
        assert drawn.shape == (rows.per_epoch, n_ctx + 1) and drawn.dtype == np.int32
        targets = drawn[:, 1:].ravel()  # what is predicted
        assert len(np.unique(targets)) == len(targets)
        assert total - len(np.unique(drawn)) < n_ctx  # what fills no row


def test_rows_are_the_stream_of_whole_documents_cut():
    documents = Listed(SHAPES["many short"])
    rows = packing.Rows(documents, 16, "key")
    order = packing.Epoch(documents.lengths, rows.per_epoch, "key epoch 1")
    stream = np.concatenate([documents.tokens(d, 0, documents.lengths[d]) for d in order.order])
    for r in range(rows.per_epoch):
        at = order.rows(r)
        np.testing.assert_array_equal(rows.row(rows.per_epoch + r), stream[at * 16 : at * 16 + 17])


def test_rows_of_an_epoch_come_in_another_order_in_the_next():
    rows = packing.Rows(Listed([16] * 50 + [1]), 16, "key")
    first, second = ([rows.row(epoch * 50 + r).tolist() for r in range(50)] for epoch in (0, 1))
    assert first != second


def test_every_epoch_is_another_permutation_of_documents_and_of_rows():
    epochs = [packing.Epoch(np.ones(500, np.int64), 100, f"key {e}") for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch.order.tolist()) == list(range(500))
        assert sorted(epoch.rows(r) for r in range(100)) == list(range(100))
    assert not np.array_equal(epochs[0].order, epochs[1].order)
    assert [epochs[0].rows(r) for r in range(100)] != [epochs[1].rows(r) for r in range(100)]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 63, 64, 65, 1000, 4097])
def test_the_feistel_network_is_a_permutation(n):
    drawn = [packing.Permutation(n, "key")(i) for i in range(n)]
    assert sorted(drawn) == list(range(n))
    if n >= 1000:
        other = [packing.Permutation(n, "another")(i) for i in range(n)]
        assert np.mean(np.array(drawn) == other) < 0.02
        assert (
            np.mean(np.abs(np.diff(drawn)) <= 2) < 0.05
        )  # neighbours in the text are not neighbours in the run
        assert abs(np.corrcoef(drawn, np.arange(n))[0, 1]) < 0.15


def test_any_row_at_any_time():
    rows = packing.Rows(Listed(SHAPES["mixed"]), 7, "key")
    numbers = list(range(5 * rows.per_epoch))
    inorder = [rows.row(n) for n in numbers]
    np.random.default_rng(0).shuffle(numbers)
    fresh = packing.Rows(Listed(SHAPES["mixed"]), 7, "key")
    for n in numbers:
        np.testing.assert_array_equal(fresh.row(n), inorder[n])


def test_the_key_decides_the_order():
    a, b = (packing.Rows(Listed(SHAPES["many short"]), 16, key) for key in ("seed 0", "seed 1"))
    assert any(not np.array_equal(a.row(n), b.row(n)) for n in range(5))


def test_validation_rows_are_spread_evenly_and_in_order():
    documents = Listed(SHAPES["mixed"])
    available = (int(documents.lengths.sum()) - 1) // 10
    every = packing.evenly_spaced_rows(documents, 10, 10**6)
    np.testing.assert_array_equal(every[:, 0], np.arange(available) * 10)
    np.testing.assert_array_equal(every[:, -1], np.arange(available) * 10 + 10)
    few = packing.evenly_spaced_rows(documents, 10, 7)
    assert few.shape == (7, 11) and few.dtype == np.int32
    gaps = np.diff(few[:, 0])
    assert gaps.min() >= available // 7 * 10 and gaps.max() <= (available // 7 + 1) * 10


def test_a_corpus_smaller_than_one_row_gets_one_line():
    with pytest.raises(
        ValueError,
        match=r"books has 16 tokens, fewer than one row of model.n_ctx=16 .*--set model.n_ctx=15",
    ) as error:
        packing.Rows(Listed([10, 6]), 16, "key", "books")
    assert "\n" not in str(error.value)
