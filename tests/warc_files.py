"""Small WARC files, written by hand, so that no library reads only its own writing."""

import base64
import gzip
import hashlib
import lzma

import pyarrow


def record(
    kind: str = "response",
    block: bytes = b"",
    url: str = "http://a.example/",
    content_type: str = "application/http; msgtype=response",
    digest: bool = True,
    **headers: str,
) -> bytes:
    """A record. headers: further ones, as WARC_Truncated="length"."""
    lines = [
        "WARC/1.0",
        f"WARC-Type: {kind}",
        f"WARC-Target-URI: {url}",
        "WARC-Date: 2020-01-01T00:00:00Z",
        f"WARC-Record-ID: <urn:uuid:{hashlib.md5(block + url.encode()).hexdigest()}>",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(block)}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    if digest:
        sha1 = base64.b32encode(hashlib.sha1(block).digest()).decode()
        lines.append(f"WARC-Block-Digest: sha1:{sha1}")
    return "\r\n".join([*lines, "", ""]).encode() + block + b"\r\n\r\n"


def http(
    body: bytes, content_type: str = "text/html; charset=utf-8", status: int = 200, **headers: str
) -> bytes:
    """An HTTP response. headers: further ones, as Content_Encoding="gzip"."""
    lines = [
        f"HTTP/1.1 {status} Some reason",
        f"Content-Type: {content_type}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def page(html: bytes | str, url: str = "http://a.example/", **headers: str) -> bytes:
    """A record of a crawled page. headers: of HTTP."""
    body = html.encode() if isinstance(html, str) else html
    return record("response", http(body, **headers), url)


def wet(text: str | bytes, url: str = "http://a.example/", digest: bool = True) -> bytes:
    """A record of a text that was extracted from a page."""
    block = text.encode() if isinstance(text, str) else text
    return record("conversion", block, url, "text/plain", digest)


def compress(records: list[bytes], suffix: str = ".gz", by_record: bool = True) -> bytes:
    """The content of a file of records. suffix: "" for none. by_record: a member for each."""
    parts = records if by_record else [b"".join(records)]
    match suffix:
        case ".gz":
            return b"".join(gzip.compress(part, mtime=0) for part in parts)
        case ".xz":
            return b"".join(lzma.compress(part) for part in parts)
        case ".zst":
            codec = pyarrow.Codec("zstd")
            return b"".join(codec.compress(part, asbytes=True) for part in parts)
        case _:
            return b"".join(parts)
