"""The program, from a corpus with planted overlaps to what is left of it; kills, and bad input."""

import json
import random
import re

import pytest

from gptjax import decontaminate
from gptjax.curation import count_ngrams, ngram_job, remove_ngrams
from gptjax.data.sources import files

VOCABULARY = [
    f"{a}{b}"
    for a in ("ba", "do", "ki", "lu", "me")
    for b in ("ra", "sto", "ti", "vun", "we", "zo")
]


def prose(chance, n_words):
    return " ".join(chance.choice(VOCABULARY) for _ in range(n_words))


@pytest.fixture
def place(tmp_path):
    """A corpus of three files in which half of the items of piqa are, and its data."""
    chance = random.Random(0)
    items = [
        {"id": f"i{n}", "goal": prose(chance, 16), "sol1": "thus", "sol2": "so", "label": 0}
        for n in range(24)
    ]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "piqa.jsonl").write_text("\n".join(map(json.dumps, items)))
    documents = [prose(chance, 400) for _ in range(30)]
    for number in range(0, 24, 2):  # documents 0, 2, ... 22 have item i0, i2, ...
        words = documents[number].split(" ")
        planted = items[number]["goal"].upper().replace(" ", ", ", 3)
        documents[number] = " ".join([*words[:200], planted, *words[200:]])
    common = items[1]["goal"]
    documents += [
        f"{prose(chance, 30)} {common} {prose(chance, 30)}" for _ in range(11)
    ]  # in 11 documents: left alone
    documents.append(
        " ".join(part for n in range(0, 22, 2) for part in (prose(chance, 100), items[n]["goal"]))
    )
    (tmp_path / "corpus").mkdir()
    for number in range(3):
        lines = "\n".join(json.dumps({"text": document}) for document in documents[number::3])
        (tmp_path / "corpus" / f"{number}.jsonl").write_text(lines)
    return tmp_path


def run(place, mode, *more, tasks="piqa", out="out", workers=1):
    arguments = [
        mode,
        f"--text={place}/corpus",
        f"--tasks={tasks}",
        f"--task_data={place}/data",
        f"--out={place}/{out}",
        f"--workers={workers}",
    ]
    decontaminate.main([*arguments, *more])


def texts(folder):
    return [document.text for document in files.documents(str(folder), "text")]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "job.json"}


def test_filtered_ngrams_are_gone_and_the_rest_remains(place, capsys):
    run(place, "filter", "--compression=none")
    report = json.loads((place / "out" / "report.json").read_text())
    found = report["tasks"][
        "piqa"
        # 16 words of a goal and one of a solution are 5 13-grams, of which the corpus has the
        # goals' 4
    ]
    assert found == {"items": 24, "grams": 24 * 5, "seen": 13 * 4, "common": 4}
    before, after = texts(place / "corpus"), texts(place / "out")
    counts = report["counts"]
    assert (
        counts["documents"] == len(before) == 42
        and counts["documents_cut"] == 12
        and counts["documents_dropped"] == 1
    )
    assert counts["pieces"] == 24 and len(after) == 42 - 13 + 24
    assert counts["characters"] == sum(map(len, before)) and counts["characters_kept"] == sum(
        map(len, after)
    )
    assert all(any(piece in document for document in before) for piece in after)
    goals = [
        json.loads(line)["goal"]
        for line in (place / "data" / "piqa.jsonl").read_text().splitlines()
    ]
    left = [" ".join(re.findall(r"\w+", text.lower())) for text in after]
    assert [n for n, goal in enumerate(goals) if any(goal in text for text in left)] == [1], (
        "but what is in over 10 documents"
    )
    said = capsys.readouterr().out
    assert re.search(r"piqa +24 +\d+ +\d+ +4\n", said) and re.search("documents cut +12\n", said)
    assert f"data.sources=Text(path='{place}/out/*.jsonl')" in said


