"""Data loading: the rows of each step, from shard directories and streams, as batches of a grain
pipeline.

The rows of step n are a pure function of (config, n), on any number of processes: a run resumes
from its step number, and with streams from their positions, which its checkpoints hold.
"""

import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from gptjax.config import data
from gptjax.config.schema import Config
from gptjax.data import mixture, packing, shards, stream_rows, validation_split
from gptjax.data.sources import open
from gptjax.data.tokenizers import build

PREFETCH_BATCHES = 4  # batches that are read ahead


class BatchPlan(Protocol):
    """The rows that each step trains on, numbered over the whole run; BatchSchedule of
    config/batch_schedule.py is one.

    n_steps: number of steps. max_rows: rows of the largest step.
    """

    n_steps: int
    max_rows: int

    def rows(self, step: int) -> int:
        """Returns the number of rows of a step."""
        ...

    def first_row(self, step: int) -> int:
        """Returns the number of the first row of a step."""
        ...

    def microbatch(self, step: int, max_microbatch_rows: int) -> int:
        """Returns the rows of each microbatch of a step, at most max_microbatch_rows."""
        ...


class Dataset:
    """The data of a run: its tokenizer, training rows and validation rows. Made by
    `open_dataset.open_dataset`.

    validation_bytes_per_token: bytes of UTF-8 for each token of the validation text. model_digests:
    of models that a run takes besides its own, by what they are; a run that goes on must find them.
    """

    def __init__(
        self,
        config: Config,
        sources: tuple[data.Source, ...],
        tokenizer: build.Tokenizer,
        train: Sequence["OpenSource"],
        validation: Sequence["OpenSource"],
    ):
        """train: each source; validation: those whose validation split is used. Raises ValueError
        if a split does not fill a row."""
        n_ctx, rule = config.model.n_ctx, config.data.validation
        self.tokenizer = tokenizer
        self.model_digests: dict[str, str] = {}
        self._config, self._sources, self._train = config, sources, train
        self._validation = Concatenated([opened.validation for opened in validation])
        # Of streams only some documents are read, and how many may change with loop.eval_rows.
        self._n_prepared_validation = sum(
            opened.validation.n_tokens for opened in validation if isinstance(opened, OpenShards)
        )
        check_sizes(
            n_ctx,
            rule,
            [
                (source, opened.n_tokens)
                for source, opened in zip(sources, train, strict=True)
                if opened.n_tokens is not None
            ],
            self._validation.n_tokens,
        )
        self._source_rows = [
            opened.rows(n_ctx, f"seed {config.seed} source {number}", open.describe(source))
            for number, (source, opened) in enumerate(zip(sources, train, strict=True))
        ]
        self._mixture = mixture.Mixture([source.weight for source in sources])
        self.validation_bytes_per_token = self._validation.n_bytes / self._validation.n_tokens

    def validation_rows(self, n_rows: int) -> np.ndarray:
        """Returns at most n_rows rows, evenly spread over the validation text and the same at every
        call, as int32 of shape (rows, n_ctx + 1)."""
        rows = packing.evenly_spaced_rows(self._validation, self._config.model.n_ctx, n_rows)
        if int(rows.view(np.uint32).max(initial=0)) >= self.tokenizer.n_vocab:
            spans = (
                (document, 0, length)
                for document, length in enumerate(self._validation.lengths.tolist())
            )
            raise vocabulary_error(self._validation, spans, self.tokenizer.n_vocab)
        return rows

    def row(self, number: int) -> np.ndarray:
        """Returns row `number` of the run as int32 of shape (n_ctx + 1,): tokens 0..n_ctx-1 are the
        inputs, 1..n_ctx the targets."""
        out = np.empty(self._config.model.n_ctx + 1, np.int32)
        self.fill(number, out)
        return out

    def fill(self, number: int, out: np.ndarray) -> None:
        """Writes row `number` of the run into `out`. Raises ValueError, with file and position, if
        it has an id that is not in the vocabulary."""
        source, source_row = self._mixture(number)
        rows, opened = self._source_rows[source], self._train[source]
        rows.fill(source_row, out)
        if int(out.view(np.uint32).max()) >= self.tokenizer.n_vocab:
            assert isinstance(rows, packing.Rows) and isinstance(opened, OpenShards)
            raise vocabulary_error(opened.train, rows.spans(source_row), self.tokenizer.n_vocab)

    def batches(
        self,
        plan: BatchPlan,
        max_microbatch_rows: int,
        first_step: int = 0,
        local_rows: Callable[[int], Sequence[int]] = range,
    ):
        """Returns a grain iterator over the steps first_step to plan.n_steps - 1.

        Each step is {"tokens": int32 (M, local rows, n_ctx + 1), "count": int32 (), "rows": int32
        ()}. A microbatch has plan.microbatch(step, max_microbatch_rows) = `rows` rows over all
        processes; this process reads those of the numbers local_rows(rows) (default: all; see
        rules.local_rows). M is plan.max_rows / rows, so that the steps of a batch ramp have one
        shape; the first `count` microbatches are data, the others zeros. The iterator's get_state
        and set_state save and restore its position.
        """
        return iterate_steps(
            plan,
            max_microbatch_rows,
            first_step,
            local_rows,
            self._config.model.n_ctx + 1,
            self.fill,
        )

    def position(self, step: int) -> Any:
        """Returns what a checkpoint of `step` holds to find the rows after it, a JSON value. None:
        the step is enough."""
        return None

    def summary(self) -> str:
        """Returns a line for the user: the number of training tokens, the sources, and how many
        times each is read if that is more than once."""
        names = ", ".join(map(open.describe, self._sources)).replace(", field='text'", "")
        names = names if len(names) <= 100 else f"{names[:97]}..."
        epochs = [n for n in self._source_epochs() if n is not None]
        if len(epochs) < len(self._sources):
            return f"{names}, counted as it is read"
        repeats = (
            f", read {' and '.join(f'{n:,.1f}' for n in epochs)} times" if max(epochs) > 1 else ""
        )
        n_tokens = sum(opened.n_tokens or 0 for opened in self._train)
        return f"{n_tokens:,} training tokens of {names}{repeats}"

    def _source_epochs(self) -> list[float | None]:
        """Returns how many times each source is read over train.total_tokens; None of a stream,
        whose size is not known."""
        total = self._config.train.total_tokens
        return [
            share * total / opened.n_tokens if opened.n_tokens is not None else None
            for share, opened in zip(self._mixture.shares, self._train, strict=True)
        ]

    def digest(self) -> str:
        """Returns a digest of all tokens in their order; of a stream, of the names and sizes of its
        files. It is equal on hosts that have each tokenized the same text."""
        names = [opened.identity for opened in self._train]
        return shards.content_key(self.tokenizer.digest, names, self._n_prepared_validation)

    def description(self) -> dict[str, Any]:
        """Returns a JSON object for the run's record: each source with counts, digests, weight, its
        share of the rows and its epochs over train.total_tokens; the tokenizer; the validation
        text."""
        shares, epochs = self._mixture.shares, self._source_epochs()
        sources = [
            {"source": repr(source), "weight": source.weight, "share": share, "epochs": epoch}
            | opened.summary
            for source, share, epoch, opened in zip(
                self._sources, shares, epochs, self._train, strict=True
            )
        ]
        counts = {
            "documents": len(self._validation.lengths),
            "tokens": self._validation.n_tokens,
            "bytes": self._validation.n_bytes,
        }
        tokenizer_record = {
            "spec": repr(self._config.data.tokenizer),
            "digest": self.tokenizer.digest,
            "n_vocab": self.tokenizer.n_vocab,
        }
        return {
            "tokenizer": tokenizer_record,
            "held_out": repr(self._config.data.validation),
            "sources": sources,
            "validation": counts,
        }


