"""Tokenise a config's sources once, in parallel, into shard directories that any number of runs read.

A kill loses only the shards in hand: the same command goes on from there. The last line printed is how to train on what was made.
"""

import argparse
import os
import pathlib
import shlex

from gptjax.config import command, data
from gptjax.data import corpora

EXAMPLE = """python -m gptjax.prepare --config=gpt2_124m --set "data.sources=Text(path='books/*.jsonl.zst')" --out=books --workers=8"""

Sources = dict[pathlib.Path, corpora.Untokenised]  # shard directory -> what it is made of


def main(arguments: list[str]) -> None:
    parser = command.parser("prepare", __doc__ or "", EXAMPLE)
    parser.add_argument(
        "--out", metavar="DIR", type=pathlib.Path, required=True, help="the shard directory; several sources: one in it each"
    )
    parser.add_argument(
        "--workers", metavar="N", type=int, default=os.cpu_count() or 1, help="processes that tokenise (default: a core each)"
    )
    parser.add_argument(
        "--characters_per_shard",
        metavar="N",
        type=int,
        default=20_000_000,
        help="text in a shard, in whole documents (default: %(default)s)",
    )
    args = parser.parse_args(arguments)
    for name, value in (("--workers", args.workers), ("--characters_per_shard", args.characters_per_shard)):
        if value < 1:
            raise ValueError(f"{name}={value}: give 1 or more")
    config = command.resolved(args).data
    sources = [untokenised(source) for source in config.sources or (data.Embedded(),)]
    trained = dict(zip(places(args.out, len(sources)), sources, strict=True))
    held = {args.out / "held_out": untokenised(config.held_out.source)} if isinstance(config.held_out, data.Separate) else {}

    from gptjax.data import pipeline, tokenising  # not before --help has been answered
    from gptjax.report import console

    out = console.Console(quiet=False)
    tokenizer = pipeline.spoken(config.tokenizer, sources, config.held_out, args.out, out.say)
    for directory, source in (trained | held).items():
        with out.fraction(tokenising.named(source)) as advance:
            manifest = tokenising.write(
                source, repr(config.tokenizer), tokenizer, config.held_out, directory, advance, args.workers, args.characters_per_shard
            )
        for split, counts in manifest["splits"].items():
            out.say(
                f"{directory} {split}: {counts['tokens']:,} tokens in {counts['documents']:,} documents, {len(counts['shards'])} shards"
            )
    out.say(f"train on it:\n  python -m gptjax.train {how_to_train(args, trained, held, tokenizer.n_vocab)}")


def places(out: pathlib.Path, n: int) -> list[pathlib.Path]:
    """The directory of each of n sources."""
    return [out] if n == 1 else [out / f"source-{number}" for number in range(n)]


def untokenised(source: data.Source) -> corpora.Untokenised:
    """`source`, which must not be prepared already."""
    if isinstance(source, data.Shards):
        raise ValueError(f"{source} is tokenised already; name in data.sources only what is to be prepared")
    return source


def how_to_train(args: argparse.Namespace, trained: Sources, held: Sources, n_vocab: int) -> str:
    """The arguments for a run of the same config on what was prepared."""
    shards = [data.Shards(path=str(directory), weight=source.weight) for directory, source in trained.items()]
    plain = len(shards) == 1 and shards[0].weight == 1
    now = {"data.sources": f"Shards(path={shards[0].path!r})" if plain else repr(tuple(shards))}
    for directory in held:
        now["data.held_out"] = f"Separate(source=Shards(path={str(directory)!r}))"
    if command.resolved(args).model.n_vocab != n_vocab:
        now["model.n_vocab"] = str(n_vocab)
    kept = [assignment for assignment in args.assignments if not assignment.startswith(tuple(now))]
    settings = [*kept, *(f"{path}={value}" for path, value in now.items())]
    quoted = [shlex.quote(text) if any(c in text for c in '"$`\\') else f'"{text}"' for text in settings]
    return " ".join([f"--config={args.config}", *(f"--set {text}" for text in quoted)])


if __name__ == "__main__":
    command.run(main)
