"""Curate a raw crawl into training text, as GPT-2 and GPT-3 did.

A recipe names data sets and the stages that their documents go through: language, quality rules, a
quality classifier, duplicates, n-grams of evaluation tasks, personal data. Kill it at any moment,
the same command goes on. Each stage has its folder, with what it kept, what it dropped and why.

What follows -- are arguments of gptjax.train, which then trains on the result.
"""

import argparse
import contextlib
import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

from gptjax import cli
from gptjax.config import curation as config
from gptjax.config import data, find_files, overrides, parse
from gptjax.configs import registry

if TYPE_CHECKING:
    import numpy as np

    from gptjax.curation import pipeline
    from gptjax.report import console

EXAMPLE = """python -m gptjax.curate --recipe=web --input='web=crawl/*.warc.gz' --out=clean
  python -m gptjax.curate --recipe=gpt3 --input='common_crawl=crawl/*.wet.gz' --input=webtext2=webtext/ --out=mixture --workers=8
  python -m gptjax.curate --recipe=web --input=web=/usr/share/doc --out=clean -- --config=nano
  python -m gptjax.curate --out=clean --explain='web/a.warc.gz#17'"""  # noqa: E501

LABEL_WIDTH = 32  # of progress bars, so that they are aligned
MAX_REASONS = 3  # of a stage, that are shown


@find_files.list_once()
def main(arguments: list[str]) -> None:
    """Runs the program."""
    own, of_train = cli.split_at_dashes(arguments)
    args = make_parser().parse_args(own)
    check_flags(args)
    if args.mode == "report":
        return write_report(args.out, args.train_tokens)
    if args.explain is not None:
        from gptjax.curation import explain

        print("\n".join(explain.explain(args.out, args.explain)))
        return
    recipe = resolve_recipe(args)
    if trains := "--" in arguments:
        from gptjax import train

        if args.until is not None:
            raise ValueError(
                "--until stops before there are shards: leave out --until or what follows --"
            )
        train.read_arguments(of_train, local=False)  # a mistake is noticed now, not after hours

    from gptjax.curation import engine, pipeline, read_files
    from gptjax.data.tokenizers import build
    from gptjax.report import console
    from gptjax.runtime import lock

    out = console.Console(quiet=False)
    if recipe.tokenizer is not None and not build.is_trained(recipe.tokenizer):
        build.build(recipe.tokenizer)  # a missing one is noticed now, not after hours
    folders = pipeline.folder_names(recipe)
    until = _match_folder(args.until, folders) if args.until is not None else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock.hold(args.out, "directory", out.print))
        work: engine.Engine = engine.Local(
            args.workers, lambda label: out.progress_bar(label.ljust(LABEL_WIDTH))
        )
        if args.engine == "spark":
            from gptjax.curation import spark

            work = stack.enter_context(spark.open_engine(args.master, args.partitions))
        curation = pipeline.Pipeline(recipe, args.out, work, out.print)
        totals = curation.run(until, _load_tasks)
        out.print(format_totals(totals))
        if damaged := read_files.damaged_files(totals[0].ledger):
            out.warn(
                f"read to the damage, as read.damaged=keep says: {len(damaged):,} files "
                f"({', '.join(damaged[:MAX_REASONS])}{', ...' * (len(damaged) > MAX_REASONS)})"
            )
        if until is not None:
            out.print(f"stopped after {totals[-1].name}; without --until the same command goes on")
            return
        manifest = pipeline.manifest(recipe, totals, curation.tasks)
        settings = finish(recipe, totals, manifest, args.out, args.workers, out)
    if trains:
        train.main([*(f"--set={setting}" for setting in settings), *of_train])
    else:
        out.print(f"train on it:\n  python -m gptjax.train --config=NAME {cli.set_flags(settings)}")


