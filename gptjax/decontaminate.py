"""Do a training corpus and the tasks have text in common? GPT-3 Appendix C: take it out before training, or tell after it.

  filter   writes the corpus without the 13-grams of the tasks' test sets: documents are cut around them, with a window
  check    says which items of the tasks the corpus has: TASK.json, {id: dirty}. --set n=8 is GPT-2's measure of overlap
  compare  an evaluation's scores on all, the dirty and the clean items; --results: what evaluate wrote, or TASK.jsonl with id and score

filter and check read the corpus file by file in several processes; kill them at any moment, the same command goes on."""

import argparse
import dataclasses
import hashlib
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from gptjax.config import command, contamination, data, find_files, overrides, parse

EXAMPLE = """python -m gptjax.decontaminate filter --text='corpus/*.jsonl.zst' --tasks=hellaswag,piqa --out=clean
  python -m gptjax.decontaminate check --text='corpus/*.jsonl.zst' --tasks=hellaswag,piqa --out=overlap
  python -m gptjax.decontaminate compare --overlap=overlap --results=runs/gpt3_small/evaluations"""
RULES = {"filter": contamination.Filter(), "check": contamination.Measure()}


@find_files.list_once()
def main(arguments: list[str]) -> None:
    parser = command.bare_parser("decontaminate", __doc__ or "", EXAMPLE)
    parser.add_argument("mode", choices=("filter", "check", "compare"), help="what to do")
    parser.add_argument("--text", metavar="PATH", help="the corpus: a file, a directory or a glob of .txt, .jsonl or .parquet")
    parser.add_argument("--field", default="text", help="of .jsonl objects and .parquet columns (default: %(default)s)")
    parser.add_argument("--tasks", metavar="A,B", help="tasks or families of them; default: all whose data are found")
    parser.add_argument("--data", metavar="DIR", type=place, help="where TASK_SPLIT.jsonl and TASK.jsonl lie")
    parser.add_argument("--tfds", metavar="DIR", type=place, help="where TFDS' prepared sets lie (default: its own directory)")
    parser.add_argument("--words", metavar="FILE", type=place, help="the list of the tasks that scramble words")
    parser.add_argument("--seed", type=parse.whole_argument(0, 2**32 - 1), default=0, help="of tasks that are made (default: %(default)s)")
    parser.add_argument("--out", metavar="DIR", type=parse.path_argument, help="where the result goes")
    parser.add_argument("--compression", choices=("gz", "none"), default="gz", help="of what filter writes (default: %(default)s)")
    parser.add_argument(
        "--workers", metavar="N", type=parse.whole_argument(1, 1024), default=os.cpu_count() or 1, help="processes (default: a core each)"
    )
    parser.add_argument("--overlap", metavar="DIR", type=parse.path_argument, help="compare: what check wrote")
    parser.add_argument("--results", metavar="DIR", type=parse.path_argument, help="compare: evaluations/ of a run")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], dest="assignments", help="change a rule, as window=100")
    args = parser.parse_args(arguments)
    needed = ("overlap", "results") if args.mode == "compare" else ("text", "out")
    for name in needed:
        if getattr(args, name) is None:
            raise ValueError(f"{args.mode} needs --{name}; --help shows an example")
    if args.mode == "compare":
        return compare(args)
    rule = overrides.override(RULES[args.mode], *args.assignments)
    return filtered(args, rule) if args.mode == "filter" else check(args, rule)


def place(text: str) -> str:
    """`parse.path_argument`, as text."""
    return str(parse.path_argument(text))


def filtered(args: argparse.Namespace, rule: contamination.Filter) -> None:
    """Count in how many documents each n-gram is, then write the corpus without those that are in few."""
    import numpy as np

    from gptjax.tasks.incontext import cleaning, grams, overlap, scanning

    these = questions(args, overlap.tested)
    each = [overlap.hashes(one, np.full(len(one.texts), rule.n)) for one in these]
    job = begun(args, rule, these, each, [rule.n])
    if not (args.out / "report.json").exists():
        counts, _, _ = counted(args, job)
        known = grams.Known(job.known.hashes[(counts > 0) & (counts <= rule.most_documents)])
        scanning.save(job.cut, known, [rule.n])
        work = cleaning.Cleaning(rule, args.out, "" if args.compression == "none" else ".gz")
        done(job, work.is_done, work, job.cut, args, "cleaning")
        expected = {work.name(part) for part in job.parts}
        for left in args.out.glob("[0-9][0-9][0-9][0-9][0-9]-*.jsonl*"):
            if left.name not in expected:  # of a file that the corpus had when this was begun, and has no longer
                left.unlink()
        report = {"counts": cleaning.counts(job.cut, job.parts), "tasks": {}}
        for one, mine in zip(these, each, strict=True):
            held = counts[np.searchsorted(job.known.hashes, mine)]
            common = int((held > rule.most_documents).sum())
            report["tasks"][one.name] = {"items": len(one.texts), "grams": len(mine), "seen": int((held > 0).sum()), "common": common}
        finish(args, job, report)
    report = read_report(args)
    rows = [(name, *(f"{found[key]:,}" for key in ("items", "grams", "seen", "common"))) for name, found in report["tasks"].items()]
    print(aligned([("task", "items", f"{rule.n}-grams", "in the corpus", f"in over {rule.most_documents} documents: left"), *rows]))
    print(aligned([(name.replace("_", " "), f"{count:,}") for name, count in report["counts"].items()]))
    ending = "" if args.compression == "none" else ".gz"
    print(f"""train on it:\n  --set "data.sources=Text(path='{args.out}/*.jsonl{ending}')\"""")


