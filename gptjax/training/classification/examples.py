"""Labelled examples, from a .tsv, .csv or .jsonl file or a prepared TFDS data set: texts, answers, label, number. Errors are one line."""

import csv
import dataclasses
import hashlib
import io
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gptjax.config import data, parse
from gptjax.config.classification import Task
from gptjax.data import unicode
from gptjax.data.sources import files, open

FORMATS = (".tsv", ".csv", ".jsonl")
MOST_CLASSES = 1000  # found in a file: more are rather texts or scores
FEW = 20  # examples may each have a class of their own
Row = tuple[str, dict[str, Any]]  # where it stands, for errors, and its columns
UNLABELLED = ("-1", "-", "", "None")  # what data sets write where there is no gold label


@dataclasses.dataclass(frozen=True)
class Example:
    """label: the number of its class, or a score between two of them; None: not known, as in GLUE's test sets."""

    texts: tuple[str, ...]
    answers: tuple[str, ...]
    label: float | None
    index: str


def read(task: Task, split: str, say: Callable[[str], None]) -> list[Example]:
    """The examples of "train", "dev" or "test"; those of train and dev without a label are left out, and counted to `say`.

    ValueError, in one line that names the place: no such data, a missing column, a label that is none of task.labels, an empty text, one
    class only, or a test set of task.submission whose examples are not numbered."""
    where, source = _source(task, split)
    placed: list[tuple[str, Example]] = []
    numbered: set[bool] = set()
    for number, (place, row) in enumerate(source):
        if not number and split != "test":
            _check_label(task, row, place)
        numbered.add(task.index in row)
        if task.submission is not None and split == "test" and len(numbered) > 1:
            raise ValueError(
                f"{place}: {task.index} is there in some examples and not in others; give it to all, or to none: then they are counted"
            )
        placed += [(place, example) for example in _examples(task, row, place, number)]
    found = [example for _, example in placed]
    if not found:
        raise ValueError(f"{where} has no example; give another file with task.{split}=FILE")
    known = [example for example in found if example.label is not None]
    if split == "test":
        _check_numbers(task, placed)
        return found
    if len(known) < len(found):
        say(f"{where}: {len(found) - len(known):,} of {len(found):,} examples have no label and are left out")
    classes = {example.label for example in known}
    if len(classes) < 2:
        only = f"all of one class, {task.labels[int(classes.pop() or 0)]}" if classes else "without a label"
        raise ValueError(f"{where}: its examples are {only}; there is nothing to learn or to score: give examples of several classes")
    return known


def _check_numbers(task: Task, placed: list[tuple[str, Example]]) -> None:
    """GLUE's server knows an example by its number: ValueError unless each has one of its own."""
    if task.submission is None:
        return
    seen: dict[int, str] = {}
    for place, example in placed:
        if not re.fullmatch("[0-9]{1,18}", example.index):
            wrong = f"{place}: {task.index} is {parse.quote(example.index)}, which is no number"
        elif int(example.index) in seen:
            wrong = f"{place}: {task.index} is {example.index}, as in {seen[int(example.index)]}"
        else:
            seen[int(example.index)] = place
            continue
        raise ValueError(
            f"{wrong}; {task.submission}.tsv names examples by theirs: give each its own, another column with task.index, or "
            f"task.submission=None"
        )


def labelled(task: Task) -> Task:
    """The task with its labels: where it names none, those that its training examples have, sorted, numbers by size.

    ValueError, in one line, if there is no such column, or if it holds something else than classes."""
    if task.labels:
        return task
    where, source = _source(task, "train")
    names = []
    for place, row in source:
        _check_label(task, row, place)
        names.append(_name(row[task.label], place, task.label))
    found = set(names) - set(UNLABELLED)
    values = _values(found)
    if values is None:
        labels = sorted(found)
    else:  # 1 and 1.0 are one class
        labels = [min((name for name in found if values[name] == value), key=len) for value in sorted(set(values.values()))]
    if len(labels) > MOST_CLASSES or len(labels) == len(names) > FEW:
        raise ValueError(f"{where}: {task.label} has {len(labels):,} different labels; name the column of the classes with task.label")
    if len(labels) < 2:
        only = f"all of one class, {labels[0]}" if labels else "without a label"
        raise ValueError(f"{where}: its examples are {only}; there is nothing to learn: give examples of several classes")
    return dataclasses.replace(task, labels=tuple(labels))


