"""Labeled examples, from a .tsv, .csv or .jsonl file or a prepared TFDS data set: texts, answers,
label, number. Errors are one line.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gptjax.config import data, parse
from gptjax.config.classification import ClassificationTask
from gptjax.data import unicode
from gptjax.data.sources import open
from gptjax.training.classification.rows import FORMATS, Row, read_rows

MAX_CLASSES = 1000  # found in a file: more are rather texts or scores
FEW_EXAMPLES = 20  # examples may each have a class of their own
UNKNOWN_LABELS = ("-1", "-", "", "None")  # what data sets write where there is no gold label


@dataclasses.dataclass(frozen=True)
class Example:
    """One example. label: the number of its class, or for a regression task a score between the
    numbers of two classes; None if unknown, as in GLUE's test sets."""

    texts: tuple[str, ...]
    answers: tuple[str, ...]
    label: float | None
    index: str


def read(task: ClassificationTask, split: str, print_line: Callable[[str], None]) -> list[Example]:
    """The examples of "train", "dev" or "test"; those of train and dev without a label are left
    out, and counted to `print_line`.

    ValueError, in one line that names the place: no such data, a missing column, a label that is
    none of task.labels, an empty text, one class only, or a test set of task.submission whose
    examples are not numbered."""
    where, source = _open_source(task, split)
    located: list[tuple[str, Example]] = []
    has_index: set[bool] = set()
    for number, (location, row) in enumerate(source):
        if not number and split != "test":
            _check_label_column(task, row, location)
        has_index.add(task.index in row)
        if task.submission is not None and split == "test" and len(has_index) > 1:
            raise ValueError(
                f"{location}: {task.index} is there in some examples and not in others; give it to "
                "all, or to none: then they are counted"
            )
        located += [(location, example) for example in _parse_examples(task, row, location, number)]
    examples = [example for _, example in located]
    if not examples:
        raise ValueError(f"{where} has no example; give another file with task.{split}=FILE")
    labeled = [example for example in examples if example.label is not None]
    if split == "test":
        _check_indices(task, located)
        return examples
    if len(labeled) < len(examples):
        print_line(
            f"{where}: {len(examples) - len(labeled):,} of {len(examples):,} examples have no "
            "label and are left out"
        )
    classes = {example.label for example in labeled}
    if len(classes) < 2:
        only = (
            f"all of one class, {task.labels[int(classes.pop() or 0)]}"
            if classes
            else "without a label"
        )
        raise ValueError(
            f"{where}: its examples are {only}; there is nothing to learn or to score: give "
            "examples of several classes"
        )
    return labeled


def _check_indices(task: ClassificationTask, located: list[tuple[str, Example]]) -> None:
    """Raises ValueError unless each example has an index of its own, by which GLUE's server
    identifies it."""
    if task.submission is None:
        return
    seen: dict[int, str] = {}
    for location, example in located:
        if not re.fullmatch("[0-9]{1,18}", example.index):
            problem = (
                f"{location}: {task.index} is {parse.quote(example.index)}, which is no number"
            )
        elif int(example.index) in seen:
            problem = (
                f"{location}: {task.index} is {example.index}, as in {seen[int(example.index)]}"
            )
        else:
            seen[int(example.index)] = location
            continue
        raise ValueError(
            f"{problem}; {task.submission}.tsv names examples by theirs: give each its own, "
            "another column with task.index, or "
            f"task.submission=None"
        )


