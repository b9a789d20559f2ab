"""Documents from files: .txt, .jsonl and .parquet, plain or compressed as .gz, .xz or .zst, read as
a stream. Every error is one line that names the file."""

import collections
import contextlib
import itertools
import os
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from gptjax.config import find_files, parse
from gptjax.data import unicode
from gptjax.data.sources import compression, document
from gptjax.data.sources.document import Document

# Bytes of a document, or of a line of .jsonl: more would fill the memory, and is hardly text.
MAX_DOCUMENT_BYTES = 2**31
Skipped = collections.Counter[str]  # reason for skipping -> how often


def documents(path: str, field: str, skipped: Skipped | None = None) -> Iterator[Document]:
    """Yields the documents of every file under `path` (a file, a directory or a glob), in order of
    name.

    field: of .jsonl objects, or a column of .parquet files; its string is the text. skipped: counts
    the files without text, and the documents that are null or empty. Raises a one-line ValueError
    for a file that is missing, unreadable, damaged, binary or without the field, and if there is no
    text at all.
    """
    listing = find_files.find(path)
    skipped = collections.Counter() if skipped is None else skipped
    total, bytes_before, any_text = max(1, listing.n_bytes), 0, False
    for number, (file, state) in enumerate(listing.states.items()):
        empty, size = True, state.st_size
        try:
            with file.open("rb") as raw:
                for text in read(file, raw, field):
                    if not text:
                        skipped[
                            f"documents whose {field} is null"
                            if text is None
                            else "empty documents"
                        ] += 1
                        continue
                    empty, text = False, unicode.replace_surrogates(text)
                    yield Document(
                        text,
                        document.text_key(text),
                        (bytes_before + min(size, raw.tell())) / total,
                        number,
                    )
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None
        bytes_before += size
        skipped["files without text"] += empty
        any_text |= not empty
    if not any_text:
        n_files = len(listing.files)
        what = (
            f"{file} is empty: it"
            if n_files == 1
            else f"Text(path={path!r}): none of its {n_files:,} files"
        )
        raise ValueError(f"{what} holds no text; give another")


def read(file: pathlib.Path, raw: BinaryIO, field: str) -> Iterator[str | None]:
    """Yields the texts of one file, opened as `raw`; None where the field is null."""
    file_format, compression_suffix = find_files.file_type(file)
    if compression_suffix and os.fstat(raw.fileno()).st_size == 0:
        return
    try:
        stream = compression.decompress(raw, compression_suffix)
        match file_format:
            case ".txt":
                if content := read_whole(stream, str(file)):
                    yield parse.utf8(content, str(file))
            case ".jsonl":
                yield from read_jsonl(stream, file, field)
            case ".parquet":
                yield from read_parquet(stream, file, field)
    except compression.CorruptFile as error:
        raise ValueError(f"{file} is damaged or cut short ({error}): fetch it again") from None


def read_whole(stream: BinaryIO, where: str) -> bytearray:
    """Returns the content of a stream, up to the first part with a zero byte, which text does not
    contain. Raises ValueError for more than MAX_DOCUMENT_BYTES."""
    content = bytearray()
    while part := stream.read(compression.BUFFER_BYTES):
        content += part
        if b"\0" in part:
            break
        if len(content) > MAX_DOCUMENT_BYTES:
            raise ValueError(
                f"{where} has over {MAX_DOCUMENT_BYTES:,} bytes, too many for one document: cut it "
                "into several files"
            )
    return content


def read_jsonl(
    stream: BinaryIO, file: pathlib.Path, field: str, first_line: int = 1
) -> Iterator[str | None]:
    """Yields the field of the object on each line; None where it is null. first_line: number of the
    line at which `stream` is."""
    for number, value in read_objects(stream, file, first_line):
        if field not in value:
            has = ", ".join(value) or "nothing"
            raise ValueError(
                f"{file} line {number:,} has no string field {field!r}: it has {has}; name the "
                "field with field=..."
            )
        text = value[field]
        if text is not None and not isinstance(text, str):
            raise ValueError(
                f"{file} line {number:,} has no string field {field!r}: that is "
                f"{parse.quote(text)}; name another with field=..."
            )
        yield text


def read_objects(
    stream: BinaryIO, file: pathlib.Path, first_line: int = 1
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, object) for each line of a .jsonl file; skips blank lines and a byte
    order mark. Raises a one-line ValueError for anything else."""
    for number in itertools.count(first_line):
        line = stream.readline(MAX_DOCUMENT_BYTES + 1)
        if not line:
            return
        where = f"{file} line {number:,}"
        if len(line) > MAX_DOCUMENT_BYTES:
            raise ValueError(
                f"{where} has over {MAX_DOCUMENT_BYTES:,} bytes, too many for one document: give "
                "an object a line"
            )
        text = parse.utf8(line, where)
        if text.strip():
            yield number, parse.json_object(text, where)


def read_parquet(
    stream: BinaryIO, file: pathlib.Path, field: str, first_row: int = 0
) -> Iterator[str | None]:
    """Yields the values of a column of strings from row `first_row` on, read in batches; None where
    one is null. Row groups before it are not read."""
    import pyarrow

    with _open_parquet(stream, file) as table:
        kind = _string_column_type(table.schema_arrow, file, field)
        sizes = [table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)]
        row, groups = 0, list(range(len(sizes)))
        while groups and row + sizes[groups[0]] <= first_row:
            row += sizes[groups.pop(0)]
        for batch in table.iter_batches(batch_size=1024, row_groups=groups, columns=[field]):
            n_before = min(max(0, first_row - row), len(batch))
            column = batch.column(0).slice(n_before)
            row += n_before
            try:
                yield from column.to_pylist()
            except UnicodeDecodeError:
                for n, value in enumerate(
                    column.cast(
                        pyarrow.large_binary()
                        if kind == pyarrow.large_string()
                        else pyarrow.binary()
                    )
                ):
                    parse.utf8(value.as_py() or b"", f"{file} row {row + n + 1:,}")
                raise
            row += len(column)


def read_parquet_rows(stream: BinaryIO, file: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (row number from 1, its columns) for each row, read in batches."""
    with _open_parquet(stream, file) as table:
        batches = table.iter_batches(batch_size=1024)
        try:
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
        except UnicodeDecodeError:
            raise ValueError(f"{file} has text that is not UTF-8: write it again") from None


