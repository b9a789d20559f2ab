"""The examples of a task, read and encoded: the rows of fine-tuning."""

import hashlib
from collections.abc import Callable

import numpy as np

from gptjax.config.classification import ClassificationTask
from gptjax.config.schema import Config
from gptjax.data import epochs
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

    @property
    def train(self) -> np.ndarray:
        """The rows of the training examples, of EncodedExamples."""
        return self._rows["train"]

    def make_dataset(self, config: Config) -> epochs.EpochDataset:
        return epochs.EpochDataset(self, self.task.batch_examples, config.seed)

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

    def description(self) -> dict:
        """Returns what data.json records of the data."""
        return {
            "task": repr(self.task),
            "tokenizer": self.tokenizer.digest,
            "digest": self.digest(),
            "summary": self.summary(),
            "splits": self.digests(),
        }
