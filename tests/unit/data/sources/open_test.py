"""The embedded corpus; files of every format and compression; TFDS; and the sentence that each
bad input gets."""

import collections
import gzip
import hashlib
import json
import lzma
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pyarrow
import pyarrow.parquet
import pytest

from gptjax.config import data
from gptjax.data.sources import files, open, stdlib_corpus

TEXTS = ["first document\n", "\u00e9l\u00e8ve \u6f22\u5b57 \U0001f600", "third\r\n  one"]


def texts(path, field="text"):
    return [document.text for document in open.documents(data.Text(path=str(path), field=field))]


def refused(source, match):
    with pytest.raises(ValueError, match=match) as error:
        list(open.documents(source))
    assert "\n" not in str(error.value)


def compressed(content: bytes, compression: str) -> bytes:
    match compression:
        case "":
            return content
        case ".gz":
            return gzip.compress(content)
        case ".xz":
            return lzma.compress(content)
        case _:
            sink = pyarrow.BufferOutputStream()
            with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
                stream.write(content)
            return sink.getvalue().to_pybytes()


def as_jsonl(field="text"):
    return "".join(
        json.dumps({"id": n, field: text}) + "\n\n" for n, text in enumerate(TEXTS)
    ).encode()


def as_parquet(field="text", values=TEXTS):
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(
        pyarrow.table({"id": list(range(len(values))), field: values}), sink, row_group_size=2
    )
    return sink.getvalue().to_pybytes()


def twice_parquet():
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(
        pyarrow.Table.from_arrays([pyarrow.array(TEXTS)] * 2, names=["text", "text"]), sink
    )
    return sink.getvalue().to_pybytes()


# --- embedded -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library():
    return list(stdlib_corpus.documents())


def test_the_embedded_corpus_is_topics_sources_and_docstrings(library):
    keys = {document.key for document in library}
    assert sum(len(document.text) for document in library) > 5_000_000
    assert {"help(for)", "argparse", "collections", "math", "json.decoder", "builtins"} <= keys
    found = {document.key: document.text for document in library}
    assert "def acos(x, /):" in found["math"] and "class ArgumentParser" in found["argparse"]
    assert library[-1].progress == 1.0 and all(
        a.progress <= b.progress for a, b in zip(library, library[1:], strict=False)
    )


def test_the_embedded_corpus_leaves_out_tests_tables_and_copies(library):
    texts = [document.text for document in library]
    assert len(set(texts)) == len(texts)
    assert not any("decoding_table = (" in text for text in texts)
    assert not any(
        document.key.startswith(("test.", "pydoc_data", "sysconfigdata")) for document in library
    )


def test_twins_in_c_and_python_share_a_key():
    assert (
        stdlib_corpus.document_key("_pydecimal")
        == stdlib_corpus.document_key("_decimal")
        == stdlib_corpus.document_key("decimal")
        == "decimal"
    )
    assert (
        stdlib_corpus.document_key("__future__") == "__future__"
        and stdlib_corpus.document_key("help(_)") == "help(_)"
    )


def test_reading_the_embedded_corpus_changes_nothing_and_is_the_same_in_another_process(library):
    program = """
import hashlib, os, sys, webbrowser
webbrowser.open = lambda *a: sys.exit("antigravity")
from gptjax.data.sources import stdlib_corpus
text = "".join(d.key + d.text for d in stdlib_corpus.documents())
assert "antigravity" not in sys.modules and "this" not in sys.modules and "idlelib" not in sys.modules
print(hashlib.sha256(text.encode()).hexdigest())
"""  # noqa: E501
    clean = {"PYTHONHASHSEED": "7", "TERM": "xterm"}
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, env=clean
    )
    assert (
        out.stdout.strip()
        == hashlib.sha256("".join(d.key + d.text for d in library).encode()).hexdigest()
    ), out.stderr
    assert not out.stderr


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["", ".gz", ".xz", ".zst"])
def test_every_format_and_compression(tmp_path, compression):
    for n, text in enumerate(TEXTS):
        mark = b"\xef\xbb\xbf" if n == 0 else b""  # as Windows' editors save
        (tmp_path / f"{n}.txt{compression}").write_bytes(
            compressed(mark + text.encode(), compression)
        )
    (tmp_path / f"all.jsonl{compression}").write_bytes(compressed(as_jsonl(), compression))
    (tmp_path / f"all.parquet{compression}").write_bytes(compressed(as_parquet(), compression))
    (tmp_path / "README.md").write_text("no source")
    assert texts(tmp_path / f"1.txt{compression}") == TEXTS[1:2]
    assert texts(tmp_path / f"*.txt{compression}") == TEXTS
    assert texts(tmp_path / f"all.jsonl{compression}") == TEXTS
    assert texts(tmp_path / f"all.parquet{compression}") == TEXTS
    assert texts(tmp_path) == TEXTS * 3  # sorted by name


