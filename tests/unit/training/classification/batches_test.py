"""Epochs: each example at most once in each, in another order, resumed at any step; and what is
said of long texts."""

import dataclasses
import json

import numpy as np
import pytest

from gptjax.config import finetuning
from gptjax.config.batch_schedule import BatchSchedule
from gptjax.config.classification import ClassificationTask
from gptjax.configs import registry, small
from gptjax.data.tokenizers import build
from gptjax.training.classification import batches

N, BATCH = 21, 4


def made(tmp_path, limit=64, longest=None, **changes):
    """(examples, config, what was said) of a task whose texts are numbers. longest: the split
    that has one of 50 bytes."""
    for split, n in (("train", N), ("dev", 6), ("test", 3)):
        lines = [
            json.dumps({"text": f"number {i:02d}", "even": "ny"[i % 2 == 0]}) + "\n"
            for i in range(n)
        ]
        lines += (
            [json.dumps({"text": f"number {n}".ljust(50, "."), "even": "n"}) + "\n"]
            if split == longest
            else []
        )
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "dev", "test")}
    usual = {"batch_examples": BATCH, "epochs": 3, "labels": ("n", "y")} | files | changes
    task = ClassificationTask(
        kind="classification", fields=("text",), label="even", metric="accuracy", **usual
    )
    said = []
    there = batches.Examples(task, build.ByteTokenizer(), limit, said.append, said.append)
    recipe = finetuning.Finetuning(name="made", task=task)
    said = [line for line in said if not line.startswith("warning: ")]  # dev and test repeat train
    return there, finetuning.resolve_config(recipe, small.smoke(), len(there), there.n_ctx), said


def numbers(rows):
    """The number that each row's text tells."""
    return [int(bytes(int(t) for t in row[2:] if 48 <= t < 58)) for row in rows]


def run(there, config, first=0, limit=BATCH):
    return [
        batch["tokens"].reshape(-1, batch["tokens"].shape[-1])
        for batch in there.make_dataset(config).batches(BatchSchedule(config), limit, first)
    ]


def test_an_epoch_reads_each_example_once_at_most_and_each_has_its_order(tmp_path):
    there, config, _ = made(tmp_path)
    steps = run(there, config)
    assert len(steps) == 15 and {len(step) for step in steps} == {BATCH}
    epochs = [numbers(np.concatenate(steps[e * 5 : (e + 1) * 5])) for e in range(3)]
    assert (
        all(len(set(epoch)) == 20 for epoch in epochs)
        and len({tuple(epoch) for epoch in epochs}) == 3
    )
    assert len({(set(range(N)) - set(epoch)).pop() for epoch in epochs}) > 1, (
        "always the same example is left out"
    )


@pytest.mark.parametrize("first", [1, 5, 9])
def test_a_resumed_run_reads_on(tmp_path, first):
    there, config, _ = made(tmp_path)
    for a, b in zip(run(there, config)[first:], run(there, config, first, limit=2), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_seed_gives_the_order(tmp_path):
    there, config, _ = made(tmp_path)
    other = run(there, dataclasses.replace(config, seed=1))
    assert numbers(other[0]) != numbers(run(there, config)[0])


def test_a_small_batch_of_all_examples_leaves_none_out(tmp_path):
    there, config, _ = made(tmp_path, batch_examples=7, epochs=2)
    assert sorted(numbers(np.concatenate(run(there, config, limit=7)[:3]))) == list(range(N))


def test_texts_over_the_context_are_counted_and_reported(tmp_path):
    there, _, said = made(tmp_path, limit=9)
    assert there.n_ctx == 9
    assert said[0] == (
        "train: 21 of 21 examples are over 9 tokens long and lost 42 in all, at the end of "
        "their longest text"
    )
    assert [line.split(":")[0] for line in said] == ["train", "dev", "test"]


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_a_context_holds_the_longest_of_each_split(tmp_path, split):
    """As the released train.py, which takes train, validation and test together: no text is cut
    that the model could read."""
    there, config, said = made(tmp_path, longest=split)
    assert there.n_ctx == 64 == config.model.n_ctx and said == []  # 52 tokens, in sixteens
    assert made(tmp_path, longest=split, limit=40)[0].n_ctx == 40
    if split == "test":
        assert there.split("test")[1][-1, 1] == 51 and made(tmp_path, test=None)[0].n_ctx == 16


def test_a_context_that_fits_is_told(tmp_path):
    there, config, said = made(tmp_path)
    assert there.n_ctx == 16 == config.model.n_ctx and said == []
    assert there.summary() == "21 training examples and 6 to validate on, up to 16 tokens"
    found, rows = there.split("test")
    assert [e.texts[0] for e in found] == ["number 00", "number 01", "number 02"] and numbers(
        rows
    ) == [0, 1, 2]
    json.dumps(there.make_dataset(config).description())


def test_the_digest_is_of_all_that_is_read(tmp_path):
    digest = made(tmp_path)[0].digest()
    assert made(tmp_path)[0].digest() == digest
    (tmp_path / "other").mkdir()
    there, _, _ = made(tmp_path / "other", limit=9)
    assert there.digest() != digest


def test_each_split_has_a_digest_of_what_it_holds_however_it_is_read(tmp_path):
    there, config, _ = made(tmp_path)
    digests = there.digests()
    assert there.make_dataset(config).description()["splits"] == digests and set(digests) == {
        "train",
        "dev",
        "test",
    }
    assert (
        made(tmp_path, limit=9)[0].digests()
        == digests
        == made(tmp_path, labels=("y", "n"))[0].digests()
    )
    found = made(tmp_path, longest="dev")[0].digests()
    assert found["dev"] != digests["dev"] and (found["train"], found["test"]) == (
        digests["train"],
        digests["test"],
    )


def test_examples_that_are_also_in_train_are_reported(tmp_path):
    said = []
    task = made(tmp_path)[0].task
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    (tmp_path / "dev.jsonl").write_text(
        "".join(
            json.dumps(row | {"text": row["text"] + "!" * (n > 1)}) + "\n"
            for n, row in enumerate(rows[:5])
        )
    )
    batches.Examples(
        dataclasses.replace(task, test=None), build.ByteTokenizer(), 64, said.append, said.append
    )
    assert said == [
        "warning: 2 of 5 examples of dev are those of train, so their score may flatter"
    ]


def test_bad_test_examples_are_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="no/such.jsonl does not exist"):
        made(tmp_path, test="no/such.jsonl")


def test_any_backbone_can_be_tuned(tmp_path):
    there, _, _ = made(tmp_path)
    for name in ("gpt1", "gpt2_124m", "gpt3_small"):
        origin = registry.config(name)
        config = finetuning.resolve_config(
            finetuning.Finetuning(name="x", task=there.task), origin, len(there), 64
        )
        assert (
            config.model.n_vocab == origin.model.n_vocab + 3
            and config.model.norm == origin.model.norm
        )
