"""Files of a data set -> parts: each document is read, and text extracted where it is HTML.

Whatever a file holds, every document of it is counted as kept or as dropped for a reason. A file
that is damaged or cut short is an error, or is read up to the damage (ReadPages.damaged).
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from gptjax.config import parse
from gptjax.config.curation import Corpus, ReadPages
from gptjax.curation import extract, input_files, parts, warc
from gptjax.curation.page import PAGE_BITS, PIECE_BITS, Dropped, Page, first_number
from gptjax.data import unicode
from gptjax.data.sources import compression, file_listing
from gptjax.runtime import checksums

READ_TO_DAMAGE = "read to its damage: "  # and the name of a file: a note of the ledger
HTML_FORMATS = (".warc", ".html")


@dataclasses.dataclass(frozen=True)
class ReadTask:
    """Files of a data set to read. place: of the data set in the recipe. stem: where the parts
    go, without a number. part_bytes: bytes of text in a part.
    """

    corpus: Corpus
    place: int
    files: tuple[input_files.InputFile, ...]
    rule: ReadPages
    stem: pathlib.Path
    part_bytes: int
    key: str

    def __str__(self) -> str:
        return self.files[0].path

    @property
    def result_path(self) -> pathlib.Path:
        """File of the result."""
        return self.stem.with_name(f"{self.stem.name}.ledger.json")

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of results that may be taken: of undamaged files, and of damaged ones."""
        return (self.key, f"{self.key} damaged")[: 1 + (self.rule.damaged == "keep")]


@dataclasses.dataclass(frozen=True)
class RawDocument:
    """A document as a file has it. id: its own, "" if it has none. content: text, HTML as bytes, or
    why there is neither. charset: of HTML, where it is known. size: bytes.
    """

    id: str
    url: str
    content: str | bytes | Dropped
    size: int
    charset: str | None = None


def damaged_files(ledger: parts.Ledger) -> list[str]:
    """Returns the names of the files that were read to their damage."""
    return sorted(
        note.removeprefix(READ_TO_DAMAGE)
        for note in ledger.notes
        if note.startswith(READ_TO_DAMAGE)
    )


def read_task(task: ReadTask) -> parts.Result:
    """Reads the files of a task into parts, and writes their ledger. Raises a one-line ValueError
    for a file that cannot be read, or is damaged if damage stops."""
    ledger = parts.Ledger()
    written: list[parts.Part] = []
    stem = task.stem
    with contextlib.ExitStack() as stack:
        extractor = None
        if any(file.format in HTML_FORMATS for file in task.files):
            extractor = stack.enter_context(extract.Extractor(task.rule))
        dropped = stack.enter_context(
            parts.Writer(stem.with_name(f"{stem.name}.dropped.parquet"), parts.DROPPED_SCHEMA)
        )
        pages = _read_pages(task, extractor, dropped, ledger)
        for page in pages:
            path = stem.with_name(f"{stem.name}-{len(written):03d}.parquet")
            n_documents = n_bytes = 0
            with parts.Writer(path, parts.SCHEMA) as part:
                while page is not None:
                    size = parts.utf8_length(page.text)
                    part.write(dataclasses.astuple(page), size)
                    n_documents, n_bytes = n_documents + 1, n_bytes + size
                    page = next(pages, None) if n_bytes < task.part_bytes else None
            digest = checksums.file_digest(path)
            written.append(parts.Part(task.corpus.name, path, n_documents, n_bytes, digest))
    result = parts.Result(ledger, written)
    parts.save_result(task.result_path, task.keys[1 if ledger.notes else 0], result)
    return result


def _read_pages(
    task: ReadTask, extractor: extract.Extractor | None, dropped: parts.Writer, ledger: parts.Ledger
) -> Iterator[Page]:
    """Yields the pages of a task's files; counts every document, and writes those dropped."""
    for file in task.files:
        first = first_number(task.place, file.number)
        try:
            for n, document in enumerate(read_documents(file, task.corpus, task.rule)):
                if n >= 2**PAGE_BITS:
                    raise ValueError(f"{file.path} has over {n:,} documents: cut it in several")
                own_id = document.id or f"{file.name}#{n}"
                page_id, url = map(
                    unicode.replace_surrogates, (f"{task.corpus.name}/{own_id}", document.url)
                )
                number = first + (n << PIECE_BITS)
                text = document.content
                if isinstance(text, bytes):
                    assert extractor is not None
                    text = extractor.extract(text, document.charset)
                if isinstance(text, str) and not text.strip():
                    text = Dropped("no text")
                if isinstance(text, Dropped):
                    ledger.count(document.size, text, False)
                    detail = unicode.replace_surrogates(text.detail)
                    dropped.write((number, page_id, url, text.reason, detail, ""), 200)
                    continue
                page = Page(number, page_id, url, unicode.replace_surrogates(text))
                ledger.count(document.size, [page], False)
                yield page
        except compression.CorruptFile as error:
            if task.rule.damaged == "stop":
                raise ValueError(
                    f"{file.path} is damaged or cut short ({error}): fetch it again, or keep what "
                    "is before the damage with read.damaged=keep"
                ) from None
            ledger.notes[READ_TO_DAMAGE + file.name] = 1


