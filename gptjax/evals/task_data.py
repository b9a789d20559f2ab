"""Loads the rows of a task from wherever its data lie, checked against the task's schema. Errors
are one line.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from gptjax.config import data, parse
from gptjax.config.evaluation import Protocol, Windows
from gptjax.data import unicode
from gptjax.data.sources import files, open
from gptjax.evals.task import Row, Task

TYPE_PATTERN = re.compile(r"(\[*)(text|number|truth)(\]*)(?::.*|$)")
TYPE_NAMES = {str: "text", bool: "truth", int: "number", float: "number"}


class NoData(ValueError):
    """A task has no data here; the message says where they may lie."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a split. source: the file or data set they were read from, for display. errors:
    position -> reason, for rows that do not match the schema.
    """

    source: str
    rows: tuple[Row, ...]
    errors: Mapping[str, str] = dataclasses.field(default_factory=dict)


def load_rows(
    task: Task,
    protocol: Protocol,
    split: str,
    folder: str | None = None,
    data_dir: str | None = None,
    seed: int = 0,
    lenient: bool = False,
) -> Rows:
    """Returns the rows of one of a task's splits, each with an `id`. protocol and seed: for
    generated tasks. lenient: skip and record rows that do not match the schema, as long as one
    does.

    Searched in this order: FOLDER/NAME_SPLIT.jsonl, one object per line with the columns of
    task.schema; FOLDER/NAME.jsonl, which serves as every split; for whole-text tasks, the same
    names with .txt, one row per file; rows that the task generates from the seed; the prepared TFDS
    data set, in data_dir or TFDS' own directory. Raises NoData for missing data, and a one-line
    ValueError for a row that does not match the schema, with its line, its column and the expected
    type.
    """
    path = _local_file(task, split, folder)
    if path is not None and path.suffix == ".txt":
        where, numbered_rows = str(path), [("", {"text": _read_text(path)})]
    elif path is not None:
        where, numbered_rows = str(path), _read_jsonl(path)
    elif task.make_rows is not None:
        where, numbered_rows = (
            f"{task.name}, made from seed {seed}",
            _number_rows(task.make_rows(protocol, seed, split)),
        )
    else:
        where, numbered_rows = (
            f"{task.tfds} {split}",
            _number_rows(_read_tfds(task, split, folder, data_dir)),
        )
    rows, seen, errors = [], {}, {}
    for index, (line, row) in enumerate(numbered_rows):
        location = f"{where} {line}".rstrip()
        try:
            row = check_row(row, task.schema, location)
        except ValueError as error:
            if not lenient:
                raise
            errors[line] = str(error)
            continue
        key = str(row["id"] if "id" in row else index)
        if key in seen:
            raise ValueError(
                f"{location} has the id {key!r}, which {seen[key]} has too: give each its own"
            )
        seen[key] = line
        rows.append({**row, "id": key})
    if not rows:
        raise ValueError(
            next(iter(errors.values())) if errors else f"{where} has no row; {_data_hint(task)}"
        )
    return Rows(where, tuple(task.link(rows)), errors)


def check_row(row: Row, schema: Mapping[str, str], location: str) -> Row:
    """Returns `row` with its text made valid Unicode. Raises ValueError if a column of the schema
    is missing or of another type.
    """
    for name, expected_type in schema.items():
        assert TYPE_PATTERN.fullmatch(expected_type), (
            f"{name}: {expected_type!r} is not a schema type"
        )
        if name not in row:
            raise ValueError(
                f"{location} has no column {name!r} ({expected_type}): it has "
                f"{', '.join(row) or 'none'}"
            )
        actual_type = _type_name(row[name])
        if not _matches_type(actual_type, expected_type.partition(":")[0]):
            raise ValueError(f"{location}: {name} holds {actual_type}, not {expected_type}")
    return {name: _replace_surrogates(value) for name, value in row.items()}


def _type_name(value: Any) -> str:
    """The schema's name for the type of a value; an empty list matches every list type."""
    if isinstance(value, list | tuple):
        kinds = sorted({_type_name(element) for element in value})
        distinct = [
            kind
            for kind in kinds
            if not any(_matches_type(kind, other) for other in kinds if other != kind)
        ]
        return f"[{' or '.join(distinct)}]"
    if value is None:
        return "null"
    return TYPE_NAMES[type(value)] if type(value) in TYPE_NAMES else "an object"


