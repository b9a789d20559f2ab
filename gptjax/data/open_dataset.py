"""The data of a run, opened from its config: sources are checked, tokenized where they are not yet,
and compared with the validation text.
"""

import math
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from gptjax.config import data, find_files, parse
from gptjax.config.schema import Config
from gptjax.data import (
    leakage,
    loader,
    mixture,
    run_tokenizer,
    shards,
    stream_dataset,
    stream_rows,
    tokenize,
    validation_split,
)
from gptjax.data.sources import open
from gptjax.data.tokenizers import build

# Bytes of files up to which a corpus is read beforehand, to see whether both splits get a document.
SMALL_CORPUS_BYTES = 2**26


@find_files.list_once()
def open_dataset(
    config: Config, directory: pathlib.Path, print_line: Callable[[str], None]
) -> loader.Dataset:
    """Opens the data of a config. Sources that are not tokenized yet are tokenized into directories
    below `directory`, where later runs find them.

    print_line: called with each line for the user, about long work and surprising input. Raises a
    one-line ValueError for anything wrong with a source, the tokenizer or a split, as early as it
    can be seen; OSError if `directory` cannot be written.
    """
    sources, rule = config.data.sources, config.data.validation
    if not sources:
        print_line("training on the embedded corpus, because data.sources names nothing else")
        sources = (data.Embedded(),)
    separate = (rule.source,) if isinstance(rule, data.Separate) else ()
    check_weights(sources, print_line)
    for source in separate:
        if isinstance(source, data.Streamed):
            raise ValueError(
                f"data.validation=Separate(source={source}): a stream can be trained on; validate "
                "on Text, Tfds or Shards, or on a share of what is trained on, with ByDocument"
            )
        leakage.check_sources(sources, source)
    spec = config.data.tokenizer
    model_path = run_tokenizer.model_path(spec, sources, rule, directory)
    if model_path is not None and not model_path.exists():
        check_sources(sources, separate, rule, print_line)
    tokenizer = run_tokenizer.resolve(spec, sources, rule, model_path, print_line)
    # Token tables of families after GPT-3 have more rows than their tokenizers have ids.
    is_padded = isinstance(spec, data.TokenizerJson) and tokenizer.n_vocab < config.model.n_vocab
    if tokenizer.n_vocab != config.model.n_vocab and not is_padded:
        raise ValueError(
            f"the tokenizer {spec} has {tokenizer.n_vocab:,} ids but "
            f"model.n_vocab={config.model.n_vocab:,}: "
            f"--set model.n_vocab={tokenizer.n_vocab}"
        )
    shard_paths = {
        source: shard_path(source, tokenizer, rule, directory)
        for source in (*sources, *separate)
        if not isinstance(source, data.Streamed)
    }
    if model_path is None and any(
        not (path / "manifest.json").exists() for path in shard_paths.values()
    ):
        check_sources(sources, separate, rule, print_line)
    open_shards = {
        source: prepare_shards(source, spec, tokenizer, rule, path, print_line)
        for source, path in shard_paths.items()
    }
    validation = [open_shards[s] for s in separate if not isinstance(s, data.Streamed)]
    for source_shards in validation:
        trained = [open_shards[source].train for source in sources if source in open_shards]
        leakage.check_documents(trained, source_shards.validation, print_line)
    shares = mixture.Mixture([source.weight for source in sources]).shares
    train: list[loader.OpenSource] = [
        open_stream(config, source, share, tokenizer, validation, print_line)
        if isinstance(source, data.Streamed)
        else open_shards[source]
        for source, share in zip(sources, shares, strict=True)
    ]
    streams = any(isinstance(source, data.Streamed) for source in sources)
    kind = stream_dataset.StreamDataset if streams else loader.Dataset
    return kind(config, sources, tokenizer, train, validation or train)


def open_stream(
    config: Config,
    source: data.Streamed,
    share: float,
    tokenizer: build.Tokenizer,
    validation: Sequence[loader.OpenShards],
    print_line: Callable[[str], None],
) -> stream_rows.OpenStream:
    """Opens a stream, whose documents are not trained on if they are validated on. share: of the
    rows; it validates on as large a share of loop.eval_rows. validation: of data.Separate."""
    n_ctx = config.model.n_ctx
    n_validation = math.ceil(share * config.loop.eval_rows) * n_ctx + 1
    stream = stream_rows.OpenStream(
        source, tokenizer, config.data.validation, n_validation, print_line
    )
    keys = [shard.keys() for opened in validation for shard in opened.validation.shards]
    if any(shard_keys is None for shard_keys in keys):
        print_line(
            f"{open.describe(source)}: documents that are in the validation text, too, are not "
            "left out of it: shards of data.validation=Tail or of earlier versions have no keys of "
            "their documents"
        )
    known = [shard_keys for shard_keys in keys if shard_keys is not None]
    stream.exclude(np.concatenate([np.zeros(0, np.uint64), *known]), n_ctx)
    return stream


