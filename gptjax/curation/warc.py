"""Pages of WARC files (ISO 28500, github.com/iipc/warc-specifications), and the text of WET files.

fastwarc parses the headers. It takes a record, chunks or a gzip stream that are cut short for whole
ones, without an error, and warcio does, too: lengths, ends and checksums are checked here.
"""

import base64
import dataclasses
import hashlib
import io
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from fastwarc.stream_io import BrotliReader
from fastwarc.warc import HeaderMap

from gptjax.curation.page import Dropped
from gptjax.data.sources import compression
from gptjax.data.sources.compression import CorruptFile

HEADER_BYTES = 2**16  # of a record's header, and of the HTTP header
HTML_TYPES = ("text/html", "application/xhtml+xml")
MIME_TYPES = {"response": HTML_TYPES, "resource": HTML_TYPES, "conversion": ("text/plain",)}
BLANK_LINES = (b"\r\n", b"\n")
NO_PAGES = ("warcinfo", "request", "metadata", "revisit", "continuation")
LENGTH = re.compile(r"[0-9]{1,18}")
END_OF_HTTP_HEADER = re.compile(rb"\r?\n\r?\n")
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
MIME_TYPE = re.compile(r"\s*([\w.+-]+/[\w.+-]+)")
CHARSET = re.compile(r"""charset\s*=\s*["']?([^\s;,"']+)""", re.IGNORECASE)
# What gzip, pyarrow and lzma say of a checksum that is not that of the bytes before it.
CHECKSUM_ERROR = re.compile("CRC|checksum|Corrupt input")
# Where an HTML page begins that is not encoded, of any size of characters.
MARKUP = re.compile(rb"(?:\xef\xbb\xbf|\xff\xfe|\xfe\xff)?[\s\0]*<\0?[!?A-Za-z]")
DIGESTS = ("md5", "sha1", "sha256", "sha512")


@dataclasses.dataclass(frozen=True, slots=True)
class RawPage:
    """A page as it was crawled.

    html: the bytes of an HTML page, without transfer and content encoding. text: that of a page
    from which text has been extracted; one of the two is None. charset: the encoding of html that
    the HTTP header names.
    """

    url: str
    html: bytes | None = None
    text: str | None = None
    charset: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class DroppedPage(Dropped):
    """Why a record is no page. size: bytes of its block."""

    url: str = ""
    size: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class _Record:
    """A record. size: bytes of its block. block: the block, or only its beginning where it is too
    large to be read."""

    headers: HeaderMap
    size: int
    block: bytes


def read_warc(
    stream: BinaryIO, compression_suffix: str, document_bytes: int
) -> Iterator[RawPage | DroppedPage]:
    """Yields a page, or why there is none, for each record of a crawled page, of a text extracted
    from one (WET), or of an unknown type. Other records (requests, metadata) are skipped.

    compression_suffix: as `compression.decompress` takes it. document_bytes: pages and texts with
    more bytes are dropped; memory is bounded by a few times as much.

    Raises CorruptFile, after all whole records before it, for a record that is cut short, a
    compressed file that is damaged, and anything that is no record; blank lines between records are
    skipped. A file cut between two records is a whole file. Where neither each record is a member
    of a .gz file nor has a digest, as most have, a damaged record may be yielded before the damage
    is noticed, or unnoticed in a file without compression.
    """
    limit = document_bytes + HEADER_BYTES
    for record in _records(compression.decompress(stream, compression_suffix), limit):
        kind = (record.headers.get("WARC-Type") or "").lower()
        if kind in NO_PAGES:
            continue
        url = (record.headers.get("WARC-Target-URI") or "").strip("<> ")
        if kind in MIME_TYPES:
            page = _page(record, kind, url, document_bytes)
        else:
            page = Dropped("record of an unknown type", kind)
        if isinstance(page, Dropped):
            page = DroppedPage(page.reason, page.detail, url, record.size)
        yield page


def _records(stream: BinaryIO, limit: int) -> Iterator[_Record]:
    line, number = stream.readline(HEADER_BYTES), 0
    if not line:
        raise CorruptFile("it has no record")
    while line:
        number += 1
        if not line.startswith(b"WARC/"):
            raise CorruptFile(f"record {number:,} does not begin with WARC/")
        headers = _parse_header(_read_header(stream, line, f"record {number:,}"), "utf-8")
        length = headers.get("Content-Length") or ""
        if not LENGTH.fullmatch(length):
            raise CorruptFile(f"record {number:,} has no Content-Length")
        size = int(length)
        record = _Record(headers, size, stream.read(size if size <= limit else HEADER_BYTES))
        _skip(stream, size - len(record.block))
        if not _is_end(stream):
            raise CorruptFile(f"record {number:,} is cut short, or is not as long as it says")
        try:
            # Before the yield, because it compares the checksum of a member that ends here.
            line = stream.readline(HEADER_BYTES)
            while line in BLANK_LINES:
                line = stream.readline(HEADER_BYTES)
        except CorruptFile as error:
            if not CHECKSUM_ERROR.search(str(error)):  # the damage comes after the record
                yield record
            raise
        yield record


def _is_end(stream: BinaryIO) -> bool:
    """Whether the two line ends after a block follow."""
    end = stream.read(2)
    return end == b"\n\n" or end + stream.read(2) == b"\r\n\r\n"


def _read_header(stream: BinaryIO, line: bytes, where: str) -> bytes:
    header = bytearray(line)
    while line not in BLANK_LINES:
        line = stream.readline(HEADER_BYTES)
        header += line
        if not line or len(header) > HEADER_BYTES:
            raise CorruptFile(f"the header of {where} has no end")
    return bytes(header)