@contextlib.contextmanager
def _open_parquet(stream: BinaryIO, file: pathlib.Path) -> Iterator[Any]:
    """The open parquet file. Raises ValueError, in one line, if it is damaged."""
    import pyarrow
    import pyarrow.parquet

    try:
        compression_suffix = find_files.file_type(file)[1]
        source = (
            pyarrow.BufferReader(memoryview(_read_plain(stream, str(file))))
            if compression_suffix
            else stream
        )
        yield pyarrow.parquet.ParquetFile(source, page_checksum_verification=True)
    except pyarrow.ArrowException as error:
        raise ValueError(
            f"{file} is not a readable parquet file: {str(error).splitlines()[0]}"
        ) from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(
            f"{file} is not a readable parquet file: {str(error).splitlines()[0]}"
        ) from None


def _read_plain(stream: BinaryIO, where: str) -> bytearray:
    """Returns the decompressed bytes of a compressed parquet file."""
    content = bytearray()
    while part := stream.read(compression.BUFFER_BYTES):
        content += part
        if len(content) > MAX_DOCUMENT_BYTES:
            raise ValueError(
                f"{where} has over {MAX_DOCUMENT_BYTES:,} plain bytes: decompress it (parquet is "
                "compressed within)"
            )
    return content


def _string_column_type(schema: Any, file: pathlib.Path, field: str) -> Any:
    """Returns the type of a parquet column of strings. Raises ValueError for any other column."""
    import pyarrow

    if field not in schema.names:
        raise ValueError(
            f"{file} has no column {field!r}: it has {', '.join(schema.names)}; name the column "
            "with field=..."
        )
    if schema.names.count(field) > 1:
        raise ValueError(
            f"{file} has {schema.names.count(field)} columns {field!r}; rename one, or name "
            "another with field=..."
        )
    kind = schema.field(field).type
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if kind not in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
        raise ValueError(
            f"{file}: column {field!r} holds {kind}, not strings; name another with field=..."
        )
    return kind


# --- checks before hours of work ------------------------------------------------------------------


def check(path: str, field: str) -> list[str]:
    """Checks the files under `path` and returns notices for the user: files that are skipped, and
    compressed files without checksums.

    Reads little of each file: the first bytes, which show its format, and the first object or the
    names of the columns. Raises a one-line ValueError for a file that cannot be used.
    """
    listing = find_files.find(path)
    without_checksums = []
    for file, state in listing.states.items():
        try:
            if state.st_size and not _check_beginning(file, field):
                without_checksums.append(file.name)
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None
    skip_message, n_files = listing.remark(), len(listing.files)
    lines = [f"Text(path={path!r}): {n_files:,} files; {skip_message}"] if skip_message else []
    if without_checksums:
        lines.append(
            f"Text(path={path!r}): {len(without_checksums):,} of {n_files:,} files are compressed "
            "without checksums, as "
            f"{without_checksums[0]}: damage to their text cannot be noticed; the program zstd "
            "writes some"
        )
    return lines


def _check_beginning(file: pathlib.Path, field: str) -> bool:
    """Whether the file is not compressed or has checksums. Raises ValueError if its beginning does
    not match its name.
    """
    file_format, compression_suffix = find_files.file_type(file)
    with file.open("rb") as raw:
        has_checksums = True
        if compression_suffix:
            try:
                has_checksums = compression.has_checksums(raw, compression_suffix)
            except compression.CorruptFile as error:
                raise ValueError(
                    f"{file} is damaged or cut short ({error}): fetch it again"
                ) from None
            raw.seek(0)
        if file_format == ".jsonl":
            next(filter(None, read(file, raw, field)), None)
        elif file_format == ".txt" and not compression_suffix:
            head = raw.read(4096)
            if 0 in head:
                parse.utf8(head, str(file))
        elif file_format == ".parquet" and not compression_suffix:
            import pyarrow
            import pyarrow.parquet

            try:
                _string_column_type(pyarrow.parquet.ParquetFile(raw).schema_arrow, file, field)
            except (pyarrow.ArrowException, OSError) as error:
                raise ValueError(
                    f"{file} is not a readable parquet file: {str(error).splitlines()[0]}"
                ) from None
    return has_checksums
