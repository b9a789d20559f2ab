import dataclasses

import pytest

from gptjax.curation import parts
from gptjax.curation.page import Dropped, Page
from gptjax.runtime import checksums

PAGES = [Page(number, f"a/x#{number}", "", "é" * number + "text") for number in range(50)]


def write(path, pages):
    with parts.Writer(path, parts.SCHEMA) as writer:
        for page in pages:
            writer.write(dataclasses.astuple(page), parts.utf8_length(page.text))
    return parts.Part("a", path, len(pages), 100, checksums.file_digest(path))


def test_pages_are_read_as_written(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "GROUP_BYTES", 300)  # several row groups
    assert list(parts.read_pages(write(tmp_path / "a.parquet", PAGES))) == PAGES
    assert list(parts.read_pages(write(tmp_path / "empty.parquet", []))) == []


def test_a_part_whose_writing_fails_is_not_there(tmp_path):
    with (
        pytest.raises(RuntimeError, match="in between"),
        parts.Writer(tmp_path / "a.parquet", parts.SCHEMA) as writer,
    ):
        writer.write(dataclasses.astuple(PAGES[0]), 10)
        raise RuntimeError("in between")
    with (
        pytest.raises(Exception, match="Expected bytes|int"),
        parts.Writer(tmp_path / "a.parquet", parts.SCHEMA) as writer,
    ):
        writer.write((1, 2, 3, 4), 10)  # no strings, which is noticed when the block ends
    assert list(tmp_path.iterdir()) == []


def test_every_flipped_bit_is_noticed(tmp_path):
    part = write(tmp_path / "a.parquet", PAGES)
    content = part.path.read_bytes()
    for at in range(0, len(content), 97):
        part.path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(ValueError, match="a.parquet is damaged .*: delete it"):
            list(parts.read_pages(part))


def test_a_ledger_counts_documents_and_bytes():
    ledger = parts.Ledger()
    page = PAGES[3]  # 10 bytes
    ledger.count(10, [page], False)
    ledger.count(10, [page, page], True)
    ledger.count(7, Dropped("short", "of this page"), False)
    ledger.count(8, Dropped("short"), False)
    ledger.count(9, Dropped("long"), False)
    assert ledger.read == (5, 44) and ledger.kept == (2, 20) and ledger.written == (3, 30)
    assert ledger.changed == (1, 10)
    assert ledger.dropped == {"short": (2, 15), "long": (1, 9)}
    ledger.check("here")
    both = ledger + parts.Ledger((1, 2), (1, 2), (1, 2), notes={"a": 1})
    assert both.read == (6, 46) and both.notes == {"a": 1}
    assert parts.Ledger.from_json(both.to_json()) == both


@pytest.mark.parametrize("read, kept", [((2, 10), (1, 10)), ((1, 10), (1, 9)), ((0, 0), (1, 10))])
def test_a_ledger_that_does_not_balance_is_an_error(read, kept, tmp_path):
    ledger = parts.Ledger(read=read, kept=kept, written=kept)
    with pytest.raises(ValueError, match="does not balance"):
        parts.save_result(tmp_path / "x.ledger.json", "key", parts.Result(ledger, []))
    assert list(tmp_path.iterdir()) == []


def test_a_result_is_there_only_if_all_of_it_is(tmp_path):
    part = write(tmp_path / "a.parquet", PAGES)
    result = parts.Result(parts.Ledger((50, 1), (50, 1), (50, 1)), [part])
    path = tmp_path / "a.ledger.json"
    assert parts.load_result(path, "key") is None
    parts.save_result(path, "key", result)
    assert parts.load_result(path, "key") == result
    assert parts.load_result(path, "other") is None
    content = part.path.read_bytes()
    part.path.write_bytes(content[:-1])
    assert parts.load_result(path, "key") is None
    part.path.unlink()
    assert parts.load_result(path, "key") is None
    part.path.write_bytes(content)
    path.write_text(path.read_text().replace("50", "51"))
    assert parts.load_result(path, "key") is None