def check(args: argparse.Namespace, rule: contamination.Measure) -> None:
    """Look for each task's n-grams in the corpus; write which items have one that is there."""
    import numpy as np

    from gptjax.data import saving
    from gptjax.tasks.incontext import dirtiness, grams, overlap

    these = questions(args, lambda task: task.splits[:1])
    if taken := sorted({one.name for one in these} & {"job", "report"}):
        raise ValueError(f"a task cannot be called {taken[0]} here: its marks are written to {taken[0]}.json, which is this program's own")
    compared = [overlap.compared(one, rule) for one in these]
    each = [overlap.hashes(one, matches) for one, (_, matches) in zip(these, compared, strict=True)]
    lengths = np.unique(np.concatenate([matches for _, matches in compared]))
    job = begun(args, rule, these, each, lengths[lengths > 0].tolist())
    if not (args.out / "report.json").exists():
        counts, n_documents, n_characters = counted(args, job)
        seen = grams.Known(job.known.hashes[counts > 0])
        report: dict[str, Any] = {"documents": n_documents, "characters": n_characters, "tasks": {}}
        for one, (n, matches) in zip(these, compared, strict=True):
            dirty, n_grams, n_seen = overlap.dirty(one, matches, seen)
            marks = saving.json_bytes(dirty)
            saving.save(args.out / f"{one.name}.json", marks)
            n_dirty = len({one.items[item] for item, is_dirty in dirty.items() if is_dirty})
            report["tasks"][one.name] = {"n": n, "items": len(one.texts), "dirty": n_dirty, "grams": n_grams, "seen": n_seen}
            report["tasks"][one.name]["marks"] = hashlib.sha256(marks).hexdigest()
        finish(args, job, report)
    report = read_report(args)
    dirtiness.read_marks(args.out)  # refuses those that are not as they were written
    print(f"{report['documents']:,} documents, {report['characters']:,} characters")
    rows = [("task", "N", "items", "dirty", "clean", "N-grams", "in the corpus")]
    for name, found in report["tasks"].items():
        clean = f"{100 * (1 - found['dirty'] / found['items']):.0f}%"
        share = f"{100 * found['seen'] / max(1, found['grams']):.2f}%"
        rows.append((name, str(found["n"]), f"{found['items']:,}", f"{found['dirty']:,}", clean, f"{found['grams']:,}", share))
    print(aligned(rows))


def compare(args: argparse.Namespace) -> None:
    """The scores of all, of dirty and of clean items, as Table C.1 has them."""
    from gptjax.tasks.incontext import dirtiness

    rows = dirtiness.compared(args.overlap, args.results, parse.path(args.data) if args.data is not None else None)
    print(aligned([dirtiness.HEAD, *map(dirtiness.row, rows)]))
    if args.out is not None:
        from gptjax.data import saving

        saving.save(args.out / "comparison.json", saving.json_bytes(rows))


# --- jobs ----------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Job:
    """A corpus and n-grams to look for. work and cut: folders of what is finished of the two passes, until all is."""

    known: Any
    parts: list[Any]
    work: pathlib.Path
    cut: pathlib.Path


