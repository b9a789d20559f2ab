"""Shard directories: the same for any number of workers, resumable, read back exactly, and refused in one line when wrong or damaged."""

import json
import multiprocessing
import os
import pathlib
import resource
import signal
import socket
import time

import numpy as np
import pytest

from gptjax.config import data
from gptjax.data import checksums, corpora, heldout, shards, tokenising, tokenizer

DOCUMENTS = [f"document {n}: " + "word " * (n % 7) + "\u00e9\u6f22"[: n % 3] for n in range(200)]
BY_DOCUMENT = data.ByDocument(fraction=0.2)


@pytest.fixture
def source(tmp_path):
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return data.Text(path=str(tmp_path / "text.jsonl"))


def write(source, directory, spec=None, rule=BY_DOCUMENT, workers=1, block=1000, advance=lambda done: None):
    spec = spec or data.Bytes()
    return tokenising.write(source, repr(spec), tokenizer.tokenizer(spec), rule, directory, advance, workers, block)


def texts(directory, split):
    manifest = shards.read_manifest(directory)
    there = shards.Split(directory, manifest, [split])
    ends = manifest["tokenizer"]["end_of_text"]
    documents = [there.tokens(d, 0, length).tolist() for d, length in enumerate(there.lengths.tolist())]
    assert all(ids[-1] == ends for ids in documents)
    return [tokenizer.Bytes().decode(ids[:-1]) for ids in documents]


def refused(match, call):
    with pytest.raises(ValueError, match=match) as error:
        call()
    assert "\n" not in str(error.value)


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_every_document_is_written_once_on_its_side(source, tmp_path):
    manifest = write(source, tmp_path / "out")
    train, validation = (texts(tmp_path / "out", split) for split in heldout.SPLITS)
    assert sorted(train + validation) == sorted(DOCUMENTS)
    assert not set(train) & set(validation) and 15 < len(validation) < 70
    for split, held in (("train", train), ("validation", validation)):
        counts = manifest["splits"][split]
        assert counts["documents"] == len(held) and counts["bytes"] == sum(len(t.encode()) for t in held)
        assert counts["tokens"] == counts["bytes"] + counts["documents"]
    assert manifest["text"]["characters"] == sum(map(len, DOCUMENTS)) and len(manifest["splits"]["train"]["shards"]) > 3


def test_counts_and_digest_do_not_depend_on_shard_size(source, tmp_path):
    small, large = write(source, tmp_path / "small", block=500), write(source, tmp_path / "large", block=10**6)
    assert small["text"] == large["text"]
    assert texts(tmp_path / "small", "train") == texts(tmp_path / "large", "train")
    assert len(large["splits"]["train"]["shards"]) == 1


def test_workers_write_the_same_files(source, tmp_path):
    done = []
    write(source, tmp_path / "one")
    write(source, tmp_path / "two", workers=2, advance=done.append)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert done == sorted(done) and done[-1] == 1.0


def test_wide_ids_take_four_bytes(tmp_path):
    assert shards.shard_type(65_536) == np.uint16 and shards.shard_type(65_537) == np.uint32


class Deadly(tokenizer.Bytes):
    """Kills its process, as kill -9 does, at the fourth batch of texts."""

    left = 4

    def encode_batch(self, texts):
        Deadly.left -= 1
        if not Deadly.left:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_batch(texts)


def killed(source, directory, workers=1):
    tokenising.write(source, repr(data.Bytes()), Deadly(), BY_DOCUMENT, directory, lambda done: None, workers, 1000)