def digest(task: Task, found: list[Example]) -> str:
    """Of texts, answers and labels by name: it does not depend on how they are made tokens."""
    made = hashlib.sha256()
    for example in found:
        label = example.label if example.label is None or task.metric == "pearson" else task.labels[int(example.label)]
        made.update(json.dumps([example.texts, example.answers, label]).encode())
    return made.hexdigest()


def repeated(known: list[Example], others: list[Example]) -> int:
    """How many of the others have the texts of a known one."""
    seen = {(example.texts, example.answers) for example in known}
    return sum((example.texts, example.answers) in seen for example in others)


def new(task: Task, given: Iterable[Row]) -> list[Example]:
    """Examples to be labelled, of rows that need no label. ValueError as `read`'s."""
    found = []
    for number, (place, row) in enumerate(given):
        questions = task.label in row and _listed(row[task.label]) is not None  # a label each: so many are asked
        found += _examples(task, row if questions else {k: v for k, v in row.items() if k != task.label}, place, number)
    return found


def _check_label(task: Task, row: dict[str, Any], place: str) -> None:
    if task.label not in row:
        raise ValueError(f"{place} has no column {task.label!r}: it has {_names(row)}; name the one of the labels with task.label")


def _source(task: Task, split: str) -> tuple[str, Iterator[Row]]:
    path = {"train": task.train, "dev": task.dev, "test": task.test}[split]
    if path is not None:
        return path, rows(parse.path(path))
    if task.tfds is None or task.train is not None:  # files and a data set are not mixed
        columns = ", ".join([*task.fields, *task.answers, task.label])
        raise ValueError(f"task.{split} is not given: a {' or '.join(FORMATS)} file with the columns {columns}")
    name = task.splits[("train", "dev", "test").index(split)]
    source = data.Tfds(name=task.tfds, split=name, data_dir=task.data_dir)
    try:
        examples = open.tfds_examples(source)
    except ValueError as error:
        raise ValueError(f"{error}; or give a {' or '.join(FORMATS)} file with task.{split}=FILE") from None
    return f"{task.tfds} {name}", ((f"{task.tfds} {name}, example {number:,}", row) for number, row in enumerate(examples, 1))


def rows(path: pathlib.Path) -> Iterator[Row]:
    """Of a .tsv or .csv file with a header line, or a .jsonl file."""
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: give a {', '.join(FORMATS)} file; a table's first line names its columns")
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a {' or '.join(FORMATS)} file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    return rows_of(content, path.suffix, str(path))


def rows_of(content: bytes, kind: str, where: str) -> Iterator[Row]:
    """(file and line, columns) of each row of a file's content; kind: of FORMATS. A .tsv file has no quoting, as GLUE's have none."""
    if kind == ".jsonl":
        for number, row in files.objects(io.BytesIO(content), pathlib.Path(where)):
            yield f"{where} line {number:,}", row
        return
    text = parse.utf8(content, where)
    how: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == ".tsv" else {"strict": True}
    lines, names, begins = csv.reader(io.StringIO(text, newline=""), **how), None, 1
    try:
        for fields in lines:
            place, begins = f"{where} line {begins:,}", lines.line_num + 1
            if not fields:
                continue
            if names is None:
                names = fields
                twice = next((name for name in names if names.count(name) > 1), None)
                if twice is not None:
                    raise ValueError(f"{place} names the column {twice!r} twice: give each a name of its own")
                continue
            if len(fields) != len(names):
                raise ValueError(f"{place} has {len(fields)} columns, and the first line names {len(names)}")
            yield place, dict(zip(names, fields, strict=True))
    except csv.Error as error:
        raise ValueError(f"{where} line {begins:,} cannot be read: {error}; mend its quotes, or give a .jsonl file") from None