def test_a_parquet_file_of_several_batches_is_read_to_its_end(tmp_path):
    (tmp_path / "long.parquet").write_bytes(as_parquet(values=[f"text {n}" for n in range(2500)]))
    assert texts(tmp_path / "long.parquet") == [f"text {n}" for n in range(2500)]


def test_directories_globs_and_fields(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "deep.jsonl").write_bytes(as_jsonl("body"))
    (tmp_path / "a" / "columns.parquet").write_bytes(as_parquet("body", [*TEXTS, None, ""]))
    assert texts(tmp_path, "body") == TEXTS * 2
    assert texts(tmp_path / "**" / "*.jsonl", "body") == TEXTS


def test_two_streams_in_one_file_and_escaped_surrogates(tmp_path):
    (tmp_path / "two.txt.gz").write_bytes(gzip.compress(b"one ") + gzip.compress(b"two"))
    (tmp_path / "two.txt.zst").write_bytes(compressed(b"one ", ".zst") + compressed(b"two", ".zst"))
    assert texts(tmp_path / "two.txt.*") == ["one two"] * 2
    (tmp_path / "x.jsonl").write_text('{"text": "\\ud83d\\ude00 \\ud83d"}')
    assert texts(tmp_path / "x.jsonl") == ["\U0001f600 \ufffd"]


def test_copies_share_a_key_and_progress_reaches_the_end(tmp_path):
    (tmp_path / "a.txt").write_text("the same")
    (tmp_path / "b.jsonl").write_text('{"text": "the same"}\n{"text": "another"}\n')
    documents = list(open.documents(data.Text(path=str(tmp_path))))
    assert documents[0].key == documents[1].key != documents[2].key
    assert [d.progress for d in documents] == sorted(d.progress for d in documents) and documents[
        -1
    ].progress == 1.0


