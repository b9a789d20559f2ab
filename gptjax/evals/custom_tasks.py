"""Any .jsonl file as a task: a row is a context and what is right after it. NAME.toml or NAME.json
beside NAME.jsonl says how it is asked.

Columns beside `context`, by what the first row has: `completion` (a text), `answers` (a list, all
right, the first is shown), or both; or `completions` with `label` (the number of the right one,
from 0), `labels` (of all right ones) or `grades` (of each, from 0 to 1, as BIG-bench's
target_scores). What is written is compared as it is, up to the end of the line, spaces around it
aside.

Whatever the file beside the data does not say follows the data: as many demonstrations as there
are, up to 32; so many new tokens as the longest right answer has; no stop that stands in a right
answer."""

import difflib
import pathlib
import tomllib
import typing
from collections.abc import Mapping
from typing import Any

from gptjax.config import evaluation, overrides, parse
from gptjax.config.record import record
from gptjax.data.sources import files
from gptjax.evals import scorers
from gptjax.evals.task import GRADE, GRADES, Item, Row, Task

COLUMNS = {
    "context": "text",
    "completion": "text: what is to follow",
    "answers": "[text]: every right one, the first to be shown in demonstrations",
    "completions": "[text]: what may follow",
    "label": "number: of the right one, from 0; -1 if not known",
    "labels": "[number]: of all right ones, from 0; empty if not known",
    "grades": "[number]: what choosing each is worth, from 0 to 1",
}
COLUMN_SETS = (
    ("completions", "grades"),
    ("completions", "labels"),
    ("completions", "label"),
    ("completion", "answers"),
    ("answers",),
)
SPLIT_SUFFIXES = (
    "_test",
    "_validation",
    "",
    "_train",
)  # of files' names: the first that is there is asked; demonstrations are of _train
MAX_SHOTS, MIN_TOKENS = (
    32,
    32,
)  # at most, and at least, unless the file beside the data says another number
PROTOCOL_PATHS = {  # key of the file beside the data -> the path of the protocol that it sets
    "description": "description",
    "description_min_shots": "description_min_shots",
    "separator": "separator",
    "method": "method",
    "metric": "metric",
    "n_tokens": "method.n_tokens",
    "stops": "method.stops",
    "few": "shots",
    "fixed_shots": "fixed_shots",
}
KEYS = ("about", "language", *PROTOCOL_PATHS)
GENERATION_METRICS = (
    "exact_match",
    "f1",
    "bleu",
    "bleu_mb",
    "rouge",
    "rouge_1",
    "rouge_2",
    "rouge_l",
)


@record
class ProtocolBox:
    protocol: evaluation.Protocol


def find_task(name: str, folder: pathlib.Path | None) -> Task | None:
    """The task of FOLDER/NAME_test.jsonl (or with another of SPLIT_SUFFIXES), None if there is no
    such file. ValueError, in one line, for a file beside it that is not as it should be."""
    if folder is None:
        return None
    if "/" in name:
        raise ValueError(
            f"--tasks={name}: a task is called by its file's name alone; its folder is given by "
            "--data"
        )
    suffixes = [
        suffix
        for suffix in SPLIT_SUFFIXES
        if (folder.expanduser() / f"{name}{suffix}.jsonl").is_file()
    ]
    if not suffixes:
        return None
    eval_suffix, fewshot_suffix = suffixes[0], "_train" if "_train" in suffixes else suffixes[0]
    path = folder.expanduser() / f"{name}{eval_suffix}.jsonl"
    columns = _detect_columns(path)
    settings_path, settings = _read_settings(path.with_name(name))
    protocol, set_fields = _build_protocol(columns, settings_path, settings)
    language = settings["language"] if "language" in settings else "en"
    return Task(
        name=name,
        summary=settings["about"] if "about" in settings else f"your own, of {path}",
        protocol=protocol,
        items=choice_items
        if "completions" in columns
        else lambda row, protocol, shots: generation_items(row, language),
        schema={column: COLUMNS[column] for column in ("context", *columns)},
        example={
            "id": "0",
            "context": "1 + 1 =",
            "completions": [" 2", " 3"],
            "label": 0,
            "labels": [0],
            "grades": [1, 0],
        }
        | {"completion": " 2", "answers": ["2", "two"]},
        splits=(
            eval_suffix.removeprefix("_") or "test",
            fewshot_suffix.removeprefix("_") or "test",
        ),
        score=None if "completions" in columns else score,
        extra_metrics=GENERATION_METRICS
        if "completions" not in columns
        else (GRADE,)
        if "grades" in columns
        else (),
        auto_fields=frozenset({"shots", "n_tokens", "stops"} - set_fields),
    )


def _detect_columns(path: pathlib.Path) -> tuple[str, ...]:
    """The columns beside `context`. A first row that cannot be read is refused when all are."""
    try:
        with path.open("rb") as stream:
            _, row = next(files.read_objects(stream, path))
    except (ValueError, StopIteration):
        row = {}
    return next(
        (columns for columns in COLUMN_SETS if all(column in row for column in columns)),
        ("completions", "label") if "completions" in row else ("completion",),
    )


