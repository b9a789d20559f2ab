"""The batches of fine-tuning: the examples of a task in epochs, each epoch in its own order, with
the interface of data.loader.Dataset."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from gptjax.config.classification import ClassificationTask
from gptjax.config.schema import Config
from gptjax.data import loader
from gptjax.data.tokenizers import build
from gptjax.training.classification import examples, transformations


class Examples:
    """A task's examples, tokenized; n_ctx: of the longest of train, dev and test, at most `limit`:
    as GPT-1's released train.py.
    """

    def __init__(
        self,
        task: ClassificationTask,
        tokenizer: build.Tokenizer,
        limit: int,
        print_line: Callable[[str], None],
        progress: Callable[[str], None],
    ):
        """print_line: called for what was left out or truncated. ValueError, in one line, for
        anything wrong with the data.
        """
        self.task, self.tokenizer = task, tokenizer
        self._examples = {
            split: examples.read(task, split, print_line) for split in task.available_splits
        }
        for split in task.available_splits[1:]:
            n = examples.count_repeats(self._examples["train"], self._examples[split])
            if n:
                print_line(
                    f"warning: {n:,} of {len(self._examples[split]):,} examples of {split} are "
                    "those of train, so their score may flatter"
                )
        parts = {
            split: transformations.tokenize_examples(split_examples, tokenizer, progress)
            for split, split_examples in self._examples.items()
        }
        self.n_ctx = transformations.fit_n_ctx(
            task, sum(parts.values(), []), tokenizer.n_vocab, limit
        )
        self._rows = {
            split: self._encode(split, parts[split], print_line) for split in self._examples
        }

    def __len__(self):
        """Returns the number of training examples."""
        return len(self._rows["train"])

    def split(self, name: str) -> tuple[list[examples.Example], np.ndarray]:
        """Returns (examples, rows) of "dev" or "test"."""
        return self._examples[name], self._rows[name]

    def digests(self) -> dict[str, str]:
        """Returns split -> digest of its examples."""
        return {
            split: examples.digest(self.task, split_examples)
            for split, split_examples in self._examples.items()
        }

    def _encode(self, split, parts, print_line) -> np.ndarray:
        split_examples = self._examples[split]
        encoded = transformations.encode_examples(
            self.task, split_examples, parts, self.tokenizer.n_vocab, self.n_ctx
        )
        if encoded.n_truncated:
            print_line(
                f"{split}: {encoded.n_truncated:,} of {len(split_examples):,} examples are over "
                f"{self.n_ctx} tokens long and lost "
                f"{encoded.n_tokens_lost:,} in all, at the end of their longest text"
            )
        return encoded.rows

    # --- what the loop asks for

    def make_dataset(self, config: Config) -> "ExampleDataset":
        return ExampleDataset(self, config, self._rows["train"])

    def digest(self) -> str:
        hasher = hashlib.sha256(self.tokenizer.digest.encode())
        for rows in self._rows.values():
            hasher.update(rows.tobytes())
        return hasher.hexdigest()

    def summary(self) -> str:
        return (
            f"{len(self._rows['train']):,} training examples and {len(self._rows['dev']):,} to "
            f"validate on, up to {self.n_ctx} tokens"
        )


class ExampleDataset:
    """The rows of a run. Row r is example r modulo the size of an epoch, in the order of that
    epoch; each epoch leaves out the examples that do not fill a batch."""

    def __init__(self, source: Examples, config: Config, rows: np.ndarray):
        assert isinstance(config.task, ClassificationTask)
        self._source, self._rows, self._seed = source, rows, config.seed
        self.tokenizer, self.digest, self.summary = source.tokenizer, source.digest, source.summary
        self._rows_per_epoch = len(rows) // config.task.batch_examples * config.task.batch_examples
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def row(self, number: int) -> np.ndarray:
        """Returns row `number` of the run, a row of EncodedExamples."""
        epoch, index = divmod(number, self._rows_per_epoch)
        if self._order[0] != epoch:
            self._order = (
                epoch,
                np.random.default_rng([self._seed, epoch]).permutation(len(self._rows)),
            )
        return self._rows[self._order[1][index]]

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
            plan, max_microbatch_rows, first_step, local_rows, self._rows.shape[1], fill
        )

    def description(self) -> dict:
        """Returns what data.json records of the data."""
        task = self._source.task
        return {
            "task": repr(task),
            "tokenizer": self.tokenizer.digest,
            "digest": self.digest(),
            "summary": self.summary(),
            "splits": self._source.digests(),
        }
