"""Every number of a description has bounds: what is far outside them is refused at once and in
one line, and nothing counts up to it."""

import dataclasses
import math
import sys
from typing import Literal

import pytest

from gptjax.config import classification, data, decontamination, evaluation, finetuning, schema
from gptjax.config.batch_schedule import BatchSchedule
from gptjax.config.overrides import override
from gptjax.config.record import number_fields, record
from gptjax.configs import registry

ODD = (
    -1,
    0,
    -0.5,
    0.5,
    math.nan,
    math.inf,
    -math.inf,
    1e19,
    1e308,
    5e-324,
    10**18 + 3,
    10**400,
    "1",
    [],
    True,
    None,
)
HERE = {
    "path": "x",
    "name": "x",
    "source": data.Embedded(),
    "window": 4,
    "stride": 4,
    "block": 4,
    "summary": 1,
    "n_tokens": 5,
}
HERE |= {
    "peak_lr": 1e-3,
    "decay_tokens": 4096,
    "warmup_tokens": 0,
    "start_tokens": 32,
    "over_tokens": 64,
    "n": 3,
    "base": data.Bytes(),
    "train": "x",
}


def records():
    """A valid record of each kind: those of one whole config by what it holds, the alternatives
    from HERE."""
    whole = registry.config("smoke")
    parts = [
        whole,
        whole.model,
        whole.model.init,
        whole.model.dropout,
        whole.data,
        whole.train,
        whole.train.optimizer,
        whole.compute,
    ]
    parts += [
        whole.mesh,
        whole.loop,
        registry.finetuning("gpt1_sst2"),
        registry.finetuning("gpt1_sst2").task,
    ]
    parts += [
        evaluation.Protocol(shots=3, method=evaluation.Total(), metric="accuracy"),
        decontamination.Filter(),
        decontamination.OverlapRule(),
    ]
    made = {type(part): part for part in parts}
    for module in (schema, data, classification, evaluation, decontamination, finetuning):
        for cls in vars(module).values():
            if (
                isinstance(cls, type)
                and dataclasses.is_dataclass(cls)
                and cls.__module__ == module.__name__
                and cls not in made
            ):
                needed = [
                    f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING
                ]
                made[cls] = cls(**{name: HERE[name] for name in needed})
    return made.values()


def is_allowed(kind, bounds, optional, value):
    if value is None:
        return optional
    of_kind = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return (
        of_kind
        and bounds.low <= value <= bounds.high
        and not (bounds.above and value == bounds.low)
    )


@pytest.mark.parametrize("one", records(), ids=lambda one: type(one).__name__)
def test_a_number_out_of_bounds_is_refused_and_one_within_is_computable(one):
    for name, (kind, bounds, optional) in number_fields(type(one)).items():
        assert math.isfinite(bounds.low) and math.isfinite(bounds.high), name
        for value in ODD:
            operations, refusal = count_lines(outcome, one, name, value)
            assert operations < 100_000, (name, value, operations)
            if not is_allowed(kind, bounds, optional, value):
                assert (
                    refusal is not None
                    and f"{type(one).__name__}.{name}=" in refusal
                    and "give " in refusal
                ), (name, value, refusal)
            if refusal is not None:
                assert "\n" not in refusal and len(refusal) < 400, refusal


def outcome(one, name, value):
    """None if it is accepted, else what is said; any exception but ValueError fails the test."""
    try:
        dataclasses.replace(one, **{name: value})
    except ValueError as error:
        assert type(error) is ValueError
        return str(error)


def count_lines(act, *arguments):
    """(lines of Python that it ran, what it returned): bounded work, without a clock."""
    lines = 0

    def trace(frame, event, argument):
        nonlocal lines
        lines += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        result = act(*arguments)
    finally:
        sys.settrace(before)
    return lines, result


@pytest.mark.parametrize(
    "change",
    [
        "Constant(peak_lr=1e-3, warmup_tokens=-5)",
        "Cosine(peak_lr=1e-3, warmup_tokens=-1, decay_tokens=9)",
        "Constant(peak_lr=1e-40)",
    ]
    + [
        "Linear(peak_lr=1e300, warmup_tokens=0, decay_tokens=9)",
        "Cosine(peak_lr=1e-3, warmup_tokens=9, decay_tokens=9)",
    ],
)
def test_schedules_that_mean_nothing(change):
    with pytest.raises(ValueError, match=r"^train.schedule: \w+\.\w+=|must lie from 0 up to"):
        override(registry.config("smoke"), f"train.schedule={change}")


