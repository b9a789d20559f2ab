"""From a config to batches: the same for any number of processes, exact resume from any step,
nothing of validation in training, no damage that goes unseen."""

import json
import re

import numpy as np
import pytest

from gptjax.config import data
from gptjax.data import shards
from tests.corpus import DOCUMENTS, N_CTX, prepared, reading, refused, write


class Ramped:
    """Batches of 8, 8, then 16 rows and on; the protocol of config/batch_schedule.py."""

    n_steps = 12
    max_rows = 16

    def rows(self, step):
        return 8 if step < 2 else 16

    def first_row(self, step):
        return sum(self.rows(s) for s in range(step))

    def microbatch(self, step, limit_rows):
        return limit_rows


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "text.jsonl", DOCUMENTS)


def drawn(iterator):
    return [{name: np.array(value) for name, value in batch.items()} for batch in iterator]


def same(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name])


# --- batches --------------------------------------------------------------------------------------


def test_batches_have_one_shape_and_hold_the_plans_rows(source, tmp_path):
    read, plan = reading(tmp_path, source), Ramped()
    batches = drawn(read.batches(plan, 4))
    assert len(batches) == plan.n_steps
    for step, batch in enumerate(batches):
        assert (
            batch["rows"] == 4
            and batch["tokens"].shape == (4, 4, N_CTX + 1)
            and batch["tokens"].dtype == np.int32
        )
        assert (
            batch["count"].shape == ()
            and batch["count"].dtype == np.int32
            and batch["count"] * 4 == plan.rows(step)
        )
        rows = batch["tokens"].reshape(-1, N_CTX + 1)
        for place in range(plan.rows(step)):
            np.testing.assert_array_equal(rows[place], read.row(plan.first_row(step) + place))
        assert not rows[plan.rows(step) :].any()


def test_one_process_or_four_give_the_same_global_batch(source, tmp_path):
    read = reading(tmp_path, source)
    whole = drawn(read.batches(Ramped(), 8))
    parts = [
        drawn(
            read.batches(
                Ramped(), 8, local_rows=lambda n_rows, p=p: range(n_rows)[2 * p : 2 * p + 2]
            )
        )
        for p in range(4)
    ]
    assert parts[0][0]["tokens"].shape == (2, 2, N_CTX + 1)
    joined = [
        parts[0][step]
        | {"tokens": np.concatenate([part[step]["tokens"] for part in parts], axis=1)}
        for step in range(12)
    ]
    same(joined, whole)


@pytest.mark.parametrize("microbatch_rows", [2, 8])
def test_the_microbatch_changes_no_row(source, tmp_path, microbatch_rows):
    read = reading(tmp_path, source)
    rows = [
        b["tokens"].reshape(-1, N_CTX + 1) for b in drawn(read.batches(Ramped(), microbatch_rows))
    ]
    np.testing.assert_array_equal(
        rows, [b["tokens"].reshape(-1, N_CTX + 1) for b in drawn(read.batches(Ramped(), 4))]
    )


@pytest.mark.parametrize("step", [0, 1, 2, 5, 11, 12])
def test_resume_anywhere_is_the_uninterrupted_run(source, tmp_path, step):
    whole = drawn(reading(tmp_path, source).batches(Ramped(), 4))
    same(drawn(reading(tmp_path, source).batches(Ramped(), 4, first_step=step)), whole[step:])
    first = reading(tmp_path, source).batches(Ramped(), 4)
    for _ in range(step):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    again = reading(tmp_path, source).batches(Ramped(), 4)
    again.set_state(state)
    same(drawn(again), whole[step:])
    same(drawn(first), whole[step:])  # reading the state moved nothing


def test_the_seed_decides_the_order(source, tmp_path):
    a, b = (reading(tmp_path, source, seed=seed) for seed in (0, 1))
    assert not np.array_equal(a.row(0), b.row(0)) and np.array_equal(
        a.validation_rows(5), b.validation_rows(5)
    )