def infer_labels(task: ClassificationTask) -> ClassificationTask:
    """Returns the task with its labels; if it names none, those of its training examples, sorted,
    numbers by value.

    ValueError, in one line, if the column does not exist or does not contain classes."""
    if task.labels:
        return task
    where, source = _open_source(task, "train")
    names = []
    for location, row in source:
        _check_label_column(task, row, location)
        names.append(_label_name(row[task.label], location, task.label))
    label_names = set(names) - set(UNKNOWN_LABELS)
    values = _parse_numbers(label_names)
    if values is None:
        labels = sorted(label_names)
    else:  # 1 and 1.0 are one class
        labels = [
            min((name for name in label_names if values[name] == value), key=len)
            for value in sorted(set(values.values()))
        ]
    if len(labels) > MAX_CLASSES or len(labels) == len(names) > FEW_EXAMPLES:
        raise ValueError(
            f"{where}: {task.label} has {len(labels):,} different labels; name the column of the "
            "classes with task.label"
        )
    if len(labels) < 2:
        only = f"all of one class, {labels[0]}" if labels else "without a label"
        raise ValueError(
            f"{where}: its examples are {only}; there is nothing to learn: give examples of "
            "several classes"
        )
    return dataclasses.replace(task, labels=tuple(labels))


def digest(task: ClassificationTask, examples: list[Example]) -> str:
    """Returns a digest of texts, answers and label names, which does not depend on the
    tokenizer."""
    hasher = hashlib.sha256()
    for example in examples:
        label = (
            example.label
            if example.label is None or task.metric == "pearson"
            else task.labels[int(example.label)]
        )
        hasher.update(json.dumps([example.texts, example.answers, label]).encode())
    return hasher.hexdigest()


def count_repeats(examples: list[Example], others: list[Example]) -> int:
    """Returns how many of `others` have the same texts as one of `examples`."""
    seen = {(example.texts, example.answers) for example in examples}
    return sum((example.texts, example.answers) in seen for example in others)


def parse_unlabeled(task: ClassificationTask, rows: Iterable[Row]) -> list[Example]:
    """Examples to be labeled, of rows that need no label. ValueError as `read`'s."""
    examples = []
    for number, (location, row) in enumerate(rows):
        # one per label: so many are required
        has_label_list = task.label in row and _as_list(row[task.label]) is not None
        examples += _parse_examples(
            task,
            row if has_label_list else {k: v for k, v in row.items() if k != task.label},
            location,
            number,
        )
    return examples


def _check_label_column(task: ClassificationTask, row: dict[str, Any], location: str) -> None:
    if task.label not in row:
        raise ValueError(
            f"{location} has no column {task.label!r}: it has {_column_names(row)}; name the one "
            "of the labels with task.label"
        )


def _open_source(task: ClassificationTask, split: str) -> tuple[str, Iterator[Row]]:
    path = {"train": task.train, "dev": task.dev, "test": task.test}[split]
    if path is not None:
        return path, read_rows(parse.path(path))
    if task.tfds is None or task.train is not None:  # files and a data set are not mixed
        columns = ", ".join([*task.fields, *task.answers, task.label])
        raise ValueError(
            f"task.{split} is not given: a {' or '.join(FORMATS)} file with the columns {columns}"
        )
    name = task.splits[("train", "dev", "test").index(split)]
    source = data.Tfds(name=task.tfds, split=name, data_dir=task.data_dir)
    try:
        examples = open.tfds_examples(source)
    except ValueError as error:
        raise ValueError(
            f"{error}; or give a {' or '.join(FORMATS)} file with task.{split}=FILE"
        ) from None
    return f"{task.tfds} {name}", (
        (f"{task.tfds} {name}, example {number:,}", row) for number, row in enumerate(examples, 1)
    )


def _column_names(row: dict[str, Any]) -> str:
    return _truncate(", ".join(map(str, row)))


