"""A task and where its data lie -> its rows, checked against the task's schema. Errors are one
line."""

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


@dataclasses.dataclass(frozen=True)
class Rows:
    """source: the file or the data set that the rows were read from, for people. errors: of rows
    that are not as the schema says, by their place, why."""

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
    """The rows of one of a task's splits, each with an `id`. protocol and seed: for tasks that make
    theirs. lenient: a row that is not as the schema says is left out and named, as long as another
    is.

    Looked for in this order: FOLDER/NAME_SPLIT.jsonl, one object a line with the columns of
    task.schema; FOLDER/NAME.jsonl, which then is every split; of a task that reads texts whole, the
    same names with .txt, a file being one row; what the task makes by itself, from the seed; TFDS'
    prepared set, in data_dir or tfds' own directory. ValueError, in one line, for data that are
    nowhere, and for a row that is not as the schema says: its line, its column, what is wanted."""
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
    """`row` with its text made valid Unicode. ValueError if a column of the schema is missing or
    of another type."""
    for name, expected_type in schema.items():
        assert TYPE_PATTERN.fullmatch(expected_type), (
            f"{name}: {expected_type!r} is no type of a schema"
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
    """What a schema calls a value; a list of nothing fits every list."""
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
    """The file of a split, if there is one. "train[:1000]", a part of a split of TFDS, is the
    file of "train"."""
    if folder is None:
        return None
    directory = pathlib.Path(folder).expanduser()
    if not directory.is_dir():
        raise ValueError(
            f"{directory} is no folder: give the one that has NAME_SPLIT.jsonl or NAME.jsonl, such "
            f"as {task.name}_{split}.jsonl"
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
        raise ValueError(f"{path} is empty: give the text that is to be read")
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
        raise ValueError(f"{task.name}: {local_hint}; {_data_hint(task)}")
    try:
        examples = open.tfds_examples(data.Tfds(name=task.tfds, split=split, data_dir=data_dir))
    except ValueError as error:
        raise ValueError(f"{task.name}: {local_hint}, and {error}; or {_data_hint(task)}") from None
    return task.merge_rows(
        task.from_tfds(decode_example(example, f"{task.tfds} {split}")) for example in examples
    )


def _data_hint(task: Task) -> str:
    """How to get a task's data, for the end of a line."""
    columns = ", ".join(f"{name} ({kind.partition(':')[0]})" for name, kind in task.schema.items())
    return f"give {task.name}_SPLIT.jsonl with the columns {columns}" + (
        f": {task.data_hint}" if task.data_hint else ""
    )


def decode_example(value: Any, where: str) -> Any:
    """An example of TFDS as Python's own values: bytes as text, arrays as lists, NumPy's numbers
    as numbers."""
    if isinstance(value, Mapping):
        return {name: decode_example(element, where) for name, element in value.items()}
    if isinstance(value, bytes):
        return parse.utf8(value, where)
    if isinstance(value, str | bool | int | float) or value is None:
        return value
    if hasattr(value, "item") and not value.shape:  # one of NumPy's; it is not imported for this
        return decode_example(value.item(), where)
    return [decode_example(element, where) for element in value]