def _read_settings(stem: pathlib.Path) -> tuple[pathlib.Path, Mapping[str, Any]]:
    """(the file that says how the task is asked, what it says): NAME.toml or NAME.json; nothing if
    there is neither. ValueError for one that cannot be read, or has a key that means nothing."""
    paths = [
        path
        for path in (stem.with_name(f"{stem.name}.toml"), stem.with_name(f"{stem.name}.json"))
        if path.is_file()
    ]
    if not paths:
        return stem, {}
    if len(paths) > 1:
        raise ValueError(f"{paths[0]} and {paths[1]} both say how {stem.name} is asked: keep one")
    (path,) = paths
    settings = parse.read_json(path) if path.suffix == ".json" else _read_toml(path)
    for key in settings:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"give any of {', '.join(KEYS)}"
            raise ValueError(f"{path}: there is no key {parse.quote(key)}; {hint}")
    return path, {
        key: parse.member(settings, key, str, str(path)) if key in ("about", "language") else value
        for key, value in settings.items()
    }


def _read_toml(path: pathlib.Path) -> dict[str, Any]:
    text = parse.read_text(path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not TOML: {parse.quote(str(error).splitlines()[0])[1:-1]}"
        ) from None


def _build_protocol(
    columns: tuple[str, ...], path: pathlib.Path, settings: Mapping[str, Any]
) -> tuple[evaluation.Protocol, set[str]]:
    """The protocol, and which of its shots, stops and n_tokens the file beside the data chose."""
    if "completions" in columns:
        protocol = evaluation.Protocol(
            shots=MAX_SHOTS,
            method=evaluation.PerToken(),
            metric="grade" if "grades" in columns else "accuracy",
        )
    else:
        protocol = evaluation.Protocol(
            shots=MAX_SHOTS, method=evaluation.Greedy(n_tokens=MIN_TOKENS), metric="exact_match"
        )
    set_fields = {
        PROTOCOL_PATHS[key].removeprefix("method.") for key in settings if key in PROTOCOL_PATHS
    }
    method = settings["method"] if "method" in settings else ""
    if isinstance(method, str) and "(" in method:
        set_fields |= {field for field in ("n_tokens", "stops") if field in method}
    elif method in ("Beam", "Greedy", "TopK"):
        settings = dict(settings) | {"method": f"{method}(n_tokens={MIN_TOKENS})"}
    unquoted = (
        "method",
        "metric",
    )  # other texts are quoted, and a list is a tuple, in the grammar of --set
    values = {
        key: tuple(settings[key]) if isinstance(settings[key], list) else settings[key]
        for key in PROTOCOL_PATHS
        if key in settings
    }
    edits = [
        f"protocol.{PROTOCOL_PATHS[key]}={value if key in unquoted else repr(value)}"
        for key, value in values.items()
    ]
    try:
        protocol = overrides.override(ProtocolBox(protocol=protocol), *edits).protocol
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix('protocol.')}") from None
    kinds = (
        evaluation.ChoiceMethod
        if "completions" in columns
        else evaluation.GenerationMethod | evaluation.LastWordMethod
    )
    if not isinstance(protocol.method, kinds):
        names = ", ".join(kind.__name__ for kind in typing.get_args(kinds))
        raise ValueError(
            f"{path}: rows with {', '.join(columns)} cannot be asked by method={protocol.method}; "
            f"give one of {names}"
        )
    if (
        isinstance(protocol.method, evaluation.GenerationMethod)
        and protocol.metric not in GENERATION_METRICS
    ):
        raise ValueError(
            f"{path}: metric={protocol.metric} is not of what is written; give one of "
            f"{', '.join(GENERATION_METRICS)}"
        )
    return protocol, set_fields


def generation_items(row: Row, language: str) -> list[Item]:
    """Line ends that a completion begins with are put before it: they are the form of the
    question, and no answer."""
    answers = (
        [row["completion"]]
        if "completion" in row
        else [text if text[:1].isspace() else f" {text}" for text in row["answers"][:1]]
    )
    answers += row["answers"] if "answers" in row else []
    if not any(text.strip() for text in answers[:1]):
        raise ValueError(
            f"item {row['id']} has no right answer, or an empty one: give it some text"
        )
    answer = answers[0].lstrip()
    line_ends, end, space = answers[0][: len(answers[0]) - len(answer)].rpartition("\n")
    item = Item(
        id=row["id"],
        contexts=(row["context"] + line_ends + end,),
        completions=(space + answer,),
        answers=tuple(dict.fromkeys(text.strip() for text in answers if text.strip())),
        facts={"language": language},
    )
    return [item]


def choice_items(row: Row, protocol: evaluation.Protocol, shots: int) -> list[Item]:
    n, grades = len(row["completions"]), row["grades"] if "grades" in row else []
    if "grades" in row:
        if len(grades) != n or not all(0 <= grade <= 1 for grade in grades):
            raise ValueError(
                f"item {row['id']} has {n} completions and grades {parse.quote(grades)}: give each "
                "one from 0 to 1"
            )
        right = tuple(number for number, grade in enumerate(grades) if grade == max(grades) > 0)
    elif "labels" in row:
        right = tuple(dict.fromkeys(row["labels"]))
    else:
        right = (row["label"],) if row["label"] >= 0 else ()
    if not all(number in range(n) for number in right):
        raise ValueError(
            f"item {row['id']} has label {', '.join(map(str, right))} and {n} completions: give "
            "the number of one, from 0"
        )
    item = Item(
        id=row["id"],
        contexts=(row["context"],),
        completions=tuple(row["completions"]),
        right=tuple(map(int, right)),
        facts={GRADES: [float(grade) for grade in grades]} if grades else {},
        none_is_right=bool(grades) and not right,
    )
    return [item]


def score(metric: str, prediction: str, item: Item) -> float:
    """What was written, as it is (exact_match), by words (f1) or by ROUGE, the best over the
    right answers; BLEU is of all together."""
    return (
        scorers.rouge(metric, prediction, item)
        if metric.startswith("rouge")
        else scorers.plain_text(metric, prediction, item)
    )
