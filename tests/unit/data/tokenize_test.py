"""Shard directories are written the same by any number of workers, go on after a kill, keep what
has not changed, and refuse other text."""

import json
import multiprocessing
import os
import pathlib
import signal
import socket
import time

import numpy as np
import pytest

from gptjax.config import data
from gptjax.data import shards, tokenize, validation_split
from gptjax.data.sources import open
from gptjax.data.tokenizers import build
from tests import corpus
from tests.corpus import BY_DOCUMENT, contents, decode, flip, refused, write_shards
from tests.corpus import SHORT_DOCUMENTS as DOCUMENTS


@pytest.fixture
def source(tmp_path):
    return corpus.write(tmp_path / "text.jsonl", DOCUMENTS)


def test_every_document_is_written_once_on_its_side(source, tmp_path):
    manifest = write_shards(source, tmp_path / "out")
    train, validation = (decode(tmp_path / "out", split) for split in validation_split.SPLITS)
    assert sorted(train + validation) == sorted(DOCUMENTS)
    assert not set(train) & set(validation) and 15 < len(validation) < 70
    for split, held in (("train", train), ("validation", validation)):
        counts = manifest["splits"][split]
        assert counts["documents"] == len(held) and counts["bytes"] == sum(
            len(t.encode()) for t in held
        )
        assert counts["tokens"] == counts["bytes"] + counts["documents"]
    assert (
        manifest["text"]["characters"] == sum(map(len, DOCUMENTS))
        and len(manifest["splits"]["train"]["shards"]) > 3
    )


def test_counts_and_digest_do_not_depend_on_shard_size(source, tmp_path):
    small, large = (
        write_shards(source, tmp_path / "small", block=500),
        write_shards(source, tmp_path / "large", block=10**6),
    )
    assert small["text"] == large["text"]
    assert decode(tmp_path / "small", "train") == decode(tmp_path / "large", "train")
    assert len(large["splits"]["train"]["shards"]) == 1


def test_workers_write_the_same_files(source, tmp_path):
    done = []
    write_shards(source, tmp_path / "one")
    write_shards(source, tmp_path / "two", workers=2, advance=done.append)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert done == sorted(done) and done[-1] == 1.0


def test_wide_ids_take_four_bytes(tmp_path):
    assert shards.token_dtype(65_536) == np.uint16 and shards.token_dtype(65_537) == np.uint32


class Deadly(build.ByteTokenizer):
    """Kills its process, as kill -9 does, at the fourth batch of texts."""

    left = 4

    def encode_batch(self, texts):
        Deadly.left -= 1
        if not Deadly.left:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_batch(texts)


def killed(source, directory, workers=1):
    tokenize.tokenize_corpus(
        source,
        repr(data.Bytes()),
        Deadly(),
        BY_DOCUMENT,
        directory,
        lambda done: None,
        workers,
        1000,
    )


