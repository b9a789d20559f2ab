"""Pages of WARC and WET files, and what becomes of those that are damaged."""

import gzip
import io
import re
import tracemalloc
import zlib

import pyarrow
import pytest

from gptjax.curation.page import Dropped
from gptjax.data.sources.compression import CorruptFile
from tests import warc_files
from tests.warc_files import http, record

pytest.importorskip("fastwarc", reason="needs requirements-curation.txt")
from gptjax.curation import warc  # noqa: E402  the module imports fastwarc

HTML = "".join(f"<p>Sentence {n} of the page.</p>" for n in range(40)).encode()
LIMIT = 10_000
FORMS = [("", True), (".gz", True), (".gz", False), (".xz", True), (".zst", True), (".zst", False)]


def read(content: bytes, suffix: str = "", limit: int = LIMIT) -> list[warc.RawPage | Dropped]:
    return list(warc.read_warc(io.BytesIO(content), suffix, limit))


def read_until_damage(content: bytes, suffix: str) -> tuple[list, bool]:
    """(what comes before the damage, whether there is any)."""
    pages = []
    try:
        for page in warc.read_warc(io.BytesIO(content), suffix, LIMIT):
            pages.append(page)
    except CorruptFile:
        return pages, True
    return pages, False


def page_of(block: bytes, **headers: str) -> warc.RawPage | Dropped:
    (page,) = read(record("response", block, **headers))
    return page


@pytest.mark.parametrize("suffix, by_record", FORMS)
def test_pages_and_texts_are_read_from_every_form(suffix, by_record):
    records = [
        record("warcinfo", b"software: x\r\n", "", "application/warc-fields"),
        record("request", b"GET / HTTP/1.1\r\n\r\n", content_type="application/http"),
        warc_files.page("<p>é</p>", "http://a.example/1"),
        record("metadata", b"a: b\r\n", content_type="application/warc-fields"),
        record("revisit", http(b"")),
        warc_files.page("<p>\xe9", "http://a.example/2", content_type='Text/HTML;Charset="Latin1"'),
        record("resource", b"<p>r", "file:///r", "text/html"),
        warc_files.wet("Text é.\n", "<http://a.example/3>"),
    ]
    assert read(warc_files.compress(records, suffix, by_record), suffix) == [
        warc.RawPage("http://a.example/1", html="<p>é</p>".encode(), charset="utf-8"),
        warc.RawPage("http://a.example/2", html="<p>é".encode(), charset="Latin1"),
        warc.RawPage("file:///r", html=b"<p>r"),
        warc.RawPage("http://a.example/3", text="Text é.\n"),
    ]


def chunks(body: bytes, n: int = 100) -> bytes:
    parts = [body[i : i + n] for i in range(0, len(body), n)] + [b""]
    return b"".join(b"%x;e=1\r\n%s\r\n" % (len(part), part) for part in parts)


def raw_deflate(body: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(body) + stream.flush()


ENCODINGS = {
    "chunked": (chunks(HTML), {"Transfer_Encoding": "chunked"}),
    "gzip": (gzip.compress(HTML), {"Content_Encoding": "gzip"}),
    "gzip members": (
        gzip.compress(HTML[:99]) + gzip.compress(HTML[99:]),
        {"Content_Encoding": "x-gzip"},
    ),
    "deflate": (zlib.compress(HTML), {"Content_Encoding": "Deflate"}),
    "raw deflate": (raw_deflate(HTML), {"Content_Encoding": "deflate"}),
    "zstd": (pyarrow.Codec("zstd").compress(HTML, asbytes=True), {"Content_Encoding": "zstd"}),
    "both": (
        chunks(zlib.compress(gzip.compress(HTML))),
        {"Transfer_Encoding": "chunked", "Content_Encoding": "gzip, deflate"},
    ),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_transfer_and_content_encodings_are_undone_and_none_that_is_cut_is_taken_for_whole(name):
    body, headers = ENCODINGS[name]
    assert page_of(http(body, **headers)).html == HTML
    for cut in range(1, len(body)):
        page = page_of(http(body[:cut], **headers))
        if name == "gzip members" and page == page_of(http(gzip.compress(HTML[:99]), **headers)):
            continue  # cut between the members, which nothing shows
        if isinstance(page, warc.RawPage):  # all but the empty line after the last chunk
            assert page.html == HTML and b"chunked" in http(b"", **headers)
        else:
            assert page.reason == "its HTTP encoding is damaged or unknown"


def test_brotli_is_undone():
    from fastwarc.stream_io import BrotliWriter

    file = io.BytesIO()
    with BrotliWriter(file) as writer:
        writer.write(HTML)
        writer.flush()
    body = file.getvalue()
    assert page_of(http(body, Content_Encoding="br")).html == HTML
    for cut in range(1, len(body)):
        assert isinstance(page_of(http(body[:cut], Content_Encoding="br")), Dropped)


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Encoding": "gzip"},  # CC-NEWS before May 2019: commoncrawl/news-crawl, issue 30
        {"Content_Encoding": "br"},
        {"Content_Encoding": "zstd"},
        {"Content_Encoding": "deflate"},
        {"Content_Encoding": "none"},
        {"Content_Encoding": "UTF-8"},
        {"Transfer_Encoding": "chunked"},
        {"Transfer_Encoding": "chunked", "Content_Encoding": "gzip, deflate"},
    ],
)
@pytest.mark.parametrize(
    "body",
    [
        b"<!DOCTYPE html>" + HTML,
        b"\r\n\t <?xml version='1.0'?>" + HTML,
        b"\xef\xbb\xbf\n" + HTML,
        "\ufeff <html>".encode("utf-16-le"),
        "\ufeff\n<html>".encode("utf-16-be"),
    ],
)
def test_a_page_that_was_stored_decoded_is_read_whatever_its_header_says(body, headers):
    assert page_of(http(body, **headers)).html == body


