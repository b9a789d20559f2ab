"""Rows that are read in epochs, each epoch in an order of its own."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from gptjax.data import loader
from gptjax.data.tokenizers.build import Tokenizer


class TaskRows(Protocol):
    """The data of a supervised task. The methods are those of data.loader.Dataset."""

    tokenizer: Tokenizer

    @property
    def train(self) -> np.ndarray:
        """int32 (rows, width)"""
        ...

    def digest(self) -> str: ...

    def summary(self) -> str: ...

    def description(self) -> dict[str, Any]: ...


class EpochDataset:
    """The rows of a run, with the interface of data.loader.Dataset. Row r is row r modulo the size
    of an epoch, in the order of that epoch; each epoch leaves out the rows that do not fill a
    batch."""

    def __init__(self, source: TaskRows, batch_rows: int, seed: int):
        """batch_rows: rows of a step; seed: of the orders."""
        self._source, self._seed = source, seed
        self.model_digests: dict[str, str] = {}
        self.tokenizer, self.digest = source.tokenizer, source.digest
        self.summary, self.description = source.summary, source.description
        self._rows_per_epoch = len(source.train) // batch_rows * batch_rows
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def row(self, number: int) -> np.ndarray:
        """Returns row `number` of the run."""
        epoch, index = divmod(number, self._rows_per_epoch)
        if self._order[0] != epoch:
            rng = np.random.default_rng([self._seed, epoch])
            self._order = epoch, rng.permutation(len(self._source.train))
        return self._source.train[self._order[1][index]]

    def position(self, step: int) -> None:
        """Nothing, as loader.Dataset.position of data without streams."""

    def batches(
        self,
        plan: loader.BatchPlan,
        max_microbatch_rows: int,
        first_step: int = 0,
        local_rows: Callable[[int], Sequence[int]] = range,
    ):
        """Returns the batches as data.loader.Dataset.batches does."""

        def fill(number: int, row: np.ndarray) -> None:
            row[:] = self.row(number)

        return loader.iterate_steps(
            plan, max_microbatch_rows, first_step, local_rows, self._source.train.shape[1], fill
        )
