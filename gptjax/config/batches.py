"""How many rows each step trains on: the batch, its ramp, and where the run ends. Whole numbers only, so every process agrees."""

import bisect
import itertools
from dataclasses import dataclass

from gptjax.config.schema import Config


@dataclass(frozen=True)
class _Stage:
    """Steps in a row with one batch size."""

    step: int  # the first one
    row: int  # rows consumed before it
    rows: int  # of each batch


class Batches:
    """The batch of every step, as a function of the step alone. shards: the ways in which a batch is split over devices.

    GPT-3 Appendix B: the batch grows linearly in tokens seen, from ramp.start_tokens to batch_tokens over ramp.over_tokens. It is rounded
    down to a multiple of `quantum`: the ramp's start in rows, raised to what is a multiple of `shards` and divides the full batch.
    Without a ramp the quantum is the batch. Changing `shards` in mid-run changes the ramp's steps, if it changes the quantum.
    A run ends with the step that reaches total_tokens, or after train.steps.
    Raises ValueError if the batch cannot be split over the shards, or if train.microbatch_rows does not fit.
    """

    def __init__(self, config: Config, shards: int = 1):
        self.n_ctx, self.full, self.shards = config.model.n_ctx, config.batch_rows, shards
        if self.full % shards:
            low = self.full // shards * shards
            near = " or ".join(f"{rows * self.n_ctx:,}" for rows in (low, low + shards) if rows)
            raise ValueError(
                f"train.batch_tokens={config.train.batch_tokens:,} is {self.full} rows, which {shards} devices cannot share evenly; "
                f"give {near}, or change the mesh"
            )
        start = self.full if config.train.ramp is None else -(-config.train.ramp.start_tokens // self.n_ctx)
        self.quantum = next(rows for rows in range(shards, self.full + 1, shards) if rows >= start and self.full % rows == 0)
        self._check_microbatch(config.train.microbatch_rows)
        self._stages = list(self._ramp(config))
        self._steps, self._rows = [s.step for s in self._stages], [s.row for s in self._stages]
        rows_needed = -(-config.train.total_tokens // self.n_ctx)
        last = self._stages[bisect.bisect_left(self._rows, rows_needed) - 1]
        to_the_end = last.step + -(-(rows_needed - last.row) // last.rows)
        self.n_steps = to_the_end if config.train.steps is None else min(config.train.steps, to_the_end)
        self.max_rows = self.rows(self.n_steps - 1)

    def rows(self, step: int) -> int:
        """Rows in the batch of this step; steps count from 0."""
        return self._stage(step).rows

    def first_row(self, step: int) -> int:
        """Rows consumed before this step: the index of its first row in the order of the data."""
        stage = self._stage(step)
        return stage.row + (step - stage.step) * stage.rows

    def tokens(self, step: int) -> int:
        """Tokens consumed before this step: what schedules count in."""
        return self.first_row(step) * self.n_ctx

    def largest_microbatch(self, limit_rows: int) -> int:
        """The most rows, up to limit_rows, that divide the run's last batch and split over the shards; `shards` if even that is over it."""
        return self.microbatch(self.n_steps - 1, limit_rows)

    def microbatch(self, step: int, limit_rows: int) -> int:
        """As that, of this step: one size for the full batch, and one that divides all batches of the ramp, so two programs at most. A
        ramp begins with few rows, and microbatches as small would gather the weights for each few rows of the full batch, too."""
        whole = self.full if self.rows(step) == self.full else self.quantum
        fitting = [rows for rows in range(self.shards, min(limit_rows, whole) + 1, self.shards) if whole % rows == 0]
        return fitting[-1] if fitting else self.shards

    def _stage(self, step: int) -> _Stage:
        assert step >= 0, step
        return self._stages[bisect.bisect_right(self._steps, step) - 1]

    def _check_microbatch(self, rows: int | None) -> None:
        if rows is not None and (self.full % rows or rows % self.shards):
            fitting = [n for n in range(self.shards, self.full + 1, self.shards) if self.full % n == 0]
            raise ValueError(f"train.microbatch_rows={rows}: on this mesh it can be {', '.join(map(str, fitting))}")

    def _ramp(self, config: Config):
        """The stages, in order; the last has the full batch and no end."""
        step = row = 0
        quantum_tokens, ramp = self.quantum * self.n_ctx, config.train.ramp
        if ramp is not None:
            growth = config.train.batch_tokens - ramp.start_tokens
            for quanta in itertools.count(1):
                if quanta * self.quantum == self.full:
                    break
                # The next size is due once start + growth * seen / over >= (quanta + 1) quanta of tokens.
                due = -(-((quanta + 1) * quantum_tokens - ramp.start_tokens) * ramp.over_tokens // growth)
                steps = max(0, -(-(due - row * self.n_ctx) // (quanta * quantum_tokens)))
                if steps:
                    yield _Stage(step, row, quanta * self.quantum)
                step, row = step + steps, row + steps * quanta * self.quantum
        yield _Stage(step, row, self.full)
