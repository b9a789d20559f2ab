"""What a run reads, from config to batches: every source as a shard directory, rows by mixture, steps by a grain pipeline.

The rows of step n are a pure function of (config, n): a run resumes from its step number, on any number of processes.
"""

import hashlib
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from gptjax.config import data, find_files, parse
from gptjax.config.schema import Config
from gptjax.data import leakage, mixture, packing, shards, tokenize, validation_split
from gptjax.data.sources import open
from gptjax.data.tokenizers import build, sentencepiece_tokenizer

READ_AHEAD = 4  # batches that wait in memory
LITTLE = 2**26  # bytes of files up to which a corpus is read beforehand, to see whether both splits get a document


class Plan(Protocol):
    """Which rows a step trains on; rows of n_ctx tokens, counted over the whole run. config/batch_schedule.py has it."""

    n_steps: int
    max_rows: int

    def rows(self, step: int) -> int: ...

    def first_row(self, step: int) -> int: ...

    def microbatch(self, step: int, limit_rows: int) -> int: ...


class Reading:
    """A run's data, open: its tokenizer, its training rows and its validation rows. Made by `reading`."""

    def __init__(
        self, config: Config, sources: tuple[data.Source, ...], text: build.Tokenizer, opened: list["Opened"], held: list["Opened"]
    ):
        """opened: one for each source; held: whose documents the run is validated on. ValueError if a split does not fill a row."""
        n_ctx, rule = config.model.n_ctx, config.data.held_out
        self.tokenizer = text
        self._config, self._sources, self._opened = config, sources, opened
        self._held = Joined([there.validation for there in held])
        check_sizes(
            n_ctx, rule, [(source, there.train.n_tokens) for source, there in zip(sources, opened, strict=True)], self._held.n_tokens
        )
        self._rows = [
            packing.Rows(there.train, n_ctx, f"seed {config.seed} source {number}", tokenize.named(source))
            for number, (source, there) in enumerate(zip(sources, opened, strict=True))
        ]
        self._mixture = mixture.Mixture([source.weight for source in sources])
        self.validation_bytes_per_token = self._held.n_bytes / self._held.n_tokens

    def validation(self, n_rows: int) -> np.ndarray:
        """The same at most n_rows rows every time, evenly spread over the held-out text, as int32 of shape (rows, n_ctx + 1)."""
        rows = packing.in_order(self._held, self._config.model.n_ctx, n_rows)
        if int(rows.view(np.uint32).max(initial=0)) >= self.tokenizer.n_vocab:
            whole = ((document, 0, length) for document, length in enumerate(self._held.lengths.tolist()))
            raise vocabulary_error(self._held, whole, self.tokenizer.n_vocab)
        return rows

    def row(self, number: int) -> np.ndarray:
        """Row `number` of the run, as int32 of shape (n_ctx + 1,): tokens 0..n_ctx-1 are read, 1..n_ctx predicted."""
        out = np.empty(self._config.model.n_ctx + 1, np.int32)
        self._fill(number, out)
        return out

    def _fill(self, number: int, out: np.ndarray) -> None:
        """Write row `number` of the run into `out`. ValueError, with file and place, if it has an id that is not in the vocabulary."""
        source, place = self._mixture(number)
        rows = self._rows[source]
        rows.fill(place, out)
        if int(out.view(np.uint32).max()) >= self.tokenizer.n_vocab:
            raise vocabulary_error(self._opened[source].train, rows.pieces(place), self.tokenizer.n_vocab)

    def batches(self, plan: Plan, limit_rows: int, first_step: int = 0, here: Callable[[int], Sequence[int]] = range):
        """A grain iterator over the steps from first_step to plan.n_steps.

        Each step is {"tokens": int32 (M, rows, T + 1), "count": int32 (), "rows": int32 ()}: microbatches of `rows` rows over all
        processes, plan.microbatch of limit_rows, of which this one reads those that `here` numbers (default: all; sharding/rules.py knows);
        the first `count` are real, the others zeros. M = plan.max_rows / rows, so the steps of a ramp have one shape.
        get_state and set_state name the exact position.
        """
        return steps(plan, limit_rows, first_step, here, self._config.model.n_ctx + 1, self._fill)

    def summary(self) -> str:
        """For people: how much there is to train on, of what, and how often it is read if that is more than once."""
        names = ", ".join(map(tokenize.named, self._sources)).replace(", field='text'", "")
        names = names if len(names) <= 100 else f"{names[:97]}..."
        times = self._epochs()
        again = f", read {' and '.join(f'{n:,.1f}' for n in times)} times" if max(times) > 1 else ""
        return f"{sum(there.train.n_tokens for there in self._opened):,} training tokens of {names}{again}"

    def _epochs(self) -> list[float]:
        """How often each source is read over train.total_tokens."""
        sizes = [there.train.n_tokens for there in self._opened]
        return mixture.epochs(self._mixture.shares, sizes, self._config.train.total_tokens)

    def digest(self) -> str:
        """Of all tokens, in their order: equal on hosts that have prepared the same text for themselves."""
        names = [[there.manifest["text"], digest_fields(there.manifest)] for there in self._opened]
        return digest(self.tokenizer.digest, names, self._held.n_tokens)

    def description(self) -> dict[str, Any]:
        """What was read, for the run's record: sources with counts and digests, weights, the share of rows that each has, epochs over
        train.total_tokens. JSON-able."""
        shares, epochs = self._mixture.shares, self._epochs()
        sources = [
            {"source": repr(source), "weight": source.weight, "share": share, "epochs": epoch} | there.described
            for source, share, epoch, there in zip(self._sources, shares, epochs, self._opened, strict=True)
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

    def where(self, document: int, start: int) -> tuple[shards.Shard, int]:
        number = int(np.searchsorted(self._first, document, side="right")) - 1
        return self._splits[number].where(document - int(self._first[number]), start)


class Opened:
    """One shard directory: what of it is trained on, and what is validated on."""

    def __init__(self, directory: pathlib.Path, rule: data.HeldOut):
        manifest = shards.read_manifest(directory)
        whole = isinstance(rule, data.Separate)  # each source is then used whole, for the one or the other
        self.manifest = manifest
        self.train = shards.Split(directory, manifest, validation_split.SPLITS if whole else ("train",))
        self.validation = self.train if whole else shards.Split(directory, manifest, ("validation",))
        shown = {name: manifest[name] for name in ("text", "python", "fingerprint", "passed_over") if name in manifest}
        splits = {split: {n: v for n, v in counts.items() if n != "shards"} for split, counts in manifest["splits"].items()}
        self.described = shown | {"splits": splits}


def vocabulary_error(documents: Any, where: Iterable[tuple[int, int, int]], n_vocab: int) -> ValueError:
    """What to say of a row with an id that is not in the vocabulary. where: (document, start, stop) of what the row is made of."""
    for document, start, stop in where:
        wrong = np.flatnonzero(documents.tokens(document, start, stop) >= n_vocab)
        if len(wrong):
            shard, place = documents.where(document, start + int(wrong[0]))
            return shard.vocabulary_error(place)
    raise AssertionError("the row is right when it is read again")


def check_sizes(n_ctx: int, rule: data.HeldOut, trained: Iterable[tuple[data.Source, int]], held: int) -> None:
    """ValueError if a source has too few tokens to train on, or all too few that are held out. trained: with the tokens of each."""
    for source, n_tokens in trained:
        if not n_tokens:
            raise ValueError(f"{tokenize.named(source)}: no document is left to train on; {validation_split.advice(rule, 'train')}")
        packing.check_size(n_tokens, n_ctx, tokenize.named(source))
    if held < n_ctx + 1:
        raise ValueError(
            f"the validation split has {held:,} tokens, fewer than one row of model.n_ctx={n_ctx:,} and its next; "
            f"{validation_split.advice(rule, 'validation')}"
        )


@find_files.list_once()
def reading(config: Config, directory: pathlib.Path, say: Callable[[str], None]) -> Reading:
    """Open what the config reads; what is not tokenised yet is, into directories below `directory`, where the next run finds it.

    say: is told, a line at a time, what a person would wait for or wonder about. ValueError, in one line, for anything wrong with a
    source, the tokenizer or a split, as early as it can be seen; OSError if `directory` cannot be written.
    """
    sources, rule = config.data.sources, config.data.held_out
    if not sources:
        say("training on the embedded corpus, because data.sources names nothing else")
        sources = (data.Embedded(),)
    separate = (rule.source,) if isinstance(rule, data.Separate) else ()
    check_weights(sources, say)
    for source in separate:
        leakage.check_sources(sources, source)
    spec = config.data.tokenizer
    model = model_place(spec, sources, rule, directory)
    if model is not None and not model.exists():
        check(sources, separate, rule, say)
    text = spoken(spec, sources, rule, model, say)
    if text.n_vocab != config.model.n_vocab:
        raise ValueError(
            f"the tokenizer {spec} has {text.n_vocab:,} ids but model.n_vocab={config.model.n_vocab:,}: --set model.n_vocab={text.n_vocab}"
        )
    places = {source: shard_place(source, text, rule, directory) for source in (*sources, *separate)}
    if model is None and any(not (place / "manifest.json").exists() for place in places.values()):
        check(sources, separate, rule, say)
    opened = [shard_directory(source, spec, text, rule, places[source], say) for source in (*sources, *separate)]
    train, held = opened[: len(sources)], opened[len(sources) :]
    for there in held:
        leakage.check_documents([one.train for one in train], there.validation, say)
    return Reading(config, sources, text, train, held or train)


def check_weights(sources: Sequence[data.Source], say: Callable[[str], None]) -> None:
    """Say where a mixture gives a source another share than its weight. ValueError where that would be another mixture."""
    names = [tokenize.named(source) for source in sources]
    for line in mixture.check([source.weight for source in sources], names):
        say(line)


def check(sources: Sequence[data.Source], separate: Sequence[data.Source], rule: data.HeldOut, say: Callable[[str], None]) -> None:
    """What can be seen of the sources before they are tokenised, at little cost: said, or a ValueError in one line."""
    raw = [source for source in sources if not isinstance(source, data.Shards)]
    for source in (*raw, *(source for source in separate if not isinstance(source, data.Shards))):
        for line in open.check(source):
            say(line)
    if not isinstance(rule, data.ByDocument) or rule.fraction == 0 or len(raw) < len(sources):
        return
    advice = validation_split.advice(rule, "validation")
    if len(raw) == 1 and open.one_document(raw[0]):
        tail = '--set "data.held_out=Tail(fraction=0.1)"'
        raise ValueError(
            f"{tokenize.named(raw[0])} is one document, which cannot be both trained and validated on: hold out its end, {tail}"
        )
    texts = [source for source in raw if isinstance(source, data.Text)]
    if len(texts) == len(raw) and sum(find_files.find(source.path).n_bytes for source in texts) <= LITTLE:
        held = [{split for document in open.documents(source) for split, _ in validation_split.parts(document, rule)} for source in raw]
        for source, splits in zip(raw, held, strict=True):
            if "train" not in splits:
                raise ValueError(f"{tokenize.named(source)}: no document is left to train on; {validation_split.advice(rule, 'train')}")
        if not any("validation" in splits for splits in held):
            raise ValueError(
                f"no document of {', '.join(map(tokenize.named, raw))} is held out: the validation split has 0 tokens; {advice}"
            )


def model_place(spec: data.Tokenizer, sources: Sequence[data.Source], rule: data.HeldOut, directory: pathlib.Path) -> pathlib.Path | None:
    """Where the SentencePiece model lies, or will, that is trained on the run's own text; None where another tokenizer is asked for.

    That is beside prepared shards, else below `directory`, under a name that tells what it is made of."""
    if not isinstance(spec, data.SentencePiece) or spec.path is not None:
        return None
    for source in sources:
        if isinstance(source, data.Shards) and (parse.path(source.path) / "tokenizer.model").exists():
            return parse.path(source.path) / "tokenizer.model"
    raw = [source for source in sources if not isinstance(source, data.Shards)]
    if not raw:
        return None
    made_of = [open.fingerprint(source) for source in raw]
    shares = [source.weight / sum(other.weight for other in raw) for source in raw]
    earlier = directory / f"tokenizer-{digest(spec.n_pieces, made_of, validation_split.written(rule))}.model"  # until 2026: not by weight
    return (
        earlier
        if earlier.exists()
        else directory / f"tokenizer-{digest(spec.n_pieces, made_of, shares, validation_split.written(rule))}.model"
    )


def spoken(
    spec: data.Tokenizer, sources: Sequence[data.Source], rule: data.HeldOut, model: pathlib.Path | None, say: Callable[[str], None]
) -> build.Tokenizer:
    """The run's tokenizer. model: of `model_place`."""
    if model is None:
        return build.tokenizer(spec)  # which says so if there is no text for it
    if not model.exists():
        assert isinstance(spec, data.SentencePiece)
        say(f"training {spec.n_pieces:,} SentencePiece pieces on a sample of the training text, each source by its weight")
    return build.tokenizer(spec, model, lambda: sample(sources, rule))


def sample(sources: Sequence[data.Source], rule: data.HeldOut) -> list[str]:
    """Of the text that is trained on, what a tokenizer is made from: pieces.SAMPLE characters at most, of each source its share by weight,
    evenly spread over all of it. What a source is too short for it gives several times over, as in training."""
    raw = [source for source in sources if not isinstance(source, data.Shards)]
    shares = [source.weight / sum(other.weight for other in raw) for source in raw]
    found = [
        sentencepiece_tokenizer.spread(training_texts(source, rule), int(share * sentencepiece_tokenizer.SAMPLE))
        for source, share in zip(raw, shares, strict=True)
    ]
    unit = max(sum(map(len, parts)) / share for parts, share in zip(found, shares, strict=True))
    return [
        part for parts, share in zip(found, shares, strict=True) for part in sentencepiece_tokenizer.resize(parts, int(share * unit + 1e-3))
    ]


def training_texts(source: open.Untokenised, rule: data.HeldOut) -> Iterable[str]:
    """The text of `source` that is trained on."""
    for document in open.documents(source):
        yield from (text for split, text in validation_split.parts(document, rule) if split == "train")


def shard_place(source: data.Source, text: build.Tokenizer, rule: data.HeldOut, directory: pathlib.Path) -> pathlib.Path:
    """The directory of `source` as shards: what it names, or one below `directory`."""
    if isinstance(source, data.Shards):
        return parse.path(source.path)
    key = digest(tokenize.named(source), open.fingerprint(source), text.digest, validation_split.written(rule))
    return directory / f"{type(source).__name__.lower()}-{key}"


def shard_directory(
    source: data.Source,
    spec: data.Tokenizer,
    text: build.Tokenizer,
    rule: data.HeldOut,
    where: pathlib.Path,
    say: Callable[[str], None],
) -> Opened:
    """`source` as shards, in its `shard_place`; they are written now if they are not there."""
    if isinstance(source, data.Shards):
        opened = Opened(where, rule)
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
    if not (where / "manifest.json").exists():
        say(f"tokenising {tokenize.named(source)} with {spec}")
        counts = tokenize.write(source, repr(spec), text, rule, where, lambda part: say(f"{part:.0%} tokenised"), say=say)["splits"]
        say(f"{counts['train']['tokens']:,} tokens to train on, {counts['validation']['tokens']:,} held out")
    return Opened(where, rule)


def digest_fields(manifest: dict[str, Any]) -> dict[str, Any]:
    """The counts and digests of a directory's splits, without what only later versions write: what `Reading.digest` is made of."""
    names = ("name", "documents", "tokens", "bytes", "digest")
    return {
        split: counts | {"shards": [{name: shard[name] for name in names} for shard in counts["shards"]]}
        for split, counts in manifest["splits"].items()
    }


def digest(*parts: object) -> str:
    return hashlib.sha256(repr((shards.FORMAT, parts)).encode()).hexdigest()[:16]
