"""Find and remove what training text shares with evaluations (GPT-3 Appendix C).

  filter   writes the corpus without the 13-grams of the tasks' test sets: documents are cut around
           them, with a window
  check    says which items of the tasks the corpus has: TASK.json, {id: dirty}. --set n=8 is
           GPT-2's measure of overlap
  compare  an evaluation's scores on all, the dirty and the clean items; --results: what evaluate
           wrote, or TASK.jsonl with id and score

filter and check read the corpus file by file in several processes; kill them at any moment, the
same command goes on.
"""

import argparse
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gptjax import cli
from gptjax.config import data, decontamination, find_files, overrides, parse
from gptjax.report import formats
from gptjax.runtime import errors

if TYPE_CHECKING:
    from gptjax.curation import ngram_job, ngrams
    from gptjax.evals import contamination

EXAMPLE = """python -m gptjax.decontaminate filter --text='corpus/*.jsonl.zst' --tasks=hellaswag,piqa --out=clean
  python -m gptjax.decontaminate check --text='corpus/*.jsonl.zst' --tasks=hellaswag,piqa --out=overlap
  python -m gptjax.decontaminate compare --overlap=overlap --results=runs/gpt3_small/evaluations"""  # noqa: E501
RULES = {"filter": decontamination.Filter(), "check": decontamination.OverlapRule()}


@find_files.list_once()
def main(arguments: list[str]) -> None:
    """Runs the program."""
    args = make_parser().parse_args(arguments)
    required = ("overlap", "results") if args.mode == "compare" else ("text", "out")
    for name in required:
        if getattr(args, name) is None:
            raise ValueError(f"{args.mode} needs --{name}; --help shows an example")
    if args.mode == "compare":
        return compare_scores(args)
    rule = overrides.override(RULES[args.mode], *args.assignments)
    return filter_corpus(args, rule) if args.mode == "filter" else check_tasks(args, rule)


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the program's arguments."""
    parser = cli.make_parser("decontaminate", __doc__ or "", EXAMPLE)
    parser.fields = frozenset(f.name for rule in RULES.values() for f in dataclasses.fields(rule))
    parser.add_argument("mode", choices=("filter", "check", "compare"), help="what to do")
    parser.add_argument(
        "--text",
        metavar="PATH",
        help="the corpus: a file, a directory or a glob of .txt, .jsonl or .parquet",
    )
    parser.add_argument(
        "--field",
        default="text",
        help="of .jsonl objects and .parquet columns (default: %(default)s)",
    )
    parser.add_argument(
        "--tasks",
        metavar="A,B",
        help="tasks or families of them; default: all whose data are found",
    )
    parser.add_argument(
        "--task_data",
        metavar="DIR",
        type=path_string,
        help="where TASK_SPLIT.jsonl and TASK.jsonl lie",
    )
    parser.add_argument(
        "--tfds_dir",
        metavar="DIR",
        type=path_string,
        help="where TFDS' prepared sets lie (default: its own directory)",
    )
    parser.add_argument(
        "--words",
        metavar="FILE",
        type=path_string,
        help="the list of the tasks that scramble words",
    )
    parser.add_argument(
        "--seed",
        type=parse.int_argument(0, 2**32 - 1),
        default=0,
        help="of tasks that are made (default: %(default)s)",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=parse.path_argument, help="where the result goes"
    )
    parser.add_argument(
        "--compression",
        choices=("gz", "none"),
        default="gz",
        help="of what filter writes (default: %(default)s)",
    )
    cli.add_workers_flag(parser)
    parser.add_argument(
        "--overlap", metavar="DIR", type=parse.path_argument, help="compare: what check wrote"
    )
    parser.add_argument(
        "--results", metavar="DIR", type=parse.path_argument, help="compare: evaluations/ of a run"
    )
    cli.add_set_flag(parser, "change a rule, as window=100", metavar="NAME=VALUE")
    return parser


def path_string(text: str) -> str:
    """`parse.path_argument` as a string."""
    return str(parse.path_argument(text))