def _matches_type(actual_type: str, expected_type: str) -> bool:
    if actual_type.startswith("[") and expected_type.startswith("["):
        return actual_type == "[]" or _matches_type(actual_type[1:-1], expected_type[1:-1])
    return actual_type == expected_type


def _replace_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return unicode.replace_surrogates(value)
    return (
        [_replace_surrogates(element) for element in value]
        if isinstance(value, list | tuple)
        else value
    )


def _local_file(task: Task, split: str, folder: str | None) -> pathlib.Path | None:
    """Returns the file of a split, or None. "train[:1000]", a slice of a TFDS split, uses the file
    of "train".
    """
    if folder is None:
        return None
    directory = pathlib.Path(folder).expanduser()
    if not directory.is_dir():
        raise ValueError(
            f"{directory} is not a folder: give the one that has NAME_SPLIT.jsonl or NAME.jsonl, "
            f"such as {task.name}_{split}.jsonl"
        )
    suffixes = [".jsonl", ".txt"] if isinstance(task.protocol.method, Windows) else [".jsonl"]
    names = [
        f"{stem}{suffix}"
        for stem in (f"{task.name}_{split.partition('[')[0]}", task.name)
        for suffix in suffixes
    ]
    return next((directory / name for name in names if (directory / name).is_file()), None)


def _read_jsonl(path: pathlib.Path) -> Iterable[tuple[str, Row]]:
    try:
        with path.open("rb") as stream:
            for number, row in files.read_objects(stream, path):
                yield f"line {number:,}", row
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _read_text(path: pathlib.Path) -> str:
    text = parse.read_text(path)
    if not text.strip():
        raise ValueError(f"{path} is empty: give the text to score")
    return text


def _number_rows(rows: Iterable[Row]) -> Iterable[tuple[str, Row]]:
    return ((f"example {number:,}", row) for number, row in enumerate(rows, 1))


def _read_tfds(task: Task, split: str, folder: str | None, data_dir: str | None) -> Iterable[Row]:
    local_hint = (
        f"no {task.name}_{split.partition('[')[0]}.jsonl or {task.name}.jsonl in {folder}"
        if folder
        else "no folder of .jsonl files is given"
    )
    if task.tfds is None:
        raise NoData(f"{task.name}: {local_hint}; {_data_hint(task)}")
    try:
        examples = open.tfds_examples(data.Tfds(name=task.tfds, split=split, data_dir=data_dir))
    except ValueError as error:
        raise NoData(f"{task.name}: {local_hint}, and {error}; or {_data_hint(task)}") from None
    return task.merge_rows(
        task.from_tfds(decode_example(example, f"{task.tfds} {split}")) for example in examples
    )


def _data_hint(task: Task) -> str:
    """How to get a task's data, for the end of an error message."""
    columns = ", ".join(f"{name} ({kind.partition(':')[0]})" for name, kind in task.schema.items())
    return f"give {task.name}_SPLIT.jsonl with the columns {columns}" + (
        f": {task.data_hint}" if task.data_hint else ""
    )


def decode_example(value: Any, where: str) -> Any:
    """Converts a TFDS example to Python values: bytes to text, arrays to lists, NumPy scalars to
    numbers.
    """
    if isinstance(value, Mapping):
        return {name: decode_example(element, where) for name, element in value.items()}
    if isinstance(value, bytes):
        return parse.utf8(value, where)
    if isinstance(value, str | bool | int | float) or value is None:
        return value
    if hasattr(value, "item") and not value.shape:  # a NumPy scalar, without importing NumPy
        return decode_example(value.item(), where)
    return [decode_example(element, where) for element in value]