def check_flags(args: argparse.Namespace) -> None:
    """Raises ValueError for flags that are missing, or of another mode."""
    if args.out is None:
        raise ValueError("give the directory of the result with --out=DIR")
    is_run = args.mode == "run" and args.explain is None
    other = {"input": args.input, "without": args.without, "until": args.until}
    other |= {"recipe": args.recipe, "set": args.assignments}
    given = [name for name, value in other.items() if value]
    if given and not is_run:
        raise ValueError(
            f"--{given[0]} is of no use with {'report' if args.explain is None else '--explain'}: "
            "give --out alone, the directory of a run"
        )
    if args.train_tokens is not None and args.mode != "report":
        raise ValueError("--train_tokens is for the page: python -m gptjax.curate report --out=DIR")


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the program's arguments."""
    parser = cli.make_parser("curate", __doc__ or "", EXAMPLE)
    parser.fields = frozenset(field.name for field in dataclasses.fields(config.Curation))
    parser.add_argument(
        "mode",
        nargs="?",
        choices=("run", "report"),
        default="run",
        help="run the stages (the default), or write a page on a finished result",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=parse.path_argument, help="where the result goes"
    )
    _add_recipe_flags(parser)
    _add_engine_flags(parser)
    parser.add_argument(
        "--explain", metavar="ID", help="say what became of a document, by its id or URL"
    )
    parser.add_argument(
        "--train_tokens",
        metavar="N",
        type=parse.int_argument(1, 10**15),
        help="report: tokens of a training run, by which epochs are counted, as 300e9",
    )
    return parser


def _add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of what is done."""
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help=f"{', '.join(registry.CURATION)}, or FILE.py:NAME of your own",
    )
    parser.add_argument(
        "--input",
        metavar="NAME=PATH",
        action="append",
        default=[],
        help=(
            "the files of a data set: a file, a directory or a glob of .warc, .wet, .html, .txt, "
            ".jsonl or .parquet, compressed or not, here or at any place of fsspec; repeatable"
        ),
    )
    cli.add_set_flag(
        parser, "change a field of the recipe, as read.seconds=5 or stages.1.words=(20,100000)"
    )
    parser.add_argument(
        "--without",
        metavar="STAGE",
        action="append",
        default=[],
        help="leave a stage out, as decontaminate; repeatable",
    )
    parser.add_argument("--until", metavar="STAGE", help="stop after this stage, as language")


def _add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of where it is done."""
    cli.add_workers_flag(parser)
    parser.add_argument(
        "--engine",
        choices=("local", "spark"),
        default="local",
        help="processes of this machine, or Apache Spark (default: %(default)s)",
    )
    parser.add_argument(
        "--master",
        metavar="URL",
        default="local[*]",
        help="spark: the cluster, whose machines see --out and the inputs (default: %(default)s)",
    )
    parser.add_argument(
        "--partitions",
        metavar="N",
        type=parse.int_argument(1, 10**6),
        default=64,
        help="spark: into how many the work is cut (default: %(default)s)",
    )


def write_report(directory: pathlib.Path, train_tokens: float | None) -> None:
    """Writes report.html and README.md, the data card, into the directory of a finished run."""
    from gptjax.curation import report_page
    from gptjax.runtime import atomic

    report = report_page.read_report(directory)
    for name, content in (
        ("report.html", report_page.render_html(report, train_tokens)),
        ("README.md", report_page.render_card(report)),
    ):
        atomic.save(directory / name, content.encode())
        print(f"written: {directory / name}")


def resolve_recipe(args: argparse.Namespace) -> config.Curation:
    """Returns the recipe of --recipe with every --without, --set and --input applied."""
    if args.recipe is None:
        raise ValueError(f"say which recipe with --recipe=NAME: {', '.join(registry.CURATION)}")
    recipe = overrides.override(registry.curation(args.recipe), *args.assignments)
    for name in args.without:
        stages = [stage for stage in recipe.stages if config.stage_name(stage) != name]
        if len(stages) == len(recipe.stages):
            names = ", ".join(map(config.stage_name, recipe.stages))
            raise ValueError(f"--without={name}: {recipe.name} has the stages {names}")
        recipe = dataclasses.replace(recipe, stages=tuple(stages))
    paths: dict[str, str] = {}
    for given in args.input:
        name, equals, path = given.partition("=")
        names = [corpus.name for corpus in recipe.corpora]
        if not equals or name not in names or not path:
            raise ValueError(
                f"--input={given}: give NAME=PATH, where NAME is one of {', '.join(names)}"
            )
        if name in paths:
            raise ValueError(
                f"--input={name} is given twice; name both with a glob, or {name} in a recipe of "
                "your own as two data sets"
            )
        paths[name] = path
    corpora = [
        dataclasses.replace(corpus, path=paths[corpus.name]) if corpus.name in paths else corpus
        for corpus in recipe.corpora
    ]
    return dataclasses.replace(recipe, corpora=tuple(corpora))


