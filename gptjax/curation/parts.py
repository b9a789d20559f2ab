"""Parts: the files of pages between stages, and the ledger of each: what was read, kept and
dropped, and why.

A part is a .parquet file with page checksums, of one data set. Its ledger is a JSON file with a
seal, written after the part, so that a part without an intact ledger is not there.
"""

import collections
import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from gptjax.curation.page import Dropped, Page
from gptjax.runtime import atomic, checksums

SCHEMA = pa.schema(
    [("number", pa.int64()), ("id", pa.string()), ("url", pa.string()), ("text", pa.string())]
)
DROPPED_SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("id", pa.string()),
        ("url", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("excerpt", pa.string()),
    ]
)
GROUP_BYTES = 2**23  # of text in a row group, which is held in memory
EXCERPT_CHARS = 200  # of a dropped page's text


@dataclasses.dataclass(frozen=True)
class Part:
    """A file of pages. corpus: the name of its data set. path: the file. documents, text_bytes:
    what is in it; bytes are of UTF-8. digest: SHA-256 of the file.
    """

    corpus: str
    path: pathlib.Path
    documents: int
    text_bytes: int
    digest: str

    @property
    def name(self) -> str:
        """Name of the file without its folder and extension."""
        return self.path.stem


class Writer:
    """Writes rows to a .parquet file that appears when the block ends, and never if it fails."""

    def __init__(self, path: pathlib.Path, schema: pa.Schema):
        self._path, self._schema = path, schema
        self._rows: list[tuple[Any, ...]] = []
        self._n_bytes = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Writer":
        raw = self._stack.enter_context(atomic.atomic_write(self._path))
        self._parquet = self._stack.enter_context(
            pyarrow.parquet.ParquetWriter(
                raw, self._schema, compression="zstd", compression_level=1, write_page_checksum=True
            )
        )
        return self

    def __exit__(self, *error: Any) -> None:
        with self._stack:  # which sees an error of the last rows, too
            if error[0] is None:
                self._flush()
            else:
                raise error[1]

    def write(self, row: tuple[Any, ...], n_bytes: int) -> None:
        """Writes a row. n_bytes: about its size."""
        self._rows.append(row)
        self._n_bytes += n_bytes
        if self._n_bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = [
                pa.array(column, field.type)
                for column, field in zip(zip(*self._rows, strict=True), self._schema, strict=True)
            ]
            self._parquet.write_batch(pa.record_batch(columns, schema=self._schema))
        self._rows, self._n_bytes = [], 0