def questions(args: argparse.Namespace, splits: Callable[[Any], tuple[str, ...]]) -> list[Any]:
    """The tasks with their items; a line for each whose data are missing. ValueError if no task is left."""
    from gptjax.tasks.incontext import overlap, registry, rows

    folder = parse.path(args.data) if args.data is not None else None
    named = registry.named([name.strip() for name in args.tasks.split(",")], folder) if args.tasks else registry.every()
    found = []
    for task in {task.name: task for task in named.values()}.values():
        task = dataclasses.replace(task, protocol=dataclasses.replace(task.protocol, words=args.words))
        wanted = splits(task)
        if not wanted or (args.mode == "filter" and task.made is not None and not args.tasks):
            continue  # what is made from a seed is in no corpus
        try:
            found.append(overlap.asked(task, wanted, lambda t, p, s: rows.found(t, p, s, args.data, args.tfds, args.seed)))
        except ValueError as error:
            status, line = command.verdict(error)
            if status != 2:
                raise
            print(f"left out: {line}")
    if not found:
        raise ValueError("no task has data: give --data=DIR with TASK.jsonl, or --tfds=DIR")
    return found


def begun(args: argparse.Namespace, rule: Any, these: list[Any], each: list[Any], lengths: list[int]) -> Job:
    """The job's folders, with what an earlier start of the same finished. ValueError if they are another's. each: the n-grams of each task.

    Where only files of the corpus have changed since an unfinished start, those that have not are not read again."""
    import numpy as np

    from gptjax.data import checksums, corpora, saving, tokenising
    from gptjax.tasks.incontext import grams, scanning

    hashes = np.unique(np.concatenate(each))
    if not len(hashes):
        raise ValueError("the tasks have no text as long as a match: nothing is to be looked for; give other tasks, or a smaller n")
    source = data.Text(path=args.text, field=args.field)
    sought = _digest(hashes, lengths)
    job = {
        "mode": args.mode,
        "corpus": tokenising.named(source),
        "fingerprint": corpora.fingerprint(source),
        "tasks": {
            one.name: f"{len(one.texts):,} texts, digest {_digest(mine, lengths)[:8]}" for one, mine in zip(these, each, strict=True)
        },
        "rule": dataclasses.asdict(rule) | ({"compression": args.compression} if args.mode == "filter" else {}),
    }
    finished, there = (args.out / "report.json").exists(), args.out / "job.json"
    if there.exists():
        try:
            earlier = checksums.read(there)
        except ValueError as error:
            if finished:
                raise ValueError(f"{error}; delete {args.out} and run it again") from None
            print(f"{error}; it is written again")
        else:
            tokenising.same(args.out, earlier, {name: value for name, value in job.items() if finished or name != "fingerprint"})
    elif args.out.is_dir() and any(args.out.iterdir()):
        raise ValueError(f"{args.out} holds files of something else; give an empty directory")
    made = Job(grams.Known(hashes), scanning.parts(source, sought), args.out / "work" / "count", args.out / "work" / "cut")
    if finished:
        return made
    for line in corpora.check(source):
        print(line)
    checksums.save(there, job)
    for folder in (args.out, made.work, made.cut):
        folder.mkdir(parents=True, exist_ok=True)
        saving.sweep(folder)
    scanning.save(made.work, made.known, lengths)
    return made


def _digest(hashes: Any, lengths: list[int]) -> str:
    return hashlib.sha256(hashes.tobytes() + repr(lengths).encode()).hexdigest()


def counted(args: argparse.Namespace, job: Job) -> tuple[Any, int, int]:
    """(how many documents have each n-gram, documents, characters)."""
    from gptjax.tasks.incontext import scanning

    done(job, scanning.is_counted, scanning.counted, job.work, args, "reading")
    return scanning.totals(job.work, job.parts, len(job.known))


def done(job: Job, is_done: Callable[[pathlib.Path, Any], bool], work: Any, folder: pathlib.Path, args: Any, label: str) -> None:
    """Do every part whose result is not there yet, or damaged."""
    from gptjax.report import console
    from gptjax.tasks.incontext import scanning

    todo = [part for part in job.parts if not is_done(folder, part)]
    if todo:
        with console.Console(quiet=False).fraction(f"{label} {args.text}") as advance:
            scanning.each(todo, work, folder, args.workers, advance)


def finish(args: argparse.Namespace, job: Job, report: dict[str, Any]) -> None:
    from gptjax.data import checksums

    checksums.save(args.out / "report.json", report)
    shutil.rmtree(args.out / "work")


def read_report(args: argparse.Namespace) -> dict[str, Any]:
    """The report of a finished job. ValueError, in one line, if it is damaged."""
    from gptjax.data import checksums

    try:
        return checksums.read(args.out / "report.json")
    except ValueError as error:
        raise ValueError(f"{error}; delete {args.out} and run it again") from None


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """A table: the first column to the left, the others to the right, an empty line after it."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]) for row in rows)
    return "\n".join(line.rstrip() for line in lines) + "\n"


if __name__ == "__main__":
    command.run(main)
