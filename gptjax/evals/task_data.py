"""A task and where its data lie -> its rows, checked against the task's schema. Errors are one line."""

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

TYPE = re.compile(r"(\[*)(text|number|truth)(\]*)(?::.*|$)")
PLAIN = {str: "text", bool: "truth", int: "number", float: "number"}


@dataclasses.dataclass(frozen=True)
class Found:
    """where: the file or the data set that the rows were read from, for people. refused: of rows that are not as the schema says, by their
    place, why."""

    where: str
    rows: tuple[Row, ...]
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)


def found(
    task: Task,
    protocol: Protocol,
    split: str,
    folder: str | None = None,
    data_dir: str | None = None,
    seed: int = 0,
    lenient: bool = False,
) -> Found:
    """The rows of one of a task's splits, each with an `id`. protocol and seed: for tasks that make theirs. lenient: a row that is not as
    the schema says is left out and named, as long as another is.

    Looked for in this order: FOLDER/NAME_SPLIT.jsonl, one object a line with the columns of task.schema; FOLDER/NAME.jsonl, which then is
    every split; of a task that reads texts whole, the same names with .txt, a file being one row; what the task makes by itself, from the
    seed; TFDS' prepared set, in data_dir or tfds' own directory. ValueError, in one line, for data that are nowhere, and for a row that is
    not as the schema says: its line, its column, what is wanted."""
    path = _local(task, split, folder)
    if path is not None and path.suffix == ".txt":
        where, numbered = str(path), [("", {"text": _whole(path)})]
    elif path is not None:
        where, numbered = str(path), _lines(path)
    elif task.made is not None:
        where, numbered = f"{task.name}, made from seed {seed}", _numbered(task.made(protocol, seed, split))
    else:
        where, numbered = f"{task.tfds} {split}", _numbered(_from_tfds(task, split, folder, data_dir))
    rows, seen, refused = [], {}, {}
    for number, (line, row) in enumerate(numbered):
        place = f"{where} {line}".rstrip()
        try:
            row = checked(row, task.schema, place)
        except ValueError as error:
            if not lenient:
                raise
            refused[line] = str(error)
            continue
        key = str(row["id"] if "id" in row else number)
        if key in seen:
            raise ValueError(f"{place} has the id {key!r}, which {seen[key]} has too: give each its own")
        seen[key] = line
        rows.append({**row, "id": key})
    if not rows:
        raise ValueError(next(iter(refused.values())) if refused else f"{where} has no row; {_how(task)}")
    return Found(where, tuple(task.link(rows)), refused)


def checked(row: Row, schema: Mapping[str, str], place: str) -> Row:
    """`row` with its text made valid Unicode. ValueError if a column of the schema is missing or of another type."""
    for name, wanted in schema.items():
        assert TYPE.fullmatch(wanted), f"{name}: {wanted!r} is no type of a schema"
        if name not in row:
            raise ValueError(f"{place} has no column {name!r} ({wanted}): it has {', '.join(row) or 'none'}")
        given = _type(row[name])
        if not _fits(given, wanted.partition(":")[0]):
            raise ValueError(f"{place}: {name} holds {given}, not {wanted}")
    return {name: _valid(value) for name, value in row.items()}


def _type(value: Any) -> str:
    """What a schema calls a value; a list of nothing fits every list."""
    if isinstance(value, list | tuple):
        kinds = sorted({_type(one) for one in value})
        alike = [kind for kind in kinds if not any(_fits(kind, other) for other in kinds if other != kind)]
        return f"[{' or '.join(alike)}]"
    if value is None:
        return "null"
    return PLAIN[type(value)] if type(value) in PLAIN else "an object"


def _fits(given: str, wanted: str) -> bool:
    if given.startswith("[") and wanted.startswith("["):
        return given == "[]" or _fits(given[1:-1], wanted[1:-1])
    return given == wanted


def _valid(value: Any) -> Any:
    if isinstance(value, str):
        return unicode.valid(value)
    return [_valid(one) for one in value] if isinstance(value, list | tuple) else value


def _local(task: Task, split: str, folder: str | None) -> pathlib.Path | None:
    """The file of a split, if there is one. "train[:1000]", a part of a split of TFDS, is the file of "train"."""
    if folder is None:
        return None
    place = pathlib.Path(folder).expanduser()
    if not place.is_dir():
        raise ValueError(f"{place} is no folder: give the one that has NAME_SPLIT.jsonl or NAME.jsonl, such as {task.name}_{split}.jsonl")
    endings = [".jsonl", ".txt"] if isinstance(task.protocol.method, Windows) else [".jsonl"]
    names = [f"{stem}{ending}" for stem in (f"{task.name}_{split.partition('[')[0]}", task.name) for ending in endings]
    return next((place / name for name in names if (place / name).is_file()), None)


def _lines(path: pathlib.Path) -> Iterable[tuple[str, Row]]:
    try:
        with path.open("rb") as stream:
            for number, row in files.objects(stream, path):
                yield f"line {number:,}", row
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _whole(path: pathlib.Path) -> str:
    text = parse.text_file(path)
    if not text.strip():
        raise ValueError(f"{path} is empty: give the text that is to be read")
    return text


def _numbered(rows: Iterable[Row]) -> Iterable[tuple[str, Row]]:
    return ((f"example {number:,}", row) for number, row in enumerate(rows, 1))


def _from_tfds(task: Task, split: str, folder: str | None, data_dir: str | None) -> Iterable[Row]:
    here = (
        f"no {task.name}_{split.partition('[')[0]}.jsonl or {task.name}.jsonl in {folder}"
        if folder
        else "no folder of .jsonl files is given"
    )
    if task.tfds is None:
        raise ValueError(f"{task.name}: {here}; {_how(task)}")
    try:
        examples = open.tfds_examples(data.Tfds(name=task.tfds, split=split, data_dir=data_dir))
    except ValueError as error:
        raise ValueError(f"{task.name}: {here}, and {error}; or {_how(task)}") from None
    return task.gathered(task.from_tfds(decoded(example, f"{task.tfds} {split}")) for example in examples)


def _how(task: Task) -> str:
    """How to get a task's data, for the end of a line."""
    columns = ", ".join(f"{name} ({kind.partition(':')[0]})" for name, kind in task.schema.items())
    return f"give {task.name}_SPLIT.jsonl with the columns {columns}" + (f": {task.get}" if task.get else "")


def decoded(value: Any, where: str) -> Any:
    """An example of TFDS as Python's own values: bytes as text, arrays as lists, NumPy's numbers as numbers."""
    if isinstance(value, Mapping):
        return {name: decoded(one, where) for name, one in value.items()}
    if isinstance(value, bytes):
        return parse.utf8(value, where)
    if isinstance(value, str | bool | int | float) or value is None:
        return value
    if hasattr(value, "item") and not value.shape:  # one of NumPy's; it is not imported for this
        return decoded(value.item(), where)
    return [decoded(one, where) for one in value]
