"""Tokenise a config's sources once, in parallel, into shard directories that any number of runs read.

A kill loses only the shards in hand: the same command goes on from there. The last line printed is how to train on what was made.
"""

import argparse
import os
import pathlib
import shlex

from gptjax.config import command, data, find_files, parse
from gptjax.config.schema import Config
from gptjax.data.sources import open

EXAMPLE = """python -m gptjax.prepare --config=gpt2_124m --set "data.sources=Text(path='books/*.jsonl.zst')" --out=books --workers=8"""

Sources = dict[pathlib.Path, open.Untokenised]  # shard directory -> what it is made of


@find_files.list_once()
def main(arguments: list[str]) -> None:
    parser = command.parser("prepare", __doc__ or "", EXAMPLE, text=True)
    parser.add_argument(
        "--out", metavar="DIR", type=parse.path_argument, required=True, help="the shard directory; several sources: one each"
    )
    parser.add_argument(
        "--workers", metavar="N", type=parse.whole_argument(1, 1024), default=os.cpu_count() or 1, help="processes (default: a core each)"
    )
    parser.add_argument(
        "--characters_per_shard",
        metavar="N",
        type=parse.whole_argument(),
        default=20_000_000,
        help="text in a shard, in whole documents (default: %(default)s)",
    )
    args = parser.parse_args(arguments)
    config = command.resolved(args)
    spec, rule = config.data.tokenizer, config.data.held_out
    sources = [untokenised(source) for source in config.data.sources or (data.Embedded(),)]
    trained = dict(zip(places(args.out, len(sources)), sources, strict=True))
    separate = (untokenised(rule.source),) if isinstance(rule, data.Separate) else ()
    held = dict.fromkeys([args.out / "held_out"], separate[0]) if separate else {}

    from gptjax.data import leakage, loader, tokenize  # not before --help has been answered
    from gptjax.report import console

    out = console.Console(quiet=False)
    loader.check_weights(sources, out.say)
    for source in separate:
        leakage.check_sources(sources, source)
    loader.check(sources, separate, rule, out.say)
    model = loader.model_place(spec, sources, rule, args.out)
    if model is not None and all((place / "manifest.json").exists() for place in trained):  # of text that may have changed since
        model = next(iter(trained)) / "tokenizer.model"
    tokenizer = loader.spoken(spec, sources, rule, model, out.say)
    sizes: dict[pathlib.Path, dict[str, int]] = {}
    for directory, source in (trained | held).items():
        with out.fraction(tokenize.named(source)) as advance:
            manifest = tokenize.write(
                source, repr(spec), tokenizer, rule, directory, advance, args.workers, args.characters_per_shard, out.say
            )
        sizes[directory] = {split: counts["tokens"] for split, counts in manifest["splits"].items()}
        for split, counts in manifest["splits"].items():
            out.say(
                f"{directory} {split}: {counts['tokens']:,} tokens in {counts['documents']:,} documents, {len(counts['shards'])} shards"
            )
    n_held = sum(sizes[directory]["train" if held else "validation"] for directory in held or trained)
    loader.check_sizes(config.model.n_ctx, rule, [(source, sizes[place]["train"]) for place, source in trained.items()], n_held)
    out.say(f"train on it:\n  python -m gptjax.train {how_to_train(args, config, trained, held, tokenizer.n_vocab)}")


def places(out: pathlib.Path, n: int) -> list[pathlib.Path]:
    """The directory of each of n sources."""
    return [out] if n == 1 else [out / f"source-{number}" for number in range(n)]


def untokenised(source: data.Source) -> open.Untokenised:
    """`source`, which must not be prepared already."""
    if isinstance(source, data.Shards):
        raise ValueError(f"{source} is tokenised already; name in data.sources only what is to be prepared")
    return source


def how_to_train(args: argparse.Namespace, config: Config, trained: Sources, held: Sources, n_vocab: int) -> str:
    """The arguments for a run of the same config on what was prepared."""
    shards = [data.Shards(path=str(directory), weight=source.weight) for directory, source in trained.items()]
    plain = len(shards) == 1 and shards[0].weight == 1
    now = {"data.sources": f"Shards(path={shards[0].path!r})" if plain else repr(tuple(shards))}
    if args.text is not None:
        now |= {"name": config.name, "data.held_out": repr(config.data.held_out)}
    for directory in held:
        now["data.held_out"] = f"Separate(source=Shards(path={str(directory)!r}))"
    if config.model.n_vocab != n_vocab:
        now["model.n_vocab"] = str(n_vocab)
    prefixes = tuple(f"{path}{end}" for path in now for end in ("=", "."))
    kept = [assignment for assignment in args.assignments if not assignment.startswith(prefixes)]
    settings = [*kept, *(f"{path}={value}" for path, value in now.items())]
    quoted = [shlex.quote(text) if any(c in text for c in '"$`\\') else f'"{text}"' for text in settings]
    return " ".join([f"--config={args.config}", *(f"--set {text}" for text in quoted)])


if __name__ == "__main__":
    command.run(main)