def iterate_steps(
    plan: BatchPlan,
    max_microbatch_rows: int,
    first_step: int,
    local_rows: Callable[[int], Sequence[int]],
    width: int,
    fill: Callable,
    positions: Callable[[int], Any] | None = None,
):
    """Returns the iterator of Dataset.batches for rows of `width` integers. fill(number, out)
    writes row `number` of the run into an int32 array of shape (width,). positions(step): what is
    added to the batch before that step, as "next_positions"."""
    import grain

    def batch(step: int) -> dict[str, np.ndarray]:
        first, size = plan.first_row(step), plan.microbatch(step, max_microbatch_rows)
        count, remainder = divmod(plan.rows(step), size)
        assert remainder == 0 and plan.max_rows % size == 0, (
            step,
            plan.rows(step),
            plan.max_rows,
            size,
        )
        numbers = local_rows(size)
        tokens = np.zeros((plan.max_rows // size, len(numbers), width), np.int32)
        for microbatch in range(count):
            for slot, number in enumerate(numbers):
                fill(first + microbatch * size + number, tokens[microbatch, slot])
        more = {} if positions is None else {"next_positions": positions(step + 1)}
        return {
            "tokens": tokens,
            "count": np.array(count, np.int32),
            "rows": np.array(size, np.int32),
        } | more

    batches = grain.MapDataset.range(first_step, plan.n_steps).map(batch)
    # One thread reads ahead; a second one would wait for it, since rows are copied while holding
    # Python's global lock.
    return iter(
        batches.to_iter_dataset(
            grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCH_BATCHES)
        )
    )


class Concatenated:
    """The documents of several splits, in order; a packing.Documents."""

    def __init__(self, splits: Sequence[shards.Split | stream_rows.HeldOut]):
        self._splits = splits
        self._first = np.cumsum([0, *(len(split.lengths) for split in splits)])
        self.lengths = np.concatenate([split.lengths for split in splits])
        self.n_tokens, self.n_bytes = (
            sum(split.n_tokens for split in splits),
            sum(split.n_bytes for split in splits),
        )

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        """Returns tokens start..stop-1 of a document."""
        number = int(np.searchsorted(self._first, document, side="right")) - 1
        return self._splits[number].tokens(document - int(self._first[number]), start, stop)

    def locate(self, document: int, start: int) -> tuple[shards.Shard, int]:
        """Returns the shard with token `start` of a document, and the token's position in it."""
        number = int(np.searchsorted(self._first, document, side="right")) - 1
        split = self._splits[number]
        assert isinstance(split, shards.Split), "a stream's ids are of the run's own tokenizer"
        return split.locate(document - int(self._first[number]), start)


class OpenShards:
    """The training and the validation split of a shard directory.

    n_tokens: to train on. summary: counts and digests of its text, for the run's record.
    """

    def __init__(self, directory: pathlib.Path, rule: data.ValidationSplit):
        manifest = shards.read_manifest(directory)
        # With Separate, a source is used whole, either for training or for validation.
        uses_all = isinstance(rule, data.Separate)
        self.manifest = manifest
        self.train = shards.Split(
            directory, manifest, validation_split.SPLITS if uses_all else ("train",)
        )
        self.validation = (
            self.train if uses_all else shards.Split(directory, manifest, ("validation",))
        )
        fields = {
            name: manifest[name]
            for name in ("text", "python", "fingerprint", "passed_over")
            if name in manifest
        }
        splits = {
            split: {n: v for n, v in counts.items() if n != "shards"}
            for split, counts in manifest["splits"].items()
        }
        self.summary = fields | {"splits": splits}
        self.n_tokens: int | None = self.train.n_tokens

    @property
    def identity(self) -> list[Any]:
        """What it holds, the same on every host that has this text."""
        return [self.manifest["text"], digest_fields(self.manifest)]

    def rows(self, n_ctx: int, key: str, name: str) -> packing.Rows:
        """Returns the rows to train on. key: what their order depends on. name: for errors."""
        return packing.Rows(self.train, n_ctx, key, name)


OpenSource = OpenShards | stream_rows.OpenStream


def vocabulary_error(
    documents: Any, spans: Iterable[tuple[int, int, int]], n_vocab: int
) -> ValueError:
    """Returns the error for a row with an id that is not in the vocabulary. spans: (document,
    start, stop) of the parts of documents that the row consists of."""
    for document, start, stop in spans:
        invalid = np.flatnonzero(documents.tokens(document, start, stop) >= n_vocab)
        if len(invalid):
            shard, position = documents.locate(document, start + int(invalid[0]))
            return shard.vocabulary_error(position)
    raise AssertionError("the row is right when it is read again")


def check_sizes(
    n_ctx: int,
    rule: data.ValidationSplit,
    train_sizes: Iterable[tuple[data.Source, int]],
    n_validation_tokens: int,
) -> None:
    """Raises ValueError if a source has too few training tokens to fill a row, or all sources
    together too few validation tokens. train_sizes: each source with its training tokens."""
    for source, n_tokens in train_sizes:
        if not n_tokens:
            raise ValueError(
                f"{open.describe(source)}: no document is left to train on; "
                f"{validation_split.advice(rule, 'train')}"
            )
        packing.check_size(n_tokens, n_ctx, open.describe(source))
    if n_validation_tokens < n_ctx + 1:
        raise ValueError(
            f"the validation split has {n_validation_tokens:,} tokens, fewer than one row of "
            f"model.n_ctx={n_ctx:,} and its next; "
            f"{validation_split.advice(rule, 'validation')}"
        )


def digest_fields(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns the counts and digests of a directory's splits that `Dataset.digest` depends on,
    without those that earlier versions did not write."""
    names = ("name", "documents", "tokens", "bytes", "digest")
    return {
        split: counts
        | {"shards": [{name: shard[name] for name in names} for shard in counts["shards"]]}
        for split, counts in manifest["splits"].items()
    }
