"""The rows of a run that learns by sampling: a prompt, and for PPO-ptx some rows of text."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gptjax.config import rlhf
from gptjax.config.batch_schedule import BatchSchedule
from gptjax.data import epochs, loader
from gptjax.data.prompts import PromptRows


class RlhfDataset:
    """The rows of a run, with the interface of data.loader.Dataset: int32 of a prompt's length, its
    ids, and the ids of rows_per_answer rows of text. Each prompt is in as many rows, one after the
    other, as it has answers in a batch; prompts are read in epochs, text as in pre-training.

    model_digests: of the models that the run takes besides its own, by what they are."""

    def __init__(
        self, prompts: PromptRows, seed: int, text: loader.Dataset | None, text_width: int
    ):
        """text_width: ids of a row of text."""
        self._prompts, self._text = prompts, text
        self.model_digests: dict[str, str] = {}
        self._epochs = epochs.EpochDataset(prompts, 1, seed)
        self._task, self._text_width = prompts.task, text_width
        self.tokenizer, self.dev = prompts.tokenizer, prompts.dev

    @property
    def width(self) -> int:
        """Integers of a row."""
        ptx = self._task.ptx
        n_text = 0 if ptx is None else ptx.rows_per_answer * self._text_width
        return 1 + self._task.prompt_tokens + n_text

    def batches(
        self,
        plan: BatchSchedule,
        max_microbatch_rows: int,
        first_step: int = 0,
        local_rows: Callable[[int], Sequence[int]] = range,
    ):
        """Returns the batches as data.loader.Dataset.batches does."""
        return loader.iterate_steps(
            plan, max_microbatch_rows, first_step, local_rows, self.width, self._fill
        )

    def position(self, step: int) -> None:
        """Nothing, as loader.Dataset.position of data without streams."""

    def row(self, number: int) -> np.ndarray:
        """Returns row `number` of the run."""
        out = np.zeros(self.width, np.int32)
        self._fill(number, out)
        return out

    def _fill(self, number: int, row: np.ndarray) -> None:
        n_prompt = 1 + self._task.prompt_tokens
        row[:n_prompt] = self._epochs.row(number // self._task.answers_per_prompt)
        if self._task.ptx is not None:
            assert self._text is not None
            n = self._task.ptx.rows_per_answer
            for i, out in enumerate(row[n_prompt:].reshape(n, self._text_width)):
                self._text.fill(number * n + i, out)

    def validation_text(self, n_rows: int) -> np.ndarray | None:
        """Returns int32 rows of text to validate on, or None without ptx."""
        return None if self._text is None else self._text.validation_rows(n_rows)

    def digest(self) -> str:
        """Returns a digest of prompts, text and tokenizer."""
        if self._text is None:
            return self._prompts.digest()
        return f"{self._prompts.digest()} {self._text.digest()}"

    def summary(self) -> str:
        """Returns a line with the numbers of prompts and of tokens of text."""
        text = "" if self._text is None else f"; {self._text.summary()}"
        return f"{self._prompts.summary()}{text}"

    def description(self) -> dict[str, Any]:
        """Returns what data.json records: the data, and digests of reference and reward."""
        text = {} if self._text is None else {"text": self._text.description()}
        return self._prompts.description() | {"digest": self.digest()} | text | self.model_digests


def split_rows(
    rows_BW: jax.Array, task: rlhf.Rlhf, text_width: int
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns (lengths of prompts (B,), prompts (B, task.prompt_tokens), rows of text (B *
    rows_per_answer, text_width) or None) of rows of RlhfDataset."""
    n_prompt = 1 + task.prompt_tokens
    text = None if task.ptx is None else rows_BW[:, n_prompt:].reshape(-1, text_width)
    return rows_BW[:, 0], rows_BW[:, 1:n_prompt], text