def read_rows(path: pathlib.Path, columns: Iterable[str]) -> Iterator[tuple[Any, ...]]:
    """Yields the rows of a .parquet file, a row group in memory at a time. Raises a one-line
    ValueError if damage is noticed, which that of its footer may not be."""
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, list(columns), use_threads=False)
                yield from zip(*(table[name].to_pylist() for name in columns), strict=True)
    except (pa.ArrowException, OSError, KeyError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise _damage(path, str(error).splitlines()[0]) from None


def read_pages(part: Part) -> Iterator[Page]:
    """Yields the pages of a part. Raises a one-line ValueError if its file is damaged."""
    check(part)
    yield from (Page(*row) for row in read_rows(part.path, SCHEMA.names))


def check(part: Part) -> None:
    """Raises a one-line ValueError if the file of a part is damaged."""
    if checksums.file_digest(part.path) != part.digest:
        raise _damage(part.path, "its digest is another")


def _damage(path: pathlib.Path, how: str) -> ValueError:
    return ValueError(f"{path} is damaged ({how}): delete it, and run the same command again")


def utf8_length(text: str) -> int:
    """Returns the number of bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


# --- ledgers --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Ledger:
    """What a stage did to a part, or to all. Every count is a pair: documents, and bytes of them.

    read = kept + the sum of dropped, in documents and in bytes. kept: those of which something was
    written, as they were read; written: as they were written, in one or several pages. changed:
    those of kept whose text was changed. notes: further counts of the stage.
    """

    read: tuple[int, int] = (0, 0)
    kept: tuple[int, int] = (0, 0)
    written: tuple[int, int] = (0, 0)
    changed: tuple[int, int] = (0, 0)
    dropped: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    notes: dict[str, int] = dataclasses.field(default_factory=dict)

    def count(self, n_bytes: int, outcome: "list[Page] | Dropped", changed: bool) -> None:
        """Counts a document of n_bytes and what became of it."""
        self.read = _add(self.read, (1, n_bytes))
        if isinstance(outcome, Dropped):
            before = self.dropped.get(outcome.reason, (0, 0))  # a reason seen for the first time
            self.dropped[outcome.reason] = _add(before, (1, n_bytes))
            return
        self.kept = _add(self.kept, (1, n_bytes))
        self.changed = _add(self.changed, (changed, n_bytes * changed))
        size = sum(utf8_length(page.text) for page in outcome)
        self.written = _add(self.written, (len(outcome), size))

    def __add__(self, other: "Ledger") -> "Ledger":
        notes = collections.Counter(self.notes)
        notes.update(other.notes)
        return Ledger(
            _add(self.read, other.read),
            _add(self.kept, other.kept),
            _add(self.written, other.written),
            _add(self.changed, other.changed),
            {
                reason: _add(self.dropped.get(reason, (0, 0)), other.dropped.get(reason, (0, 0)))
                for reason in sorted({*self.dropped, *other.dropped})
            },
            dict(sorted(notes.items())),
        )

    @property
    def dropped_total(self) -> tuple[int, int]:
        """What was dropped, for any reason."""
        return functools.reduce(_add, self.dropped.values(), (0, 0))

    def check(self, where: str) -> None:
        """Raises ValueError unless every document that was read was kept or dropped."""
        total = _add(self.kept, self.dropped_total)
        if total != self.read:
            raise ValueError(
                f"{where}: the ledger does not balance: {self.read[0]:,} documents of "
                f"{self.read[1]:,} bytes were read, {total[0]:,} of {total[1]:,} kept or dropped; "
                "this is an error of gptjax"
            )

    def to_json(self) -> dict[str, Any]:
        """Returns the ledger as a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Ledger":
        """Inverse of `to_json`."""
        pairs = {name: tuple(record[name]) for name in ("read", "kept", "written", "changed")}
        dropped = {reason: tuple(counts) for reason, counts in record["dropped"].items()}
        return cls(**pairs, dropped=dropped, notes=record["notes"])  # type: ignore[arg-type]


def _add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]


@dataclasses.dataclass(frozen=True)
class Result:
    """What a stage made of a part: the ledger, and the parts that it wrote."""

    ledger: Ledger
    parts: list[Part]


def save_result(path: pathlib.Path, key: str, result: Result) -> None:
    """Writes a result next to its parts. key: of the stage, on which the result depends. Raises
    ValueError if the ledger does not balance."""
    result.ledger.check(str(path))
    parts = [
        dataclasses.asdict(part) | {"path": part.path.name, "size": part.path.stat().st_size}
        for part in result.parts
    ]
    checksums.save(path, {"key": key, "ledger": result.ledger.to_json(), "parts": parts})


def load_result(path: pathlib.Path, key: str) -> Result | None:
    """Reads a result; None if it is missing, damaged, of another key, or one of its parts is
    missing or of another size."""
    try:
        record = checksums.read(path)
        if record["key"] != key:
            return None
        parts = []
        for part in record["parts"]:
            file = path.parent / part["path"]
            if file.stat().st_size != part["size"]:
                return None
            counts = part["documents"], part["text_bytes"]
            parts.append(Part(part["corpus"], file, *counts, part["digest"]))
        return Result(Ledger.from_json(record["ledger"]), parts)
    except (ValueError, OSError):
        return None
