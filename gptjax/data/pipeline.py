"""What a run reads, from config to batches: every source as a shard directory, rows by mixture, steps by a grain pipeline.

The rows of step n are a pure function of (config, n): a run resumes from its step number, on any number of processes.
"""

import hashlib
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from gptjax.config import data
from gptjax.config.schema import Config
from gptjax.data import corpora, heldout, mixture, packing, shards, tokenising, tokenizer

READ_AHEAD = 4  # batches that wait in memory


class Plan(Protocol):
    """Which rows a step trains on; rows of n_ctx tokens, counted over the whole run. config/batches.py has it."""

    n_steps: int
    max_rows: int

    def rows(self, step: int) -> int: ...

    def first_row(self, step: int) -> int: ...

    def microbatch(self, step: int, limit_rows: int) -> int: ...


class Reading:
    """A run's data, open: its tokenizer, its training rows and its validation rows. Made by `reading`."""

    def __init__(
        self, config: Config, sources: tuple[data.Source, ...], text: tokenizer.Tokenizer, opened: list["Opened"], held: list["Opened"]
    ):
        """opened: one for each source; held: whose documents the run is validated on. ValueError if a split does not fill a row."""
        n_ctx, rule = config.model.n_ctx, config.data.held_out
        self.tokenizer = text
        self._config, self._sources, self._opened = config, sources, opened
        for source, there in zip(sources, opened, strict=True):
            if not there.train.n_tokens:
                raise ValueError(f"{tokenising.named(source)}: no document is left to train on; {heldout.advice(rule, 'train')}")
        self._rows = [
            packing.Rows(there.train, n_ctx, f"seed {config.seed} source {number}", tokenising.named(source))
            for number, (source, there) in enumerate(zip(sources, opened, strict=True))
        ]
        self._weights = [source.weight for source in sources]
        self._mixture = mixture.Mixture(self._weights)
        self._held = Joined([there.validation for there in held])
        if self._held.n_tokens < n_ctx + 1:
            raise ValueError(
                f"the validation split has {self._held.n_tokens:,} tokens, fewer than one row of model.n_ctx={n_ctx:,} and its next; "
                f"{heldout.advice(rule, 'validation')}"
            )
        self.validation_bytes_per_token = self._held.n_bytes / self._held.n_tokens

    def validation(self, n_rows: int) -> np.ndarray:
        """The same at most n_rows rows every time, evenly spread over the held-out text, as int32 of shape (rows, n_ctx + 1)."""
        return packing.in_order(self._held, self._config.model.n_ctx, n_rows)

    def row(self, number: int) -> np.ndarray:
        """Row `number` of the run, as int32 of shape (n_ctx + 1,): tokens 0..n_ctx-1 are read, 1..n_ctx predicted."""
        source, row = self._mixture(number)
        return self._rows[source].row(row)

    def batches(self, plan: Plan, limit_rows: int, first_step: int = 0, here: Callable[[int], Sequence[int]] = range):
        """A grain iterator over the steps from first_step to plan.n_steps.

        Each step is {"tokens": int32 (M, rows, T + 1), "count": int32 (), "rows": int32 ()}: microbatches of `rows` rows over all
        processes, plan.microbatch of limit_rows, of which this one reads those that `here` numbers (default: all; mesh/rules.py knows);
        the first `count` are real, the others zeros. M = plan.max_rows / rows, so the steps of a ramp have one shape.
        get_state and set_state name the exact position.
        """

        def fill(number: int, row: np.ndarray) -> None:
            source, place = self._mixture(number)
            self._rows[source].fill(place, row)

        return steps(plan, limit_rows, first_step, here, self._config.model.n_ctx + 1, fill)

    def summary(self) -> str:
        """For people: how much there is to train on."""
        return f"{sum(there.train.n_tokens for there in self._opened):,} training tokens"

    def digest(self) -> str:
        """Of all tokens, in their order: equal on hosts that have prepared the same text for themselves."""
        names = [[there.manifest["text"], there.manifest["splits"]] for there in self._opened]
        return digest(self.tokenizer.digest, names, self._held.n_tokens)

    def description(self) -> dict[str, Any]:
        """What was read, for the run's record: sources with counts and digests, weights, epochs over train.total_tokens. JSON-able."""
        sizes = [there.train.n_tokens for there in self._opened]
        epochs = mixture.epochs(self._weights, sizes, self._config.train.total_tokens)
        sources = [
            {"source": repr(source), "weight": weight, "epochs": epoch} | there.described
            for source, weight, epoch, there in zip(self._sources, self._weights, epochs, self._opened, strict=True)
        ]
        counts = {"documents": len(self._held.lengths), "tokens": self._held.n_tokens, "bytes": self._held.n_bytes}
        spoken = {"spec": repr(self._config.data.tokenizer), "digest": self.tokenizer.digest, "n_vocab": self.tokenizer.n_vocab}
        return {"tokenizer": spoken, "held_out": repr(self._config.data.held_out), "sources": sources, "validation": counts}