def _match_folder(name: str, folders: list[str]) -> str:
    """The last folder of a stage by its name, as language or 02-language."""
    matches = [folder for folder in folders if name in (folder, folder[3:])]
    if not matches:
        raise ValueError(f"--until={name}: there are {', '.join(folders)}")
    return matches[-1]


def _load_tasks(stage: config.Decontaminate) -> "dict[str, np.ndarray]":
    """Returns the hashes of the n-grams of a stage's tasks, by task."""
    import numpy as np

    from gptjax import decontaminate
    from gptjax.evals import contamination

    try:
        tasks = decontaminate.load_tasks(
            ",".join(stage.tasks) or None,
            contamination.test_splits,
            stage.task_data,
            stage.tfds_dir,
            generated=False,
        )
    except ValueError as error:
        raise ValueError(
            f"decontaminate: {error}; in its task_data and tfds_dir, or leave the stage out with "
            "--without=decontaminate"
        ) from None
    lengths = [np.full(len(task.texts), stage.rule.n) for task in tasks]
    return {
        task.name: contamination.ngram_hashes(task, n)
        for task, n in zip(tasks, lengths, strict=True)
    }


def format_totals(totals: "list[pipeline.StageTotals]") -> str:
    """Formats what each stage did as a table, and the most frequent reasons for dropping."""
    from gptjax.report import formats
    from gptjax.runtime import units

    rows: list[tuple[str, ...]] = [("stage", "read", "kept", "changed", "dropped", "text")]
    lines = []
    for stage in totals:
        ledger = stage.ledger
        counts = (ledger.read, ledger.kept, ledger.changed, ledger.dropped_total)
        size = units.human_bytes(ledger.written[1])
        rows.append((stage.name, *(f"{documents:,}" for documents, _ in counts), size))
        reasons = sorted(ledger.dropped.items(), key=lambda pair: -pair[1][0])[:MAX_REASONS]
        if reasons:
            shown = ", ".join(f"{reason} {documents:,}" for reason, (documents, _) in reasons)
            lines.append(f"{stage.name} dropped: {shown}")
    return "\n".join([formats.format_table(rows), *lines, ""])


def finish(
    recipe: config.Curation,
    totals: "list[pipeline.StageTotals]",
    manifest: dict[str, Any],
    directory: pathlib.Path,
    workers: int,
    out: "console.Console",
) -> list[str]:
    """Makes the folders of text, the shards of their tokens and manifest.json; returns the
    assignments by which a config trains on them."""
    from gptjax import prepare
    from gptjax.curation import pipeline
    from gptjax.data import tokenize
    from gptjax.runtime import checksums

    pipeline.link_text(totals[-1], directory / "text")
    weights = {corpus.name: corpus.weight for corpus in recipe.corpora}
    texts = {
        name: data.Text(path=str(directory / "text" / name), weight=weights[name])
        for name in totals[-1].ledgers
    }
    sources: list[data.Source] = list(texts.values())
    settings: list[str] = []
    if recipe.tokenizer is not None:
        shard_dirs = {directory / "shards" / name: source for name, source in texts.items()}
        tokenizer, manifests = prepare.write_shards(
            dict(shard_dirs),
            {},
            recipe.tokenizer,
            recipe.validation,
            directory,
            workers,
            tokenize.BLOCK_CHARS,
            out,
        )
        manifest["shards"] = {
            path.name: {
                split: {key: counts[key] for key in ("documents", "tokens")}
                for split, counts in shards["splits"].items()
            }
            for path, shards in manifests.items()
        }
        if not any(counts["validation"]["documents"] for counts in manifest["shards"].values()):
            out.warn(
                f"no document is held out by validation={recipe.validation!r}, without which "
                f"training stops: delete {directory / 'shards'} and give another, as "
                "--set 'validation=ByDocument(fraction=0.1)'"
            )
        sources = [
            data.Shards(path=str(path), weight=text.weight) for path, text in shard_dirs.items()
        ]
        settings = [
            f"data.tokenizer={recipe.tokenizer!r}",
            f"data.validation={recipe.validation!r}",
            f"model.n_vocab={tokenizer.n_vocab}",
        ]
    checksums.save(directory / "manifest.json", manifest)
    return [f"data.sources={tuple(sources)!r}", *settings]


if __name__ == "__main__":
    cli.run(main)
