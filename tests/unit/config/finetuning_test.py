"""The twelve tasks are the paper's, and a recipe becomes the config that GPT-1 section 4.1
describes."""

import dataclasses
import json

import pytest

from gptjax.config import finetuning, overrides
from gptjax.config.batch_schedule import BatchSchedule
from gptjax.config.classification import ClassificationTask, Layers
from gptjax.config.schema import Linear
from gptjax.configs import registry

PAPER = {  # GPT-1 Tables 2, 3 and 4
    "sst2": ("accuracy", 91.3),
    "cola": ("matthews", 45.4),
    "mrpc": ("f1", 82.3),
    "stsb": ("pearson", 82.0),
    "qqp": ("f1", 70.3),
    "mnli": ("accuracy", 82.1),
    "mnli_mm": ("accuracy", 81.4),
    "snli": ("accuracy", 89.9),
    "scitail": ("accuracy", 88.3),
    "qnli": ("accuracy", 88.1),
    "rte": ("accuracy", 56.0),
    "race_middle": ("accuracy", 62.9),
    "race_high": ("accuracy", 57.4),
    "story_cloze": ("accuracy", 86.5),
}
TEXT = ClassificationTask(
    kind="classification", fields=("a",), label="y", labels=("0", "1"), metric="accuracy"
)


def test_the_tasks_are_the_papers():
    assert set(registry.finetuning_names()) == {"own"} | {f"gpt1_{name}" for name in PAPER}
    for name, (metric, paper) in PAPER.items():
        recipe = registry.finetuning(f"gpt1_{name}")
        assert (recipe.name, recipe.task.metric, recipe.task.paper) == (
            f"gpt1_{name}",
            metric,
            paper,
        )


def test_the_hyperparameters_are_the_papers():
    """Section 4.1: rate 6.25e-5, batches of 32, 3 epochs, warm-up over 0.2% and linear decay,
    lambda 0.5, dropout 0.1; clipping at 1, L2 of 0.01 and Adam's moments by the released code."""
    config = finetuning.resolve_config(
        registry.finetuning("gpt1_sst2"), registry.config("gpt1"), 32_010, 64
    )
    steps = 32_010 // 32
    assert (
        config.batch_rows == 32
        and BatchSchedule(config).n_steps == 3 * steps
        and config.loop.every_eval == config.loop.every_save == steps
    )
    schedule = config.train.schedule
    assert (
        isinstance(schedule, Linear)
        and schedule.peak_lr == 6.25e-5
        and schedule.decay_tokens == config.train.total_tokens
    )
    assert schedule.warmup_tokens / config.train.total_tokens == pytest.approx(0.002, rel=1e-3)
    assert config.task is not None and (config.task.lm_weight, config.task.dropout) == (0.5, 0.1)
    assert set(dataclasses.astuple(config.model.dropout)) == {0.1}
    adam = config.train.optimizer
    assert (
        adam.b1,
        adam.b2,
        adam.eps,
        adam.weight_decay,
        adam.clip_norm,
        adam.bias_correction,
    ) == (0.9, 0.999, 1e-8, 0.01, 1.0, "rate")
    assert config.model == dataclasses.replace(
        registry.config("gpt1").model, n_vocab=40_481, n_ctx=64, dropout=config.model.dropout
    )


def test_dropout_is_the_recipes_whatever_the_model_had():
    recipe = overrides.override(
        registry.finetuning("own"), "dropout.attention=0.3", "task.labels=('0', '1')"
    )
    model = finetuning.resolve_config(recipe, registry.config("gpt3_small"), 100, 64).model
    assert (model.dropout.embedding, model.dropout.attention, model.dropout.residual) == (
        0.1,
        0.3,
        0.1,
    )


def test_a_config_with_a_task_survives_its_json():
    for name in registry.finetuning_names():
        recipe = overrides.override(
            registry.finetuning(name), "task.transfer=Layers(n=3)", "task.train=a b.tsv"
        )
        config = finetuning.resolve_config(recipe, registry.config("gpt1"), 100, 64)
        assert (
            config.task is not None
            and config.task.transfer == Layers(n=3)
            and config.task.train == "a b.tsv"
        )
        assert overrides.unflatten(json.loads(json.dumps(overrides.flatten(config)))) == config


