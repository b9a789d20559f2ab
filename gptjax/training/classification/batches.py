"""What fine-tuning reads: the examples of a task in epochs, each in an order of its own. As data/loader.py's Reading for the loop."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from gptjax.config.classification import Task
from gptjax.config.schema import Config
from gptjax.data import loader
from gptjax.data.tokenizers import build
from gptjax.training.classification import examples, transformations


class Examples:
    """A task's examples, tokenised; n_ctx: of the longest of train, dev and test, at most `limit`: as GPT-1's released train.py."""

    def __init__(self, task: Task, text: build.Tokenizer, limit: int, say: Callable[[str], None], progress: Callable[[str], None]):
        """say: is told what was left out or shortened. ValueError, in one line, for anything wrong with the data."""
        self.task, self.tokenizer = task, text
        self._read = {split: examples.read(task, split, say) for split in task.given}
        for split in task.given[1:]:
            n = examples.repeated(self._read["train"], self._read[split])
            if n:
                say(f"warning: {n:,} of {len(self._read[split]):,} examples of {split} are those of train, so their score may flatter")
        parts = {split: transformations.tokenised(read, text, progress) for split, read in self._read.items()}
        self.n_ctx = transformations.longest(task, sum(parts.values(), []), text.n_vocab, limit)
        self._rows = {split: self._encoded(split, parts[split], say) for split in self._read}

    def __len__(self):
        """Training examples."""
        return len(self._rows["train"])

    def split(self, name: str) -> tuple[list[examples.Example], np.ndarray]:
        """The examples of "dev" or "test", and their rows."""
        return self._read[name], self._rows[name]

    def digests(self) -> dict[str, str]:
        """Of what each split holds."""
        return {split: examples.digest(self.task, read) for split, read in self._read.items()}

    def _encoded(self, split, parts, say) -> np.ndarray:
        read = self._read[split]
        found = transformations.encoded(self.task, read, parts, self.tokenizer.n_vocab, self.n_ctx)
        if found.shortened:
            say(
                f"{split}: {found.shortened:,} of {len(read):,} examples are over {self.n_ctx} tokens long and lost {found.lost:,} in all, "
                f"at the end of their longest text"
            )
        return found.rows

    # --- what the loop asks for

    def reading(self, config: Config) -> "Epochs":
        return Epochs(self, config, self._rows["train"])

    def digest(self) -> str:
        found = hashlib.sha256(self.tokenizer.digest.encode())
        for rows in self._rows.values():
            found.update(rows.tobytes())
        return found.hexdigest()

    def summary(self) -> str:
        return f"{len(self._rows['train']):,} training examples and {len(self._rows['dev']):,} to validate on, up to {self.n_ctx} tokens"


class Epochs:
    """The rows of a run: row r is example r modulo those of an epoch, in that epoch's order; up to a batch is left out of each epoch."""

    def __init__(self, there: Examples, config: Config, rows: np.ndarray):
        assert config.task is not None
        self._there, self._rows, self._seed = there, rows, config.seed
        self.tokenizer, self.digest, self.summary = there.tokenizer, there.digest, there.summary
        self._an_epoch = len(rows) // config.task.batch_examples * config.task.batch_examples
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def row(self, number: int) -> np.ndarray:
        """Row `number` of the run: an example of inputs.Encoded."""
        epoch, place = divmod(number, self._an_epoch)
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self._seed, epoch]).permutation(len(self._rows))
        return self._rows[self._order[1][place]]

    def batches(self, plan: loader.Plan, limit_rows: int, first_step: int = 0, here: Callable[[int], Sequence[int]] = range):
        """As pipeline.Reading.batches."""

        def fill(number: int, row: np.ndarray) -> None:
            row[:] = self.row(number)

        return loader.steps(plan, limit_rows, first_step, here, self._rows.shape[1], fill)

    def description(self) -> dict:
        """For the run's record."""
        task = self._there.task
        return {
            "task": repr(task),
            "tokenizer": self.tokenizer.digest,
            "digest": self.digest(),
            "summary": self.summary(),
            "splits": self._there.digests(),
        }
