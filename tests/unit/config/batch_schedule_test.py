"""Batch sizes: exact against a step-by-step simulation of GPT-3's ramp, and the microbatches
that fit them."""

import time
from dataclasses import replace

import pytest

from gptjax.config.batch_schedule import BatchSchedule, divisors, resume
from gptjax.config.overrides import override
from gptjax.configs import registry

SMOKE = registry.config("smoke")  # 8 rows of 32 tokens, 40 steps


def config(*assignments):
    return override(SMOKE, *assignments)


def ramped(rows, start_tokens, over_tokens, total_tokens, *more):
    ramp = f"train.batch_ramp=Ramp(start_tokens={start_tokens}, over_tokens={over_tokens})"
    return config(
        f"train.batch_tokens={rows * 32}", ramp, f"train.total_tokens={total_tokens}", *more
    )


def simulated(config, quantum):
    """The rows of every step up to total_tokens, one step at a time, by the definition."""
    train, seen, sizes = config.train, 0, []
    while seen < train.total_tokens:
        grown = (
            train.batch_ramp.start_tokens
            + (train.batch_tokens - train.batch_ramp.start_tokens)
            * min(seen, train.batch_ramp.over_tokens)
            // train.batch_ramp.over_tokens
        )
        quanta = max(1, grown // (quantum * config.model.n_ctx))
        sizes.append(quanta * quantum)
        seen += sizes[-1] * config.model.n_ctx
    return sizes


@pytest.mark.parametrize(
    "rows,start,over,total,shards,quantum",
    [
        (100, 32, 320_000, 1_000_000, 1, 1),
        (100, 64, 320_000, 1_000_000, 1, 2),
        (100, 70, 320_000, 1_000_000, 1, 4),  # 3 rows do not divide 100
        (48, 16 * 32, 99_999, 500_000, 3, 24),  # 18 is a multiple of 3 and does not divide 48
        (40, 16 * 32, 7, 50_000, 1, 20),
        (64, 64 * 32, 1000, 50_000, 1, 64),  # starts full
        (60, 4 * 32, 500, 9_000, 2, 4),  # sizes are jumped over
        (100, 32, 320_000, 100_000, 1, 1),  # ends in the ramp
    ],
)
def test_the_ramp_follows_its_definition(rows, start, over, total, shards, quantum):
    it = ramped(rows, start, over, total)
    batches = BatchSchedule(it, shards)
    sizes = simulated(it, quantum)
    assert batches.quantum == quantum
    assert batches.n_steps == len(sizes)
    assert [batches.rows(step) for step in range(len(sizes))] == sizes
    assert [batches.first_row(step) for step in range(len(sizes) + 1)] == [
        sum(sizes[:step]) for step in range(len(sizes) + 1)
    ]
    assert batches.tokens(3) == 32 * sum(sizes[:3])
    assert batches.max_rows == max(sizes)


def test_without_a_ramp_every_batch_is_full_and_the_last_step_is_whole():
    batches = BatchSchedule(config("train.total_tokens=1000"))
    assert (batches.n_steps, batches.rows(0), batches.rows(9**9), batches.quantum) == (
        4,
        8,
        8,
        8,
    )  # 1000 tokens are 3.9 batches of 256
    assert batches.first_row(4) == 32 and batches.tokens(4) == 1024
    assert BatchSchedule(config("train.total_tokens=1")).n_steps == 1
    assert BatchSchedule(config("train.total_tokens=1024")).n_steps == 4
    assert BatchSchedule(config("train.total_tokens=1025")).n_steps == 5


def test_steps_stop_early_and_never_late():
    assert BatchSchedule(config("train.steps=7")).n_steps == 7
    assert BatchSchedule(config("train.steps=40")).n_steps == 40
    with pytest.raises(
        ValueError,
        match=(
            "train.steps=41 is more than the 40 steps that train.total_tokens=10,240 gives; raise "
            "train.total"
        ),
    ):
        BatchSchedule(config("train.steps=41"))
    assert BatchSchedule(ramped(100, 32, 320_000, 1_000_000, "train.steps=3")).max_rows == 1


def test_a_batch_that_does_not_split_is_refused_with_suggestions():
    with pytest.raises(
        ValueError,
        match=(
            r"batch_tokens=256 is 8 rows, which 3 devices cannot share evenly; give 192 or 288, "
            r"or change the mesh"
        ),
    ):
        BatchSchedule(SMOKE, shards=3)
    with pytest.raises(ValueError, match=r"which 16 devices cannot share evenly; give 512, or"):
        BatchSchedule(SMOKE, shards=16)


def test_a_microbatch_of_the_config_must_fit():
    assert BatchSchedule(config("train.microbatch_rows=4"), shards=2).quantum == 8
    with pytest.raises(ValueError, match="train.microbatch_rows=2: on this mesh it can be 4, 8$"):
        BatchSchedule(config("train.microbatch_rows=2"), shards=4)


def test_the_ramp_has_one_microbatch_size():
    """32,768 tokens are 16 rows, the full batch is 1,600: on 64 shards the ramp goes by 64 rows,
    and so do its microbatches."""
    batches = BatchSchedule(registry.config("gpt3_175b"), shards=64)
    last = batches.n_steps - 1
    assert batches.quantum == 64 and batches.rows(last) == 1600
    sizes = {
        (batches.rows(step) == 1600, batches.microbatch(step, 400)) for step in range(0, last, 7)
    }
    assert sizes == {(False, 64), (True, 320)} and batches.largest_microbatch(400) == 320


@pytest.mark.parametrize(
    "limit,rows", [(0, 2), (1, 2), (2, 2), (3, 2), (5, 4), (7, 6), (11, 6), (12, 12), (999, 12)]
)
def test_the_largest_microbatch_divides_every_batch(limit, rows):
    assert BatchSchedule(replace_batch(12), shards=2).largest_microbatch(limit) == rows


def replace_batch(rows):
    return replace(SMOKE, train=replace(SMOKE.train, batch_tokens=rows * 32))


def test_the_schedule_of_a_run_of_years_is_fast():
    huge = ramped(2**14, 32, 10**10, 6 * 10**10)
    start = time.perf_counter()
    batches = BatchSchedule(huge)
    assert time.perf_counter() - start < 1
    assert batches.quantum == 1 and batches.max_rows == 2**14
    start = time.perf_counter()
    for step in range(0, batches.n_steps, batches.n_steps // 1000):
        batches.first_row(step)
    assert time.perf_counter() - start < 0.1


def test_a_resumed_run_has_the_rows_of_an_uninterrupted_one():
    """From any step, on any mesh that can split them, from the row that was done and not from
    the step's number."""
    it = ramped(32, 64, 20_480, 40_960)
    whole = BatchSchedule(it, shards=2)
    for step in (0, 1, 7, 20, whole.n_steps - 1, whole.n_steps):
        for shards in (1, 2):
            rest = resume(it, shards, step, whole.first_row(step), whole.quantum)
            assert rest.n_steps == whole.n_steps
            assert [rest.first_row(n) for n in range(step, whole.n_steps)] == [
                whole.first_row(n) for n in range(step, whole.n_steps)
            ]
    moved = resume(
        it, 2, 20, whole.first_row(20) + 6, whole.quantum
    )  # three quanta further: those rows are done
    assert moved.first_row(20) == whole.first_row(20) + 6 and moved.rows(20) >= whole.rows(20)


def test_a_mesh_that_cannot_split_the_ramp_is_refused_until_that_is_over():
    it = ramped(32, 64, 20_480, 40_960)
    whole = BatchSchedule(it, shards=2)
    over = next(step for step in range(whole.n_steps) if whole.rows(step) == 32)
    with pytest.raises(
        ValueError,
        match=(
            rf"grows in steps of 2 rows, which 8 devices .* until it is over, at step {over}, .* "
            r"is 1 or 2$"
        ),
    ):
        resume(it, 8, over - 1, whole.first_row(over - 1), 2)
    rest = resume(it, 8, over, whole.first_row(over), 2)
    assert [rest.first_row(n) for n in range(over, whole.n_steps)] == [
        whole.first_row(n) for n in range(over, whole.n_steps)
    ]
    assert rest.largest_microbatch(16) == 16


@pytest.mark.parametrize("begun, goes_on", [(1, 2), (2, 1), (4, 1), (8, 4), (8, 8)])
def test_the_quantum_of_an_earlier_version_follows_from_what_was_done(begun, goes_on):
    it = ramped(32, 64, 20_480, 40_960)
    whole = BatchSchedule(it, shards=begun)
    rest = resume(it, goes_on, 12, whole.first_row(12), None)
    assert rest.quantum == whole.quantum and rest.n_steps == whole.n_steps


def test_a_run_that_is_at_its_end_or_beyond_has_no_steps_left():
    assert resume(config("train.total_tokens=1000"), 1, 4, 32, 8).n_steps == 4
    assert resume(config("train.steps=3"), 1, 4, 32, 8).n_steps == 3
    with pytest.raises(
        ValueError,
        match="train.steps=41 is more than the 40 steps that train.total_tokens=10,240 gives",
    ):
        resume(config("train.steps=41"), 1, 4, 32, 8)


def test_divisors():
    assert (
        divisors(36) == (1, 2, 3, 4, 6, 9, 12, 18, 36)
        and divisors(1) == (1,)
        and divisors(7) == (1, 7)
    )