def check_weights(sources: Sequence[data.Source], print_line: Callable[[str], None]) -> None:
    """Prints a line for each source whose share of the rows is not its weight, because of rounding.
    Raises ValueError if one differs too much (mixture.check)."""
    names = [open.describe(source) for source in sources]
    for line in mixture.check([source.weight for source in sources], names):
        print_line(line)


def check_sources(
    sources: Sequence[data.Source],
    separate: Sequence[data.Source],
    rule: data.ValidationSplit,
    print_line: Callable[[str], None],
) -> None:
    """Checks the sources before they are tokenized, at little cost: prints notices, and raises a
    one-line ValueError for errors.
    """
    raw = open.text_sources(sources)
    for source in (*raw, *open.text_sources(separate)):
        for line in open.check(source):
            print_line(line)
    if not isinstance(rule, data.ByDocument) or rule.fraction == 0 or len(raw) < len(sources):
        return
    advice = validation_split.advice(rule, "validation")
    if len(raw) == 1 and open.is_one_document(raw[0]):
        tail = '--set "data.validation=Tail(fraction=0.1)"'
        raise ValueError(
            f"{open.describe(raw[0])} is one document, which cannot be both trained and "
            f"validated on: hold out its end, {tail}"
        )
    texts = [source for source in raw if isinstance(source, data.Text)]
    if (
        len(texts) == len(raw)
        and sum(find_files.find(source.path).n_bytes for source in texts) <= SMALL_CORPUS_BYTES
    ):
        splits_by_source = [
            {
                split
                for document in open.documents(source)
                for split, _ in validation_split.split_document(document, rule)
            }
            for source in raw
        ]
        for source, splits in zip(raw, splits_by_source, strict=True):
            if "train" not in splits:
                raise ValueError(
                    f"{open.describe(source)}: no document is left to train on; "
                    f"{validation_split.advice(rule, 'train')}"
                )
        if not any("validation" in splits for splits in splits_by_source):
            raise ValueError(
                f"no document of {', '.join(map(open.describe, raw))} is held out: the "
                f"validation split has 0 tokens; {advice}"
            )


def shard_path(
    source: open.TextSource | data.Shards,
    tokenizer: build.Tokenizer,
    rule: data.ValidationSplit,
    directory: pathlib.Path,
) -> pathlib.Path:
    """Returns the shard directory of `source`: the one that it names, or one below `directory`
    whose name depends on the source, the state of its text, the tokenizer and the split."""
    if isinstance(source, data.Shards):
        return parse.path(source.path)
    key = shards.content_key(
        open.describe(source),
        open.fingerprint(source),
        tokenizer.digest,
        validation_split.describe(rule),
    )
    return directory / f"{type(source).__name__.lower()}-{key}"


def prepare_shards(
    source: open.TextSource | data.Shards,
    spec: data.Tokenizer,
    tokenizer: build.Tokenizer,
    rule: data.ValidationSplit,
    path: pathlib.Path,
    print_line: Callable[[str], None],
) -> loader.OpenShards:
    """Opens the shards of `source` at `path`, its `shard_path`; they are written first if they are
    not there. Raises ValueError if shards that the config names have another tokenizer or split."""
    if isinstance(source, data.Shards):
        open_shards = loader.OpenShards(path, rule)
        stored_tokenizer = open_shards.manifest["tokenizer"]
        if stored_tokenizer["digest"] != tokenizer.digest:
            raise ValueError(
                f"Shards(path={source.path!r}) was tokenized by {stored_tokenizer['description']} "
                f"(digest {stored_tokenizer['digest'][:12]}), this run's is {spec} "
                f"({tokenizer.digest[:12]}): "
                "set data.tokenizer to the former, or prepare the shards again"
            )
        if not isinstance(rule, data.Separate) and open_shards.manifest["held_out"] != repr(rule):
            raise ValueError(
                f"Shards(path={source.path!r}) was split by {open_shards.manifest['held_out']}, "
                f"the run asks for data.validation={rule}: "
                f'--set "data.validation={open_shards.manifest["held_out"]}", or prepare the '
                "shards again"
            )
        return open_shards
    if not (path / "manifest.json").exists():
        print_line(f"tokenizing {open.describe(source)} with {spec}")
        counts = tokenize.tokenize_corpus(
            source,
            repr(spec),
            tokenizer,
            rule,
            path,
            lambda fraction: print_line(f"{fraction:.0%} tokenized"),
            print_line=print_line,
        )["splits"]
        print_line(
            f"{counts['train']['tokens']:,} tokens to train on, {counts['validation']['tokens']:,} "
            "held out"
        )
    return loader.OpenShards(path, rule)
