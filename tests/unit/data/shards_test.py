"""Shard directories: read back exactly, and refused in one line when wrong or damaged."""

import json
import os
import resource

import numpy as np
import pytest

from gptjax.config import data
from gptjax.data import shards, validation_split
from gptjax.runtime import checksums
from tests import corpus
from tests.corpus import SHORT_DOCUMENTS as DOCUMENTS
from tests.corpus import decode, flip, refused, write_shards


@pytest.fixture
def source(tmp_path):
    return corpus.write(tmp_path / "text.jsonl", DOCUMENTS)


def read_split(directory):
    return shards.Split(directory, shards.read_manifest(directory), validation_split.SPLITS)


def test_damage_is_noticed(source, tmp_path):
    write_shards(source, tmp_path / "out")
    read_split(tmp_path / "out")
    tokens = tmp_path / "out" / "train-00001.tokens.npy"
    whole = tokens.read_bytes()
    for content, match in (
        (whole[:-2], r"train-00001.tokens.npy is damaged or cut short"),
        (whole[:60], r"train-00001.tokens.npy is damaged or cut short"),
        (b"", r"train-00001.tokens.npy is damaged or cut short"),
        (
            whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
            r"train-00001.\*.npy is damaged: it differs from the manifest",
        ),
        (
            (tmp_path / "out" / "train-00000.tokens.npy").read_bytes(),
            r"train-00001.\*.npy is damaged",
        ),
    ):
        tokens.write_bytes(content)
        refused(match, lambda: read_split(tmp_path / "out"))
    tokens.unlink()
    refused(r"train-00001.tokens.npy is missing", lambda: read_split(tmp_path / "out"))


def test_shards_of_a_large_directory_are_checked_when_one_is_first_read(
    source, tmp_path, monkeypatch
):
    monkeypatch.setattr(shards, "VERIFY_AT_OPEN_BYTES", 0)
    write_shards(source, tmp_path / "out")
    tokens = tmp_path / "out" / "train-00002.tokens.npy"
    content = bytearray(tokens.read_bytes())
    content[-9] ^= 1
    tokens.write_bytes(content)
    there = read_split(tmp_path / "out")
    with monkeypatch.context() as patch:
        read = []
        patch.setattr(shards.Shard, "verify", lambda shard: read.append(shard.name))
        there.tokens(0, 0, 3)
        assert read == ["train-00000"]
    there.tokens(0, 0, 3)
    (last,) = (len(shard.ends) for shard in there.shards if shard.name == "train-00000")
    there.tokens(last, 0, 3)
    number = sum(len(shard.ends) for shard in there.shards[:2])
    refused(
        r"train-00002.\*.npy is damaged: it differs from the manifest",
        lambda: there.tokens(number, 0, 3),
    )