def test_the_fingerprint_follows_the_files(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    source = data.Text(path=str(tmp_path))
    before = open.fingerprint(source)
    assert before == open.fingerprint(source)
    (tmp_path / "a.txt").write_text("two")  # as long
    os.utime(tmp_path / "a.txt", ns=(0, 7))
    assert open.fingerprint(source) != before
    (tmp_path / "a.txt").write_text("three")
    assert open.fingerprint(source) != before


BAD = [
    ("empty.txt", b"", r"empty.txt is empty"),
    ("empty.jsonl", b"\n\n", r"empty.jsonl is empty"),
    ("zero.txt", b"text\x00more", r"zero.txt is not text: a zero byte at offset 4"),
    (
        "latin.txt",
        "caf\u00e9".encode("latin-1"),
        r"latin.txt is not UTF-8 text: byte 0xe9 at offset 3",
    ),
    (
        "zero.jsonl",
        b'{"text": "a"}\n{"te\x00xt": "b"}\n',
        r"zero.jsonl line 2 is not text: a zero byte at offset 4",
    ),
    ("bad.jsonl", b'{"text": "a"}\n\n{"text": \n', r"bad.jsonl line 3 is not JSON"),
    (
        "field.jsonl",
        b'{"text": "a"}\n{"body": "b", "id": 1}\n',
        r"field.jsonl line 2 has no string field 'text': it has body, id",
    ),
    ("number.jsonl", b'{"text": 3}\n', r"number.jsonl line 1 has no string field 'text'"),
    ("list.jsonl", b"[1, 2]\n", r"list.jsonl line 1 holds a JSON list, not an object"),
    ("twice.parquet", twice_parquet(), r"twice.parquet has 2 columns 'text'; rename one"),
    ("bad.parquet", b"PAR1 nothing", r"bad.parquet is not a readable parquet file"),
    (
        "column.parquet",
        as_parquet("body"),
        r"column.parquet has no column 'text': it has id, body; name the column with field",
    ),
    ("number.parquet", as_parquet("text", [1, 2]), r"column 'text' holds int64, not strings"),
    ("bad.txt.gz", b"no gzip", r"bad.txt.gz is damaged or cut short"),
    ("cut.txt.gz", gzip.compress(b"some text" * 99)[:-20], r"cut.txt.gz is damaged or cut short"),
    (
        "flipped.txt.gz",
        gzip.compress(b"text")[:-6] + b"??????",
        r"flipped.txt.gz is damaged or cut short",
    ),
    (
        "garbled.txt.gz",
        gzip.compress(b"text")[:10] + b"\xff" * 20,
        r"garbled.txt.gz is damaged or cut short",
    ),
    ("cut.jsonl.xz", lzma.compress(as_jsonl())[:-20], r"cut.jsonl.xz is damaged or cut short"),
    ("bad.txt.xz", b"no xz at all", r"bad.txt.xz is damaged or cut short"),
    (
        "cut.txt.zst",
        compressed(b"some text" * 99, ".zst")[:-4],
        r"cut.txt.zst is damaged or cut short \(Truncated",
    ),
    ("bad.txt.zst", b"no zstd at all", r"bad.txt.zst is damaged or cut short"),
    ("notes.md", b"text", r"notes.md: unknown format by its name; give .txt, .jsonl or .parquet"),
]


@pytest.mark.parametrize("name, content, match", BAD, ids=[name for name, _, _ in BAD])
def test_bad_files_get_one_line(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    refused(data.Text(path=str(tmp_path / name)), match)


def test_null_and_empty_texts_and_files_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": null}\n{"text": ""}\n')
    (tmp_path / "b.parquet").write_bytes(as_parquet("text", ["b", None, "", "c"]))
    for name in ("c.jsonl", "d.txt.gz", "e.txt.xz", "f.jsonl.zst", "g.txt"):
        (tmp_path / name).write_bytes(b"")
    skipped = collections.Counter()
    documents = list(files.documents(str(tmp_path), "text", skipped))
    assert [document.text for document in documents] == ["a", "b", "c"] and [
        document.file_index for document in documents
    ] == [0, 1, 1]
    assert skipped == {
        "documents whose text is null": 2,
        "empty documents": 2,
        "files without text": 5,
    }
    refused(
        data.Text(path=str(tmp_path / "[c-g]*")), r"none of its 5 files holds no text|holds no text"
    )


def test_columns_of_strings_of_any_kind_are_read(tmp_path):
    for name, kind in (
        ("view", pyarrow.string_view()),
        ("large", pyarrow.large_string()),
        ("dictionary", None),
    ):
        column = (
            pyarrow.array(TEXTS).dictionary_encode() if kind is None else pyarrow.array(TEXTS, kind)
        )
        pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / f"{name}.parquet")
        assert texts(tmp_path / f"{name}.parquet") == TEXTS


def latin_parquet():
    raw = pyarrow.array([b"fine", b"caf\xe9"])
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(
        pyarrow.table({"text": pyarrow.Array.from_buffers(pyarrow.string(), 2, raw.buffers())}),
        sink,
    )
    return sink.getvalue().to_pybytes()


FINE = b'{"text": "a"}\n'
WITH_LINE = {
    "digits.jsonl": (
        FINE + b'{"text": "b", "n": ' + b"9" * 5000 + b"}\n",
        r"line 2 holds an integer of too many digits",
    ),
    "nested.jsonl": (
        FINE + b'{"text": "b", "m": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
        r"line 2 is JSON nested too deeply",
    ),
    "latin.parquet": (
        latin_parquet(),
        r"latin.parquet row 2 is not UTF-8 text: byte 0xe9 at offset 3",
    ),
    "many.jsonl.gz": (
        gzip.compress(FINE * 3 + b'{"text": {}}'),
        r"line 4 has no string field 'text': that is \{\}",
    ),
    "pages.parquet.gz": (gzip.compress(as_parquet() + b"x"), r"is not a readable parquet file"),
}


@pytest.mark.parametrize("name", WITH_LINE)
def test_what_a_parser_cannot_read_is_a_line_with_its_place(tmp_path, name):
    content, match = WITH_LINE[name]
    (tmp_path / name).write_bytes(content)
    refused(data.Text(path=str(tmp_path / name)), match)


def test_a_line_or_document_of_any_length_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_DOCUMENT_BYTES", 2**21)
    for name, content in (
        ("a.txt", b"a" * 2**23),
        ("a.jsonl", b" " * 2**23),
        ("a.txt.gz", gzip.compress(b"ab" * 2**22)),
    ):
        (tmp_path / name).write_bytes(content)
        refused(
            data.Text(path=str(tmp_path / name)),
            r"has over 2,097,152 bytes, too many for one document",
        )


BEFORE = [
    "empty.txt",
    "zero.txt",
    "field.jsonl",
    "bad.parquet",
    "column.parquet",
    "number.parquet",
    "bad.txt.gz",
    "bad.txt.xz",
    "bad.txt.zst",
]


def test_files_are_looked_at_before_they_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(FINE)
    (tmp_path / "b.jsonl.zst").write_bytes(compressed(FINE, ".zst"))
    (tmp_path / "c.jsonl.xz").write_bytes(lzma.compress(FINE))
    (said,) = files.check(str(tmp_path), "text")
    assert "1 of 3 files are compressed without checksums, as b.jsonl.zst" in said
    for name, content, match in BAD:
        if name in BEFORE[1:]:
            there = tmp_path / f"z{name}"
            there.write_bytes(content.replace(b'{"text": "a"}\n', b""))
            with pytest.raises(ValueError, match=match.replace("line 2", "line 1")):
                files.check(str(tmp_path), "text")
            there.unlink()


def test_absent_files_get_one_line(tmp_path):
    refused(data.Text(path=str(tmp_path / "no.txt")), r"no.txt does not exist")
    refused(data.Text(path=str(tmp_path / "*.txt")), r"matches no file")
    refused(data.Text(path=str(tmp_path)), r"has no text file; give .txt, .jsonl or .parquet")


def test_unreadable_files_get_one_line(tmp_path):
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    refused(data.Text(path=str(tmp_path / "gone.txt")), r"gone.txt is a broken link")
    if pathlib.Path(
        "/proc/self/mem"
    ).exists():  # opens, but its first bytes are an input/output error: works for root, too
        (tmp_path / "mem.txt").symlink_to("/proc/self/mem")
        refused(
            data.Text(path=str(tmp_path / "mem.txt")), r"mem.txt cannot be read: Input/output error"
        )


# --- tfds -----------------------------------------------------------------------------------------


@pytest.mark.shared
def test_tfds_from_a_prepared_directory(shared):
    source = data.Tfds(name="tiny_shakespeare", data_dir=str(shared / "data" / "tfds"))
    plain = (shared / "data" / "text" / "tinyshakespeare" / "input.txt").read_text()
    (train,) = open.documents(source)
    (test,) = open.documents(
        data.Tfds(
            name="tiny_shakespeare/1.0.0", split="test", data_dir=str(shared / "data" / "tfds")
        )
    )
    assert (
        plain.startswith(train.text) and plain.endswith(test.text) and len(train.text) > 1_000_000
    )
    assert open.fingerprint(source) != open.fingerprint(
        data.Tfds(name="tiny_shakespeare", split="test", data_dir=source.data_dir)
    )


@pytest.mark.shared
def test_tfds_split_and_field(shared):
    there = {"name": "tiny_shakespeare", "data_dir": str(shared / "data" / "tfds")}
    refused(
        data.Tfds(**there, split="dev"), r"split='dev'\): Unknown split 'dev'. Should be one of"
    )
    refused(data.Tfds(**there, field="body"), r"has no feature 'body': it has text")


@pytest.mark.shared
@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", [b"", b"7", b"{}", b'{"a": "\xff"}'])
def test_a_tfds_description_that_is_damaged_is_a_line(shared, tmp_path, file, content):
    shutil.copytree(shared / "data" / "tfds" / "tiny_shakespeare", tmp_path / "tiny_shakespeare")
    (tmp_path / "tiny_shakespeare" / "1.0.0" / file).write_bytes(content)
    refused(data.Tfds(name="tiny_shakespeare", data_dir=str(tmp_path)), r"tiny_shakespeare")


@pytest.mark.shared
def test_tfds_prepared_in_another_format(shared, tmp_path):
    there = shared / "data" / "tfds" / "tiny_shakespeare" / "1.0.0"
    here = tmp_path / "tiny_shakespeare" / "1.0.0"
    here.mkdir(parents=True)
    for file in there.iterdir():
        (here / file.name.replace("array_record", "tfrecord")).write_bytes(file.read_bytes())
    info = here / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    refused(
        data.Tfds(name="tiny_shakespeare", data_dir=str(tmp_path)),
        r"is prepared as tfrecord, which needs TensorFlow: prepare it with "
        r"--file_format=array_record",
    )


def test_an_unprepared_tfds_name_is_refused_at_once(tmp_path):
    start = time.monotonic()
    refused(
        data.Tfds(name="wikipedia", data_dir=str(tmp_path)),
        r"not prepared under .*: on a machine with network run `tfds build wikipedia",
    )
    refused(data.Tfds(name="nosuch/config:1.0.0", data_dir=str(tmp_path)), r"not prepared")
    assert time.monotonic() - start < 2


def built(root, *names, default=None):
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "dataset_info.json").write_text("{}")
    if default is not None:
        (root / "set" / ".config").mkdir()
        (root / "set" / ".config" / "metadata.json").write_text(
            json.dumps({"default_config_name": default})
        )


