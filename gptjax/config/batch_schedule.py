"""Batch schedule: the rows of each step, the batch size ramp, and the last step. Integer arithmetic
only, so every process agrees.
"""

import bisect
import dataclasses
import functools
import itertools
import math

from gptjax.config.schema import Config

MAX_RUN_ROWS = 2**31 - 1  # rows of a run: the state counts them in 32 bits


@dataclasses.dataclass(frozen=True)
class _Stage:
    """Consecutive steps with one batch size."""

    step: int  # its first step
    row: int  # rows consumed before that
    rows: int  # of each batch


class BatchSchedule:
    """The batch of every step from `step` on, after `row` rows. shards: number of ways that a batch
    is split over devices.

    GPT-3 Appendix B: the batch grows linearly in tokens seen, from ramp.start_tokens to
    batch_tokens over ramp.over_tokens. It is rounded down to a multiple of `quantum`: given or, by
    default, the ramp's start in rows, raised to a multiple of `shards` that divides the full batch.
    Without a ramp the quantum is the batch. A resumed run passes the quantum, step and row of its
    checkpoint, and so gets the same rows on any mesh; a mesh that cannot split the remaining
    batches is refused. A run ends with the step that reaches total_tokens, or after train.steps.

    Raises ValueError if the batch cannot be split over the shards, if train.microbatch_rows does
    not fit, or if train.steps is more than total_tokens allows.
    """

    def __init__(
        self,
        config: Config,
        shards: int = 1,
        quantum: int | None = None,
        step: int = 0,
        row: int = 0,
    ):
        self.n_ctx, self.full_rows, self.shards = config.model.n_ctx, config.batch_rows, shards
        if self.full_rows % shards:
            low = self.full_rows // shards * shards
            nearest = " or ".join(f"{rows * self.n_ctx:,}" for rows in (low, low + shards) if rows)
            raise ValueError(
                f"train.batch_tokens={config.train.batch_tokens:,} is {self.full_rows} rows, which "
                f"{shards} devices cannot share evenly; "
                f"give {nearest}, or change the mesh"
            )
        self.quantum = quantum or quanta(config, shards)[0]
        self._check_microbatch(config.train.microbatch_rows)
        self._stages = list(self._ramp_stages(config, step, row))
        self._stage_steps, self._stage_rows = (
            [s.step for s in self._stages],
            [s.row for s in self._stages],
        )
        if len(self._stages) > 1 and self.quantum % shards:
            raise ValueError(
                f"the batch ramp of this run grows in steps of {self.quantum} rows, which {shards} "
                "devices cannot share evenly: until it "
                f"is over, at step {self._stage_steps[-1]:,}, give so many devices, or a mesh, "
                "that data x fsdp is "
                f"{' or '.join(map(str, divisors(self.quantum)))}"
            )
        max_steps = self._end_step(-(-config.train.total_tokens // self.n_ctx))
        if config.train.steps is not None and config.train.steps > max_steps:
            raise ValueError(
                f"train.steps={config.train.steps:,} is more than the {max_steps:,} steps that "
                "train.total_tokens="
                f"{config.train.total_tokens:,} gives; raise train.total_tokens, and the "
                "schedule's decay_tokens with it (train --tokens=N "
                f"does both), or leave out train.steps"
            )
        self.n_steps = max_steps if config.train.steps is None else config.train.steps
        if self.first_row(max(step, self.n_steps)) > MAX_RUN_ROWS:
            raise ValueError(
                f"train.total_tokens={config.train.total_tokens:,} is "
                f"{self.first_row(self.n_steps):,} rows, which are counted in 32 bits; "
                f"give at most {MAX_RUN_ROWS * self.n_ctx:,}, or a larger model.n_ctx"
            )
        self.max_rows = self.rows(max(step, self.n_steps - 1))

    def rows(self, step: int) -> int:
        """Rows in the batch of this step, counted from 0."""
        return self._stage(step).rows

    def first_row(self, step: int) -> int:
        """Rows consumed before this step: the index of its first row in the order of the data."""
        stage = self._stage(step)
        return stage.row + (step - stage.step) * stage.rows

    def tokens(self, step: int) -> int:
        """Tokens consumed before this step, the unit of schedules."""
        return self.first_row(step) * self.n_ctx

    def largest_microbatch(self, max_microbatch_rows: int, shards: int | None = None) -> int:
        """The most rows, up to max_microbatch_rows, that divide the run's last batch and split over
        the shards (default: its own); `shards` if even that exceeds the limit.
        """
        return self._microbatch(self.max_rows, max_microbatch_rows, shards or self.shards)

    def microbatch(self, step: int, max_microbatch_rows: int) -> int:
        """Microbatch size at this step. Only two sizes occur (one for the ramp, one for the full
        batch), so at most two programs are compiled.

        A ramp starts with few rows; microbatches as small in the full batch would gather the
        weights for every few rows.
        """
        return self._microbatch(self.rows(step), max_microbatch_rows, self.shards)

    def _microbatch(self, rows: int, max_microbatch_rows: int, shards: int) -> int:
        total_rows = self.full_rows if rows == self.full_rows else self.quantum
        candidates = [
            rows
            for rows in divisors(total_rows)
            if rows % shards == 0 and rows <= max_microbatch_rows
        ]
        return candidates[-1] if candidates else shards

    def _stage(self, step: int) -> _Stage:
        assert step >= self._stage_steps[0], (step, self._stage_steps[0])
        return self._stages[bisect.bisect_right(self._stage_steps, step) - 1]

    def _end_step(self, rows_needed: int) -> int:
        """The step at which the run has `rows_needed` rows; the steps already done if
        it has them.
        """
        last = self._stages[max(0, bisect.bisect_left(self._stage_rows, rows_needed) - 1)]
        return last.step + max(0, -(-(rows_needed - last.row) // last.rows))

    def _check_microbatch(self, rows: int | None) -> None:
        """Raises ValueError if train.microbatch_rows does not divide the batch or split over the
        shards.
        """
        if rows is not None and (self.full_rows % rows or rows % self.shards):
            candidates = [n for n in divisors(self.full_rows) if n % self.shards == 0]
            raise ValueError(
                f"train.microbatch_rows={rows}: on this mesh it can be "
                f"{', '.join(map(str, candidates))}"
            )

    def _ramp_stages(self, config: Config, step: int, row: int):
        """Yields the stages from there on, in order; the last has the full batch and no end."""
        quantum_tokens, ramp = self.quantum * self.n_ctx, config.train.batch_ramp
        if ramp is not None:
            growth = config.train.batch_tokens - ramp.start_tokens
            for sizes in itertools.count(1):
                if sizes * self.quantum == self.full_rows:
                    break
                # The next size is due when start + growth * seen / over >= (sizes + 1) quanta of
                # tokens.
                due_tokens = -(
                    -((sizes + 1) * quantum_tokens - ramp.start_tokens) * ramp.over_tokens // growth
                )
                steps = max(0, -(-(due_tokens - row * self.n_ctx) // (sizes * quantum_tokens)))
                if steps:
                    yield _Stage(step, row, sizes * self.quantum)
                step, row = step + steps, row + steps * sizes * self.quantum
        yield _Stage(step, row, self.full_rows)


def quanta(config: Config, shards: int = 1) -> list[int]:
    """Row counts by which the batch ramp may grow when batches are split in `shards`; a new run
    uses the first.
    """
    full, ramp = config.batch_rows, config.train.batch_ramp
    start = full if ramp is None else -(-ramp.start_tokens // config.model.n_ctx)
    return [rows for rows in divisors(full) if rows >= start and rows % shards == 0]


@functools.cache
def divisors(n: int) -> tuple[int, ...]:
    """The divisors of n, smallest first."""
    low = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return (*low, *(n // d for d in reversed(low) if d * d != n))


def resume(config: Config, shards: int, step: int, row: int, quantum: int | None) -> BatchSchedule:
    """Returns the BatchSchedule of a run after `step` steps on `row` rows.

    quantum: from its checkpoint; None if an earlier version wrote that, and then inferred from step
    and row. Raises ValueError as BatchSchedule does.
    """
    if quantum is None:
        quanta_of_row = [
            rows
            for rows in (*quanta(config, shards), *quanta(config))
            if BatchSchedule(_without_limits(config), 1, rows).first_row(step) == row
        ]
        # Empty if that version had resumed the run on another mesh and lost its quantum.
        quantum = quanta_of_row[0] if quanta_of_row else None
    return BatchSchedule(config, shards, quantum, step, row)


def _without_limits(config: Config) -> Config:
    """The config without settings that could be refused for reasons other than the ramp."""
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, steps=None, microbatch_rows=None)
    )