def filter_corpus(args: argparse.Namespace, rule: decontamination.Filter) -> None:
    """Counts the documents with each n-gram, then writes the corpus without the n-grams that are in
    few documents.
    """
    import numpy as np

    from gptjax.curation import count_ngrams, ngrams, remove_ngrams
    from gptjax.evals import contamination

    tasks = load_tasks(
        args.tasks,
        contamination.test_splits,
        args.task_data,
        args.tfds_dir,
        args.words,
        args.seed,
        generated=False,
    )
    hashes_by_task = [
        contamination.ngram_hashes(task, np.full(len(task.texts), rule.n)) for task in tasks
    ]
    job = start_job(args, rule, tasks, hashes_by_task, [rule.n])
    if not job.is_finished:
        counts, _, _ = job.count_documents()
        hash_set = ngrams.HashSet(
            job.hash_set.hashes[(counts > 0) & (counts <= rule.most_documents)]
        )
        count_ngrams.save_ngrams(job.clean_dir, hash_set, [rule.n])
        clean_part = remove_ngrams.PartCleaner(
            rule, args.out, "" if args.compression == "none" else ".gz"
        )
        job.run_parts(clean_part.is_done, clean_part, job.clean_dir, "cleaning")
        output_names = {clean_part.output_name(part) for part in job.parts}
        for stale in args.out.glob("[0-9][0-9][0-9][0-9][0-9]-*.jsonl*"):
            # A file that the corpus had when this started, and no longer has.
            if stale.name not in output_names:
                stale.unlink()
        report = {"counts": remove_ngrams.sum_counts(job.clean_dir, job.parts), "tasks": {}}
        for task, task_hashes in zip(tasks, hashes_by_task, strict=True):
            task_counts = counts[np.searchsorted(job.hash_set.hashes, task_hashes)]
            common = int((task_counts > rule.most_documents).sum())
            report["tasks"][task.name] = {
                "items": len(task.texts),
                "grams": len(task_hashes),
                "seen": int((task_counts > 0).sum()),
                "common": common,
            }
        job.finish(report)
    report = job.read_report()
    rows = [
        (name, *(f"{entry[key]:,}" for key in ("items", "grams", "seen", "common")))
        for name, entry in report["tasks"].items()
    ]
    print(
        formats.format_table(
            [
                (
                    "task",
                    "items",
                    f"{rule.n}-grams",
                    "in the corpus",
                    f"in over {rule.most_documents} documents: left",
                ),
                *rows,
            ]
        )
    )
    print(
        formats.format_table(
            [(name.replace("_", " "), f"{count:,}") for name, count in report["counts"].items()]
        )
    )
    suffix = "" if args.compression == "none" else ".gz"
    print(f"""train on it:\n  --set "data.sources=Text(path='{args.out}/*.jsonl{suffix}')\"""")


def check_tasks(args: argparse.Namespace, rule: decontamination.OverlapRule) -> None:
    """Searches the corpus for each task's n-grams, and writes which items have one that occurs in
    it.
    """
    import numpy as np

    from gptjax.curation import ngrams
    from gptjax.evals import clean_scores, contamination
    from gptjax.runtime import atomic

    tasks = load_tasks(
        args.tasks,
        lambda task: task.splits[:1],
        args.task_data,
        args.tfds_dir,
        args.words,
        args.seed,
    )
    if taken := sorted({task_texts.name for task_texts in tasks} & {"job", "report"}):
        raise ValueError(
            f"a task cannot be called {taken[0]} here: its marks are written to {taken[0]}.json, "
            "which is this program's own"
        )
    match_lengths = [contamination.match_length(task_texts, rule) for task_texts in tasks]
    hashes_by_task = [
        contamination.ngram_hashes(task_texts, matches)
        for task_texts, (_, matches) in zip(tasks, match_lengths, strict=True)
    ]
    lengths = np.unique(np.concatenate([matches for _, matches in match_lengths]))
    job = start_job(args, rule, tasks, hashes_by_task, lengths[lengths > 0].tolist())
    if not job.is_finished:
        counts, n_documents, n_characters = job.count_documents()
        hash_set = ngrams.HashSet(job.hash_set.hashes[counts > 0])
        report: dict[str, Any] = {"documents": n_documents, "characters": n_characters, "tasks": {}}
        for task_texts, (n, matches) in zip(tasks, match_lengths, strict=True):
            dirty, n_grams, n_seen = contamination.find_dirty_items(task_texts, matches, hash_set)
            dirty_json = atomic.json_bytes(dirty)
            atomic.save(args.out / f"{task_texts.name}.json", dirty_json)
            n_dirty = len({task_texts.items[item] for item, is_dirty in dirty.items() if is_dirty})
            report["tasks"][task_texts.name] = {
                "n": n,
                "items": len(task_texts.texts),
                "dirty": n_dirty,
                "grams": n_grams,
                "seen": n_seen,
            }
            report["tasks"][task_texts.name]["marks"] = hashlib.sha256(dirty_json).hexdigest()
        job.finish(report)
    report = job.read_report()
    clean_scores.read_dirty_items(args.out)  # raises for files that were changed
    print(f"{report['documents']:,} documents, {report['characters']:,} characters")
    rows = [("task", "N", "items", "dirty", "clean", "N-grams", "in the corpus")]
    for name, entry in report["tasks"].items():
        clean = f"{100 * (1 - entry['dirty'] / entry['items']):.0f}%"
        share = f"{100 * entry['seen'] / max(1, entry['grams']):.2f}%"
        rows.append(
            (
                name,
                str(entry["n"]),
                f"{entry['items']:,}",
                f"{entry['dirty']:,}",
                clean,
                f"{entry['grams']:,}",
                share,
            )
        )
    print(formats.format_table(rows))