def test_a_difference_names_the_field_of_the_task():
    config = finetuning.resolve_config(
        registry.finetuning("gpt1_sst2"), registry.config("gpt1"), 100, 64
    )
    other = dataclasses.replace(
        config, task=dataclasses.replace(config.task, labels=("a", "b", "c"))
    )
    assert overrides.diff(config, other) == [
        "task.labels: ('negative', 'positive') -> ('a', 'b', 'c')"
    ]


def test_a_column_mapping_can_be_set():
    sets = [
        "task.train=x.csv",
        "task.fields=(review,)",
        "task.label=stars",
        "task.labels=('1', '2', '3')",
        "task.lm_weight=0",
    ]
    task = overrides.override(registry.finetuning("gpt1_sst2"), *sets).task
    assert (task.fields, task.label, task.labels, task.lm_weight) == (
        ("review",),
        "stars",
        ("1", "2", "3"),
        0.0,
    )


def test_fewer_examples_than_a_batch_are_refused():
    with pytest.raises(
        ValueError,
        match=(
            "31 training examples are fewer than task.batch_examples=32; give more examples, "
            "or a smaller batch"
        ),
    ):
        finetuning.resolve_config(registry.finetuning("gpt1_sst2"), registry.config("gpt1"), 31, 64)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"fields": ("a", "b")}, "a task of kind classification reads 1"),
        ({"kind": "similarity"}, "a task of kind similarity reads 2"),
        ({"kind": "choice"}, "name the columns of the answers where kind=choice, and only there"),
        ({"answers": ("x",)}, "name the columns of the answers where kind=choice, and only there"),
        ({"labels": ("0",)}, "give at least two different ones"),
        ({"labels": ("0", "0")}, "give at least two different ones"),
        ({"metric": "f1", "labels": ("0", "1", "2")}, "task.metric=f1 is of two classes"),
        ({"splits": ("train",)}, "name those of train and dev, and of test if there is one"),
        ({"lm_weight": -0.5}, "lm_weight=-0.5: give a number from 0 to 1e"),
        ({"warmup_fraction": 1.0}, "warmup_fraction=1.0: give a number from 0 to 0.999999"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"epochs": 0}, "epochs=0: give a whole number from 1 to 1,000,000"),
        ({"batch_examples": 0}, "batch_examples=0: give a whole number from 1 to"),
        ({"peak_lr": 0.0}, "peak_lr=0.0: give a number from 1e-30 to 1e"),
    ],
)
def test_a_task_that_cannot_be_is_refused(changes, said):
    with pytest.raises(ValueError) as refused:
        dataclasses.replace(TEXT, **changes)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_which_splits_there_are():
    assert TEXT.available_splits == ("train", "dev")
    assert dataclasses.replace(TEXT, train="x", dev="y", test="z").available_splits == (
        "train",
        "dev",
        "test",
    )
    assert dataclasses.replace(TEXT, tfds="x").available_splits == ("train", "dev", "test")
    assert dataclasses.replace(TEXT, tfds="x", train="y").available_splits == ("train", "dev")
    assert dataclasses.replace(
        TEXT, tfds="x", splits=("train", "dev"), test="z"
    ).available_splits == ("train", "dev", "test")
    assert dataclasses.replace(TEXT, tfds="x", splits=("train", "dev")).available_splits == (
        "train",
        "dev",
    )


def test_names():
    with pytest.raises(
        ValueError, match="no fine-tuning recipe is called 'gpt1_sst'; did you mean gpt1_sst2"
    ):
        registry.finetuning("gpt1_sst")
    with pytest.raises(
        ValueError,
        match=(
            "gpt1_rte is a fine-tuning recipe: python -m gptjax.finetune --config=gpt1_rte "
            "--init=RUN"
        ),
    ):
        registry.config("gpt1_rte")


@pytest.mark.parametrize(
    "change", ["every_eval=7", "every_save=7", "keep_last=1", "every_sample=5"]
)
def test_a_period_that_is_the_epoch_is_refused(change):
    recipe = overrides.override(registry.finetuning("gpt1_sst2"), f"loop.{change}")
    with pytest.raises(
        ValueError, match=f"loop.{change}: fine-tuning evaluates and saves every epoch"
    ):
        finetuning.resolve_config(recipe, registry.config("gpt1"), 100, 64)