def test_a_worker_that_is_killed_is_one_line_and_loses_nothing(source, tmp_path):
    refused(r"a worker process was killed, .*run it again, with fewer --workers", lambda: killed(source, tmp_path / "out", workers=2))
    write(source, tmp_path / "out")
    write(source, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_killed_preparation_is_resumed(source, tmp_path, monkeypatch):
    write(source, tmp_path / "whole")
    process = multiprocessing.get_context("spawn").Process(target=killed, args=(source, tmp_path / "out"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    refused(r"is not finished: run the same gptjax.prepare again", lambda: shards.read_manifest(tmp_path / "out"))
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("train-*")}
    assert finished and len(list((tmp_path / "out").glob("block-*"))) >= 1
    (tmp_path / "out" / f"train-00009.tokens.npy.{socket.gethostname()}-{process.pid}.partial").write_bytes(b"half a shard")
    living = tmp_path / "out" / f"train-00009.tokens.npy.{socket.gethostname()}-{os.getpid()}.partial"
    living.write_bytes(b"another that is at work")
    time.sleep(0.01)
    write(source, tmp_path / "out")
    living.unlink()
    assert {p: (tmp_path / "out" / p).stat().st_mtime_ns for p in list(finished)[:1]} == dict(
        list(finished.items())[:1]
    )  # kept, not redone
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_prepared_twice_is_prepared_once(source, tmp_path, monkeypatch):
    first = write(source, tmp_path / "out")
    monkeypatch.setattr(corpora, "documents", lambda source: pytest.fail("read again"))
    assert write(source, tmp_path / "out") == first


@pytest.mark.parametrize("finished", [True, False])
def test_a_directory_of_something_else_is_refused(source, tmp_path, finished):
    write(source, tmp_path / "out")
    if not finished:
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        (tmp_path / "out" / "manifest.json").rename(tmp_path / "out" / "job.json")
        assert manifest["block"] == 1000
    refused(r"prepared with another held_out: it has ByDocument\(fraction=0.2\)", lambda: write(source, tmp_path / "out", rule=data.Tail()))
    refused(
        r"prepared with another tokenizer: it has Bytes\(\), now it is Gpt2Bpe", lambda: write(source, tmp_path / "out", data.Gpt2Bpe())
    )
    refused(r"prepared with another number of characters a shard: it has 1000", lambda: write(source, tmp_path / "out", block=999))
    (tmp_path / "text.jsonl").write_text('{"text": "other"}\n')
    if finished:
        refused(r"prepared with another state of its text \(the files' names, sizes or times", lambda: write(source, tmp_path / "out"))
    else:
        assert write(source, tmp_path / "out")["text"]["documents"] == 1


def test_foreign_arrays_are_not_mixed_with(source, tmp_path):
    (tmp_path / "out").mkdir()
    np.save(tmp_path / "out" / "mine.npy", np.zeros(3))
    refused(r"holds files of something else; give an empty directory", lambda: write(source, tmp_path / "out"))


def test_a_full_disk_or_read_only_directory_is_named(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory|File exists"):
        write(source, tmp_path / "file")
    if os.path.exists("/dev/full"):
        (tmp_path / "out").mkdir()

        opened = pathlib.Path.open

        def onto_a_full_disk(path, *given):
            return opened(pathlib.Path("/dev/full") if path.suffix == ".partial" else path, *given)

        monkeypatch.setattr("pathlib.Path.open", onto_a_full_disk)
        with pytest.raises(OSError, match=r"cannot be written \(No space left on device\); what is finished is kept") as error:
            write(source, tmp_path / "out")
        assert str(tmp_path / "out") in str(error.value)


# --- damage ----------------------------------------------------------------------------------------------------------


def opened(directory):
    return shards.Split(directory, shards.read_manifest(directory), heldout.SPLITS)


def test_damage_is_noticed(source, tmp_path):
    write(source, tmp_path / "out")
    opened(tmp_path / "out")
    tokens = tmp_path / "out" / "train-00001.tokens.npy"
    whole = tokens.read_bytes()
    for content, match in (
        (whole[:-2], r"train-00001.tokens.npy is damaged or cut short"),
        (whole[:60], r"train-00001.tokens.npy is damaged or cut short"),
        (b"", r"train-00001.tokens.npy is damaged or cut short"),
        (whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], r"train-00001.\*.npy is damaged: it differs from the manifest"),
        ((tmp_path / "out" / "train-00000.tokens.npy").read_bytes(), r"train-00001.\*.npy is damaged"),
    ):
        tokens.write_bytes(content)
        refused(match, lambda: opened(tmp_path / "out"))
    tokens.unlink()
    refused(r"train-00001.tokens.npy is missing", lambda: opened(tmp_path / "out"))


def test_shards_of_a_large_directory_are_checked_when_one_is_first_read(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "VERIFIED", 0)
    write(source, tmp_path / "out")
    tokens = tmp_path / "out" / "train-00002.tokens.npy"
    content = bytearray(tokens.read_bytes())
    content[-9] ^= 1
    tokens.write_bytes(content)
    there = opened(tmp_path / "out")
    with monkeypatch.context() as patch:
        read = []
        patch.setattr(shards.Shard, "verify", lambda shard: read.append(shard.name))
        there.tokens(0, 0, 3)
        assert read == ["train-00000"]
    there.tokens(0, 0, 3)
    (last,) = (len(shard.ends) for shard in there.shards if shard.name == "train-00000")
    there.tokens(last, 0, 3)
    number = sum(len(shard.ends) for shard in there.shards[:2])
    refused(r"train-00002.\*.npy is damaged: it differs from the manifest", lambda: there.tokens(number, 0, 3))


def test_more_shards_than_a_program_may_have_files_open(tmp_path, monkeypatch):
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": f"{n}" * 9}) + "\n" for n in range(40)))
    write(data.Text(path=str(tmp_path / "text.jsonl")), tmp_path / "out", rule=data.Tail(), block=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(os.listdir("/proc/self/fd")) + 20
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
        assert len(opened(tmp_path / "out").shards) > 40
        monkeypatch.setattr(resource, "setrlimit", lambda *args: None)  # as where no more are allowed
        resource.prlimit(0, resource.RLIMIT_NOFILE, (few, hard))
        refused(r"(tokens|ends).npy cannot be opened: Too many open files; raise the limit of this shell", lambda: opened(tmp_path / "out"))
    finally:
        resource.prlimit(0, resource.RLIMIT_NOFILE, (soft, hard))


def test_no_directory_no_manifest_bad_manifest(source, tmp_path):
    refused(r"is no shard directory; python -m gptjax.prepare writes one", lambda: shards.read_manifest(tmp_path / "nowhere"))
    write(source, tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text[:-30])
    refused(r"manifest.json is damaged", lambda: shards.read_manifest(tmp_path / "out"))
    manifest.write_text(text.replace('"format": 1', '"format": 99'))
    refused(r"has shard format 99, this is format 1", lambda: shards.read_manifest(tmp_path / "out"))


def changed(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("part", ["tokens", "ends", "keys"])
def test_every_byte_of_a_shard_is_checked(tmp_path, part, large, monkeypatch):
    monkeypatch.setattr(shards, "VERIFIED", 0 if large else 2**30)
    (tmp_path / "text.jsonl").write_text('{"text": "one"}\n{"text": "and another"}\n')
    write(data.Text(path=str(tmp_path / "text.jsonl")), tmp_path / "out", rule=data.Separate(source=data.Embedded()))
    file = tmp_path / "out" / f"train-00000.{part}.npy"
    whole = file.read_bytes()
    all_of_it = texts(tmp_path / "out", "train"), [shard.keys().tolist() for shard in opened(tmp_path / "out").shards]
    n_refused = 0
    for at in range(0, len(whole), 1 if part == "tokens" else 3):
        changed(file, at)
        try:
            there = opened(tmp_path / "out")
            assert (texts(tmp_path / "out", "train"), [shard.keys().tolist() for shard in there.shards]) == all_of_it, at
        except ValueError as error:
            assert f"{'train-00000'}." in str(error) and "\n" not in str(error) and "prepare it again" in str(error)
            n_refused += 1
        file.write_bytes(whole)
    assert n_refused > len(whole) * (0.3 if part == "tokens" else 0.1)


def test_every_byte_of_the_manifest_is_checked(source, tmp_path):
    write(source, tmp_path / "out", block=4000)
    file = tmp_path / "out" / "manifest.json"
    whole, known = file.read_bytes(), shards.read_manifest(tmp_path / "out")
    for at in range(0, len(whole), 11):
        for bit in (1, 32):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            try:
                assert shards.read_manifest(tmp_path / "out") == known, at
            except ValueError as error:
                assert "\n" not in str(error) and ("manifest.json" in str(error) or "shard format" in str(error))


WRONG = {
    "a byte count": lambda m: m["splits"]["train"].update(bytes=1),
    "no splits": lambda m: m.pop("splits"),
    "a path": lambda m: m["splits"]["train"]["shards"][0].update(name="../x"),
    "tokens as text": lambda m: m["splits"]["train"]["shards"][0].update(tokens="many"),
    "no ids": lambda m: m["tokenizer"].update(n_vocab=0),
    "a list": lambda m: m.update(tokenizer=[]),
    "a shard of numbers": lambda m: m["splits"]["train"].update(shards=[3]),
    "another name": lambda m: m.update(sael="x"),
}


@pytest.mark.parametrize("spoil", WRONG.values(), ids=WRONG)
def test_manifests_of_earlier_versions_are_read_and_their_sums_checked(source, tmp_path, spoil):
    manifest = write(source, tmp_path / "out")
    old = {name: value for name, value in manifest.items() if name in shards.PREPARED}
    for counts in old["splits"].values():
        counts["shards"] = [{k: v for k, v in shard.items() if k not in ("ends", "keys")} for shard in counts["shards"]]
    place = tmp_path / "out" / "manifest.json"
    place.write_text(json.dumps(old))
    assert len(texts(tmp_path / "out", "train")) > 100 and opened(tmp_path / "out").shards[0].keys() is None
    spoil(old)
    place.write_text(json.dumps(old))
    refused(r"manifest.json is damaged .*; delete .* and prepare it again", lambda: shards.read_manifest(tmp_path / "out"))


def test_ids_outside_the_vocabulary_are_named(source, tmp_path):
    manifest = write(source, tmp_path / "out", rule=data.Tail(fraction=0.1))
    described = manifest["splits"]["train"]["shards"][1]
    tokens = np.load(tmp_path / "out" / "train-00001.tokens.npy")
    tokens[7] = 300
    np.save(tmp_path / "out" / "train-00001.tokens.npy", tokens)
    described["digest"] = shards.digest(tokens, np.load(tmp_path / "out" / "train-00001.ends.npy"))
    checksums.save(tmp_path / "out" / "manifest.json", manifest)
    refused(r"train-00001.tokens.npy holds the id 300 at token 7, and the vocabulary has 257 ids", lambda: opened(tmp_path / "out"))


# --- resumed -----------------------------------------------------------------------------------------------------------------


class Counting(tokenizer.Bytes):
    """Keeps what it was given."""

    def __init__(self):
        self.given: list[str] = []

    def encode_batch(self, texts):
        self.given += texts
        return super().encode_batch(texts)


def stopped(source, directory, block=1000):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tokenising, "summed", lambda blocks: (_ for _ in ()).throw(KeyboardInterrupt))
        write(source, directory, block=block)


@pytest.mark.parametrize("how", ["flip", "half", "empty", "gone"])
def test_damage_to_what_an_unfinished_preparation_has_is_mended(source, tmp_path, how):
    write(source, tmp_path / "whole")
    stopped(source, tmp_path / "out")
    files = sorted((tmp_path / "out").iterdir())
    assert len([file for file in files if file.suffix == ".npy"]) > 20 and len(files) > 30
    for file in files[:: 1 if how == "flip" else 5]:
        content = file.read_bytes()
        middle = len(content) // 2
        if how == "flip":
            changed(file, middle)
        elif how == "gone":
            file.unlink()
        else:
            file.write_bytes(content[:middle] if how == "half" else b"")
    said = []
    tokenising.write(source, repr(data.Bytes()), tokenizer.Bytes(), BY_DOCUMENT, tmp_path / "out", lambda done: None, 1, 1000, said.append)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert said and all("again" in line for line in said)


def test_blocks_of_files_that_have_not_changed_are_kept(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(4):
        (corpus / f"{number}.jsonl").write_text("".join(json.dumps({"text": f"{number} {n} " * 40}) + "\n" for n in range(20)))
    source = data.Text(path=str(corpus))
    (corpus / "4.jsonl").write_text('{"text": "last"}\n{"text": 3}\n')
    refused(r"4.jsonl line 2 has no string field 'text': that is 3", lambda: write(source, tmp_path / "out"))
    assert len(list((tmp_path / "out").glob("block-*.json"))) > 8
    (corpus / "4.jsonl").write_text("")  # as Spark's writers leave such; and one vanishes, one is another, one is new
    (corpus / "1.jsonl").unlink()
    (corpus / "2.jsonl").write_text(json.dumps({"text": "other"}) + "\n")
    (corpus / "5.jsonl").write_text(json.dumps({"text": "new"}) + "\n")
    spoken, said = Counting(), []
    tokenising.write(source, repr(data.Bytes()), spoken, BY_DOCUMENT, tmp_path / "out", lambda done: None, 1, 1000, said.append)
    assert spoken.given and {text.split(" ")[0] for text in spoken.given} <= {"other", "new", "0", "3"} and len(spoken.given) < 10
    assert said == [f"passed over in Text(path='{corpus}', field='text'): 1 files without text"]
    write(source, tmp_path / "anew")
    for split in heldout.SPLITS:
        assert texts(tmp_path / "out", split) == texts(tmp_path / "anew", split)
    assert len(list((tmp_path / "out").iterdir())) == len(list((tmp_path / "anew").iterdir()))
    assert shards.read_manifest(tmp_path / "out")["passed_over"] == {"files without text": 1}


# --- held out --------------------------------------------------------------------------------------------------------


def test_tail_cuts_every_document_between_characters(source, tmp_path):
    write(source, tmp_path / "out", rule=data.Tail(fraction=0.25))
    train, validation = texts(tmp_path / "out", "train"), texts(tmp_path / "out", "validation")
    assert len(train) == len(validation) == len(DOCUMENTS)
    assert [a + b for a, b in zip(train, validation, strict=True)] == DOCUMENTS
    assert all(len(b) == int(len(a + b) * 0.25) for a, b in zip(train, validation, strict=True))


def test_separate_trains_on_everything(source, tmp_path):
    manifest = write(source, tmp_path / "out", rule=data.Separate(source=data.Embedded()))
    assert texts(tmp_path / "out", "train") == DOCUMENTS and not manifest["splits"]["validation"]["tokens"]


def test_by_document_is_by_key_alone_and_of_the_right_size():
    from gptjax.data.document import Document

    sides = [heldout.parts(Document(f"text {n}", f"key {n}", 0.0), data.ByDocument(fraction=0.1))[0][0] for n in range(5000)]
    assert 0.085 < sides.count("validation") / 5000 < 0.115
    again = [heldout.parts(Document("another text", f"key {n}", 0.0), data.ByDocument(fraction=0.1))[0][0] for n in range(5000)]
    assert sides == again
    assert heldout.parts(Document("t", "k", 0.0), data.ByDocument(fraction=0)) == [("train", "t")]