def steps(plan: Plan, limit_rows: int, first_step: int, here: Callable[[int], Sequence[int]], width: int, fill: Callable):
    """The iterator of Reading.batches, over rows of `width` integers: fill(number, array) writes row `number` of the run."""
    import grain

    def batch(step: int) -> dict[str, np.ndarray]:
        first, size = plan.first_row(step), plan.microbatch(step, limit_rows)
        count, none_left = divmod(plan.rows(step), size)
        assert none_left == 0 and plan.max_rows % size == 0, (step, plan.rows(step), plan.max_rows, size)
        numbers = here(size)
        tokens = np.zeros((plan.max_rows // size, len(numbers), width), np.int32)
        for microbatch in range(count):
            for place, number in enumerate(numbers):
                fill(first + microbatch * size + number, tokens[microbatch, place])
        return {"tokens": tokens, "count": np.array(count, np.int32), "rows": np.array(size, np.int32)}

    numbered = grain.MapDataset.range(first_step, plan.n_steps).map(batch)
    # One thread reads ahead: rows are copied under Python's lock, so a second one would only take turns with it.
    return iter(numbered.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=READ_AHEAD)))


class Joined:
    """Several splits, one after the other. A packing.Documents."""

    def __init__(self, splits: list[shards.Split]):
        self._splits = splits
        self._first = np.cumsum([0, *(len(split.lengths) for split in splits)])
        self.lengths = np.concatenate([split.lengths for split in splits])
        self.n_tokens, self.n_bytes = sum(split.n_tokens for split in splits), sum(split.n_bytes for split in splits)

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        number = int(np.searchsorted(self._first, document, side="right")) - 1
        return self._splits[number].tokens(document - int(self._first[number]), start, stop)


class Opened:
    """One shard directory: what of it is trained on, and what is validated on."""

    def __init__(self, directory: pathlib.Path, rule: data.HeldOut):
        manifest = shards.read_manifest(directory)
        whole = isinstance(rule, data.Separate)  # each source is then used whole, for the one or the other
        self.manifest = manifest
        self.train = shards.Split(directory, manifest, heldout.SPLITS if whole else ("train",))
        self.validation = self.train if whole else shards.Split(directory, manifest, ("validation",))
        shown = {name: manifest[name] for name in ("text", "python", "fingerprint")}
        splits = {split: {n: v for n, v in counts.items() if n != "shards"} for split, counts in manifest["splits"].items()}
        self.described = shown | {"splits": splits}


