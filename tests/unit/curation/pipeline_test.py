import contextlib
import dataclasses
import gzip
import json
import shutil

import pytest

from gptjax.config import curation as config
from gptjax.config import decontamination
from gptjax.curation import engine, explain, ngrams, parts, pipeline, read_files, stages
from tests import prose

TASK_TEXT = "a text of an evaluation task that has just about fifteen words in it after all"


def no_tasks(stage):
    return {}


def task_ngrams(stage):
    words = ngrams.hash_words([TASK_TEXT])
    return {"task": next(ngrams.hash_ngrams(words, [stage.rule.n]))[1]}


def recipe(folder, *applied, part_bytes=20_000, **corpora):
    return config.Curation(
        name="test",
        corpora=tuple(
            config.Corpus(name=name, path=path and str(folder / path))
            for name, path in corpora.items()
        ),
        stages=applied,
        part_bytes=part_bytes,
        tokenizer=None,
    )


def run(rule, out, workers=1, until=None, tasks=no_tasks, lines=None, work=None):
    work = work or engine.Local(workers, lambda label: contextlib.nullcontext(lambda done: None))
    print_line = (lambda line: None) if lines is None else lines.append
    return pipeline.Pipeline(rule, out, work, print_line).run(until, tasks)


def kept(totals):
    return {page.id: page.text for part in totals[-1].outputs for page in parts.read_pages(part)}


@pytest.fixture
def crawl(paragraphs, write_jsonl, tmp_path):
    """clean/: 60 paragraphs. raw/: in two files others, some of them twice or nearly so or in
    clean/, and noise."""
    clean, raw = prose.make_crawl(paragraphs)
    write_jsonl("clean/a.jsonl", clean)
    write_jsonl("raw/a.jsonl", raw[:150])
    write_jsonl("raw/b.jsonl", raw[150:])
    return tmp_path


EVERY = (
    config.QualityClassifier(
        positives=("clean",), negatives=("raw",), corpora=("raw",), alpha=1.0, documents=50
    ),
    config.ExactDuplicates(),
    config.FuzzyDuplicates(similarity=0.5, across=(("clean", "raw"),)),
)


def test_parts_and_workers_do_not_change_what_is_kept(crawl):
    expected = kept(run(recipe(crawl, *EVERY, clean="clean", raw="raw"), crawl / "out"))
    assert 100 < len(expected) < 300
    rule = recipe(crawl, *EVERY, clean="clean", raw="raw", part_bytes=8000)
    totals = run(rule, crawl / "parts", workers=2)
    assert kept(totals) == expected and len(totals[0].outputs) > 10


def test_documents_are_counted_through_all_stages(crawl):
    totals = run(recipe(crawl, *EVERY, clean="clean", raw="raw"), crawl / "out")
    assert [total.name for total in totals] == [
        "00-read",
        "01-quality_classifier",
        "02-exact_duplicates",
        "03-fuzzy_duplicates",
    ]
    read = totals[0].ledger
    assert read.read[0] == 60 + 310 and totals[0].ledgers["clean"].read[0] == 60
    for before, after in zip(totals, totals[1:], strict=False):
        for name in ("clean", "raw"):
            assert after.ledgers[name].read == before.ledgers[name].written
    assert totals[1].ledgers["clean"].dropped == {}
    dropped = [set(total.ledgers["raw"].dropped) for total in totals[1:]]
    assert dropped == [{"low quality"}, {"same text"}, {"nearly the same text"}]
    notes = totals[1].ledger.notes
    assert sum(n for name, n in notes.items() if name.startswith("score")) == 310
    pages = kept(totals)
    assert len(set(pages.values())) == len(pages) == totals[-1].ledger.written[0]
    assert sum(len(text.encode()) for text in pages.values()) == totals[-1].ledger.written[1]


