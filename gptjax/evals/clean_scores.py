"""Scores of an evaluation on the clean items, beside those on all: GPT-3's Table C.1.

Read are the records of `evaluate`, whose outcomes are scored again on each part by the task's own metric; or, of any other evaluation,
TASK.jsonl with an object a line, of which `id` and `score` (0 to 1) count."""

import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

from gptjax.config import overrides, parse
from gptjax.config.evaluation import Protocol
from gptjax.config.record import record
from gptjax.data.sources import files
from gptjax.evals import metrics, registry
from gptjax.runtime import checksums

HEAD = ("task", "shots", "metric", "all", "n", "dirty", "n", "clean", "n", "clean items", "clean to all")
Line = dict[str, Any]
Score = Callable[[list[Line]], list[metrics.Score]]


@record
class How:
    how: Protocol


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """lines: an object an item, with its `id`. score: of some of them."""

    task: str
    shots: str
    place: pathlib.Path
    lines: list[Line]
    score: Score


def compared(overlap: pathlib.Path, results: pathlib.Path, data: pathlib.Path | None = None) -> list[dict[str, Any]]:
    """For each evaluation of a task that was checked, and each metric: score (in percent, but perplexities and the like), its error and the
    number of items, of all, dirty and clean ones; and by how much, in percent of it, clean differs from all. data: where files of one's own
    tasks lie. ValueError, in one line, for what does not fit together."""
    for place, what in ((overlap, "what `check` wrote"), (results, "what `evaluate` wrote, or TASK.jsonl")):
        if not place.is_dir():
            raise ValueError(f"{place} is no directory: give one with {what}")
    marks = read_marks(overlap)
    found = list(evaluations(results, set(marks), data))
    if not found:
        raise ValueError(f"{results} has nothing of the tasks that {overlap} has: {', '.join(sorted(marks)) or 'none'}")
    return [row for one in found for row in parted(one, marks[bare(one.task)])]


def read_marks(overlap: pathlib.Path) -> dict[str, dict[str, bool]]:
    """Of each task that was checked, which items are dirty: what `check` wrote, compared with the digests in its report."""
    tasks: dict[str, Any] = {}
    report = overlap / "report.json"
    if report.exists():
        tasks = parse.member(checksums.read(report), "tasks", dict, str(report))
    marks = {}
    for path in sorted(overlap.glob("*.json")):
        if path.stem in ("job", "report"):
            continue
        dirty, digest = parse.json_file(path), hashlib.sha256(parse.content(path)).hexdigest()
        entry = parse.member(tasks, path.stem, dict, str(report)) if path.stem in tasks else {"marks": digest}
        if parse.member(entry, "marks", str, str(report)) != digest or not all(type(value) is bool for value in dirty.values()):
            raise ValueError(f"{path} is damaged: it is not what `check` wrote; delete {overlap} and check again")
        marks[path.stem] = dirty
    return marks


def parted(one: Evaluation, marks: dict[str, bool]) -> Iterator[dict[str, Any]]:
    """A row for each metric."""
    seen: set[str] = set()
    for number, line in enumerate(one.lines, 1):
        place = f"{one.place} line {number:,}"
        if not isinstance(line["id"], str) or line["id"] not in marks:
            raise ValueError(f"{place}: the id {parse.quote(line['id'])} was not checked; check the split and the seed that were evaluated")
        if line["id"] in seen:
            raise ValueError(f"{place}: the id {line['id']!r} stands there twice; compare one evaluation at a time")
        seen.add(line["id"])
    parts = {
        "all": one.lines,
        "dirty": [line for line in one.lines if marks[line["id"]]],
        "clean": [line for line in one.lines if not marks[line["id"]]],
    }
    scores = {part: {score.metric: score for score in one.score(lines)} if lines else {} for part, lines in parts.items()}
    for metric, whole in scores["all"].items():
        row: dict[str, Any] = {"task": one.task, "shots": one.shots, "metric": metric}
        for part, found in scores.items():
            row[part] = metrics.told(found[metric]) if metric in found else {"n": 0, "value": None, "error": None}
        clean = row["clean"]["value"]
        yield row | {"relative": 100 * (clean - whole.value) / whole.value if whole.value and clean is not None else None}


def bare(task: str) -> str:
    """The task's name without the convention that it was asked by."""
    return task.partition(":")[0]


def evaluations(results: pathlib.Path, tasks: Collection[str], data: pathlib.Path | None) -> Iterator[Evaluation]:
    """Those of these tasks: of `evaluate`, by its records; then plain ones."""
    recorded = {}
    for path in sorted(results.glob("*.json")):
        kept = parse.json_value(parse.content(path), str(path))
        if isinstance(kept, dict) and {"task", "shots", "protocol", "seed", "outcomes"} <= set(kept):
            for name, kind in (("task", str), ("protocol", str), ("seed", int), ("outcomes", str)):
                parse.member(kept, name, kind, str(path))
            if checksums.SEAL in kept:  # those of earlier versions have none
                checksums.check_seal(kept, str(path))
            if pathlib.PurePath(kept["outcomes"]).name != kept["outcomes"]:
                raise ValueError(f"{path}: 'outcomes' is {parse.quote(kept['outcomes'])}; it must be the name of a file beside it")
            recorded[kept["outcomes"]] = kept
    for name, kept in recorded.items():
        if bare(kept["task"]) in tasks:
            yield judged(kept, results / name, data)
    for path in sorted(results.glob("*.jsonl")):
        if path.name not in recorded and path.stem in tasks:
            yield Evaluation(path.stem, "", path, _lines(path, "score"), plain)


def judged(kept: dict[str, Any], path: pathlib.Path, data: pathlib.Path | None) -> Evaluation:
    """An evaluation whose outcomes are judged by what its record keeps."""
    task = registry.task(kept["task"], data)
    how = overrides.override(How(how=task.protocol), f"how={kept['protocol']}").how
    lines = [metrics.judged(task, how, line) for line in _lines(path, "right")]
    return Evaluation(kept["task"], str(kept["shots"]), path, lines, lambda some: metrics.scored(task, how, some, kept["seed"]))


def plain(lines: list[Line]) -> list[metrics.Score]:
    return [metrics.Score("score", *metrics.mean([100.0 * line["score"] for line in lines]), len(lines))]


def _lines(path: pathlib.Path, wanted: str) -> list[Line]:
    lines = []
    for number, line in files.objects(io.BytesIO(parse.content(path)), path):
        where = f"{path} line {number:,}"
        if not {"id", wanted} <= set(line):
            raise ValueError(f"{where} has no id and {wanted}: it has {', '.join(line) or 'nothing'}")
        if wanted == "score":
            parse.member(line, wanted, float, where)
        elif checksums.SEAL in line:  # those of earlier versions have none
            line = checksums.check_seal(line, where, owner=path.stem)
        lines.append(line)
    return lines


def row(found: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table."""
    cells = [cell for part in ("all", "dirty", "clean") for cell in (shown(found[part]), f"{found[part]['n']:,}")]
    share = f"{100 * found['clean']['n'] / found['all']['n']:.0f}%"
    relative = "-" if found["relative"] is None else f"{found['relative']:+.0f}%"
    return (found["task"], found["shots"], found["metric"], *cells, share, relative)


def shown(part: dict[str, Any]) -> str:
    if part["value"] is None:
        return "-"
    return f"{part['value']:.1f}" + ("" if part["error"] is None else f" +- {part['error']:.1f}")
