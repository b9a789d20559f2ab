"""Faults of a curation in real processes: killed at any moment, a worker that dies, a full disk, a
poisonous page."""

import json
import os
import pydoc_data.topics
import signal
import subprocess
import sys
import time

import pytest

from gptjax.runtime import checksums
from tests import warc_files

pytestmark = pytest.mark.slow  # unit/curation/ has the same within a process

HTML = "<html><body><main>{}</main></body></html>"
STAGES = (
    "stages=(Language(),QualityRules(repetition=False,alphabetic_words=0.5),QualityClassifier("
    "positives=('clean',),negatives=('web',),corpora=('web',),alpha=1.0),ExactDuplicates(),"
    "FuzzyDuplicates(across=(('clean','web'),)),MaskPersonalData())"
)


def html_page(text):
    return HTML.format("".join(f"<p>{' '.join(part.split())}</p>" for part in text.split("\n\n")))


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    """clean.jsonl, and web/ with four WARC files of pages, some like others."""
    folder = tmp_path_factory.mktemp("crawl")
    topics = pydoc_data.topics.topics
    texts = [topics[name] for name in sorted(topics) if len(topics[name]) > 1200]
    texts = [text[i : i + 4000] for text in texts for i in range(0, len(text) - 1200, 4000)]
    lines = [json.dumps({"text": text}) for text in texts[::3]]
    (folder / "clean.jsonl").write_text("\n".join(lines))
    (folder / "web").mkdir()
    pages = [*texts, *texts[:10], *(f"{text} And more." for text in texts[5:25])]
    for n in range(4):
        records = [
            warc_files.page(html_page(text), f"http://example/{n}/{i}")
            for i, text in enumerate(pages[n::4])
        ]
        (folder / "web" / f"{n}.warc.gz").write_bytes(warc_files.compress(records))
    (folder / "mine.py").write_text(
        "import dataclasses\n"
        "from gptjax.config.curation import *\n"
        "from gptjax.config.data import Bytes\n"
        "def mine():\n"
        "    corpora = (Corpus(name='clean'), Corpus(name='web'))\n"
        "    return Curation(name='mine', corpora=corpora, tokenizer=Bytes(), part_bytes=50000)\n"
    )
    return folder


def command(crawl, out, workers=2, web="web", *more):
    return [
        *(sys.executable, "-m", "gptjax.curate", f"--recipe={crawl}/mine.py:mine"),
        *(f"--input=clean={crawl}/clean.jsonl", f"--input=web={crawl / web}", f"--out={out}"),
        *(f"--set={STAGES}", f"--workers={workers}", *more),
    ]


def result(out):
    return checksums.read(out / "manifest.json")


@pytest.fixture(scope="module")
def whole(crawl, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    done = subprocess.run(command(crawl, out), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    manifest = result(out)
    for name in ("02-quality_rules", "03-quality_classifier", "05-fuzzy_duplicates"):
        assert manifest["stages"][name]["web"]["dropped"], name
    return manifest


def n_files(out):
    return len(list(out.rglob("*.ledger.json"))) + len(list(out.rglob("done.json")))


def test_killed_at_any_moment_the_same_command_ends_with_the_same_result(crawl, tmp_path, whole):
    out, kills = tmp_path / "out", 0
    for n in range(0, 200, 7):  # each time after seven more files, in whatever stage that is
        process = subprocess.Popen(command(crawl, out), stdout=subprocess.DEVNULL)
        while process.poll() is None and n_files(out) < n + 1:
            time.sleep(0.005)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert process.returncode == 0
    assert kills > 5 and result(out) == whole
    assert not list(out.rglob("*.partial"))


def test_a_worker_that_dies_is_named_and_its_part_done_again(crawl, tmp_path, whole):
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(crawl, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not list(out.rglob("web*.ledger.json")):
        time.sleep(0.005)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "multiprocessing.spawn"],
        capture_output=True,
        text=True,
    ).stdout.split()
    os.kill(int(children[0]), signal.SIGKILL)
    error = process.communicate()[1]
    assert process.returncode == 2 and error.count("\n") == 1
    assert "a worker process was killed, perhaps for lack of memory, at " in error
    done = subprocess.run(command(crawl, out), capture_output=True, text=True)
    assert done.returncode == 0 and result(out) == whole


def test_a_full_disk_is_said_and_nothing_is_half_written(crawl, tmp_path, whole):
    out = tmp_path / "out"
    # py3langid unpacks its model into a temporary file, which the limit would be for, too
    small = command(crawl, out, 1, "web", "--without=language")
    limit = "trap '' XFSZ; ulimit -f 9; exec \"$@\""  # files of at most 9 KiB
    full = subprocess.run(["bash", "-c", limit, "-", *small], capture_output=True, text=True)
    assert full.returncode == 2 and "cannot be written" in full.stderr, full.stderr
    assert full.stderr.count("\n") == 1 and not list(out.rglob("*.partial"))
    done = subprocess.run(command(crawl, out), capture_output=True, text=True)
    assert done.returncode == 0 and result(out) == whole


def test_a_poisonous_page_is_dropped_and_the_others_are_kept(crawl, tmp_path, whole):
    (crawl / "poison").mkdir()
    for file in (crawl / "web").iterdir():
        (crawl / "poison" / file.name).write_bytes(file.read_bytes())
    deep = warc_files.page("<div>" * 300_000 + "x", "http://example/deep")
    wide = warc_files.page("<p>" + "<b><i><a href=x>" * 150_000, "http://example/wide")
    with (crawl / "poison" / "3.warc.gz").open("ab") as out:
        out.write(warc_files.compress([deep, wide]))
    out = tmp_path / "out"
    done = subprocess.run(
        command(crawl, out, 2, "poison", "--set=read.seconds=0.5"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    read = result(out)["stages"]["00-read"]["web"]
    expected = whole["stages"]["00-read"]["web"]
    assert read["kept"][0] == expected["kept"][0] and read["read"][0] == expected["read"][0] + 2
    assert sum(n for n, _ in read["dropped"].values()) == 2
    assert result(out)["parts"] == whole["parts"]