def test_more_shards_than_a_program_may_have_files_open(tmp_path, monkeypatch):
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"{n}" * 9}) + "\n" for n in range(40))
    )
    write_shards(
        data.Text(path=str(tmp_path / "text.jsonl")), tmp_path / "out", rule=data.Tail(), block=1
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(os.listdir("/proc/self/fd")) + 20
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
        assert len(read_split(tmp_path / "out").shards) > 40
        monkeypatch.setattr(
            resource, "setrlimit", lambda *args: None
        )  # as where no more are allowed
        resource.prlimit(0, resource.RLIMIT_NOFILE, (few, hard))
        refused(
            r"(tokens|ends).npy cannot be opened: Too many open files; raise the limit of this "
            r"shell",
            lambda: read_split(tmp_path / "out"),
        )
    finally:
        resource.prlimit(0, resource.RLIMIT_NOFILE, (soft, hard))


def test_no_directory_no_manifest_bad_manifest(source, tmp_path):
    refused(
        r"is no shard directory; python -m gptjax.prepare writes one",
        lambda: shards.read_manifest(tmp_path / "nowhere"),
    )
    write_shards(source, tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text[:-30])
    refused(r"manifest.json is damaged", lambda: shards.read_manifest(tmp_path / "out"))
    manifest.write_text(text.replace('"format": 1', '"format": 99'))
    refused(
        r"has shard format 99, this is format 1", lambda: shards.read_manifest(tmp_path / "out")
    )


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("part", ["tokens", "ends", "keys"])
def test_every_byte_of_a_shard_is_checked(tmp_path, part, large, monkeypatch):
    monkeypatch.setattr(shards, "VERIFY_AT_OPEN_BYTES", 0 if large else 2**30)
    (tmp_path / "text.jsonl").write_text('{"text": "one"}\n{"text": "and another"}\n')
    write_shards(
        data.Text(path=str(tmp_path / "text.jsonl")),
        tmp_path / "out",
        rule=data.Separate(source=data.Embedded()),
    )
    file = tmp_path / "out" / f"train-00000.{part}.npy"
    whole = file.read_bytes()
    all_of_it = (
        decode(tmp_path / "out", "train"),
        [shard.keys().tolist() for shard in read_split(tmp_path / "out").shards],
    )
    n_refused = 0
    for at in range(0, len(whole), 1 if part == "tokens" else 3):
        flip(file, at)
        try:
            there = read_split(tmp_path / "out")
            assert (
                decode(tmp_path / "out", "train"),
                [shard.keys().tolist() for shard in there.shards],
            ) == all_of_it, at
        except ValueError as error:
            assert (
                f"{'train-00000'}." in str(error)
                and "\n" not in str(error)
                and "prepare it again" in str(error)
            )
            n_refused += 1
        file.write_bytes(whole)
    assert n_refused > len(whole) * (0.3 if part == "tokens" else 0.1)


def test_every_byte_of_the_manifest_is_checked(source, tmp_path):
    write_shards(source, tmp_path / "out", block=4000)
    file = tmp_path / "out" / "manifest.json"
    whole, known = file.read_bytes(), shards.read_manifest(tmp_path / "out")
    for at in range(0, len(whole), 11):
        for bit in (1, 32):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            try:
                assert shards.read_manifest(tmp_path / "out") == known, at
            except ValueError as error:
                assert "\n" not in str(error) and (
                    "manifest.json" in str(error) or "shard format" in str(error)
                )


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
    manifest = write_shards(source, tmp_path / "out")
    old = {name: value for name, value in manifest.items() if name in shards.FIELDS}
    for counts in old["splits"].values():
        counts["shards"] = [
            {k: v for k, v in shard.items() if k not in ("ends", "keys")}
            for shard in counts["shards"]
        ]
    place = tmp_path / "out" / "manifest.json"
    place.write_text(json.dumps(old))
    assert (
        len(decode(tmp_path / "out", "train")) > 100
        and read_split(tmp_path / "out").shards[0].keys() is None
    )
    spoil(old)
    place.write_text(json.dumps(old))
    refused(
        r"manifest.json is damaged .*; delete .* and prepare it again",
        lambda: shards.read_manifest(tmp_path / "out"),
    )


def test_ids_outside_the_vocabulary_are_named(source, tmp_path):
    manifest = write_shards(source, tmp_path / "out", rule=data.Tail(fraction=0.1))
    described = manifest["splits"]["train"]["shards"][1]
    tokens = np.load(tmp_path / "out" / "train-00001.tokens.npy")
    tokens[7] = 300
    np.save(tmp_path / "out" / "train-00001.tokens.npy", tokens)
    described["digest"] = shards.digest(tokens, np.load(tmp_path / "out" / "train-00001.ends.npy"))
    checksums.save(tmp_path / "out" / "manifest.json", manifest)
    refused(
        r"train-00001.tokens.npy holds the id 300 at token 7, and the vocabulary has 257 ids",
        lambda: read_split(tmp_path / "out"),
    )