def _parse_examples(
    task: ClassificationTask, row: dict[str, Any], where: str, number: int
) -> Iterator[Example]:
    """Returns the examples of a row: one, or, if the label is a list as in RACE, one for each
    element of it, with the corresponding elements of other lists of that length."""
    missing = [name for name in [*task.fields, *task.answers] if name not in row]
    if missing:
        field = "task.answers" if missing[0] in task.answers else "task.fields"
        raise ValueError(
            f"{where} has no column {missing[0]!r}: it has {_column_names(row)}; name the one that "
            f"is meant with {field}"
        )
    labels = _as_list(row[task.label]) if task.label in row else None
    if labels is None:
        index = str(row[task.index] if task.index in row else number)
        yield _parse_example(
            task, row, row[task.label] if task.label in row else None, where, index
        )
        return
    if not labels:
        raise ValueError(
            f"{where}: {task.label} is an empty list; give a label a question, or leave the "
            "example out"
        )
    for item, label in enumerate(labels):
        part = {}
        for name in [*task.fields, *task.answers]:
            values = _as_list(row[name])
            part[name] = (
                values[item] if values is not None and len(values) == len(labels) else row[name]
            )
        yield _parse_example(task, part, label, f"{where}, question {item + 1}", f"{number}-{item}")


def _parse_example(
    task: ClassificationTask, row: dict[str, Any], label: Any, where: str, index: str
) -> Example:
    texts = tuple(_parse_text(row[name], where, name) for name in task.fields)
    answers: list[str] = []
    for name in task.answers:
        values = _as_list(row[name])
        answers += [
            _parse_text(one, where, name) for one in (values if values is not None else [row[name]])
        ]
    if task.answers and len(answers) != len(task.labels):
        raise ValueError(
            f"{where} has {len(answers)} answers, and task.labels={task.labels} names "
            f"{len(task.labels)}; give as many of both"
        )
    return Example(texts, tuple(answers), _parse_label(task, label, where), index)


def _as_list(value: Any) -> list | None:
    return (
        None
        if isinstance(value, str | bytes | dict) or not hasattr(value, "__iter__")
        else list(value)
    )


def _parse_text(value: Any, where: str, name: str) -> str:
    if _as_list(value) is not None:
        raise ValueError(
            f"{where}: {name} holds a list, not a text; only the columns of a choice may, as many "
            "texts as there are labels"
        )
    if isinstance(value, dict):
        raise ValueError(f"{where}: {name} holds an object, not a text")
    text = (
        ""
        if value is None
        else parse.utf8(value, where)
        if isinstance(value, bytes)
        else str(value)
    )
    text = unicode.replace_surrogates(text).strip()
    if not text:
        raise ValueError(f"{where}: {name} is empty; fill it, or leave the example out")
    return text


def _label_name(value: Any, where: str, column: str) -> str:
    """Returns a label as text."""
    if _as_list(value) is not None or isinstance(value, dict):
        raise ValueError(
            f"{where}: {column} holds {'an object' if isinstance(value, dict) else 'a list'}, not "
            "a label"
        )
    return parse.utf8(value, where) if isinstance(value, bytes) else str(value)


def _parse_numbers(labels: Iterable[str]) -> dict[str, float] | None:
    """Returns the numbers that the labels spell, if all of them are numbers."""
    try:
        numbers = {name: float(name) for name in labels}
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers.values())) else None


def _parse_label(task: ClassificationTask, value: Any, where: str) -> float | None:
    """Returns the class of a label: by name; by value if all names are numbers; else by number,
    counted from 0. For the metric pearson, return its value."""
    name = _label_name(value, where, task.label)
    if name in task.labels:
        return float(task.labels.index(name))
    if value is None or name in UNKNOWN_LABELS:
        return None
    values, max_class = _parse_numbers(task.labels), len(task.labels) - 1
    number = (_parse_numbers([name]) or {name: math.nan})[name]
    if task.metric == "pearson":
        fits, allowed = 0 <= number <= max_class, f"a number from 0 to {max_class}"
    elif values is not None:
        fits, allowed = number in values.values(), ", ".join(task.labels)
    else:
        fits, allowed = (
            number in range(max_class + 1),
            f"{', '.join(task.labels)}, or a number from 0 to {max_class}",
        )
    if fits:
        return (
            number
            if values is None or task.metric == "pearson"
            else float(list(values.values()).index(number))
        )
    if number == -1:
        return None
    raise ValueError(
        f"{where}: {task.label} is {parse.quote(name)}; give {_truncate(allowed)}, or other "
        "task.labels"
    )


def _truncate(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."