def test_of_several_encodings_those_that_are_there_are_undone():
    packed = gzip.compress(HTML)
    both = {"Transfer_Encoding": "chunked", "Content_Encoding": "gzip"}
    assert page_of(http(packed, **both)).html == HTML  # without its chunks
    assert page_of(http(chunks(HTML), **both)).html == HTML
    assert page_of(http(packed, Content_Encoding="gzip, gzip")).html == HTML


@pytest.mark.parametrize(
    "body, headers",
    [
        (b"Some words", {"Content_Encoding": "gzip"}),
        (b"<3 is no tag", {"Content_Encoding": "gzip"}),
        (b"x <html>", {"Content_Encoding": "utf-8"}),
        (gzip.compress(HTML)[:-1], {"Content_Encoding": "gzip"}),
        (gzip.compress(HTML)[:-1], {"Content_Encoding": "gzip", "Transfer_Encoding": "chunked"}),
        (gzip.compress(HTML), {"Transfer_Encoding": "chunked"}),
        # RFC 9112 section 8: without its last chunk a message is incomplete
        (chunks(HTML)[: -len("0;e=1\r\n\r\n")], {"Transfer_Encoding": "chunked"}),
    ],
)
def test_what_is_neither_encoded_nor_a_page_is_dropped(body, headers):
    dropped = page_of(http(body, **headers))
    assert dropped.reason == "its HTTP encoding is damaged or unknown"


@pytest.mark.parametrize(
    "content, reason",
    [
        (record(block=http(HTML, status=404)), "HTTP status is not 200"),
        (record(block=http(HTML, "image/png")), "not HTML"),
        (record(block=http(HTML, "")), "not HTML"),
        (record(block=b"1.2.3.4", content_type="text/dns"), "not HTML"),
        (record(block=b"HTTP/1.1 200 OK"), "no HTTP header"),
        (
            record(block=http(b"Wl<p>", Content_Encoding="lzx")),
            "its HTTP encoding is damaged or unknown",
        ),
        (record(block=http(HTML), WARC_Truncated="length"), "cut short by the crawler"),
        (record(block=http(HTML), WARC_Segment_Number="1"), "cut short by the crawler"),
        (record(block=http(HTML)).replace(b"Sentence 7", b"Sentence 8"), "its digest is another"),
        (warc_files.wet(b"caf\xe9"), "not UTF-8"),
        (record("conversion", b"x", content_type="image/png"), "not text"),
        (record("new", b"x"), "record of an unknown type"),
        (
            record("conversion", b"x" * 10_001, content_type="text/plain"),
            "larger than 10,000 bytes",
        ),
        (record(block=http(b"x" * 10_001)), "larger than 10,000 bytes"),
        (
            record(block=http(gzip.compress(bytes(10_001)), Content_Encoding="gzip")),
            "larger than 10,000 bytes",
        ),
    ],
)
def test_a_record_without_a_page_says_why(content, reason):
    """...and the pages beside it are read."""
    dropped, page = read(content + warc_files.page("<p>next"))
    assert dropped.reason == reason and dropped.url == "http://a.example/"
    assert page.html == b"<p>next"


def test_headers_by_line_feeds_and_identified_types_are_understood():
    assert page_of(http(HTML).replace(b"\r\n", b"\n")).html == HTML
    block = http(HTML).replace(b"Content-Type", b"X-Type")
    assert page_of(block, WARC_Identified_Payload_Type="text/html").html == HTML


