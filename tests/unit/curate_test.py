import json
import re
import shutil

import pytest

from gptjax import curate
from gptjax.runtime import checksums
from tests import warc_files


@pytest.fixture
def crawl(tmp_path):
    """A WARC file of 40 pages, two of them alike, and some that are no pages."""
    import pydoc_data.topics

    topics = pydoc_data.topics.topics
    names = sorted(name for name in topics if len(topics[name]) > 1500)[:40]
    html = "<html><body><main>{}</main></body></html>"
    records = [
        warc_files.page(
            html.format(
                "".join(f"<p>{' '.join(part.split())}</p>" for part in topics[name].split("\n\n"))
            ),
            f"http://docs.example/{name}",
        )
        for name in names
    ]
    records += [
        records[3].replace(b"docs.example", b"copy.example"),
        warc_files.record("response", warc_files.http(b"x", status=404), "http://docs.example/no"),
        warc_files.record("request", b"GET / HTTP/1.1\r\n\r\n"),
    ]
    path = tmp_path / "crawl.warc.gz"
    path.write_bytes(warc_files.compress(records))
    return path


RULES = (
    "--set=stages=(QualityRules(repetition=False,alphabetic_words=0.5),ExactDuplicates(),"
    "MaskPersonalData())"
)


def run(crawl, out, *more):
    curate.main(
        ["--recipe=web", f"--input=web={crawl}", f"--out={out}", "--workers=1", RULES, *more]
    )


def test_a_crawl_becomes_shards_that_training_reads(crawl, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "clean"
    run(
        crawl,
        out,
        "--set=tokenizer=Bytes()",
        "--set=validation=ByDocument(fraction=0.2)",
        "--",
        "--config=smoke",
        "--set=train.steps=2",
        "--run_dir=run",
    )
    shown = capsys.readouterr().out
    assert "02-exact_duplicates dropped: same text 1\n" in shown
    assert max(map(len, re.findall("^0.*", shown, re.M))) <= 80
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 2
    manifest = checksums.read(out / "manifest.json")
    read = manifest["stages"]["00-read"]["web"]
    assert read["read"][0] == 42 and read["dropped"] == {"HTTP status is not 200": [1, 69]}
    kept = manifest["stages"]["03-mask_personal_data"]["web"]["written"]
    splits = manifest["shards"]["web"]
    assert splits["train"]["documents"] + splits["validation"]["documents"] == kept[0] > 25
    assert manifest["versions"]["fastwarc"] and manifest["recipe"].startswith("Curation(name='web'")

    curate.main(["report", f"--out={out}", "--train_tokens=1e6"])
    page, card = ((out / name).read_text() for name in ("report.html", "README.md"))
    assert page.count("<img") == 2 and "epochs at 1.00M" in page
    assert f"<td>{kept[0]:,}</td>" in page and "HTTP status is not 200" in page
    assert card.startswith("---\npretty_name: web\n") and "n<1K" in card
    assert "data_files: text/web/*.parquet" in card

    curate.main([f"--out={out}", "--explain=http://docs.example/no"])
    assert "dropped by 00-read: HTTP status is not 200 (404" in capsys.readouterr().out


def test_a_finished_curation_is_not_done_again(crawl, tmp_path, capsys):
    for stage in ("01-quality_rules", "03-mask_personal_data"):
        run(crawl, tmp_path / "clean", "--set=tokenizer=None", f"--until={stage}")
        assert f"stopped after {stage}" in capsys.readouterr().out
        assert not (tmp_path / "clean" / "manifest.json").exists()
    run(crawl, tmp_path / "clean", "--set=tokenizer=None")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "clean").glob("0*/*")}
    assert "train on it:\n  python -m gptjax.train --config=NAME --set" in capsys.readouterr().out
    run(crawl, tmp_path / "clean", "--set=tokenizer=None")
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "clean").glob("0*/*")}
    assert again == files


def test_a_run_that_changes_a_finished_one_takes_its_manifest_away(crawl, tmp_path, capsys):
    out = tmp_path / "clean"
    run(crawl, out, "--set=tokenizer=None")
    shutil.rmtree(out / "03-mask_personal_data")
    (out / "00-read").joinpath(next((out / "00-read").glob("*.ledger.json")).name).unlink()
    crawl.write_bytes(crawl.read_bytes()[:-50])
    with pytest.raises(ValueError, match="damaged or cut short"):
        run(crawl, out, "--set=tokenizer=None")
    with pytest.raises(ValueError, match="has no finished curation"):
        curate.main(["report", f"--out={out}"])