def reading(config: Config, directory: pathlib.Path, say: Callable[[str], None]) -> Reading:
    """Open what the config reads; what is not tokenised yet is, into directories below `directory`, where the next run finds it.

    say: is told, a line at a time, what a person would wait for or wonder about. ValueError, in one line, for anything wrong with a
    source, the tokenizer or a split; OSError if `directory` cannot be written.
    """
    sources, rule = config.data.sources, config.data.held_out
    if not sources:
        say("training on the embedded corpus, because data.sources names nothing else")
        sources = (data.Embedded(),)
    separate = (rule.source,) if isinstance(rule, data.Separate) else ()
    if set(map(tokenising.named, separate)) & set(map(tokenising.named, sources)):
        raise ValueError(
            f"data.held_out={rule}: that source is also trained on; validate on another, or use data.held_out=Tail(fraction=0.1)"
        )
    text = spoken(config.data.tokenizer, sources, rule, directory, say)
    if text.n_vocab != config.model.n_vocab:
        raise ValueError(
            f"the tokenizer {config.data.tokenizer} has {text.n_vocab:,} ids but model.n_vocab={config.model.n_vocab:,}: "
            f"--set model.n_vocab={text.n_vocab}"
        )
    opened = [shard_directory(source, config.data.tokenizer, text, rule, directory, say) for source in (*sources, *separate)]
    train, held = opened[: len(sources)], opened[len(sources) :]
    return Reading(config, sources, text, train, held or train)


def spoken(
    spec: data.Tokenizer, sources: Iterable[data.Source], rule: data.HeldOut, directory: pathlib.Path, say: Callable[[str], None]
) -> tokenizer.Tokenizer:
    """The run's tokenizer: SentencePiece without a path is the one beside prepared shards, else trained on the training text."""
    if not isinstance(spec, data.SentencePiece) or spec.path is not None:
        return tokenizer.tokenizer(spec)
    raw = [source for source in sources if not isinstance(source, data.Shards)]
    for source in sources:
        if isinstance(source, data.Shards) and (pathlib.Path(source.path) / "tokenizer.model").exists():
            return tokenizer.tokenizer(spec, pathlib.Path(source.path) / "tokenizer.model")
    if not raw:
        return tokenizer.tokenizer(spec)  # which says that there is no text
    made_of = [corpora.fingerprint(source) for source in raw]
    cached = directory / f"tokenizer-{digest(spec.n_pieces, made_of, heldout.written(rule))}.model"
    if not cached.exists():
        say(f"training {spec.n_pieces:,} SentencePiece pieces on the training text")
    return tokenizer.tokenizer(spec, cached, lambda: training_texts(raw, rule))


def training_texts(sources: Iterable[corpora.Untokenised], rule: data.HeldOut) -> Iterable[str]:
    """The text of `sources` that is trained on."""
    for source in sources:
        for document in corpora.documents(source):
            yield from (text for split, text in heldout.parts(document, rule) if split == "train")


def shard_directory(
    source: data.Source,
    spec: data.Tokenizer,
    text: tokenizer.Tokenizer,
    rule: data.HeldOut,
    directory: pathlib.Path,
    say: Callable[[str], None],
) -> Opened:
    """`source` as shards: those it names, or those below `directory`, which are written now if they are not there."""
    if isinstance(source, data.Shards):
        opened = Opened(pathlib.Path(source.path).expanduser(), rule)
        there = opened.manifest["tokenizer"]
        if there["digest"] != text.digest:
            raise ValueError(
                f"Shards(path={source.path!r}) was tokenised by {there['description']} (digest {there['digest'][:12]}), this run's is "
                f"{spec} ({text.digest[:12]}): set data.tokenizer to the former, or prepare the shards again"
            )
        if not isinstance(rule, data.Separate) and opened.manifest["held_out"] != repr(rule):
            raise ValueError(
                f"Shards(path={source.path!r}) was split by {opened.manifest['held_out']}, the run asks for data.held_out={rule}: "
                f'--set "data.held_out={opened.manifest["held_out"]}", or prepare the shards again'
            )
        return opened
    key = digest(tokenising.named(source), corpora.fingerprint(source), text.digest, heldout.written(rule))
    where = directory / f"{type(source).__name__.lower()}-{key}"
    if not (where / "manifest.json").exists():
        say(f"tokenising {tokenising.named(source)} with {spec}")
        counts = tokenising.write(source, repr(spec), text, rule, where, lambda part: say(f"{part:.0%} tokenised"))["splits"]
        say(f"{counts['train']['tokens']:,} tokens to train on, {counts['validation']['tokens']:,} held out")
    return Opened(where, rule)


def digest(*parts: object) -> str:
    return hashlib.sha256(repr((shards.FORMAT, parts)).encode()).hexdigest()[:16]
