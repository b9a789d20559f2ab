import dataclasses
import gzip
import json
import zipfile

import pyarrow as pa
import pyarrow.parquet
import pytest

from gptjax.config.curation import Corpus, ReadPages
from gptjax.curation import input_files, page, parts, read_files
from tests import bucket, warc_files

RULE = ReadPages(document_bytes=2**16)


def read(tmp_path, path, rule=RULE, part_bytes=10**6, **fields):
    """The ledger and the pages of the files at a path."""
    corpus = Corpus(name="web", path=str(path), **fields)
    files, _ = input_files.list_files(corpus)
    stem = tmp_path / "out" / "web-0000000"
    task = read_files.ReadTask(corpus, 0, tuple(files), rule, stem, part_bytes, "key")
    result = read_files.read_task(task)
    pages = [page for part in result.parts for page in parts.read_pages(part)]
    return result, pages


def dropped(tmp_path):
    path = tmp_path / "out" / "web-0000000.dropped.parquet"
    return list(parts.read_rows(path, ["id", "reason", "detail"]))


def test_every_line_of_a_file_is_kept_or_dropped_for_a_reason(tmp_path):
    lines = [
        json.dumps({"text": "one", "url": "http://a"}).encode(),
        b"",
        b"not json",
        b'["a list"]',
        b'{"text": 3}',
        b'{"content": "of another name"}',
        b'{"text": "\xff"}',
        b'{"text": "a\0b"}',
        b'{"text": ""}',
        b'{"text": " \\n "}',
        json.dumps({"text": "x" * 2**16}).encode(),
        b'{"text": "two \\ud800 half"}',
        json.dumps({"text": "y" * 1000}).encode(),
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    result, pages = read(tmp_path, tmp_path / "a.jsonl")
    assert [(page.id, page.url, page.text) for page in pages] == [
        ("web/a.jsonl#0", "http://a", "one"),
        ("web/a.jsonl#10", "", "two \ufffd half"),
        ("web/a.jsonl#11", "", "y" * 1000),
    ]
    assert {reason: n for reason, (n, _) in result.ledger.dropped.items()} == {
        "not a JSON object": 2,
        "'text' is no string": 1,
        "no 'text'": 1,
        "not UTF-8": 1,
        "binary": 1,
        "no text": 2,
        "larger than 65,536 bytes": 1,
    }
    assert result.ledger.read[0] == 12
    assert ("web/a.jsonl#4", "no 'text'", "it has content") in dropped(tmp_path)
    assert sum(result.ledger.read[1:]) == sum(len(line) + 1 for line in lines if line) - 1


def test_a_large_line_is_not_held_in_memory_and_the_next_is_read(tmp_path):
    with (tmp_path / "a.jsonl").open("wb") as out:
        out.write(b'{"text": "' + b"x" * 10**7 + b'"}\n{"text": "next"}\n')
    result, pages = read(tmp_path, tmp_path / "a.jsonl")
    assert [page.text for page in pages] == ["next"]
    assert result.ledger.dropped == {"larger than 65,536 bytes": (1, 10**7 + 13)}


@pytest.mark.parametrize("at", [0.2, 0.5, 0.99])
def test_a_file_cut_short_stops_or_is_read_to_the_damage(tmp_path, at):
    lines = [json.dumps({"text": f"{n} " * 500}) for n in range(4000)]
    content = gzip.compress("\n".join(lines).encode())
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(content[: int(at * len(content))])
    with pytest.raises(ValueError, match="a.jsonl.gz is damaged or cut short .*read.damaged=keep"):
        read(tmp_path, path)
    assert not list((tmp_path / "out").glob("*ledger*")), "which is what makes a part whole"
    keep = dataclasses.replace(RULE, damaged="keep")
    result, pages = read(tmp_path, path, keep)
    assert 100 < len(pages) < 4000 and result.ledger.notes == {"read to its damage: a.jsonl.gz": 1}
    assert [page.text for page in pages] == [json.loads(line)["text"] for line in lines][
        : len(pages)
    ]


def test_a_bomb_is_damage(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(bytes(2**27)))
    with pytest.raises(ValueError, match="it grows to over 300 times its size"):
        read(tmp_path, path)


def test_files_of_every_format_are_read_in_order_of_name(tmp_path):
    folder = tmp_path / "in"
    (folder / "b").mkdir(parents=True)
    (folder / "a.txt").write_text("\ufefffirst")
    table = pa.table({"id": ["x", "y"], "text": ["second", None], "url": ["http://x", None]})
    pyarrow.parquet.write_table(table, folder / "b" / "c.parquet")
    (folder / "d.txt").write_bytes(b"\xff\xfe")
    (folder / "e.txt").write_text("")
    (folder / "f.jsonl").write_text('{"text": "third"}')
    (folder / "g.pdf").write_text("no text")
    result, pages = read(tmp_path, folder)
    assert [(page.id, page.text) for page in pages] == [
        ("web/a.txt#0", "first"),
        ("web/b/c.parquet#0", "second"),
        ("web/f.jsonl#0", "third"),
    ]
    assert [page.number for page in pages] == sorted({page.number for page in pages})
    assert dropped(tmp_path) == [
        ("web/b/c.parquet#1", "'text' is no string", "it is None"),
        ("web/d.txt#0", "not UTF-8", "byte 0"),
    ]
    assert "g.pdf" in input_files.list_files(Corpus(name="web", path=str(folder)))[1]


def test_parts_are_cut_after_a_number_of_bytes(tmp_path, write_jsonl):
    path = write_jsonl("a.jsonl", [f"{n:100d}" for n in range(25)])
    result, pages = read(tmp_path, path, part_bytes=1000)
    assert [(part.documents, part.text_bytes) for part in result.parts] == [
        (10, 1000),
        (10, 1000),
        (5, 500),
    ]
    assert [page.id for page in pages] == [f"web/a.jsonl#{n}" for n in range(25)]


def test_a_column_or_id_that_is_missing_is_said(tmp_path, write_jsonl):
    pyarrow.parquet.write_table(pa.table({"content": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="has no column 'text': it has content; name it in the da"):
        read(tmp_path, tmp_path / "a.parquet")
    assert read(tmp_path, tmp_path / "a.parquet", field="content")[1][0].text == "x"
    write_jsonl("b.jsonl", ["text"])
    result, pages = read(tmp_path, tmp_path / "b.jsonl", id_field="key")
    assert pages == [] and list(result.ledger.dropped) == ["no id 'key'"]


def test_ids_may_be_any_string_or_integer(tmp_path):
    ids = [0, 7, "a b", "", None, True, 1.5, "\ud800"]
    lines = [json.dumps({"text": "x", "key": value, "url": "http://\ud800"}) for value in ids]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    result, pages = read(tmp_path, tmp_path / "a.jsonl", id_field="key")
    assert [page.id for page in pages] == ["web/0", "web/7", "web/a b", "web/\ufffd"]
    assert {page.url for page in pages} == {"http://\ufffd"}
    assert result.ledger.dropped == {"no id 'key'": (4, sum(len(line) + 1 for line in lines[3:7]))}


def test_an_empty_compressed_file_is_damage_and_other_empty_files_are_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("")
    (tmp_path / "in" / "b.jsonl").write_text('{"text": "x"}')
    result, pages = read(tmp_path, tmp_path / "in")
    assert result.ledger.read[0] == len(pages) == 1
    (tmp_path / "in" / "c.jsonl.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"c.jsonl.gz is damaged or cut short \(it is empty\)"):
        read(tmp_path, tmp_path / "in")


def test_a_parquet_file_cut_short_is_damage(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"text": ["x" * 100] * 50}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="a.parquet is damaged or cut short"):
        read(tmp_path, path)


def test_places_of_fsspec_are_read_as_files_here(tmp_path, write_jsonl):
    write_jsonl("in/a.jsonl", ["one", "two"])
    write_jsonl("in/b/c.jsonl", ["three"])
    place = bucket.BucketFileSystem()
    place.put(str(tmp_path / "in"), "/crawl", recursive=True)
    try:
        (tmp_path / "here").mkdir()
        here = read(tmp_path / "here", tmp_path / "in")[1]
        assert read(tmp_path, "bucket://crawl")[1] == here
        assert [page.text for page in read(tmp_path, "bucket://crawl/*.jsonl")[1]] == ["one", "two"]
        with pytest.raises(ValueError, match=r"bucket://crawl/x\*: there is no file of text"):
            read(tmp_path, "bucket://crawl/x*")
    finally:
        place.rm("/crawl", recursive=True)
    here = read(tmp_path, f"file://{tmp_path}/in")[1]
    assert [page.text for page in here] == ["one", "two", "three"]
    with zipfile.ZipFile(tmp_path / "pages.zip", "w") as out:
        out.writestr("a/one.jsonl", '{"text": "in a zip"}')
        out.writestr("a/two.bin", "no text")
    packed = read(tmp_path, f"zip://a/*.jsonl::file://{tmp_path}/pages.zip")[1]
    assert [(page.id, page.text) for page in packed] == [("web/one.jsonl#0", "in a zip")]
    with pytest.raises(ValueError, match="nowhere://x cannot be read by fsspec .*nowhere"):
        read(tmp_path, "nowhere://x")


def test_files_are_grouped_by_size():
    files = [
        input_files.InputFile(n, "", "", ".txt", "", size, "")
        for n, size in enumerate([5, 4, 9, 30, 1, 1])
    ]
    groups = input_files.group_files(files, 10)
    assert [[file.number for file in group] for group in groups] == [[0, 1], [2], [3], [4, 5]]


PAGE = "<html><body><main><p>{}</p></main></body></html>"


def test_pages_of_warc_files_are_text(tmp_path):
    prose = "A paragraph of ordinary prose that is long enough to be taken for the content. " * 3
    records = [
        warc_files.page(PAGE.format(prose + "First."), "http://a.example/1"),
        warc_files.record("response", warc_files.http(b"x", status=404), "http://a.example/2"),
        warc_files.page(PAGE.format(prose + "Third."), "http://a.example/3"),
    ]
    (tmp_path / "a.warc.gz").write_bytes(warc_files.compress(records))
    (tmp_path / "b.warc.wet.gz").write_bytes(
        warc_files.compress([warc_files.wet("Text of a page.", "http://b.example/")])
    )
    (tmp_path / "c.html").write_text(PAGE.format(prose + "Of a file."))
    result, pages = read(tmp_path, tmp_path / "[abc].*")
    assert [(page.id, page.url, page.text.split(". ")[-1].strip()) for page in pages] == [
        ("web/a.warc.gz#0", "http://a.example/1", "First."),
        ("web/a.warc.gz#2", "http://a.example/3", "Third."),
        ("web/b.warc.wet.gz#0", "http://b.example/", "Text of a page."),
        ("web/c.html#0", "", "Of a file."),
    ]
    assert result.ledger.read[0] == 5
    path = tmp_path / "out" / "web-0000000.dropped.parquet"
    assert list(parts.read_rows(path, ["id", "url", "reason", "detail"])) == [
        ("web/a.warc.gz#1", "http://a.example/2", "HTTP status is not 200", "404")
    ]


def test_numbers_order_pages_by_data_set_file_and_place():
    last_page = 2**page.PAGE_BITS - 1
    last_piece = (last_page << page.PIECE_BITS) + 2**page.PIECE_BITS - 1
    last_file = 2**page.FILE_BITS - 1
    assert page.first_number(0, 1) == page.first_number(0, 0) + last_piece + 1
    assert page.first_number(1, 0) == page.first_number(0, last_file) + last_piece + 1
    assert page.first_number(1, 0) >> page.CORPUS_SHIFT == 1
    assert page.first_number(127, last_file) + last_piece == 2**63 - 1, "which int64 holds"
