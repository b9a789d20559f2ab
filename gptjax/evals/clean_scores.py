"""Scores on the clean items of an evaluation compared with those on all items: GPT-3's Table C.1.

Input: the records of `evaluate`, whose outcomes are scored again on each subset by the task's own
metric; or, for any other evaluation, TASK.jsonl with one object per line, of which `id` and `score`
(0 to 1) are used.
"""

import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

from gptjax.config import legacy, overrides, parse
from gptjax.config.evaluation import Protocol
from gptjax.config.record import record
from gptjax.data.sources import files
from gptjax.evals import metrics, registry
from gptjax.runtime import checksums

COLUMNS = (
    "task",
    "shots",
    "metric",
    "all",
    "n",
    "dirty",
    "n",
    "clean",
    "n",
    "clean items",
    "clean to all",
)
Outcome = dict[str, Any]
ScoreFn = Callable[[list[Outcome]], list[metrics.Score]]


@record
class ProtocolBox:
    """Wraps a protocol, so that overrides.override can edit it."""

    protocol: Protocol


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The outcomes of an evaluation, one per item with its `id`. score: computes the scores of a
    subset of them.
    """

    task: str
    shots: str
    path: pathlib.Path
    outcomes: list[Outcome]
    score: ScoreFn


def compare(
    overlap_dir: pathlib.Path, results_dir: pathlib.Path, data_dir: pathlib.Path | None = None
) -> list[dict[str, Any]]:
    """Returns a row for each evaluation of a checked task and each metric: the scores of all, dirty
    and clean items, and the relative difference of clean from all.

    Scores are in percent (except perplexities and the like), with standard error and number of
    items; the difference is in percent of the score on all. data_dir: the data of custom tasks.
    Raises a one-line ValueError for inconsistent inputs.
    """
    for folder, contents in (
        (overlap_dir, "the output of `check`"),
        (results_dir, "the output of `evaluate`, or TASK.jsonl"),
    ):
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a directory: give one with {contents}")
    dirty_items = read_dirty_items(overlap_dir)
    evaluations = list(find_evaluations(results_dir, set(dirty_items), data_dir))
    if not evaluations:
        raise ValueError(
            f"{results_dir} has no results of the tasks that {overlap_dir} has: "
            f"{', '.join(sorted(dirty_items)) or 'none'}"
        )
    return [
        row
        for evaluation in evaluations
        for row in rows_by_subset(evaluation, dirty_items[task_name(evaluation.task)])
    ]


def read_dirty_items(overlap_dir: pathlib.Path) -> dict[str, dict[str, bool]]:
    """Returns which items of each checked task are dirty, from the files of `check`, verified by
    the digests in its report.
    """
    tasks: dict[str, Any] = {}
    report = overlap_dir / "report.json"
    if report.exists():
        tasks = parse.member(checksums.read(report), "tasks", dict, str(report))
    dirty_items = {}
    for path in sorted(overlap_dir.glob("*.json")):
        if path.stem in ("job", "report"):
            continue
        dirty, digest = parse.read_json(path), hashlib.sha256(parse.read_bytes(path)).hexdigest()
        entry = (
            parse.member(tasks, path.stem, dict, str(report))
            if path.stem in tasks
            else {"marks": digest}
        )
        if parse.member(entry, "marks", str, str(report)) != digest or not all(
            type(value) is bool for value in dirty.values()
        ):
            raise ValueError(
                f"{path} is damaged: it is not as `check` wrote it; delete {overlap_dir} and check "
                "again"
            )
        dirty_items[path.stem] = dirty
    return dirty_items


def rows_by_subset(evaluation: Evaluation, is_dirty: dict[str, bool]) -> Iterator[dict[str, Any]]:
    """Yields a row for each metric."""
    seen: set[str] = set()
    for number, outcome in enumerate(evaluation.outcomes, 1):
        location = f"{evaluation.path} line {number:,}"
        if not isinstance(outcome["id"], str) or outcome["id"] not in is_dirty:
            raise ValueError(
                f"{location}: the id {parse.quote(outcome['id'])} was not checked; check the split "
                "and the seed that were evaluated"
            )
        if outcome["id"] in seen:
            raise ValueError(
                f"{location}: the id {outcome['id']!r} occurs twice; compare one evaluation at a "
                "time"
            )
        seen.add(outcome["id"])
    subsets = {
        "all": evaluation.outcomes,
        "dirty": [outcome for outcome in evaluation.outcomes if is_dirty[outcome["id"]]],
        "clean": [outcome for outcome in evaluation.outcomes if not is_dirty[outcome["id"]]],
    }
    scores = {
        subset: {score.metric: score for score in evaluation.score(outcomes)} if outcomes else {}
        for subset, outcomes in subsets.items()
    }
    for metric, score_all in scores["all"].items():
        row: dict[str, Any] = {"task": evaluation.task, "shots": evaluation.shots, "metric": metric}
        for subset, by_metric in scores.items():
            row[subset] = (
                metrics.to_json(by_metric[metric])
                if metric in by_metric
                else {"n": 0, "value": None, "error": None}
            )
        clean = row["clean"]["value"]
        yield row | {
            "relative": 100 * (clean - score_all.value) / score_all.value
            if score_all.value and clean is not None
            else None
        }


def task_name(task: str) -> str:
    """The name of the task without its convention."""
    return task.partition(":")[0]


def find_evaluations(
    results_dir: pathlib.Path, tasks: Collection[str], data_dir: pathlib.Path | None
) -> Iterator[Evaluation]:
    """Yields the evaluations of these tasks: first those with records of `evaluate`, then plain
    ones.
    """
    by_file = {}
    for path in sorted(results_dir.glob("*.json")):
        record_json = parse.json_value(parse.read_bytes(path), str(path))
        if isinstance(record_json, dict) and {
            "task",
            "shots",
            "protocol",
            "seed",
            "outcomes",
        } <= set(record_json):
            for name, kind in (("task", str), ("protocol", str), ("seed", int), ("outcomes", str)):
                parse.member(record_json, name, kind, str(path))
            if checksums.SEAL in record_json:  # those of earlier versions have none
                checksums.check_seal(record_json, str(path))
            if pathlib.PurePath(record_json["outcomes"]).name != record_json["outcomes"]:
                raise ValueError(
                    f"{path}: 'outcomes' is {parse.quote(record_json['outcomes'])}; it must be the "
                    "name of a file beside it"
                )
            by_file[record_json["outcomes"]] = record_json
    for name, record_json in by_file.items():
        if task_name(record_json["task"]) in tasks:
            yield load_evaluation(record_json, results_dir / name, data_dir)
    for path in sorted(results_dir.glob("*.jsonl")):
        if path.name not in by_file and path.stem in tasks:
            yield Evaluation(path.stem, "", path, _read_lines(path, "score"), mean_score)


def load_evaluation(
    record_json: dict[str, Any], path: pathlib.Path, data_dir: pathlib.Path | None
) -> Evaluation:
    """Loads an evaluation and scores its outcomes by the task and protocol in its record."""
    task = registry.get_task(record_json["task"], data_dir)
    protocol = overrides.override(
        ProtocolBox(protocol=task.protocol),
        f"protocol={legacy.translate_record(record_json['protocol'])}",
    ).protocol
    outcomes = [
        metrics.score_item(task, protocol, outcome) for outcome in _read_lines(path, "right")
    ]
    return Evaluation(
        record_json["task"],
        str(record_json["shots"]),
        path,
        outcomes,
        lambda subset: metrics.aggregate(task, protocol, subset, record_json["seed"]),
    )


def mean_score(outcomes: list[Outcome]) -> list[metrics.Score]:
    """The mean of given scores, in percent."""
    return [
        metrics.Score(
            "score",
            *metrics.mean_and_error([100.0 * outcome["score"] for outcome in outcomes]),
            len(outcomes),
        )
    ]


def _read_lines(path: pathlib.Path, key: str) -> list[Outcome]:
    outcomes = []
    for number, outcome in files.read_objects(io.BytesIO(parse.read_bytes(path)), path):
        where = f"{path} line {number:,}"
        if not {"id", key} <= set(outcome):
            raise ValueError(
                f"{where} needs an id and a {key}: it has {', '.join(outcome) or 'nothing'}"
            )
        if key == "score":
            parse.member(outcome, key, float, where)
        elif checksums.SEAL in outcome:  # those of earlier versions have none
            outcome = checksums.check_seal(outcome, where, owner=path.stem)
        outcomes.append(outcome)
    return outcomes


def format_row(row: dict[str, Any]) -> tuple[str, ...]:
    """Formats a row of the table."""
    cells = [
        text
        for subset in ("all", "dirty", "clean")
        for text in (format_score(row[subset]), f"{row[subset]['n']:,}")
    ]
    share = f"{100 * row['clean']['n'] / row['all']['n']:.0f}%"
    relative = "-" if row["relative"] is None else f"{row['relative']:+.0f}%"
    return (row["task"], row["shots"], row["metric"], *cells, share, relative)


def format_score(score: dict[str, Any]) -> str:
    """Formats a score with its standard error."""
    if score["value"] is None:
        return "-"
    return f"{score['value']:.1f}" + ("" if score["error"] is None else f" +- {score['error']:.1f}")