def test_a_worker_that_is_killed_is_one_line_and_loses_nothing(source, tmp_path):
    refused(
        r"a worker process was killed, .*run it again, with fewer --workers",
        lambda: killed(source, tmp_path / "out", workers=2),
    )
    write_shards(source, tmp_path / "out")
    write_shards(source, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_killed_preparation_is_resumed(source, tmp_path, monkeypatch):
    write_shards(source, tmp_path / "whole")
    process = multiprocessing.get_context("spawn").Process(
        target=killed, args=(source, tmp_path / "out")
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    refused(
        r"is not finished: run the same gptjax.prepare again",
        lambda: shards.read_manifest(tmp_path / "out"),
    )
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("train-*")}
    assert finished and len(list((tmp_path / "out").glob("block-*"))) >= 1
    (
        tmp_path / "out" / f"train-00009.tokens.npy.{socket.gethostname()}-{process.pid}.partial"
    ).write_bytes(b"half a shard")
    living = (
        tmp_path / "out" / f"train-00009.tokens.npy.{socket.gethostname()}-{os.getpid()}.partial"
    )
    living.write_bytes(b"another that is at work")
    time.sleep(0.01)
    write_shards(source, tmp_path / "out")
    living.unlink()
    assert {p: (tmp_path / "out" / p).stat().st_mtime_ns for p in list(finished)[:1]} == dict(
        list(finished.items())[:1]
    )  # kept, not redone
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_prepared_twice_is_prepared_once(source, tmp_path, monkeypatch):
    first = write_shards(source, tmp_path / "out")
    monkeypatch.setattr(open, "documents", lambda source: pytest.fail("read again"))
    assert write_shards(source, tmp_path / "out") == first


@pytest.mark.parametrize("finished", [True, False])
def test_a_directory_of_something_else_is_refused(source, tmp_path, finished):
    write_shards(source, tmp_path / "out")
    if not finished:
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        (tmp_path / "out" / "manifest.json").rename(tmp_path / "out" / "job.json")
        assert manifest["block"] == 1000
    refused(
        r"prepared with another validation split: it has ByDocument\(fraction=0.2\)",
        lambda: write_shards(source, tmp_path / "out", rule=data.Tail()),
    )
    refused(
        r"prepared with another tokenizer: it has Bytes\(\), now it is Gpt2Bpe",
        lambda: write_shards(source, tmp_path / "out", data.Gpt2Bpe()),
    )
    refused(
        r"prepared with another number of characters a shard: it has 1000",
        lambda: write_shards(source, tmp_path / "out", block=999),
    )
    (tmp_path / "text.jsonl").write_text('{"text": "other"}\n')
    if finished:
        refused(
            r"with another text: it has documents 200, .*, now it is documents 1, char.*; give",
            lambda: write_shards(source, tmp_path / "out"),
        )
    else:
        assert write_shards(source, tmp_path / "out")["text"]["documents"] == 1


CHANGES = {  # of a corpus after it was prepared; and is it another text?
    "a new time": (lambda folder: os.utime(folder / "b.jsonl", (0, 0)), False),
    "an empty file": (lambda folder: (folder / "c.jsonl").touch(), False),
    "another name": (lambda folder: (folder / "b.jsonl").rename(folder / "part.jsonl"), False),
    "another cut": (lambda folder: rewrite(folder, DOCUMENTS[:7], DOCUMENTS[7:]), False),
    "another text of that length": (
        lambda folder: rewrite(folder, DOCUMENTS[:100], [*DOCUMENTS[100:-1], DOCUMENTS[-1][::-1]]),
        True,
    ),
    "a text twice": (lambda folder: rewrite(folder, DOCUMENTS, DOCUMENTS[-1:]), True),
    "a text less": (lambda folder: rewrite(folder, DOCUMENTS[:100], DOCUMENTS[101:]), True),
}


def rewrite(folder, a, b):
    folder.mkdir(exist_ok=True)
    corpus.write(folder / "a.jsonl", a)
    corpus.write(folder / "b.jsonl", b)


@pytest.mark.parametrize("change", CHANGES)
def test_a_finished_directory_is_refused_for_another_text_alone(tmp_path, change):
    rewrite(tmp_path / "text", DOCUMENTS[:100], DOCUMENTS[100:])
    source, lines = data.Text(path=str(tmp_path / "text")), []
    write_shards(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    alter, is_other = CHANGES[change]
    alter(tmp_path / "text")
    arguments = (
        source,
        repr(data.Bytes()),
        build.ByteTokenizer(),
        BY_DOCUMENT,
        tmp_path / "out",
        lambda done: None,
        1,
        1000,
        lines.append,
    )
    if is_other:
        refused(
            "was prepared with another text: it has .* give an empty directory or delete that one",
            lambda: tokenize.tokenize_corpus(*arguments),
        )
    else:
        assert tokenize.tokenize_corpus(*arguments) == shards.read_manifest(tmp_path / "out")
    assert (
        contents(tmp_path / "out") == before
        and "comparing their text" in lines[0]
        and len(lines) == 1
    )


def test_foreign_arrays_are_not_mixed_with(source, tmp_path):
    (tmp_path / "out").mkdir()
    np.save(tmp_path / "out" / "mine.npy", np.zeros(3))
    refused(
        r"holds files of something else; give an empty directory",
        lambda: write_shards(source, tmp_path / "out"),
    )


def test_a_full_disk_or_read_only_directory_is_named(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory|File exists"):
        write_shards(source, tmp_path / "file")
    if os.path.exists("/dev/full"):
        (tmp_path / "out").mkdir()

        opened = pathlib.Path.open

        def onto_a_full_disk(path, *given):
            return opened(pathlib.Path("/dev/full") if path.suffix == ".partial" else path, *given)

        monkeypatch.setattr("pathlib.Path.open", onto_a_full_disk)
        with pytest.raises(
            OSError,
            match=r"cannot be written \(No space left on device\); what is finished is kept",
        ) as error:
            write_shards(source, tmp_path / "out")
        assert str(tmp_path / "out") in str(error.value)


# --- resumed --------------------------------------------------------------------------------------


class Counting(build.ByteTokenizer):
    """Keeps what it was given."""

    def __init__(self):
        self.given: list[str] = []

    def encode_batch(self, texts):
        self.given += texts
        return super().encode_batch(texts)


def stopped(source, directory, block=1000):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            tokenize, "sum_counts", lambda blocks: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        write_shards(source, directory, block=block)


@pytest.mark.parametrize("how", ["flip", "half", "empty", "gone"])
def test_damaged_parts_of_an_unfinished_preparation_are_written_again(source, tmp_path, how):
    write_shards(source, tmp_path / "whole")
    stopped(source, tmp_path / "out")
    files = sorted((tmp_path / "out").iterdir())
    assert len([file for file in files if file.suffix == ".npy"]) > 20 and len(files) > 30
    for file in files[:: 1 if how == "flip" else 5]:
        content = file.read_bytes()
        middle = len(content) // 2
        if how == "flip":
            flip(file, middle)
        elif how == "gone":
            file.unlink()
        else:
            file.write_bytes(content[:middle] if how == "half" else b"")
    said = []
    tokenize.tokenize_corpus(
        source,
        repr(data.Bytes()),
        build.ByteTokenizer(),
        BY_DOCUMENT,
        tmp_path / "out",
        lambda done: None,
        1,
        1000,
        said.append,
    )
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert said and all("again" in line for line in said)


def test_blocks_of_files_that_have_not_changed_are_kept(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(4):
        (corpus / f"{number}.jsonl").write_text(
            "".join(json.dumps({"text": f"{number} {n} " * 40}) + "\n" for n in range(20))
        )
    source = data.Text(path=str(corpus))
    (corpus / "4.jsonl").write_text('{"text": "last"}\n{"text": 3}\n')
    refused(
        r"4.jsonl line 2 has no string field 'text': that is 3",
        lambda: write_shards(source, tmp_path / "out"),
    )
    assert len(list((tmp_path / "out").glob("block-*.json"))) > 8
    (corpus / "4.jsonl").write_text(
        ""
    )  # as Spark's writers leave such; and one vanishes, one is another, one is new
    (corpus / "1.jsonl").unlink()
    (corpus / "2.jsonl").write_text(json.dumps({"text": "other"}) + "\n")
    (corpus / "5.jsonl").write_text(json.dumps({"text": "new"}) + "\n")
    spoken, said = Counting(), []
    tokenize.tokenize_corpus(
        source,
        repr(data.Bytes()),
        spoken,
        BY_DOCUMENT,
        tmp_path / "out",
        lambda done: None,
        1,
        1000,
        said.append,
    )
    assert (
        spoken.given
        and {text.split(" ")[0] for text in spoken.given} <= {"other", "new", "0", "3"}
        and len(spoken.given) < 10
    )
    assert said == [f"passed over in Text(path='{corpus}', field='text'): 1 files without text"]
    write_shards(source, tmp_path / "anew")
    for split in validation_split.SPLITS:
        assert decode(tmp_path / "out", split) == decode(tmp_path / "anew", split)
    assert len(list((tmp_path / "out").iterdir())) == len(list((tmp_path / "anew").iterdir()))
    assert shards.read_manifest(tmp_path / "out")["passed_over"] == {"files without text": 1}


# --- held out -------------------------------------------------------------------------------------


def test_tail_cuts_every_document_between_characters(source, tmp_path):
    write_shards(source, tmp_path / "out", rule=data.Tail(fraction=0.25))
    train, validation = decode(tmp_path / "out", "train"), decode(tmp_path / "out", "validation")
    assert len(train) == len(validation) == len(DOCUMENTS)
    assert [a + b for a, b in zip(train, validation, strict=True)] == DOCUMENTS
    assert all(len(b) == int(len(a + b) * 0.25) for a, b in zip(train, validation, strict=True))


def test_separate_trains_on_everything(source, tmp_path):
    manifest = write_shards(source, tmp_path / "out", rule=data.Separate(source=data.Embedded()))
    assert (
        decode(tmp_path / "out", "train") == DOCUMENTS
        and not manifest["splits"]["validation"]["tokens"]
    )


def test_by_document_is_by_key_alone_and_of_the_right_size():
    from gptjax.data.sources.document import Document

    sides = [
        validation_split.split_document(
            Document(f"text {n}", f"key {n}", 0.0), data.ByDocument(fraction=0.1)
        )[0][0]
        for n in range(5000)
    ]
    assert 0.085 < sides.count("validation") / 5000 < 0.115
    again = [
        validation_split.split_document(
            Document("another text", f"key {n}", 0.0), data.ByDocument(fraction=0.1)
        )[0][0]
        for n in range(5000)
    ]
    assert sides == again
    assert validation_split.split_document(
        Document("t", "k", 0.0), data.ByDocument(fraction=0)
    ) == [("train", "t")]