PREPARED = {
    "the newest by number": (["set/9.0.0", "set/10.0.0", "set/1.20.3"], None, "set", "set/10.0.0"),
    "a version": (["set/9.0.0", "set/10.0.0"], None, "set:9.0.0", "set/9.0.0"),
    "a version as a path": (["set/9.0.0", "set/10.0.0"], None, "set/9.0.0", "set/9.0.0"),
    "the default": (["set/en/3.0.1", "set/web/3.1.0"], "en", "set", "set/en/3.0.1"),
    "a config": (
        ["set/en/3.0.1", "set/web/3.1.0", "set/web/3.0.9"],
        "en",
        "set/web",
        "set/web/3.1.0",
    ),
    "all three": (["set/web/3.1.0", "set/web/3.0.9"], "en", "set/web:3.0.9", "set/web/3.0.9"),
    "all three as a path": (
        ["set/web/3.1.0", "set/web/3.0.9"],
        "en",
        "set/web/3.0.9",
        "set/web/3.0.9",
    ),
    "no default is known": (
        ["set/en/3.0.1", "set/web/3.0.1"],
        None,
        "set",
        "name the one that is meant, of set/en, set/web",
    ),
    "one, but is it the default?": (
        ["set/web/3.0.1"],
        None,
        "set",
        "name the one that is meant, of set/web",
    ),
    "the default is not there": (
        ["set/web/3.0.1"],
        "en",
        "set",
        r"\(prepared are set/web:3.0.1\).*`tfds build set/en --file_format",
    ),
    "no such version": (["set/web/3.0.1"], "en", "set/web:4.0.0", "`tfds build set/web:4.0.0 "),
    "no such config": (["set/web/3.0.1"], "en", "set/de", "`tfds build set/de "),
    "nothing": (
        [],
        None,
        "set",
        "`tfds build set --file_format.*where it has configs, name one as NAME/CONFIG, or tfds "
        "builds them all",
    ),
    "too much": ([], None, "set/a/b/c", "give NAME, NAME/CONFIG or NAME/CONFIG:VERSION"),
    "no version": ([], None, "set:new", "give NAME, NAME/CONFIG or NAME/CONFIG:VERSION"),
}


@pytest.mark.parametrize("there, default, name, expected", PREPARED.values(), ids=PREPARED)
def test_which_prepared_set_a_name_means(tmp_path, there, default, name, expected):
    built(tmp_path, *there, default=default)
    source = data.Tfds(name=name, data_dir=str(tmp_path))
    if expected in there:
        assert open.tfds_directory(source) == tmp_path / expected
    else:
        with pytest.raises(ValueError, match=expected):
            open.tfds_directory(source)