def lines(content: bytes, where: str, column: str) -> Iterator[Row]:
    """The lines of a text that are not blank, each as a row of one column."""
    text = parse.utf8(content, where)
    return ((f"{where} line {number:,}", {column: line}) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _names(row: dict[str, Any]) -> str:
    return _cut(", ".join(map(str, row)))


def _examples(task: Task, row: dict[str, Any], where: str, number: int) -> Iterator[Example]:
    """One; or, where the label is a list as in RACE, one for each of its elements, with the elements of other lists of that length."""
    missing = [name for name in [*task.fields, *task.answers] if name not in row]
    if missing:
        asked = "task.answers" if missing[0] in task.answers else "task.fields"
        raise ValueError(f"{where} has no column {missing[0]!r}: it has {_names(row)}; name the one that is meant with {asked}")
    labels = _listed(row[task.label]) if task.label in row else None
    if labels is None:
        index = str(row[task.index] if task.index in row else number)
        yield _example(task, row, row[task.label] if task.label in row else None, where, index)
        return
    if not labels:
        raise ValueError(f"{where}: {task.label} is an empty list; give a label a question, or leave the example out")
    for turn, label in enumerate(labels):
        part = {}
        for name in [*task.fields, *task.answers]:
            many = _listed(row[name])
            part[name] = many[turn] if many is not None and len(many) == len(labels) else row[name]
        yield _example(task, part, label, f"{where}, question {turn + 1}", f"{number}-{turn}")


def _example(task: Task, row: dict[str, Any], label: Any, where: str, index: str) -> Example:
    texts = tuple(_text(row[name], where, name) for name in task.fields)
    answers: list[str] = []
    for name in task.answers:
        many = _listed(row[name])
        answers += [_text(one, where, name) for one in (many if many is not None else [row[name]])]
    if task.answers and len(answers) != len(task.labels):
        raise ValueError(
            f"{where} has {len(answers)} answers, and task.labels={task.labels} names {len(task.labels)}; give as many of both"
        )
    return Example(texts, tuple(answers), _label(task, label, where), index)


def _listed(value: Any) -> list | None:
    return None if isinstance(value, str | bytes | dict) or not hasattr(value, "__iter__") else list(value)


def _text(value: Any, where: str, name: str) -> str:
    if _listed(value) is not None:
        raise ValueError(f"{where}: {name} holds a list, not a text; only the columns of a choice may, as many texts as there are labels")
    if isinstance(value, dict):
        raise ValueError(f"{where}: {name} holds an object, not a text")
    text = "" if value is None else parse.utf8(value, where) if isinstance(value, bytes) else str(value)
    text = unicode.valid(text).strip()
    if not text:
        raise ValueError(f"{where}: {name} is empty; fill it, or leave the example out")
    return text


def _name(value: Any, where: str, column: str) -> str:
    """A label as it is spelled."""
    if _listed(value) is not None or isinstance(value, dict):
        raise ValueError(f"{where}: {column} holds {'an object' if isinstance(value, dict) else 'a list'}, not a label")
    return parse.utf8(value, where) if isinstance(value, bytes) else str(value)


def _values(labels: Iterable[str]) -> dict[str, float] | None:
    """The numbers that the labels spell, if all of them do."""
    try:
        found = {name: float(name) for name in labels}
    except ValueError:
        return None
    return found if all(map(math.isfinite, found.values())) else None


def _label(task: Task, value: Any, where: str) -> float | None:
    """Its class: by its name; by its value, where all names are numbers; else by its number, counted from 0. Of pearson, its value."""
    name = _name(value, where, task.label)
    if name in task.labels:
        return float(task.labels.index(name))
    if value is None or name in UNLABELLED:
        return None
    values, top = _values(task.labels), len(task.labels) - 1
    number = (_values([name]) or {name: math.nan})[name]
    if task.metric == "pearson":
        fits, allowed = 0 <= number <= top, f"a number from 0 to {top}"
    elif values is not None:
        fits, allowed = number in values.values(), ", ".join(task.labels)
    else:
        fits, allowed = number in range(top + 1), f"{', '.join(task.labels)}, or a number from 0 to {top}"
    if fits:
        return number if values is None or task.metric == "pearson" else float(list(values.values()).index(number))
    if number == -1:
        return None
    raise ValueError(f"{where}: {task.label} is {parse.quote(name)}; give {_cut(allowed)}, or other task.labels")


def _cut(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."