def test_an_n_gram_in_as_many_documents_as_allowed_is_cut(place):
    run(place, "filter", "--set", "most_documents=11", "--compression=none")
    assert json.loads((place / "out" / "report.json").read_text())["tasks"]["piqa"]["common"] == 0
    goal = json.loads((place / "data" / "piqa.jsonl").read_text().splitlines()[1])["goal"]
    assert not any(goal in text for text in texts(place / "out"))


def test_processes_and_compression_change_nothing(place):
    run(place, "filter", "--compression=none")
    run(place, "filter", out="packed", workers=2)
    assert texts(place / "out") == texts(place / "packed")
    assert (place / "out" / "report.json").read_bytes() == (
        place / "packed" / "report.json"
    ).read_bytes()
    assert not (place / "packed" / "work").exists()
    packed = sorted((place / "packed").glob("*.jsonl.gz"))
    assert len(packed) == 3 and files.check(str(place / "packed" / "*.gz"), "text") == []
    content = packed[0].read_bytes()
    for at in range(10, len(content), 97):
        packed[0].write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(ValueError, match="is damaged or cut short|is not JSON|is not UTF-8"):
            texts(place / "packed")


def test_a_killed_job_continues(place, monkeypatch, capsys):
    run(place, "filter", out="whole")
    done, real = [], remove_ngrams.PartCleaner.__call__

    def stop(after):
        def work(self, part, folder, tell):
            if len(done) == after:
                raise KeyboardInterrupt
            done.append(part.number)
            real(self, part, folder, tell)

        return work

    with monkeypatch.context() as patch:
        patch.setattr(remove_ngrams.PartCleaner, "__call__", stop(2))
        with pytest.raises(KeyboardInterrupt):
            run(place, "filter")
        patch.setattr(remove_ngrams.PartCleaner, "__call__", stop(9))
        patch.setattr(count_ngrams, "count_part", None)  # the first pass is not done again
        run(place, "filter")
    assert done == [0, 1, 2] and contents(place / "out") == contents(place / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(
            count_ngrams, "run_parallel", None
        )  # nor is anything else, once it is finished
        capsys.readouterr()
        run(place, "filter")
    assert re.search("documents cut +12\n", capsys.readouterr().out)


def test_truncated_files_are_refused(place, monkeypatch):
    def full(text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remove_ngrams, "json_line", full)
    with pytest.raises(OSError, match="cannot be written"):
        run(place, "filter")
    assert sorted(path.name for path in (place / "out").iterdir()) == ["job.json", "work"]


def test_check_marks_items_and_compare_scores_them(place, capsys):
    run(place, "check")
    marks = json.loads((place / "out" / "piqa.json").read_text())
    assert [name for name, dirty in marks.items() if dirty] == [
        "i0",
        "i1",
        *(f"i{n}" for n in range(2, 24, 2)),
    ]
    assert re.search(r"piqa  13 +24 +13 +46% +120 +\d+\.\d\d%\n", capsys.readouterr().out)
    (place / "results").mkdir()
    scores = [{"id": name, "score": int(dirty), "more": 1} for name, dirty in marks.items()]
    (place / "results" / "piqa.jsonl").write_text("\n".join(map(json.dumps, scores)))
    decontaminate.main(
        ["compare", f"--overlap={place}/out", f"--results={place}/results", f"--out={place}/table"]
    )
    assert re.search(
        r"piqa +score  54.2 \+- 10.4  24  100.0 \+- 0.0  13  0.0 \+- 0.0  11 +46% +-100%\n",
        capsys.readouterr().out,
    )
    (row,) = json.loads((place / "table" / "comparison.json").read_text())
    assert row["clean"]["n"] == 11 and row["relative"] == -100


def test_gpt2_s_share_of_8_grams(place, capsys):
    run(place, "filter", out="clean", workers=1)
    capsys.readouterr()
    run(place, "check", "--set", "n=8")
    found = json.loads((place / "out" / "report.json").read_text())["tasks"]["piqa"]
    assert found["n"] == 8 and found["grams"] == 24 * 10 and 13 * 9 <= found["seen"] <= 13 * 9 + 3
    assert f"{100 * found['seen'] / 240:.2f}%" in capsys.readouterr().out


def test_missing_data_is_a_line_and_the_others_go_on(place, capsys):
    run(place, "check", tasks="piqa,rte")
    said = capsys.readouterr().out
    assert "left out: rte: no rte_validation.jsonl or rte.jsonl in" in said and re.search(
        r"piqa +13 ", said
    )


BAD = {
    "no text": (["check", "--out=x"], "check needs --text"),
    "no out": (["filter", "--text=x"], "filter needs --out"),
    "no overlap": (["compare", "--results=x"], "compare needs --overlap"),
    "rule": (["check", "--text=x", "--out=x", "--set", "m=8"], "no field 'm'"),
    "another mode's rule": (
        ["check", "--text=x", "--out=x", "--set", "window=8"],
        "no field 'window'",
    ),
    "task": (
        ["check", "--text=x", "--out=x", "--tasks=pika"],
        "no task is called 'pika'; did you mean piqa",
    ),
    "no such results": (
        ["compare", "--overlap=/nowhere", "--results=x"],
        "/nowhere is not a directory",
    ),
}


@pytest.mark.parametrize("arguments,said", BAD.values(), ids=BAD)
def test_bad_arguments(arguments, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        decontaminate.main(arguments)


def test_own_tasks_are_found_without_their_names(tmp_path, capsys):
    from gptjax.evals import contamination

    row = {"context": "a question of eight words is asked of all", "completion": " an answer"}
    (tmp_path / "quotes_test.jsonl").write_text(json.dumps(row))

    def load():
        splits = contamination.test_splits
        return decontaminate.load_tasks(None, splits, str(tmp_path), None, generated=False)

    assert [task.name for task in load()] == ["quotes"]
    assert "left out: " in capsys.readouterr().out
    (tmp_path / "quotes_test.jsonl").write_text(json.dumps({"contxt": "a"}))
    with pytest.raises(ValueError, match="quotes_test.jsonl"):
        load()
    (tmp_path / "quotes_test.jsonl").unlink()
    with pytest.raises(ValueError, match="no task has data"):
        load()
    assert "left out" not in capsys.readouterr().out


def test_bad_corpora_and_folders(place, tmp_path):
    with pytest.raises(ValueError, match="no task has data"):
        run(place, "check", tasks="rte")
    with pytest.raises(ValueError, match="the tasks have no text as long as a match"):
        run(place, "filter", "--set", "n=100")
    (place / "full").mkdir()
    (place / "full" / "letter.txt").write_text("mine")
    with pytest.raises(ValueError, match="full holds files of something else"):
        run(place, "check", out="full")
    (place / "data" / "report.jsonl").write_text('{"context": "a", "completion": " b"}')
    with pytest.raises(
        ValueError,
        match=(
            "a task cannot be called report here: its marks are written to report.json, which is "
            "this"
        ),
    ):
        run(place, "check", tasks="report", out="other")
    run(place, "check")
    with pytest.raises(
        ValueError, match="out was prepared with another mode: it has check, now it is filter"
    ):
        run(place, "filter")
    (place / "corpus" / "3.jsonl").write_text('{"body": "x"}')
    with pytest.raises(ValueError, match="was prepared with another state of its text"):
        run(place, "check")
    for workers in (1, 2):
        with pytest.raises(
            ValueError, match=r"3\.jsonl line 1 has no string field 'text': it has body"
        ):
            run(place, "check", out="other", workers=workers)


def damaged(path, how):
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes(
        {"flip": flipped, "half": content[:middle], "empty": b"", "other": b'{"a": 1}'}[how]
    )


@pytest.mark.parametrize("how", ["flip", "half", "empty", "other"])
@pytest.mark.parametrize("mode", ["filter", "check"])
def test_intermediates_that_are_damaged_are_made_again(place, monkeypatch, mode, how):
    run(place, mode, out="whole")
    with monkeypatch.context() as patch:
        patch.setattr(
            ngram_job.NgramJob, "finish", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            run(place, mode)
    files = [path for path in (place / "out").rglob("*") if path.is_file()]
    assert len(files) > 7
    for path in files:
        damaged(path, how)
    run(place, mode)
    assert contents(place / "out") == contents(place / "whole")


def test_marks_and_reports_that_are_damaged_are_named(place):
    run(place, "check")
    (place / "results").mkdir()
    (place / "results" / "piqa.jsonl").write_text(
        '{"id": "i0", "score": 1}\n{"id": "i3", "score": 0}'
    )
    compare = ["compare", f"--overlap={place}/out", f"--results={place}/results"]
    decontaminate.main(compare)
    for name in ("piqa.json", "report.json"):
        content = (place / "out" / name).read_text()
        for wrong in (
            content.replace("true", "false", 1).replace("24", "25", 1),
            content[:-9],
            "[1]",
            '{"i0": 1}',
            "",
        ):
            (place / "out" / name).write_text(wrong)
            with pytest.raises(
                ValueError, match=rf"{name}( is damaged| is not JSON| holds)"
            ) as error:
                decontaminate.main(compare)
            assert "\n" not in str(error.value)
            with pytest.raises(ValueError, match=rf"{name}"):
                run(place, "check")
        (place / "out" / name).write_text(content)


def test_a_file_that_changes_costs_its_own_work(place, monkeypatch):
    (place / "corpus" / "3.jsonl").write_text('{"text": "of a file"}\n{"text": 3}')
    with pytest.raises(ValueError, match=r"3.jsonl line 2 has no string field 'text': that is 3"):
        run(place, "filter")
    counted, real = [], count_ngrams.count_part
    monkeypatch.setattr(
        count_ngrams,
        "count_part",
        lambda part, folder, tell: [counted.append(part.number), real(part, folder, tell)],
    )
    (place / "corpus" / "3.jsonl").write_text('{"text": "of a file"}')
    (place / "corpus" / "4.jsonl").write_text("")
    run(place, "filter")
    assert counted == [3, 4] and "of a file" in texts(place / "out")
    (place / "out" / "report.json").unlink()
    (place / "corpus" / "0.jsonl").unlink()
    run(place, "filter")
    run(place, "filter", out="anew")
    assert texts(place / "out") == texts(place / "anew")
    assert {path.name for path in (place / "out").iterdir()} == {
        path.name for path in (place / "anew").iterdir()
    }


def test_a_used_folder_says_what_changed(place):
    run(place, "filter")
    with pytest.raises(
        ValueError, match=r"another rule: it has window 200, now it is window 100; give an empty"
    ):
        run(place, "filter", "--set=window=100")
    with pytest.raises(
        ValueError, match=r"another rule: it has compression gz, now it is compression none"
    ):
        run(place, "filter", "--compression=none")
    items = (place / "data" / "piqa.jsonl").read_text().splitlines()
    (place / "data" / "piqa.jsonl").write_text("\n".join(items[:-1]))
    with pytest.raises(
        ValueError,
        match=(
            r"another set of tasks: it has piqa 24 texts, digest \w{8}, now it is piqa 23 texts, "
            r"digest \w{8};"
        ),
    ):
        run(place, "filter")


def test_results_that_do_not_fit(place):
    run(place, "check")
    (place / "results").mkdir()
    arguments = ["compare", f"--overlap={place}/out", f"--results={place}/results"]
    with pytest.raises(
        ValueError, match="results has no results of the tasks that .*out has: piqa"
    ):
        decontaminate.main(arguments)
    for line, said in (
        ('{"id": "z", "score": 1}', "line 1: the id 'z' was not checked"),
        ('{"id": "i0"}', "line 1 needs an id and a score: it has id"),
        ('{"id": "i0", "score": 1}\n{"id": "i0", "score": 1}', "line 2: the id 'i0' occurs twice"),
    ):
        (place / "results" / "piqa.jsonl").write_text(line)
        with pytest.raises(ValueError, match=said):
            decontaminate.main(arguments)