def test_of_near_duplicates_the_first_and_those_of_the_first_data_set_stay(crawl, paragraphs):
    fuzzy = config.FuzzyDuplicates(bands=40, similarity=0.5, across=(("clean", "raw"),))
    pages = kept(run(recipe(crawl, fuzzy, clean="clean", raw="raw"), crawl / "out"))
    texts = list(pages.values())
    assert [text for text in texts[:60]] == paragraphs[:60], "all of the clean ones"
    longer = [text for text in texts if text.endswith("And a few words more.")]
    originals = {text.removesuffix(" And a few words more.") for text in longer}
    assert not originals & set(texts) and not originals & set(paragraphs[:60])
    for text in paragraphs[60:110]:
        assert (text in texts) != (text in originals)
    alone = config.FuzzyDuplicates(bands=40, similarity=0.5)
    again = kept(run(recipe(crawl, alone, clean="clean", raw="raw"), crawl / "alone"))
    assert set(pages) < set(again) and len(again) == len(pages) + 10


def test_a_stage_that_does_not_apply_leaves_a_data_set_as_it_is(crawl):
    rule = recipe(
        crawl, config.Language(languages=("ja",), corpora=("raw",)), clean="clean", raw="raw"
    )
    with pytest.raises(ValueError, match=r"no document of raw is left of 310 \(310 language\)"):
        run(rule, crawl / "out")


class Killed(BaseException):
    pass


def test_a_killed_run_goes_on_to_the_same_pages(crawl, monkeypatch):
    rule = recipe(crawl, *EVERY, clean="clean", raw="raw", part_bytes=30_000)
    saves, save_result = [], parts.save_result

    def save(path, *rest):
        saves.append(path.name)
        if len(saves) == kill_at:
            raise Killed
        save_result(path, *rest)

    monkeypatch.setattr(parts, "save_result", save)
    kill_at = -1
    expected = kept(run(rule, crawl / "whole"))
    n_results = len(saves)
    files = {
        path.relative_to(crawl / "whole") for path in (crawl / "whole").rglob("*") if path.is_file()
    }
    for kill_at in range(1, n_results + 1, 3):
        saves.clear()
        out = crawl / f"out{kill_at}"
        with pytest.raises(Killed):
            run(rule, out)
        assert kept(run(rule, out)) == expected
        assert len(saves) == n_results + 1, "nothing that was finished is repeated"
        assert {path.relative_to(out) for path in out.rglob("*") if path.is_file()} == files


def test_a_changed_stage_is_refused_and_those_before_it_are_kept(crawl):
    before = recipe(crawl, config.ExactDuplicates(), clean="clean", raw="raw")
    run(before, crawl / "out")
    times = {path: path.stat().st_mtime_ns for path in (crawl / "out" / "00-read").iterdir()}
    after = recipe(crawl, config.ExactDuplicates(by="url"), clean="clean", raw="raw")
    with pytest.raises(ValueError, match="01-exact_duplicates was prepared with another stage: it"):
        run(after, crawl / "out")
    for path in (crawl / "out" / "01-exact_duplicates").rglob("*.*"):
        path.unlink()
    run(after, crawl / "out")
    assert times == {
        path: path.stat().st_mtime_ns for path in (crawl / "out" / "00-read").iterdir()
    }


def test_a_stage_after_a_changed_one_is_refused(crawl):
    by_text, by_url = config.ExactDuplicates(), config.ExactDuplicates(by="url")
    run(recipe(crawl, by_text, config.Language(), clean="clean", raw="raw"), crawl / "out")
    for path in (crawl / "out" / "01-exact_duplicates").rglob("*.*"):
        path.unlink()
    with pytest.raises(ValueError, match="02-language was prepared with another stage before it"):
        run(recipe(crawl, by_url, config.Language(), clean="clean", raw="raw"), crawl / "out")