@pytest.mark.parametrize("seed", ["-1", "4294967296", "9223372036854775808", "1e30", "1.5"])
def test_seeds_that_jax_would_cut_to_others(seed):
    with pytest.raises(ValueError, match=r"seed=.*give a whole number"):
        override(registry.config("smoke"), f"seed={seed}")
    assert override(registry.config("smoke"), "seed=4294967295").seed == 2**32 - 1


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "../x", "a\nb", "a\0b", "\x1b[31m", "\udce9", "x" * 5000],
    ids=range(10),
)
def test_a_name_that_cannot_be_a_directory_is_refused(name):
    with pytest.raises(
        ValueError, match="name=.*: it names a directory; give up to 200 characters"
    ):
        dataclasses.replace(registry.config("smoke"), name=name)
    assert dataclasses.replace(registry.config("smoke"), name="$x^{$ [b] \u00e9").name.startswith(
        "$"
    )


def test_the_largest_config_that_is_allowed_is_planned_at_once():
    """The loops over rows and stages of the batch end: MAX_ROWS bounds them."""
    largest = override(
        registry.config("smoke"),
        "model.n_ctx=1",
        "model.n_heads=1",
        "model.d_model=1048575",
        "model.n_layers=10000",
        "model.n_vocab=1e8",
        f"train.batch_tokens={2**14}",
        "train.total_tokens=2e9",
        "train.schedule=Constant(peak_lr=1e-3)",
        "train.batch_ramp=Ramp(start_tokens=1, over_tokens=1e9)",
    )
    assert BatchSchedule(largest).rows(BatchSchedule(largest).n_steps - 1) == 2**14
    with pytest.raises(
        ValueError,
        match=(
            "is 2,147,485,296 rows, which are counted in 32 bits; give at most 2,147,483,647, or "
            "a larger"
        ),
    ):
        BatchSchedule(override(largest, "train.total_tokens=2147483648"))
    with pytest.raises(
        ValueError, match="is 1,048,577 rows of model.n_ctx=1 tokens; give at most 1,048,576"
    ):
        override(largest, "train.batch_tokens=1048577")
    with pytest.raises(
        ValueError, match="n_heads=65521 does not divide model.d_model=1048575; heads that do: "
    ):
        override(largest, "model.n_heads=65521")


def test_a_record_checks_before_its_own_rules():
    @record
    class Pair:
        low: int
        high: int = 3

        def __post_init__(self):
            if self.low > self.high:
                raise ValueError("low is above high")

    assert Pair(low=3).high == 3
    with pytest.raises(ValueError, match="low is above high"):
        Pair(low=4)
    with pytest.raises(ValueError, match=r"Pair.low=None: give a whole number"):
        Pair(low=None)


def test_words_of_a_record_are_of_those_that_there_are():
    @record
    class Rule:
        kind: Literal["near", "far"] = "near"
        place: Literal["here"] | None = None
        parts: tuple[Literal["a", "b"], ...] = ("a",)

    assert Rule(kind="far", place="here", parts=("b", "a")).parts == ("b", "a")
    for value, message in (
        ({"kind": "nearly"}, "Rule.kind='nearly': give near, far"),
        ({"kind": None}, "Rule.kind=None: give near, far"),
        ({"place": "there"}, "Rule.place='there': give here, None"),
        ({"parts": ("a", "c")}, r"Rule.parts=\('a', 'c'\): give a tuple of a, b"),
        ({"parts": "a"}, "Rule.parts='a': give a tuple of a, b"),
    ):
        with pytest.raises(ValueError, match=message):
            Rule(**value)


def test_yarn_needs_frequencies_that_fall():
    scaling = schema.Yarn(factor=4.0, original_context=32)
    assert schema.Rotary(theta=1.01, scaling=scaling).scaling == scaling
    with pytest.raises(ValueError, match=r"Rotary.theta=1: .* give a theta above 1"):
        schema.Rotary(theta=1.0, scaling=scaling)