def test_a_batch_that_is_no_whole_number_of_microbatches_is_a_bug(source, tmp_path):
    with pytest.raises(AssertionError):
        drawn(reading(tmp_path, source).batches(Ramped(), 5))


def test_the_full_batch_may_have_larger_microbatches(source, tmp_path):
    class Larger(Ramped):
        def microbatch(self, step, limit_rows):
            return 2 if self.rows(step) < self.max_rows else 16

    read = reading(tmp_path, source)
    found = drawn(read.batches(Larger(), 16))
    shapes = [(b["tokens"].shape[:2], int(b["count"]), int(b["rows"])) for b in found]
    assert shapes == [((8, 2), 4, 2)] * 2 + [((1, 16), 1, 16)] * 10
    rows = [b["tokens"].reshape(-1, N_CTX + 1) for b in found]
    np.testing.assert_array_equal(
        rows, [b["tokens"].reshape(-1, N_CTX + 1) for b in drawn(read.batches(Ramped(), 4))]
    )


def test_sources_of_as_many_documents_are_read_in_orders_of_their_own(tmp_path):
    a, b = (
        write(tmp_path / f"{name}.jsonl", [f"{name}{n:02}" * 12 for n in range(40)])
        for name in "ab"
    )
    read, orders = reading(tmp_path, a, b, held_out=data.Tail(fraction=0.1)), {"a": [], "b": []}
    for n in range(100):
        found = re.search(r"([ab])(\d\d)", read.tokenizer.decode(read.row(n)))
        orders[found[1]].append(found[2])
    assert len(orders["a"]) == len(orders["b"]) == 50 and orders["a"] != orders["b"]


def test_another_split_or_content_is_another_run(source, tmp_path):
    """The cache and the digest that a run is continued by."""
    by_document, tail = (
        reading(tmp_path, source, held_out=rule)
        for rule in (data.ByDocument(fraction=0.2), data.Tail(fraction=0.2))
    )
    first, second = (
        read.description()["sources"][0]["splits"]["train"] for read in (by_document, tail)
    )
    assert (
        first["documents"] < second["documents"] == len(DOCUMENTS)
        and by_document.digest() != tail.digest()
    )
    before = tail.digest()
    tail._train[0].manifest["splits"]["train"]["shards"][0]["digest"] = "another"
    assert tail.digest() != before


def test_mixtures_draw_by_weight(tmp_path):
    a, b = (
        write(tmp_path / "a.jsonl", ["a" * 400] * 3, weight=3.0),
        write(tmp_path / "b.jsonl", ["b" * 400] * 3),
    )
    read = reading(tmp_path, a, b, held_out=data.Tail(fraction=0.2))
    rows = np.stack([read.row(n) for n in range(40)])
    assert sum(ord("a") in row for row in rows) == 30 and sum(ord("b") in row for row in rows) == 10
    said = read.description()["sources"]
    assert [s["weight"] for s in said] == [3.0, 1.0]
    tokens = said[0]["splits"]["train"]["tokens"]
    assert tokens == 3 * 321 and np.allclose(
        [s["epochs"] for s in said], [0.75 * 10_000 / tokens, 0.25 * 10_000 / tokens]
    )
    assert {*map(ord, "ab")} <= set(read.validation_rows(10**6).ravel().tolist()), (
        "both sources are validated on"
    )


def test_text_that_is_read_more_than_once_is_reported(tmp_path):
    small, large = (
        write(tmp_path / "small.jsonl", ["a" * 600] * 2),
        write(tmp_path / "large.jsonl", ["b" * 30_000] * 2),
    )
    rule = data.Tail(fraction=0.2)
    assert reading(tmp_path, small, held_out=rule).summary().endswith(", read 10.4 times")
    assert (
        reading(tmp_path, small, large, held_out=rule)
        .summary()
        .endswith(", read 5.2 and 0.1 times")
    )
    assert " read " not in reading(tmp_path, large, held_out=rule).summary()


# --- held out -------------------------------------------------------------------------------------