def test_changed_files_are_read_again_and_later_stages_refuse(crawl, write_jsonl, paragraphs):
    rule = recipe(crawl, config.ExactDuplicates(), clean="clean", raw="raw")
    run(rule, crawl / "out")
    write_jsonl("clean/a.jsonl", paragraphs[:61])
    with pytest.raises(
        ValueError,
        match="exact_duplicates was prepared with another input: .* delete it, the stages after",
    ):
        run(rule, crawl / "out")
    with pytest.raises(ValueError, match="01-exact_duplicates is of another recipe: delete it and"):
        run(recipe(crawl, clean="clean", raw="raw"), crawl / "out")
    shutil.rmtree(crawl / "out" / "01-exact_duplicates")
    totals = run(recipe(crawl, clean="clean", raw="raw"), crawl / "out")
    assert totals[0].ledgers["clean"].read[0] == 61


def test_matches_with_tasks_are_cut_out(write_jsonl, paragraphs, tmp_path):
    around = [f"{' '.join(paragraphs[:3])} {TASK_TEXT}. {' '.join(paragraphs[3:6])}", paragraphs[7]]
    write_jsonl("raw/a.jsonl", around)
    stage = config.Decontaminate(rule=decontamination.Filter(window=10, shortest=50))
    totals = run(recipe(tmp_path, stage, raw="raw"), tmp_path / "out", tasks=task_ngrams)
    pages = kept(totals)
    assert list(pages) == ["raw/a.jsonl#0, piece 0", "raw/a.jsonl#0, piece 1", "raw/a.jsonl#1"]
    assert not any("evaluation task" in text for text in pages.values())
    assert pages["raw/a.jsonl#1"] == paragraphs[7]
    ledger = totals[-1].ledger
    assert (ledger.read[0], ledger.kept[0], ledger.written[0], ledger.changed[0]) == (2, 2, 3, 1)
    numbers = [page.number for part in totals[-1].outputs for page in parts.read_pages(part)]
    assert len(set(numbers)) == 3


def test_n_grams_in_many_documents_stay(write_jsonl, tmp_path):
    write_jsonl("raw/a.jsonl", [f"{n} {TASK_TEXT}" for n in range(3)])
    for most, expected in ((3, 0), (2, 3)):
        rule = decontamination.Filter(most_documents=most, window=0, shortest=0)
        stage = config.Decontaminate(rule=rule)
        totals = run(recipe(tmp_path, stage, raw="raw"), tmp_path / f"out{most}", tasks=task_ngrams)
        texts = kept(totals).values()
        assert sum("evaluation task" in text for text in texts) == expected


def test_what_became_of_a_document_is_explained(crawl):
    run(recipe(crawl, *EVERY, clean="clean", raw="raw"), crawl / "out")
    lines = []
    for n in range(0, 150, 3):
        lines += explain.explain(crawl / "out", f"raw/a.jsonl#{n}")
        assert lines[-1].startswith(f"raw/a.jsonl#{n} (http://example.org/raw/a.jsonl/{n}): ")
        if n % 10 == 0:
            by_url = explain.explain(crawl / "out", f"http://example.org/raw/a.jsonl/{n}")
            assert by_url == lines[-1:]
    assert len(lines) == 50
    reasons = {line.partition("): ")[2].partition(" (")[0].partition(", in")[0] for line in lines}
    assert reasons >= {
        "kept by 03-fuzzy_duplicates",
        "dropped by 01-quality_classifier: low quality",
        "dropped by 03-fuzzy_duplicates: nearly the same text",
    }
    assert any("(of clean/a.jsonl#" in line or "(of raw/a.jsonl#" in line for line in lines)
    with pytest.raises(
        ValueError, match="no document with the id or URL x; an id is as clean/a.js"
    ):
        explain.explain(crawl / "out", "x")
    with pytest.raises(ValueError, match="has no stage of a curation"):
        explain.explain(crawl, "x")
    with pytest.raises(ValueError, match="no document with the id or URL raw"):
        explain.explain(crawl / "out", "raw")


