"""A directory and its globs name one set of files, each real one once, whatever links and
rubbish lie among them."""

import os
import random

import pytest

from gptjax.config import find_files


def put(path, content="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def find(path):
    return find_files.find(str(path)).files


def names(root, path):
    return [str(file.relative_to(root)) for file in find(path)]


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "corpus"
    for name in ("local/a.jsonl", "c4-train.00000.json.gz", "D.JSONL", "e.ndjson", "f.TXT.XZ"):
        put(root / name)
    for name in (
        ".ipynb_checkpoints/a-checkpoint.jsonl",
        ".hidden.txt",
        "checkpoints/g.json",
        "README.md",
        "h.txt.bz2",
    ):
        put(root / name)
    put(tmp_path / "disk2" / "part" / "b.jsonl")
    (root / "part").symlink_to(tmp_path / "disk2" / "part", target_is_directory=True)
    return root


def test_a_directory_is_read_whole_and_skipped_files_are_reported(corpus):
    assert names(corpus, corpus) == [
        "D.JSONL",
        "c4-train.00000.json.gz",
        "e.ndjson",
        "f.TXT.XZ",
        "local/a.jsonl",
        "part/b.jsonl",
    ]
    remark = find_files.find(str(corpus)).remark()
    assert remark is not None and remark.startswith("skipped: ")
    assert (
        "3 hidden, or in a folder that is not for text (.hidden.txt, .ipynb_checkpoints, "
        "checkpoints)" in remark
    )
    assert "2 of unknown format (README.md, h.txt.bz2)" in remark
    assert find_files.find(str(corpus / "local")).remark() is None
    put(corpus / "local" / "settings.json", '{\n "a": 1\n}')
    assert (
        find_files.find(str(corpus / "local")).remark()
        == "skipped: 1 JSON that is not one object per line (settings.json)"
    )


def test_each_real_file_is_read_once_and_cycles_end(corpus):
    before = find(corpus)
    (corpus / "self").symlink_to(".")
    (corpus / "local" / "up").symlink_to("..")
    (corpus / "again").symlink_to("local")
    (corpus / "a-link.jsonl").symlink_to("local/a.jsonl")
    os.link(corpus / "D.JSONL", corpus / "D2.JSONL")
    assert find(corpus) == find(corpus / "**" / "*") == before
    assert "listed under another name" in str(find_files.find(str(corpus)).remark())
    assert names(corpus, corpus / "**" / "*.jsonl") == ["local/a.jsonl", "part/b.jsonl"]
    assert names(corpus, corpus / "again" / "*.jsonl") == ["again/a.jsonl"]


@pytest.mark.parametrize("seed", range(20))
def test_a_directory_and_its_globs_read_the_same(tmp_path, seed):
    chance = random.Random(seed)
    folders = [tmp_path / "root"]
    folders[0].mkdir()
    for number in range(40):
        here = chance.choice(folders)
        name = f"{chance.choice(['', '', '.', 'x'])}{number}"
        match chance.randrange(6):
            case 0:
                folders.append(here / name)
                folders[-1].mkdir()
            case 1:
                (here / name).symlink_to(chance.choice(folders), target_is_directory=True)
            case 2:
                files = [file for folder in folders for file in folder.iterdir() if file.is_file()]
                if files:
                    (here / f"{name}.txt").symlink_to(chance.choice(files))
            case _:
                put(
                    here
                    / (name + chance.choice([".txt", ".JSON", ".jsonl.gz", ".parquet", ".md", ""]))
                )
    put(folders[0] / "always.txt")
    root = folders[0]
    whole = find(root)
    assert (
        whole
        == find(root / "**")
        == find(root / "**" / "*")
        == find(f"{root}/")
        == find(root / "**" / "**" / "**")
    )
    assert len({file.resolve() for file in whole}) == len(whole)
    by_ending = [
        file
        for ending in ("txt", "JSON", "gz", "parquet")
        for file in find_any(root / "**" / f"*.{ending}")
    ]
    assert {file.resolve() for file in by_ending} == {file.resolve() for file in whole}


def find_any(pattern):
    try:
        return find(pattern)
    except ValueError:
        return []


def check_refusal(path, match):
    with pytest.raises(ValueError, match=match) as error:
        find_files.find(str(path))
    assert "\n" not in str(error.value)


def test_pipes_devices_and_broken_links_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    (tmp_path / "gone.txt.gz").symlink_to("nowhere")
    (tmp_path / "a.txt").write_text("a")
    check_refusal(tmp_path / "pipe.txt", r"pipe.txt is a named pipe, not a file")
    check_refusal(tmp_path / "zero.jsonl", r"zero.jsonl is a device, not a file")
    check_refusal(tmp_path / "gone.txt.gz", r"gone.txt.gz is a broken link")
    for path in (tmp_path, tmp_path / "*", tmp_path / "**"):
        check_refusal(path, r"not a file|broken link")
    check_refusal("", r"an empty path")
    check_refusal("~nobody-of-that-name/x.txt", r"no home directory")
    check_refusal("a\0b.txt", r"zero byte")
    check_refusal(tmp_path / "no.txt", r"no.txt does not exist; give .txt")
    check_refusal(tmp_path / "*.parquet", r"matches no file")


def test_the_ending_of_a_name_tells_format_and_compression():
    assert (
        find_files.file_type(find_files.Path("a.b.JSON.GZ")) == (".jsonl", ".gz")
        and find_files.stem(find_files.Path("a.b.JSON.GZ")) == "a.b"
    )
    assert find_files.file_type(find_files.Path("a.txt.xz.gz")) == (
        "",
        ".gz",
    ) and find_files.file_type(find_files.Path(".txt")) == ("", "")
    assert find_files.stem(find_files.Path("plain")) == "plain"
