"""The rows of a table in a .tsv, .csv or .jsonl file, each with its place for error messages."""

import csv
import io
import pathlib
from collections.abc import Iterator
from typing import Any

from gptjax.config import parse
from gptjax.data.sources import files

FORMATS = (".tsv", ".csv", ".jsonl")
Row = tuple[str, dict[str, Any]]  # where it stands, for errors, and its columns


def read_rows(path: pathlib.Path) -> Iterator[Row]:
    """Returns the rows of a .tsv or .csv file with a header line, or of a .jsonl file."""
    if path.suffix not in FORMATS:
        raise ValueError(
            f"{path}: give a {', '.join(FORMATS)} file; a table's first line names its columns"
        )
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a {' or '.join(FORMATS)} file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    return parse_rows(content, path.suffix, str(path))


def parse_rows(content: bytes, kind: str, where: str) -> Iterator[Row]:
    """(file and line, columns) of each row of a file's content; kind: of FORMATS. A .tsv file
    has no quoting, as GLUE's have none."""
    if kind == ".jsonl":
        for number, row in files.read_objects(io.BytesIO(content), pathlib.Path(where)):
            yield f"{where} line {number:,}", row
        return
    text = parse.utf8(content, where)
    csv_options: dict[str, Any] = (
        {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == ".tsv" else {"strict": True}
    )
    table, names, first_line = csv.reader(io.StringIO(text, newline=""), **csv_options), None, 1
    try:
        for fields in table:
            location, first_line = f"{where} line {first_line:,}", table.line_num + 1
            if not fields:
                continue
            if names is None:
                names = fields
                duplicate = next((name for name in names if names.count(name) > 1), None)
                if duplicate is not None:
                    raise ValueError(
                        f"{location} names the column {duplicate!r} twice: give each a name of its "
                        "own"
                    )
                continue
            if len(fields) != len(names):
                raise ValueError(
                    f"{location} has {len(fields)} columns, and the first line names {len(names)}"
                )
            yield location, dict(zip(names, fields, strict=True))
    except csv.Error as error:
        raise ValueError(
            f"{where} line {first_line:,} cannot be read: {error}; mend its quotes, or give a "
            ".jsonl file"
        ) from None


def text_lines(content: bytes, where: str, column: str) -> Iterator[Row]:
    """Returns the lines of a text that are not blank, each as a row with one column."""
    text = parse.utf8(content, where)
    return (
        (f"{where} line {number:,}", {column: line})
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    )