def test_documents_of_a_stage_in_progress_are_explained(crawl):
    run(recipe(crawl, *EVERY, clean="clean", raw="raw"), crawl / "out", until="00-read")
    (crawl / "out" / "01-quality_classifier").mkdir()
    (line,) = explain.explain(crawl / "out", "raw/a.jsonl#0")
    assert ": kept by 00-read, in " in line


def test_what_was_learned_is_learned_again_if_it_is_damaged(crawl):
    rule = recipe(crawl, *EVERY, clean="clean", raw="raw")
    expected = kept(run(rule, crawl / "whole"))
    run(rule, crawl / "out", until="02-exact_duplicates")
    path = crawl / "out" / "03-fuzzy_duplicates"
    run(rule, crawl / "out")
    learned = path / "learned" / "duplicates.npy"
    assert [file.name for file in sorted(learned.parent.iterdir())] == ["done.json", learned.name]
    for ledger in path.glob("*.ledger.json"):
        ledger.unlink()
    content = learned.read_bytes()
    for damaged in (content[:200] + bytes([content[200] ^ 1]) + content[201:], None):
        learned.unlink()
        if damaged:
            learned.write_bytes(damaged)
        assert kept(run(rule, crawl / "out")) == expected


def test_what_is_wrong_is_said_before_anything_is_read(crawl):
    def none(stage):
        raise ValueError("no task has data")

    for stage, message in (
        (config.Decontaminate(), "no task has data"),
        (config.LinkedPages(links="nowhere.jsonl"), "nowhere.jsonl does not exist"),
        (config.Language(languages=("xx",)), "xx"),
    ):
        with pytest.raises(ValueError, match=message):
            run(recipe(crawl, *EVERY, stage, clean="clean", raw="raw"), crawl / "out", tasks=none)
        assert not (crawl / "out").exists()
    for place in (crawl / "raw", crawl / "raw" / "out"):
        with pytest.raises(ValueError, match="lies among the files of raw, and would be read as"):
            run(recipe(crawl, raw="raw"), place)
    learned = config.QualityClassifier(positives=("clean",), negatives=("raw",), corpora=("raw",))
    two = recipe(crawl, learned, clean="clean", raw="raw")
    alone = dataclasses.replace(
        two,
        corpora=tuple(
            c if c.name == "raw" else dataclasses.replace(c, path=None) for c in two.corpora
        ),
    )
    with pytest.raises(
        ValueError, match="has no positives: give a path to clean, as --input=clean"
    ):
        run(alone, crawl / "out")
    assert not (crawl / "out").exists()


def test_damage_may_be_kept_after_it_was_refused(crawl):
    path = crawl / "raw" / "a.jsonl"
    (crawl / "raw" / "a.jsonl.gz").write_bytes(gzip.compress(path.read_bytes())[:-9])
    path.unlink()
    rule = recipe(crawl, config.ExactDuplicates(), clean="clean", raw="raw")
    with pytest.raises(ValueError, match="a.jsonl.gz is damaged or cut short"):
        run(rule, crawl / "out")
    keep = dataclasses.replace(rule, read=config.ReadPages(damaged="keep"))
    finished = {
        path: path.stat().st_ino for path in (crawl / "out" / "00-read").glob("clean*.parquet")
    }
    totals = run(keep, crawl / "out")
    assert read_files.damaged_files(totals[0].ledger) == ["a.jsonl.gz"]
    assert finished and all(path.stat().st_ino == inode for path, inode in finished.items())
    with pytest.raises(ValueError, match="a.jsonl.gz is damaged or cut short"):
        run(rule, crawl / "out")