def _parse_header(header: bytes, encoding: str) -> HeaderMap:
    headers = HeaderMap(encoding)
    # fastwarc needs CR LF
    headers.parse(io.BytesIO(header.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")))
    return headers


def _skip(stream: BinaryIO, n: int) -> None:
    while n > 0 and (piece := stream.read(min(n, compression.BUFFER_BYTES))):
        n -= len(piece)


def _page(record: _Record, kind: str, url: str, document_bytes: int) -> RawPage | Dropped:
    """Returns the page of a record of one of the three types that have one."""
    headers, content_type = record.headers, record.headers.get("Content-Type") or ""
    whole = len(record.block) == record.size
    if "WARC-Truncated" in headers or "WARC-Segment-Number" in headers:
        return Dropped("cut short by the crawler")
    if whole and not _matches_digest(record.block, headers.get("WARC-Block-Digest") or ""):
        return Dropped("its digest is another")
    body, codings = record.block, []
    if content_type.lower().startswith("application/http"):
        response = _parse_http(record.block)
        if not response:
            return Dropped("no HTTP header")
        http, body, codings = response
        if http.status_code != 200:
            return Dropped("HTTP status is not 200", str(http.status_code))
        content_type = http.get("Content-Type") or headers.get("WARC-Identified-Payload-Type") or ""
    mime_type = MIME_TYPE.match(content_type)
    if (mime_type[1].lower() if mime_type else "") not in MIME_TYPES[kind]:
        return Dropped("not text" if kind == "conversion" else "not HTML", content_type)
    too_large = Dropped(f"larger than {document_bytes:,} bytes")
    if not whole:
        return too_large
    try:
        body = _decode(body, codings, document_bytes + 1)
    except (CorruptFile, zlib.error, OSError) as error:
        return Dropped("its HTTP encoding is damaged or unknown", str(error))
    if len(body) > document_bytes:
        return too_large
    if kind != "conversion":
        charset = CHARSET.search(content_type)
        return RawPage(url, html=body, charset=charset[1] if charset else None)
    try:
        return RawPage(url, text=body.decode())
    except UnicodeDecodeError as error:
        return Dropped("not UTF-8", f"byte 0x{body[error.start]:02x} at {error.start:,}")


def _parse_http(block: bytes) -> tuple[HeaderMap, bytes, list[str]] | None:
    """Returns header, body and the names of the encodings of an HTTP response, in the order in
    which they were applied; None if the header has no end."""
    end = END_OF_HTTP_HEADER.search(block, 0, HEADER_BYTES)
    if not end:
        return None
    headers = _parse_header(block[: end.end()], "latin1")
    codings = [
        coding.strip().lower()
        for name in ("Content-Encoding", "Transfer-Encoding")
        for value in headers.get_multiple(name)
        for coding in value.split(",")
    ]
    return headers, block[end.end() :], codings


def _matches_digest(block: bytes, label: str) -> bool:
    """Whether a block has a digest, as sha1:3I42H3S6NNFQ2MSVX7XZKYAYSCX5QBYJ, in base 32 or 16;
    True for digests that are not known."""
    name, _, value = label.partition(":")
    algorithm = name.strip().lower().replace("-", "")
    if algorithm not in DIGESTS:
        return True
    digest = hashlib.new(algorithm, block, usedforsecurity=False).digest()
    forms = (digest.hex(), base64.b32encode(digest).decode().lower().rstrip("="))
    return value.strip().lower().rstrip("=") in forms


def _decode(body: bytes, codings: list[str], n: int) -> bytes:
    """Returns at most the first n bytes of a body before it was encoded. Raises CorruptFile or
    the decoder's error for a body that is damaged or cut short before them.

    codings: names of HTTP (RFC 9110, section 8.4.1), in the order in which they were applied. Many
    crawlers store pages without them and leave the header as it was (github.com/commoncrawl/
    news-crawl, issue 30), and some servers name what is none: one that cannot be undone is skipped
    where the body begins as a page does, or as gzip where it should be in chunks.
    """
    for coding in reversed(codings):
        try:
            body = _undo(coding, body, n)
        except (CorruptFile, zlib.error, OSError):
            is_gzip = "gzip" in codings and body.startswith(compression.MAGIC[".gz"])
            if not MARKUP.match(body) and not (coding == "chunked" and is_gzip):
                raise
    return body


def _undo(coding: str, body: bytes, n: int) -> bytes:
    match coding:
        case "" | "identity":
            return body
        case "chunked":
            return _join_chunks(body)
        case "gzip" | "x-gzip":
            return compression.decompress(io.BytesIO(body), ".gz").read(n)
        case "zstd":
            return compression.decompress(io.BytesIO(body), ".zst").read(n)
        case "br":
            return BrotliReader(io.BytesIO(body)).read(n)
        case "deflate":
            return _inflate(body, n)
        case _:
            raise CorruptFile(f"{coding!r} is not known")


def _inflate(body: bytes, n: int) -> bytes:
    """Returns at most the first n bytes of a zlib stream, or of one without zlib's header, which
    some servers send."""
    try:
        stream = zlib.decompressobj()
        part = stream.decompress(body, n)
    except zlib.error:
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        part = stream.decompress(body, n)
    if len(part) < n and not stream.eof:
        raise CorruptFile("it ends within a stream")
    return part


def _join_chunks(body: bytes) -> bytes:
    """Returns a body without the chunks of HTTP/1.1 (RFC 9112, section 7.1)."""
    parts, start = [], 0
    while size := CHUNK_SIZE.match(body, start):
        stop = size.end() + int(size[1], 16)
        if stop == size.end():  # the last chunk
            return b"".join(parts)
        parts.append(body[size.end() : stop])
        start = stop + 2
        if body[stop:start] != b"\r\n":
            break
    raise CorruptFile("its chunks are cut short or damaged")
