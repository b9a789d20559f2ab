"""The tokenizer of a run: a given one, or one trained on the run's own text."""

import pathlib
from collections.abc import Callable, Iterable, Sequence

from gptjax.config import data, parse
from gptjax.data import shards, validation_split
from gptjax.data.sources import open
from gptjax.data.tokenizers import build, training_text


def model_path(
    spec: data.Tokenizer,
    sources: Sequence[data.Source],
    rule: data.ValidationSplit,
    directory: pathlib.Path,
) -> pathlib.Path | None:
    """Returns the path of the file of a tokenizer that is trained on the run's own text, whether it
    exists yet or not; None for any other tokenizer.

    It is in the directory of prepared shards if there are any, else in `directory`; its name has a
    digest of the text, the weights and the validation split that it is trained on."""
    if not build.is_trained(spec):
        return None
    assert isinstance(spec, data.SentencePiece | data.TrainedBpe)
    name = build.trained_file(spec)
    for source in sources:
        if isinstance(source, data.Shards) and (parse.path(source.path) / name).exists():
            return parse.path(source.path) / name
    for source in sources:
        if isinstance(source, data.Streamed):
            raise ValueError(
                f"{open.describe(source)}: {spec} would be trained on the run's own text, which a "
                "stream does not hold beforehand: give data.tokenizer a path, or Gpt2Bpe()"
            )
    raw = open.text_sources(sources)
    if not raw:
        return None
    fingerprints = [open.fingerprint(source) for source in raw]
    shares = [source.weight / sum(other.weight for other in raw) for source in raw]
    rule_text = validation_split.describe(rule)
    if isinstance(spec, data.TrainedBpe):
        key = shards.content_key(spec.n_vocab, fingerprints, shares, rule_text)
        return directory / f"tokenizer-{key}.json"
    # the name that versions before 2026 used, whose samples ignored the weights
    legacy_key = shards.content_key(spec.n_pieces, fingerprints, rule_text)
    key = shards.content_key(spec.n_pieces, fingerprints, shares, rule_text)
    legacy_path, path = (directory / f"tokenizer-{digest}.model" for digest in (legacy_key, key))
    return legacy_path if legacy_path.exists() else path


def resolve(
    spec: data.Tokenizer,
    sources: Sequence[data.Source],
    rule: data.ValidationSplit,
    trained_path: pathlib.Path | None,
    print_line: Callable[[str], None],
) -> build.Tokenizer:
    """Returns the tokenizer of a run, trained on its text if it is to be and does not exist yet.
    trained_path: what `model_path` returns."""
    if trained_path is None:
        return build.build(spec)  # which refuses to train one where there is no text
    if not trained_path.exists():
        match spec:
            case data.SentencePiece(n_pieces=n_pieces):
                what = f"{n_pieces:,} SentencePiece pieces"
            case data.TrainedBpe(n_vocab=n_vocab):
                what = f"{n_vocab:,} ids of byte-level BPE"
            case _:
                raise AssertionError(spec)
        print_line(f"training {what} on a sample of the training text, each source by its weight")
    return build.build(spec, trained_path, lambda: sample_texts(sources, rule))


def sample_texts(sources: Sequence[data.Source], rule: data.ValidationSplit) -> list[str]:
    """Returns the sample of the training text that a tokenizer is trained on: at most SAMPLE_CHARS
    characters, from all parts of each source, in proportion to the weights of the sources. A
    source that is too short for its share is repeated, as in training."""
    raw = open.text_sources(sources)
    shares = [source.weight / sum(other.weight for other in raw) for source in raw]
    parts_by_source = [
        training_text.sample_evenly(
            training_texts(source, rule), int(share * training_text.SAMPLE_CHARS)
        )
        for source, share in zip(raw, shares, strict=True)
    ]
    unit = max(
        sum(map(len, parts)) / share for parts, share in zip(parts_by_source, shares, strict=True)
    )
    return [
        part
        for parts, share in zip(parts_by_source, shares, strict=True)
        for part in training_text.resize(parts, int(share * unit + 1e-3))
    ]


def training_texts(source: open.TextSource, rule: data.ValidationSplit) -> Iterable[str]:
    """Iterates over the texts of the training split of `source`."""
    for document in open.documents(source):
        yield from (
            text
            for split, text in validation_split.split_document(document, rule)
            if split == "train"
        )
