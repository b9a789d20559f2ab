"""Text that is validated on is found among what is trained on, by whatever name and in whatever
form it lies there."""

import json
import os

import pytest

from gptjax.config import data
from gptjax.data import leakage, loader, tokenize
from gptjax.data.tokenizers import build
from tests.corpus import reading

TRAIN = [f"a training document, number {n}. " * 5 for n in range(40)]
HELD = [f"a document to validate on, number {n}. " * 5 for n in range(20)]


def write(path, texts, field="text"):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return data.Text(path=str(path), field=field)


def prepared(source, directory):
    rule = data.Separate(source=data.Embedded())
    tokenize.tokenize_corpus(
        source,
        repr(data.Bytes()),
        build.ByteTokenizer(),
        rule,
        directory,
        lambda done: None,
        block=1500,
    )
    return data.Shards(path=str(directory))


@pytest.fixture
def held(tmp_path, monkeypatch):
    """held.jsonl and train.jsonl in the folder `data`; links to and a copy of the former are
    elsewhere."""
    write(tmp_path / "data" / "train.jsonl", TRAIN)
    source = write(tmp_path / "data" / "held.jsonl", HELD)
    (tmp_path / "folder").symlink_to("data")
    (tmp_path / "link.jsonl").symlink_to("data/held.jsonl")
    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "data" / "held.jsonl").read_bytes())
    os.link(tmp_path / "data" / "held.jsonl", tmp_path / "hard.jsonl")
    monkeypatch.chdir(tmp_path)
    return source


SPELLINGS = [
    "data",
    "data/*.jsonl",
    "./data/held.jsonl",
    "data/../data/held.jsonl",
    "**/held.jsonl",
    "folder",
    "folder/h*",
    "link.jsonl",
]


@pytest.mark.parametrize("spelling", [*SPELLINGS, "copy.jsonl", "hard.jsonl", "."])
def test_files_are_known_by_any_name(held, tmp_path, spelling):
    for one, other in ((data.Text(path=spelling), held), (held, data.Text(path=spelling))):
        with pytest.raises(
            ValueError, match=r"jsonl is also trained on, by Text\(path=.*; validate on another"
        ):
            leakage.check_sources([data.Embedded(), one], other)


def test_other_files_and_other_fields_are_no_leak(held, tmp_path):
    leakage.check_sources([data.Text(path="data/train.jsonl"), data.Embedded()], held)
    leakage.check_sources([data.Text(path="data", field="title")], held)
    for same in (data.Embedded(), data.Shards(path="x")):
        with pytest.raises(ValueError, match="that source is also trained on"):
            leakage.check_sources([same], same)


def test_shards_and_files_of_one_text_are_known_by_its_documents(held, tmp_path):
    both = prepared(data.Text(path="data"), tmp_path / "both")
    only = prepared(
        write(tmp_path / "again.jsonl", [*HELD[::-1], "more"], "body"), tmp_path / "only"
    )
    for train, other in ((both, held), (data.Text(path="data"), only), (both, only)):
        with pytest.raises(
            ValueError,
            match=(
                r"2[01] documents that are validated on are also trained on; validate on other "
                r"text"
            ),
        ):
            reading(tmp_path, train, held_out=data.Separate(source=other))


def test_a_few_copies_are_reported(held, tmp_path):
    said = []
    some = write(tmp_path / "some.jsonl", [*HELD, *TRAIN[:3]])
    train = data.Text(path="data/train.jsonl")
    read = reading(tmp_path, train, held_out=data.Separate(source=some), say=said.append)
    assert "3 of 23 documents that are validated on are also trained on: copies of one text" in said
    assert isinstance(read, loader.Dataset)