def test_a_damaged_result_of_the_last_stage_is_noticed(crawl, tmp_path):
    totals = run(recipe(crawl, clean="clean", raw="raw"), crawl / "out")
    part = totals[0].outputs[0].path
    content = part.read_bytes()
    part.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    with pytest.raises(ValueError, match="is damaged .*: delete it, and run the same command"):
        pipeline.link_text(totals[-1], tmp_path / "text")
    part.write_bytes(content)
    for _ in range(2):
        pipeline.link_text(totals[-1], tmp_path / "text")
        found = sorted(path.name for path in (tmp_path / "text").rglob("*.p*"))
        assert found == sorted(part.path.name for part in totals[-1].outputs)


def test_a_run_stops_where_it_is_to(crawl):
    rule = recipe(crawl, *EVERY, clean="clean", raw="raw")
    totals = run(rule, crawl / "out", until="02-exact_duplicates")
    assert len(totals) == 3 and not (crawl / "out" / "03-fuzzy_duplicates").exists()
    assert kept(run(rule, crawl / "out")) == kept(run(rule, crawl / "whole"))


def test_a_damaged_part_is_named_and_made_again(crawl):
    rule = recipe(crawl, config.ExactDuplicates(), clean="clean", raw="raw")
    totals = run(rule, crawl / "out", until="00-read")
    path = totals[0].outputs[1].path
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        run(rule, crawl / "out")
    path.unlink()
    assert kept(run(rule, crawl / "out")) == kept(run(rule, crawl / "whole"))


def test_ids_of_ones_own_must_be_unique(tmp_path):
    lines = [json.dumps({"text": f"text {n}", "id": f"doc{n % 3}"}) for n in range(4)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    corpus = config.Corpus(name="raw", path=str(tmp_path / "a.jsonl"), id_field="id")
    rule = config.Curation(name="test", corpora=(corpus,), tokenizer=None)
    with pytest.raises(
        ValueError, match="two documents have the id raw/doc0, in raw-0000000-000 a"
    ):
        run(rule, tmp_path / "out")
    (tmp_path / "b.jsonl").write_text("\n".join(lines[:3]))
    corpus = config.Corpus(name="raw", path=str(tmp_path / "b.jsonl"), id_field="id")
    rule = config.Curation(name="test", corpora=(corpus,), tokenizer=None)
    assert list(kept(run(rule, tmp_path / "b"))) == ["raw/doc0", "raw/doc1", "raw/doc2"]


def test_data_sets_without_files_are_left_out_and_none_is_an_error(crawl):
    lines = []
    run(recipe(crawl, clean="clean", raw=None), crawl / "out", lines=lines)
    assert lines == ["left out, since no path is given: raw"]
    with pytest.raises(ValueError, match="no data set has a path: give one .* --input=clean=PATH"):
        run(recipe(crawl, clean=None, raw=None), crawl / "none")


def test_every_stage_is_opened_and_named():
    names = {config.stage_name(stage) for stage in EVERY}
    assert names == {"quality_classifier", "exact_duplicates", "fuzzy_duplicates"}
    assert stages.applies(EVERY[0], "raw") and not stages.applies(EVERY[0], "clean")


def test_pieces_have_ids_of_their_own(write_jsonl, paragraphs, tmp_path):
    text = f"{' '.join(paragraphs[:3])} {TASK_TEXT}. {' '.join(paragraphs[3:6])}"
    texts = [text, paragraphs[7], paragraphs[8]]
    ids = ["a", "a/0", "a, piece 1"]
    write_jsonl("raw/a.jsonl", texts)
    rows = [{"text": text, "id": own} for text, own in zip(texts, ids, strict=True)]
    (tmp_path / "raw" / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stage = config.Decontaminate(rule=decontamination.Filter(window=10, shortest=50))
    rule = recipe(tmp_path, stage, raw="raw")
    corpus = dataclasses.replace(rule.corpora[0], id_field="id")
    with pytest.raises(ValueError, match="two documents have the id raw/a, piece 1"):
        run(dataclasses.replace(rule, corpora=(corpus,)), tmp_path / "out", tasks=task_ngrams)