def test_settings_of_training_are_the_users(crawl, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = ["--set=tokenizer=Bytes()", "--set=validation=ByDocument(fraction=0.2)", "--"]
    with pytest.raises(ValueError, match="n_vocab"):
        run(crawl, "out", *settings, "--config=smoke", "--set=model.n_vocab=99")
    assert "no document is held out" not in capsys.readouterr().out
    run(crawl, "none", "--set=tokenizer=Bytes()", "--set=validation=ByDocument(fraction=1e-9)")
    assert "no document is held out by validation=ByDocument(fraction=1e-09)" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--recipe=web"], "--out=DIR"),
        (["--out=x"], "--recipe=NAME: webtext, gpt3, web"),
        (["--out=x", "--recipe=wbe"], "no recipe of this program is called 'wbe'.*web"),
        (["--out=x", "--recipe=web"], "no data set has a path: .*--input=web=PATH"),
        (["--out=x", "--recipe=web", "--input=crawl.warc"], "give NAME=PATH, where NAME is one of"),
        (["--out=x", "--recipe=web", "--input=common=a"], "where NAME is one of web"),
        (["--out=x", "--recipe=web", "--input=web=a", "--input=web=b"], "web is given twice"),
        (["--out=x", "--recipe=web", "--input=web=nowhere"], "nowhere does not exist; give .warc,"),
        (["--out=x", "--recipe=web", "--without=links"], "web has the stages language, quality"),
        (["--out=x", "--recipe=web", "--input=web=.", "--until=x"], "there are 00-read, 01-langu"),
        (["--out=x", "--recipe=web", "--set=read.seconds=0"], "ReadPages.seconds=0"),
        (["--out=x", "--recipe=web", "--input=web=.", "--", "--config=nan"], "did you mean nano"),
        (["--out=x", "--recipe=web", "--until=read", "--"], "leave out --until or what follows --"),
        (["--out=x", "--explain=a"], "x has no stage of a curation"),
        (["report", "--out=x"], "x has no finished curation"),
        (["report", "--out=x", "--input=web=."], "--input is of no use with report"),
        (["--out=x", "--explain=a", "--recipe=web"], "--recipe is of no use with --explain"),
        (["--out=x", "--recipe=web", "--train_tokens=1e6"], "--train_tokens is for the page"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        curate.main(arguments)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_of_a_file_and_tasks_without_data(crawl, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import dataclasses\n"
        "from gptjax.config import curation\n"
        "from gptjax.configs.curation import web\n"
        "def mine():\n"
        "    stages = (curation.Decontaminate(tasks=('piqa',), task_data='.'),)\n"
        "    return dataclasses.replace(web(), name='mine', stages=stages, tokenizer=None)\n"
    )
    arguments = [f"--recipe={tmp_path}/mine.py:mine", f"--input=web={crawl}", "--workers=1"]
    with pytest.raises(
        ValueError, match="decontaminate: no task has data.*--without=decontaminate"
    ):
        curate.main([*arguments, f"--out={tmp_path}/out"])
    curate.main([*arguments, f"--out={tmp_path}/out", "--without=decontaminate"])
    assert checksums.read(tmp_path / "out" / "manifest.json")["name"] == "mine"


def test_names_of_data_sets_in_stages_are_checked():
    from gptjax.config import curation

    corpus = curation.Corpus(name="web", path="x")
    with pytest.raises(ValueError, match="Language names the data set 'wbe'; there are web"):
        curation.Curation(
            name="x", corpora=(corpus,), stages=(curation.Language(corpora=("wbe",)),)
        )
    with pytest.raises(ValueError, match="corpora are called web, web: give each its own name"):
        curation.Curation(name="x", corpora=(corpus, corpus))
    for name in ("", "../x", "a/b", ".h"):
        with pytest.raises(ValueError, match="a data set is called .*: give letters, digits"):
            curation.Curation(name="x", corpora=(curation.Corpus(name=name),))
    twice = (curation.Decontaminate(), curation.Decontaminate())
    with pytest.raises(ValueError, match="Decontaminate is given twice: give it once"):
        curation.Curation(name="x", corpora=(corpus,), stages=twice)
    with pytest.raises(ValueError, match="drops documents of .* for each other, so that none"):
        curation.FuzzyDuplicates(across=(("a", "b"), ("b", "c"), ("c", "a")))
    with pytest.raises(ValueError, match="has a in positives and in negatives"):
        curation.QualityClassifier(positives=("a",), negatives=("b", "a"), corpora=("b",))