def compare_scores(args: argparse.Namespace) -> None:
    """Prints the scores of all, dirty and clean items, as in Table C.1."""
    from gptjax.evals import clean_scores

    rows = clean_scores.compare(
        args.overlap,
        args.results,
        parse.path(args.task_data) if args.task_data is not None else None,
    )
    print(formats.format_table([clean_scores.COLUMNS, *map(clean_scores.format_row, rows)]))
    if args.out is not None:
        from gptjax.runtime import atomic

        atomic.save(args.out / "comparison.json", atomic.json_bytes(rows))


def load_tasks(
    names: str | None,
    select_splits: Callable[[Any], tuple[str, ...]],
    data_dir: str | None,
    tfds_dir: str | None,
    words: str | None = None,
    seed: int = 0,
    generated: bool = True,
) -> list[Any]:
    """Returns the tasks with their items; prints a line for each without data. Raises ValueError if
    no task is left, or data that are there cannot be read.

    names: separated by commas; None: all, and those of your own files in data_dir. generated:
    whether tasks that are not named may be such as are made from a seed, whose items are in no
    corpus.
    """
    from gptjax.evals import contamination, registry, task_data

    folder = parse.path(data_dir) if data_dir is not None else None
    by_name = (
        registry.get_tasks([name.strip() for name in names.split(",")], folder)
        if names
        else {**registry.all_tasks(), **registry.own_tasks(folder)}
    )
    task_texts, left_out = [], []
    for task in {task.name: task for task in by_name.values()}.values():
        task = dataclasses.replace(task, protocol=dataclasses.replace(task.protocol, words=words))
        task_splits = select_splits(task)
        if not task_splits or (task.make_rows is not None and not generated and not names):
            continue
        try:
            task_texts.append(
                contamination.collect_texts(
                    task,
                    task_splits,
                    lambda t, p, s: task_data.load_rows(t, p, s, data_dir, tfds_dir, seed),
                )
            )
        except task_data.NoData as error:
            left_out.append(error)
    if not task_texts:
        raise ValueError(
            "no task has data: give a folder with TASK.jsonl as task_data, or TFDS' as tfds_dir"
        )
    for error in left_out:
        print(f"left out: {errors.one_line(str(error))}")
    return task_texts


def start_job(
    args: argparse.Namespace,
    rule: decontamination.Filter | decontamination.OverlapRule,
    tasks: "Sequence[contamination.TaskTexts]",
    hashes_by_task: "Sequence[ngrams.Array]",
    lengths: list[int],
) -> "ngram_job.NgramJob":
    """Starts or continues the search of --text for the n-grams of the tasks, `lengths` words long.

    hashes_by_task: the n-grams of each task. Raises ValueError if there are none, or if --out
    belongs to another job.
    """
    import numpy as np

    from gptjax.curation import ngram_job

    hashes = np.unique(np.concatenate(hashes_by_task))
    if not len(hashes):
        raise ValueError(
            "the tasks have no text as long as a match, so there is nothing to search for; give "
            "other tasks, or a smaller n"
        )
    compression = {"compression": args.compression} if args.mode == "filter" else {}
    record = {
        "mode": args.mode,
        "tasks": {
            task.name: f"{len(task.texts):,} texts, digest "
            f"{ngram_job.digest(task_hashes, lengths)[:8]}"
            for task, task_hashes in zip(tasks, hashes_by_task, strict=True)
        },
        "rule": dataclasses.asdict(rule) | compression,
    }
    source = data.Text(path=args.text, field=args.field)
    return ngram_job.start(args.out, record, source, hashes, lengths, args.workers)


if __name__ == "__main__":
    cli.run(main)
