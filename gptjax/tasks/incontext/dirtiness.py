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
from gptjax.config.protocol import Protocol
from gptjax.config.record import record
from gptjax.data import checksums, files
from gptjax.tasks.incontext import judging, outcomes, registry

HEAD = ("task", "shots", "metric", "all", "n", "dirty", "n", "clean", "n", "clean items", "clean to all")
Line = dict[str, Any]
Score = Callable[[list[Line]], list[judging.Score]]


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
    marks = marked(overlap)
    found = list(evaluations(results, set(marks), data))
    if not found:
        raise ValueError(f"{results} has nothing of the tasks that {overlap} has: {', '.join(sorted(marks)) or 'none'}")
    return [row for one in found for row in parted(one, marks[bare(one.task)])]


def marked(overlap: pathlib.Path) -> dict[str, dict[str, bool]]:
    """Of each task that was checked, which items are dirty: what `check` wrote, compared with the digests in its report."""
    written: dict[str, Any] = {}
    report = overlap / "report.json"
    if report.exists():
        written = parse.member(checksums.read(report), "tasks", dict, str(report))
    marks = {}
    for path in sorted(overlap.glob("*.json")):
        if path.stem in ("job", "report"):
            continue
        found = parse.json_file(path)
        known = (
            parse.member(parse.member(written, path.stem, dict, str(report)), "marks", str, str(report)) if path.stem in written else None
        )
        if not all(type(dirty) is bool for dirty in found.values()) or known not in (None, hashlib.sha256(path.read_bytes()).hexdigest()):
            raise ValueError(f"{path} is damaged: it is not what `check` wrote; delete {overlap} and check again")
        marks[path.stem] = found
    return marks


def parted(one: Evaluation, marks: dict[str, bool]) -> Iterator[dict[str, Any]]:
    """A row for each metric."""
    seen: set[str] = set()
    for number, line in enumerate(one.lines, 1):
        place = f"{one.place} line {number:,}"
        if not isinstance(line["id"], str) or line["id"] not in marks:
            raise ValueError(f"{place}: the id {parse.shown(line['id'])} was not checked; check the split and the seed that were evaluated")
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
            row[part] = judging.told(found[metric]) if metric in found else {"n": 0, "value": None, "error": None}
        clean = row["clean"]["value"]
        yield row | {"relative": 100 * (clean - whole.value) / whole.value if whole.value and clean is not None else None}


def bare(task: str) -> str:
    """The task's name without the convention that it was asked by."""
    return task.partition(":")[0]


def evaluations(results: pathlib.Path, tasks: Collection[str], data: pathlib.Path | None) -> Iterator[Evaluation]:
    """Those of these tasks: of `evaluate`, by its records; then plain ones."""
    recorded = {}
    for path in sorted(results.glob("*.json")):
        kept = parse.json_value(_content(path), str(path))
        if isinstance(kept, dict) and {"task", "shots", "protocol", "seed", "outcomes"} <= set(kept):
            for name, kind in (("task", str), ("protocol", str), ("seed", int), ("outcomes", str)):
                parse.member(kept, name, kind, str(path))
            if outcomes.SEAL in kept and kept[outcomes.SEAL] != outcomes.seal(kept):
                raise ValueError(f"{path} is not as `evaluate` wrote it: evaluate again")
            if pathlib.PurePath(kept["outcomes"]).name != kept["outcomes"]:
                raise ValueError(f"{path}: 'outcomes' is {parse.shown(kept['outcomes'])}; it must be the name of a file beside it")
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
    lines = [judging.judged(task, how, _unsealed(line, path)) for line in _lines(path, "right")]
    return Evaluation(kept["task"], str(kept["shots"]), path, lines, lambda some: judging.scored(task, how, some, kept["seed"]))


def _unsealed(line: Line, path: pathlib.Path) -> Line:
    """A line of `evaluate` without its seal, which those of earlier versions lack."""
    if outcomes.SEAL in line and line[outcomes.SEAL] != outcomes.seal(line, path.stem):
        raise ValueError(f"{path}: the outcome of {parse.shown(line['id'])} is not as `evaluate` wrote it: evaluate again")
    return {name: value for name, value in line.items() if name != outcomes.SEAL}


def plain(lines: list[Line]) -> list[judging.Score]:
    return [judging.Score("score", *judging.mean([100.0 * line["score"] for line in lines]), len(lines))]


def _lines(path: pathlib.Path, wanted: str) -> list[Line]:
    lines = []
    for number, line in files.objects(io.BytesIO(_content(path)), path):
        if not {"id", wanted} <= set(line):
            raise ValueError(f"{path} line {number:,} has no id and {wanted}: it has {', '.join(line) or 'nothing'}")
        if wanted == "score":
            parse.member(line, wanted, float, f"{path} line {number:,}")
        lines.append(line)
    return lines


def _content(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


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
