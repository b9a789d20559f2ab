"""Custom tasks: any .jsonl file whose rows are contexts with their correct continuations. NAME.toml
or NAME.json next to NAME.jsonl sets the protocol.

Columns besides `context`, determined by the first row: `completion` (a text), `answers` (a list of
correct ones, the first is shown), or both; or `completions` with `label` (the index of the correct
one), `labels` (indices of all correct ones) or `grades` (of each, from 0 to 1, as BIG-bench's
target_scores). Generated text is compared literally, up to the end of the line, ignoring
surrounding spaces.

Settings that the file does not give follow the data: as many demonstrations as there are, up to 32;
as many new tokens as the longest correct answer has; no stop string that occurs in a correct
answer.
"""

import difflib
import pathlib
import re
import tomllib
import typing
from collections.abc import Mapping
from typing import Any

from gptjax.config import evaluation, overrides, parse
from gptjax.config.record import record
from gptjax.data.sources import files
from gptjax.evals import rouge_bleu, scorers
from gptjax.evals.task import GRADE, GRADES, Item, Row, Task

COLUMNS = {
    "context": "text",
    "completion": "text: the correct continuation",
    "answers": "[text]: every correct one, the first to be shown in demonstrations",
    "completions": "[text]: the candidates",
    "label": "number: of the correct one, from 0; -1 if not known",
    "labels": "[number]: of all correct ones, from 0; empty if not known",
    "grades": "[number]: the value of choosing each, from 0 to 1",
}
COLUMN_SETS = (
    ("completions", "grades"),
    ("completions", "labels"),
    ("completions", "label"),
    ("completion", "answers"),
    ("answers",),
)
# Of file names: the first that exists is evaluated; demonstrations are from _train.
SPLIT_SUFFIXES = ("_test", "_validation", "", "_train")
# Bounds of the fitted number of demonstrations and of new tokens, if the settings give none.
MAX_SHOTS, MIN_TOKENS = 32, 32
PROTOCOL_PATHS = {  # key in the settings file -> path in the protocol
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
    """Wraps a protocol, so that overrides.override can edit it."""

    protocol: evaluation.Protocol


def find_task(name: str, folder: pathlib.Path | None) -> Task | None:
    """Returns the task of FOLDER/NAME_test.jsonl (or another of SPLIT_SUFFIXES); None if there is
    no such file. Raises a one-line ValueError for an invalid settings file.
    """
    if folder is None:
        return None
    if "/" in name:
        raise ValueError(
            f"--tasks={name}: a task is called by its file's name alone; its folder is given by "
            "--task_data"
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
        summary=settings["about"] if "about" in settings else f"your own task, from {path}",
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


def task_names(folder: pathlib.Path) -> list[str]:
    """Returns the names of the tasks of a folder's files."""
    stems = [path.stem for path in folder.expanduser().glob("*.jsonl")]
    suffixes = "|".join(filter(None, SPLIT_SUFFIXES))
    return sorted({re.sub(f"({suffixes})$", "", stem) for stem in stems})


def _detect_columns(path: pathlib.Path) -> tuple[str, ...]:
    """Returns the columns besides `context`. A first row that cannot be read is refused later, when
    all rows are read.
    """
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
    """Returns (the settings file, its content): NAME.toml or NAME.json, {} if neither exists.
    Raises ValueError for a file that cannot be read or has an unknown key.
    """
    paths = [
        path
        for path in (stem.with_name(f"{stem.name}.toml"), stem.with_name(f"{stem.name}.json"))
        if path.is_file()
    ]
    if not paths:
        return stem, {}
    if len(paths) > 1:
        raise ValueError(
            f"{paths[0]} and {paths[1]} both set the protocol of {stem.name}: keep one"
        )
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
    """Returns the protocol, and which of its shots, stops and n_tokens the settings chose."""
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
    # Other texts are quoted, and lists become tuples, as the override grammar requires.
    unquoted = ("method", "metric")
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
            f"{path}: method={protocol.method} does not work for rows with {', '.join(columns)}; "
            f"give one of {names}"
        )
    if (
        isinstance(protocol.method, evaluation.GenerationMethod)
        and protocol.metric not in GENERATION_METRICS
    ):
        raise ValueError(
            f"{path}: metric={protocol.metric} does not apply to generated text; give one of "
            f"{', '.join(GENERATION_METRICS)}"
        )
    return protocol, set_fields


def generation_items(row: Row, language: str) -> list[Item]:
    """Items of a row with correct answers. Newlines at the start of a completion move to the
    context: they are part of the format, not of the answer.
    """
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
    """Items of a row with completions to choose from."""
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
    """Scores generated text literally (exact_match), by words (f1) or by ROUGE, the best over the
    correct answers. BLEU is computed over all items.
    """
    return (
        rouge_bleu.rouge(metric, prediction, item)
        if metric.startswith("rouge")
        else scorers.plain_text(metric, prediction, item)
    )
