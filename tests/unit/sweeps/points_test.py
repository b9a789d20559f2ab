"""Points with their configs, names of directories, arms."""

import dataclasses

import pytest

from gptjax.config import sweep
from gptjax.config.overrides import override
from gptjax.configs import registry
from gptjax.sweeps.points import arms
from tests.outcomes import expand


def made(*axes, overrides=()):
    return expand(
        sweep.Sweep(description="?", recipe="smoke", points=sweep.grid(*axes), overrides=overrides)
    )


def test_a_point_has_the_config_of_its_edits():
    points = made(
        sweep.each("train.schedule.peak_lr", 1e-3), sweep.seeds(2), overrides=("train.steps=3",)
    )
    assert [point.name for point in points] == ["peak_lr=0.001,seed=0", "peak_lr=0.001,seed=1"]
    assert points[1].config == override(
        registry.config("smoke"), "train.steps=3", "train.schedule.peak_lr=0.001", "seed=1"
    )
    assert points[1].arguments == [
        "--set",
        "train.steps=3",
        "--set",
        "train.schedule.peak_lr=0.001",
        "--set",
        "seed=1",
    ]


def test_a_point_that_cannot_be_is_kept_with_its_reason():
    bad, good = made(sweep.each("train.schedule.peak_lr", -3, 3))
    assert (
        bad.config is None
        and "Cosine.peak_lr=-3.0: give a number from 1e-30 to 1e+30" in bad.error
        and bad.name == "peak_lr=-3"
    )
    assert good.config is not None and not good.error


def test_what_is_no_sweep_is_refused():
    with pytest.raises(ValueError, match="the sweep of smoke has no points"):
        made(sweep.each("seed"))
    with pytest.raises(ValueError, match="seed=1 and seed=1.0 are the same run"):
        made(sweep.each("seed", 1, 1.0))
    with pytest.raises(ValueError, match="did you mean smoke_peak"):
        registry.sweep("smoke_peaks")


def test_names_are_of_directories_short_and_each_its_own():
    points = made(
        sweep.each("model.attention", "Dense()", "(Banded(window=8), Dense())"),
        sweep.each("model.norm", "pre"),
    )
    assert [point.name for point in points] == [
        "attention=Dense,norm=pre",
        "attention=Banded-window-8-Dense,norm=pre",
    ]
    length = sweep.zip_axes(
        sweep.each("train.total_tokens", 2560), sweep.each("train.schedule.decay_tokens", 2560)
    )
    assert [point.name for point in made(length, sweep.seeds(2))] == [
        "total_tokens=2560,seed=0",
        "total_tokens=2560,seed=1",
    ]
    assert [point.name for point in made(sweep.each("train.schedule.decay_tokens", 2560))] == [
        "decay_tokens=2560"
    ]
    long = made(sweep.each("loop.sample_prompt", "a" * 200, "a" * 201))
    assert all(len(point.name) < 90 for point in long) and len({point.name for point in long}) == 2


def test_arms_are_points_that_differ_in_their_seed_alone():
    points = made(sweep.each("train.schedule.peak_lr", 1e-3, 3e-3), sweep.seeds(3))
    found = arms(points)
    assert [arm.label for arm in found] == ["peak_lr=0.001", "peak_lr=0.003"]
    assert [len(arm.points) for arm in found] == [3, 3]
    assert [arm.label for arm in arms(made(sweep.seeds(2)))] == ["recipe"]


def test_arms_are_told_by_what_they_were_asked_for():
    """Lengths that follow another difference are left out; where two paths end alike, as much of
    them is said as is needed."""
    axis = sweep.zip_axes(
        sweep.each("model.n_layers", 2, 4),
        sweep.each("train.total_tokens", 2560, 5120),
        sweep.each("train.schedule.decay_tokens", 2560, 5120),
    )
    assert [arm.label for arm in arms(made(axis))] == ["n_layers=2", "n_layers=4"]
    apart = sweep.grid(sweep.each("train.microbatch_rows", 1, 2), axis)
    assert [arm.label for arm in arms(made(apart))][-1] == "n_layers=4, microbatch_rows=2"
    batches = sweep.zip_axes(
        sweep.each("train.batch_tokens", 128, 256), sweep.each("loop.every_eval", 20, 10)
    )
    assert [arm.label for arm in arms(made(batches))] == ["batch_tokens=128", "batch_tokens=256"]
    both = sweep.zip_axes(
        sweep.each("train.batch_tokens", 128, 256), sweep.each("model.n_layers", 2, 4)
    )
    assert [arm.label for arm in arms(made(both))][
        0
    ] == "n_layers=2, batch_tokens=128"  # a batch follows from nothing
    lengths = made(sweep.each("train.total_tokens", 2560, 5120))
    assert [arm.label for arm in arms(lengths)] == ["total_tokens=2560", "total_tokens=5120"]
    both = made(
        sweep.each("model.init.token", 0.1, 0.2), sweep.each("model.dropout.embedding", 0.0, 0.1)
    )
    assert set(arms(both)[1].label.split(", ")) == {"token=0.1", "embedding=0.1"}
    ends = made(
        sweep.grid(
            sweep.each("model.dropout.embedding", 0.0, 0.1),
            sweep.each("model.dropout.residual", 0.0, 0.1),
        )
    )
    assert len({arm.label for arm in arms(ends)}) == 4


def test_a_sweep_that_grows_finds_what_it_has_done():
    """Its points keep their directories when an axis gets more values."""
    axes = sweep.each("train.schedule.peak_lr", 1e-3), sweep.each("model.norm", "pre")
    few = {point.name for point in made(*axes, sweep.seeds(1))}
    assert few < {
        point.name
        for point in made(sweep.each("train.schedule.peak_lr", 1e-3, 3e-3), axes[1], sweep.seeds(3))
    }


def test_points_to_check_come_last_and_are_marked():
    asked = sweep.Sweep(
        description="a?", recipe="smoke", points=sweep.seeds(2), holdout=sweep.each("seed", 7)
    )
    assert [(point.name, point.holdout) for point in expand(asked)] == [
        ("seed=0", False),
        ("seed=1", False),
        ("seed=7", True),
    ]
    with pytest.raises(ValueError, match="are the same run"):
        expand(dataclasses.replace(asked, holdout=sweep.each("seed", 1)))


def test_a_point_with_more_steps_than_its_length_gives_is_refused():
    (point,) = expand(sweep.Sweep(description="?", recipe="smoke", points=(("train.steps=41",),)))
    assert point.error.startswith(
        "train.steps=41 is more than the 40 steps that train.total_tokens=10,240 gives; raise "
        "train.total_tokens"
    )