def read_documents(
    file: input_files.InputFile, corpus: Corpus, rule: ReadPages
) -> Iterator[RawDocument]:
    """Yields the documents of a file. Raises compression.CorruptFile at damage, after what is
    before it."""
    if file.size == 0 and file.compression:
        raise compression.CorruptFile("it is empty")
    with file_listing.open_file(file.path) as raw:
        match file.format:
            case ".warc":
                yield from _read_warc(raw, file, rule)
            case ".parquet":
                yield from _read_parquet(raw, file, corpus, rule)
            case ".jsonl":
                stream = compression.decompress(raw, file.compression)
                yield from _read_jsonl(stream, corpus, rule)
            case _:
                stream = compression.decompress(raw, file.compression)
                content, size = _read_bytes(stream, rule.document_bytes)
                if isinstance(content, bytes) and file.format == ".txt":
                    content = _decode(content)
                if size:
                    yield RawDocument("", "", content, size)


def _read_warc(
    raw: BinaryIO, file: input_files.InputFile, rule: ReadPages
) -> Iterator[RawDocument]:
    for page in warc.read_warc(raw, file.compression, rule.document_bytes):
        if isinstance(page, warc.DroppedPage):
            yield RawDocument("", page.url, Dropped(page.reason, page.detail), page.size)
        elif page.html is not None:
            yield RawDocument("", page.url, page.html, len(page.html), page.charset)
        else:
            assert page.text is not None
            yield RawDocument("", page.url, page.text, parts.utf8_length(page.text))


def _read_jsonl(stream: BinaryIO, corpus: Corpus, rule: ReadPages) -> Iterator[RawDocument]:
    """The objects of a .jsonl file. A line that is none is dropped; blank ones are skipped."""
    while line := stream.readline(rule.document_bytes + 1):
        size = len(line)
        if size > rule.document_bytes and not line.endswith(b"\n"):
            while not line.endswith(b"\n") and (line := stream.readline(compression.BUFFER_BYTES)):
                size += len(line)
            yield RawDocument("", "", _too_large(rule.document_bytes), size)
            continue
        text = _decode(line)
        if isinstance(text, Dropped):
            yield RawDocument("", "", text, size)
        elif text.strip():
            try:
                record = parse.json_object(text, "")
            except ValueError:
                yield RawDocument("", "", Dropped("not a JSON object"), size)
            else:
                yield _document_of_record(record, corpus, size)


def _document_of_record(record: dict[str, Any], corpus: Corpus, size: int) -> RawDocument:
    """The document of a JSON object, or of a row."""
    url = record[corpus.url_field] if corpus.url_field in record else ""
    content: str | Dropped = Dropped(f"no {corpus.field!r}", f"it has {', '.join(record)}")
    if corpus.field in record:
        content = record[corpus.field]
        if not isinstance(content, str):
            content = Dropped(
                f"{corpus.field!r} is no string", f"it is {parse.quote(record[corpus.field])}"
            )
    own_id = ""
    if corpus.id_field is not None:
        value = record[corpus.id_field] if corpus.id_field in record else None
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            own_id = str(value)
        else:
            content = Dropped(f"no id {corpus.id_field!r}", f"that is {parse.quote(value)}")
    return RawDocument(own_id, url if isinstance(url, str) else "", content, size)


def _read_parquet(
    raw: BinaryIO, file: input_files.InputFile, corpus: Corpus, rule: ReadPages
) -> Iterator[RawDocument]:
    import pyarrow
    import pyarrow.parquet

    if file.compression:
        raise ValueError(f"{file.path}: decompress it (parquet is compressed within)")
    try:
        table = pyarrow.parquet.ParquetFile(raw, page_checksum_verification=True)
        wanted = (corpus.field, corpus.url_field, corpus.id_field)
        columns = [name for name in table.schema_arrow.names if name in wanted]
        if corpus.field not in columns:
            raise ValueError(
                f"{file.path} has no column {corpus.field!r}: it has "
                f"{', '.join(table.schema_arrow.names)}; name it in the data set's field"
            )
        for batch in table.iter_batches(batch_size=256, columns=columns):
            for record in batch.to_pylist():
                text = record[corpus.field]
                size = parts.utf8_length(text) if isinstance(text, str) else 0
                document = _document_of_record(record, corpus, size)
                if size > rule.document_bytes:
                    document = dataclasses.replace(
                        document, content=_too_large(rule.document_bytes)
                    )
                yield document
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise compression.CorruptFile(str(error).splitlines()[0]) from None


def _read_bytes(stream: BinaryIO, limit: int) -> tuple[bytes | Dropped, int]:
    """The content of a stream, up to a limit, and its size."""
    content = bytearray()
    size = 0
    while piece := stream.read(compression.BUFFER_BYTES):
        size += len(piece)
        if size <= limit:
            content += piece
    return (bytes(content) if size <= limit else _too_large(limit)), size


def _too_large(limit: int) -> Dropped:
    return Dropped(f"larger than {limit:,} bytes")


def _decode(content: bytes) -> str | Dropped:
    """Text of UTF-8, without a byte order mark."""
    if b"\0" in content:
        return Dropped("binary")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Dropped("not UTF-8", f"byte {error.start:,}")
