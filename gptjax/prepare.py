"""Tokenize text once, in parallel, into shards that runs read.

After a kill the same command continues; only the shards in progress are lost. The last line printed
is the command that trains on the shards.
"""

import argparse
import pathlib
import shlex
from typing import TYPE_CHECKING, Any

from gptjax import cli
from gptjax.config import data, find_files, parse
from gptjax.config.schema import Config
from gptjax.data.sources import open

if TYPE_CHECKING:
    from gptjax.data.tokenizers import build
    from gptjax.report import console

EXAMPLE = """python -m gptjax.prepare --config=gpt2_124m --set "data.sources=Text(path='books/*.jsonl.zst')" --out=books --workers=8"""  # noqa: E501

SourcesByDir = dict[pathlib.Path, open.TextSource]  # shard directory -> its source


@find_files.list_once()
def main(arguments: list[str]) -> None:
    """Tokenizes the sources of the arguments into shard directories."""
    args = make_parser().parse_args(arguments)
    config = cli.resolve_config(args)
    spec, validation_rule = config.data.tokenizer, config.data.validation
    sources = [check_untokenized(source) for source in config.data.sources or (data.Embedded(),)]
    train_sources = dict(zip(shard_dirs(args.out, len(sources)), sources, strict=True))
    separate = (
        (check_untokenized(validation_rule.source),)
        if isinstance(validation_rule, data.Separate)
        else ()
    )
    validation_sources = dict.fromkeys([args.out / "held_out"], separate[0]) if separate else {}

    # slow to import, so not before --help
    from gptjax.data import leakage, loader, open_dataset
    from gptjax.report import console

    out = console.Console(quiet=False)
    open_dataset.check_weights(sources, out.print)
    for source in separate:
        leakage.check_sources(sources, source)
    open_dataset.check_sources(sources, separate, validation_rule, out.print)
    tokenizer, manifests = write_shards(
        train_sources,
        validation_sources,
        spec,
        validation_rule,
        args.out,
        args.workers,
        args.characters_per_shard,
        out,
    )
    sizes = {
        directory: {split: counts["tokens"] for split, counts in manifest["splits"].items()}
        for directory, manifest in manifests.items()
    }
    n_validation = sum(
        sizes[directory]["train" if validation_sources else "validation"]
        for directory in validation_sources or train_sources
    )
    loader.check_sizes(
        config.model.n_ctx,
        validation_rule,
        [(source, sizes[path]["train"]) for path, source in train_sources.items()],
        n_validation,
    )
    out.print(
        "train on it:\n  python -m gptjax.train "
        f"{how_to_train(args, config, train_sources, validation_sources, tokenizer.n_vocab)}"
    )


def write_shards(
    train_sources: SourcesByDir,
    validation_sources: SourcesByDir,
    spec: data.Tokenizer,
    rule: data.ValidationSplit,
    directory: pathlib.Path,
    workers: int,
    block: int,
    out: "console.Console",
) -> "tuple[build.Tokenizer, dict[pathlib.Path, dict[str, Any]]]":
    """Tokenizes sources, each into its directory; returns the tokenizer and the manifests.

    directory: where a tokenizer is stored that is trained on the training sources. block:
    characters of a shard. Raises as tokenize.tokenize_corpus and run_tokenizer.resolve do."""
    from gptjax.data import run_tokenizer, tokenize

    sources = list(train_sources.values())
    model = run_tokenizer.model_path(spec, sources, rule, directory)
    if model is not None and all(
        (path / "manifest.json").exists() for path in train_sources
    ):  # of text that may have changed since
        model = next(iter(train_sources)) / f"tokenizer{model.suffix}"
    tokenizer = run_tokenizer.resolve(spec, sources, rule, model, out.print)
    manifests = {}
    for path, source in (train_sources | validation_sources).items():
        with out.progress_bar(open.describe(source)) as advance:
            manifests[path] = tokenize.tokenize_corpus(
                source, repr(spec), tokenizer, rule, path, advance, workers, block, out.print
            )
        for split, counts in manifests[path]["splits"].items():
            out.print(
                f"{path} {split}: {counts['tokens']:,} tokens in {counts['documents']:,} "
                f"documents, {len(counts['shards'])} shards"
            )
    return tokenizer, manifests


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the program's arguments."""
    parser = cli.make_config_parser("prepare", __doc__ or "", EXAMPLE, text=True)
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=parse.path_argument,
        required=True,
        help="the shard directory; several sources: one each",
    )
    cli.add_workers_flag(parser)
    parser.add_argument(
        "--characters_per_shard",
        metavar="N",
        type=parse.int_argument(),
        default=20_000_000,
        help="text in a shard, in whole documents (default: %(default)s)",
    )
    return parser


def shard_dirs(out: pathlib.Path, n: int) -> list[pathlib.Path]:
    """Returns the directory of each of n sources."""
    return [out] if n == 1 else [out / f"source-{number}" for number in range(n)]


def check_untokenized(source: data.Source) -> open.TextSource:
    """Returns `source`. Raises ValueError if it is tokenized already, or a stream."""
    if isinstance(source, data.Shards):
        raise ValueError(
            f"{source} is tokenized already; name in data.sources only what is to be prepared"
        )
    if isinstance(source, data.Streamed):
        raise ValueError(
            f"{source} is read while training, without being prepared; to prepare files of a disk, "
            "name them with Text(path=...)"
        )
    return source


def how_to_train(
    args: argparse.Namespace,
    config: Config,
    train_sources: SourcesByDir,
    validation_sources: SourcesByDir,
    n_vocab: int,
) -> str:
    """Returns the arguments of gptjax.train for the same config on the shards."""
    shards = [
        data.Shards(path=str(directory), weight=source.weight)
        for directory, source in train_sources.items()
    ]
    is_single = len(shards) == 1 and shards[0].weight == 1
    new_settings = {
        "data.sources": f"Shards(path={shards[0].path!r})" if is_single else repr(tuple(shards))
    }
    if args.text is not None:
        new_settings |= {"name": config.name, "data.validation": repr(config.data.validation)}
    for directory in validation_sources:
        new_settings["data.validation"] = f"Separate(source=Shards(path={str(directory)!r}))"
    if config.model.n_vocab != n_vocab:
        new_settings["model.n_vocab"] = str(n_vocab)
    prefixes = tuple(f"{path}{end}" for path in new_settings for end in ("=", "."))
    kept_assignments = [
        assignment for assignment in args.assignments if not assignment.startswith(prefixes)
    ]
    settings = [*kept_assignments, *(f"{path}={value}" for path, value in new_settings.items())]
    return f"--config={shlex.quote(args.config)} {cli.set_flags(settings)}"


if __name__ == "__main__":
    cli.run(main)