def sides(read, n_rows):
    """Every training row of an epoch and every validation row, as text."""
    text = read.tokenizer.decode
    return "|".join(text(read.row(n)) for n in range(n_rows)), "|".join(
        text(row) for row in read.validation_rows(10**6)
    )


def test_no_token_of_validation_is_trained_on(tmp_path):
    # Document n is a run of one character: a row shows whose tokens it holds. Every text is there
    # twice, in two sources.
    letters = [chr(0x100 + n) for n in range(60)]
    a = write(tmp_path / "a.jsonl", [letter * 50 for letter in letters] * 2)
    b = write(tmp_path / "b.jsonl", [letter * 50 for letter in letters[::-1]], weight=2.0)
    read = reading(tmp_path, a, b)
    trained, held = (set(side) & set(letters) for side in sides(read, 3000))
    assert trained | held == set(letters) and not trained & held and held


def test_tail_holds_out_the_end_of_every_document(tmp_path):
    texts = [chr(0x100 + n) * 80 + chr(0x200 + n) * 20 for n in range(20)]
    read = reading(tmp_path, write(tmp_path / "a.jsonl", texts), held_out=data.Tail(fraction=0.2))
    trained, held = sides(read, 1000)
    assert set(held) & set(map(chr, range(0x200, 0x214))) and not set(held) & set(
        map(chr, range(0x100, 0x114))
    )
    assert not set(trained) & set(map(chr, range(0x200, 0x214)))


def test_separate_validates_on_the_other_source_whole(tmp_path):
    a, b = (
        write(tmp_path / "a.jsonl", ["a" * 300] * 3),
        write(tmp_path / "b.jsonl", ["b" * 100] * 3),
    )
    read = reading(tmp_path, a, held_out=data.Separate(source=b))
    trained, held = sides(read, 100)
    assert (
        "b" not in trained and "a" not in held and read.description()["validation"]["tokens"] == 303
    )


def test_validation_is_the_same_every_time_and_counts_bytes(source, tmp_path):
    read = reading(tmp_path, source)
    rows = read.validation_rows(5)
    assert rows.shape == (5, N_CTX + 1) and rows.dtype == np.int32
    np.testing.assert_array_equal(rows, reading(tmp_path, source).validation_rows(5))
    held = read.description()["validation"]
    assert (
        read.validation_bytes_per_token
        == held["bytes"] / held["tokens"]
        == (held["tokens"] - held["documents"]) / held["tokens"]
    )


def test_prepared_shards_give_the_rows_of_their_source(source, tmp_path):
    there = prepared(source, tmp_path / "out")
    a, b = reading(tmp_path, source), reading(tmp_path, there)
    same(drawn(a.batches(Ramped(), 8)), drawn(b.batches(Ramped(), 8)))
    np.testing.assert_array_equal(a.validation_rows(9), b.validation_rows(9))


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [False, True])
def test_an_id_that_appears_while_the_run_reads_is_named(source, tmp_path, monkeypatch, held):
    read = reading(tmp_path, prepared(source, tmp_path / "out"))
    split = "validation" if held else "train"
    for file in (tmp_path / "out").glob(f"{split}-*.tokens.npy"):
        with file.open("r+b") as stream:
            stream.seek(-4, 2)
            stream.write(b"\xff\xff")
    refused(
        rf"{split}-000\d\d.tokens.npy holds the id 65,535 at token [\d,]+, and the vocabulary has "
        r"257 ids",
        lambda: read.validation_rows(10**6) if held else drawn(read.batches(Ramped(), 4)),
    )


def test_damage_to_a_large_directory_reaches_the_run(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "VERIFY_AT_OPEN_BYTES", 0)
    there = prepared(source, tmp_path / "out")
    file = tmp_path / "out" / "train-00002.tokens.npy"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    read = reading(tmp_path, there)
    refused(
        r"train-00002.\*.npy is damaged: it differs from the manifest",
        lambda: drawn(read.batches(Ramped(), 4)),
    )