def test_a_page_of_the_greatest_size_is_kept_and_a_bomb_needs_no_memory():
    (page,) = read(warc_files.page(b"x" * LIMIT))
    assert len(page.html) == LIMIT
    n = 2**26
    bomb = gzip.compress(bytes(n))
    large = [
        record(block=http(bytes(n))),
        record(block=http(bomb, Content_Encoding="gzip")),
        record(block=http(gzip.compress(bomb), Content_Encoding="gzip, gzip")),
    ]
    file = b"".join([*large, warc_files.page(b"x")])
    del large
    tracemalloc.start()
    *dropped, page = read(file, limit=2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {one.reason for one in dropped} == {"larger than 1,048,576 bytes"} and page.html == b"x"
    assert peak < 2**24


RECORDS = [
    warc_files.page(f"<p>{n} " + "word " * n, f"http://a.example/{n}", X_Number=str(n))
    for n in range(3)
] + [warc_files.wet("some words\n", digest=False)]


@pytest.mark.parametrize("suffix, by_record", FORMS)
def test_a_file_cut_anywhere_yields_all_whole_records_and_no_part_of_one(suffix, by_record):
    content = warc_files.compress(RECORDS, suffix, by_record)
    whole = read(content, suffix)
    assert len(whole) == len(RECORDS)
    stops = {len(warc_files.compress(RECORDS[:n], suffix, by_record)): n for n in range(1, 5)}
    for cut in range(len(content)):
        pages, damaged = read_until_damage(content[:cut], suffix)
        assert pages == whole[: len(pages)]
        if by_record:
            assert damaged == (cut not in stops)
            least = max([n for stop, n in stops.items() if stop <= cut], default=0)
            assert len(pages) >= least or suffix == ".zst"  # it decodes up to 1 MiB ahead
        else:
            assert damaged


def test_a_flipped_byte_of_a_compressed_file_never_changes_a_page():
    content = bytearray(warc_files.compress(RECORDS))
    whole = read(bytes(content), ".gz")
    stops = [len(warc_files.compress(RECORDS[:n])) for n in range(1, 5)]
    for position in range(len(content)):
        for bit in (1, 64, 255):
            content[position] ^= bit
            pages, damaged = read_until_damage(bytes(content), ".gz")
            content[position] ^= bit
            assert pages == whole[: len(pages)]
            assert damaged or len(pages) == len(whole)  # of a time or a name nothing depends
            # A member that a flip makes empty has a wrong checksum in the same step in which the
            # checksum of the member before is compared.
            assert len(pages) >= sum(stop <= position for stop in stops) - 1


def test_a_flipped_byte_of_a_plain_file_loses_no_page_silently():
    """Every record has a digest, so that a page is never another one; the URL has none."""
    records = RECORDS[:3]
    content = bytearray(b"".join(records))
    whole = {page.html for page in read(bytes(content))}
    for position in range(len(content)):
        content[position] ^= 1
        pages, damaged = read_until_damage(bytes(content), "")
        content[position] ^= 1
        assert damaged or len(pages) == len(records)
        assert {page.html for page in pages if isinstance(page, warc.RawPage)} <= whole


def shorten(content: bytes, n: int) -> bytes:
    """A record whose Content-Length is n too small, with the digest of its whole block."""
    length = re.search(rb"Content-Length: (\d+)", content)
    assert length
    return content.replace(length[0], b"Content-Length: %d" % (int(length[1]) - n), 1)


@pytest.mark.parametrize("after", [b"W", b"\nx", b"<html>"])
@pytest.mark.parametrize("n", [1, 2, 3, -1, -2, -4])
def test_a_length_that_is_wrong_is_refused(n, after):
    content = shorten(warc_files.page("<p>page"), n)
    pages, damaged = read_until_damage(content + after, "")
    assert damaged and pages == []
    pages, damaged = read_until_damage(content + RECORDS[0], "")
    assert damaged and pages == []


def test_a_line_too_many_after_the_http_header_belongs_to_the_page():
    """Common Crawl's files of August 2018."""
    assert page_of(http(b"\r\n" + HTML)).html == b"\r\n" + HTML


@pytest.mark.parametrize("blank", [b"\r\n", b"\n", b"\r\n\n\r\n"])
def test_blank_lines_between_records_are_skipped(blank):
    content = b"".join(one + blank for one in RECORDS)
    assert read(content) == read(b"".join(RECORDS))


def test_lines_of_a_header_may_end_in_a_line_feed_alone():
    for end in (b"\n\n", b"\r\n\r\n"):
        file = b""
        for one in RECORDS:
            header, block = one[:-4].split(b"\r\n\r\n", 1)
            file += header.replace(b"\r\n", b"\n") + b"\n\n" + block + end
        assert read(file) == read(b"".join(RECORDS))
        for cut in range(len(file)):
            pages, damaged = read_until_damage(file[:cut], "")
            assert damaged or file[:cut].endswith(end)
            assert pages == read(b"".join(RECORDS))[: len(pages)]


@pytest.mark.parametrize(
    "content, error",
    [
        (b"", "it has no record"),
        (b"<html>", "record 1 does not begin with WARC/"),
        (b"\r\n" + RECORDS[0], "record 1 does not begin with WARC/"),
        (RECORDS[0] + b"\r\n x" + RECORDS[1], "record 2 does not begin with WARC/"),
        (RECORDS[0] + b"WARC/1.0\r\n" + b"a: b\r\n" * 20_000, "the header of record 2 has no end"),
        (RECORDS[0].replace(b"Content-Length: ", b"Length: "), "record 1 has no Content-Length"),
        (RECORDS[0].replace(b"Content-Length: ", b"Content-Length: " + b"9" * 5000), "no Content"),
        (RECORDS[0].replace(b"Content-Length: ", b"Content-Length: 9"), "record 1 is cut short"),
    ],
)
def test_what_is_no_warc_file_is_refused_in_a_line(content, error):
    with pytest.raises(CorruptFile, match=error):
        read(content)
