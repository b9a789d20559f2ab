"""What of a task is in a corpus: lengths, planted overlaps, and plain Python's answer to the
same question."""

import dataclasses
import json
import random
import re

import numpy as np
import pytest

from gptjax.config import data
from gptjax.config.decontamination import OverlapRule
from gptjax.curation import count_ngrams, ngrams
from gptjax.evals import clean_scores, contamination, outcomes, registry, task_data


def asked(texts, made=False):
    keys = [str(number) for number in range(len(texts))]
    return contamination.TaskTexts(
        "t", dict(zip(keys, texts, strict=True)), dict(zip(keys, keys, strict=True)), made
    )


def lengths(*n_words, made=False, rule=None):
    n, matches = contamination.match_length(
        asked([" ".join(["w"] * count) for count in n_words], made), rule or OverlapRule()
    )
    return n, matches.tolist()


def test_n_is_the_5th_percentile_from_8_to_13_words():
    assert lengths(*[10] * 100) == (10, [10] * 100)
    assert lengths(*[200] * 50) == (13, [13] * 50)
    assert lengths(*[4] * 10, *[12] * 90)[0] == 8
    assert lengths(*[9] * 4, *[12] * 96)[0] == 12
    assert lengths(*[2] * 10, made=True) == (2, [2] * 10)


def test_shorter_items_are_compared_whole_but_not_below_8_words():
    assert lengths(7, 8, 12, *[20] * 97) == (13, [0, 8, 12, *[13] * 97])
    assert lengths(3, 20, rule=OverlapRule(n=8)) == (8, [0, 8])
    assert lengths(3, 20, rule=OverlapRule(n=5)) == (5, [0, 5])


def item(name, **changes):
    return list(
        registry.get_task(name).items(
            registry.get_task(name).example | changes, registry.get_task(name).protocol, 1
        )
    )


def test_texts_are_as_long_as_table_c1_says():
    (analogy,) = item("sat_analogies")
    words = [
        len(ngrams.hash_words([contamination.item_text(one)]).hashes)
        for one in (analogy, item("cycle_letters_in_word")[0])
    ]
    assert words == [9, 2]
    (insertion,) = item("random_insertion_in_word", word="casino", scrambled="c.a/s!i n.o")
    assert len(ngrams.hash_words([contamination.item_text(insertion)]).hashes) == 7


def test_items_without_an_answer_have_all_of_them_as_text():
    (unknown,) = item("piqa", label=-1)
    assert contamination.item_text(unknown).count("How to keep a door open.") == 2
    (unknown,) = item("winogrande", answer="")
    assert contamination.item_text(unknown).split("\n") == [
        "Olga lent the bicycle to Tom although the bicycle had a flat tyre.",
        "Olga lent the bicycle to Tom although the garage had a flat tyre.",
    ]


def test_answers_of_a_question_are_one_text():
    task = registry.get_task("multirc")
    found = contamination.collect_texts(
        task, ["validation"], lambda t, p, s: task_data.Rows("here", (t.example,))
    )
    assert list(found.texts) == ["0"] and found.items == {"0-0": "0", "0-1": "0", "0-2": "0"}


def test_splits_for_training_may_be_in_a_corpus():
    assert contamination.test_splits(registry.get_task("storycloze")) == ("test", "validation")
    assert contamination.test_splits(registry.get_task("winogrande")) == ("validation",)


def naive_words(text):
    return re.findall(r"[a-z0-9]+", text.lower())


@pytest.mark.parametrize("seed", range(4))
def test_counts_and_dirty_items_match_plain_python(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(
        ngrams, "CHUNK_CHARS", 40 if seed % 2 else 2**18
    )  # items in many batches, or in one
    chance = random.Random(seed)
    vocabulary = [f"w{number}" for number in range(7)]

    def some(most):
        return "".join(
            chance.choice(vocabulary) + chance.choice([" ", ", ", "\n", "-"])
            for _ in range(chance.randrange(1, most))
        )

    documents, items = [some(60) for _ in range(30)], [some(12) for _ in range(40)]
    for number in range(0, 40, 4):  # planted, in other letters and marks
        documents[number % 30] += f" {items[number].upper().replace(',', ';')} "
    for number, document in enumerate(documents):
        (tmp_path / f"{number:02d}.txt").write_text(document)
    rule = OverlapRule(n=4, least=2)
    these = asked(items)
    n, matches = contamination.match_length(these, rule)
    known = ngrams.HashSet(contamination.ngram_hashes(these, matches))
    count_ngrams.save_ngrams(tmp_path, known, sorted({*matches.tolist()} - {0}))
    parts = count_ngrams.split_corpus(data.Text(path=str(tmp_path / "*.txt")), "sought")
    count_ngrams.run_parallel(parts, count_ngrams.count_part, tmp_path, 1, lambda done: None)
    counts, n_documents, n_characters = count_ngrams.sum_counts(tmp_path, parts, len(known))
    assert (n_documents, n_characters) == (30, sum(map(len, documents)))

    def has(document, gram):
        words = naive_words(document)
        return any(words[i : i + len(gram)] == gram for i in range(len(words) - len(gram) + 1))

    both = [
        (words, min(4, len(words)) if len(words) > 1 else 0) for words in map(naive_words, items)
    ]
    assert matches.tolist() == [m for _, m in both] and 0 in matches
    of_items = [[w[i : i + m] for i in range(len(w) - m + 1) if m] for w, m in both]
    wanted = {tuple(gram) for grams_of_item in of_items for gram in grams_of_item}
    in_documents = sorted(
        sum(has(document, list(gram)) for document in documents) for gram in wanted
    )
    assert sorted(counts.tolist()) == in_documents and 0 in in_documents and max(in_documents) > 1
    marks, total, seen = contamination.find_dirty_items(
        these, matches, ngrams.HashSet(known.hashes[counts > 0])
    )
    for number, mine in enumerate(of_items):
        assert marks[str(number)] == any(
            has(document, gram) for gram in mine for document in documents
        )
    assert total == sum(map(len, of_items)) and 0 < seen < total


def test_several_copies_in_a_document_count_once(tmp_path):
    (tmp_path / "a.txt").write_text("one two three. one two three. " * 5)
    (tmp_path / "b.txt").write_text("one two three")
    these = asked(["one two three", "four five six"])
    matches = np.array([3, 3])
    known = ngrams.HashSet(contamination.ngram_hashes(these, matches))
    count_ngrams.save_ngrams(tmp_path, known, [3])
    parts = count_ngrams.split_corpus(data.Text(path=str(tmp_path / "*.txt")), "sought")
    count_ngrams.run_parallel(parts, count_ngrams.count_part, tmp_path, 1, lambda done: None)
    assert sorted(count_ngrams.sum_counts(tmp_path, parts, 2)[0].tolist()) == [0, 2]


# --- the table ------------------------------------------------------------------------------------


def test_clean_scores_compared_with_all_of_plain_scores(tmp_path):
    (tmp_path / "overlap").mkdir()
    (tmp_path / "overlap" / "piqa.json").write_text(
        json.dumps({str(number): number < 4 for number in range(10)})
    )
    (tmp_path / "piqa.jsonl").write_text(
        "\n".join(f'{{"id": "{number}", "score": {int(number < 6)}}}' for number in range(10))
    )
    (found,) = clean_scores.compare(tmp_path / "overlap", tmp_path)
    assert (found["all"]["value"], found["dirty"]["value"], found["dirty"]["n"]) == (60, 100, 4)
    assert found["clean"]["value"] == pytest.approx(100 / 3) and found["relative"] == pytest.approx(
        -100 * 4 / 9
    )
    line = (
        "piqa",
        "",
        "score",
        "60.0 +- 16.3",
        "10",
        "100.0 +- 0.0",
        "4",
        "33.3 +- 21.1",
        "6",
        "60%",
        "-44%",
    )
    assert clean_scores.format_row(found) == line and len(line) == len(clean_scores.COLUMNS)
    (tmp_path / "overlap" / "piqa.json").write_text(
        json.dumps({str(number): True for number in range(10)})
    )
    (nothing,) = clean_scores.compare(tmp_path / "overlap", tmp_path)
    assert clean_scores.format_row(nothing)[7:] == ("-", "0", "0%", "-")


def outcome(item, likelier):
    """As `evaluate` keeps it, of a choice."""
    told = {"log_probabilities": [float(n == likelier) - 2 for n in range(2)], "tokens": [1, 1]}
    return dataclasses.asdict(item) | told | {"asked": [], "shown": [], "cut": 0}


@pytest.mark.parametrize("label", ["multirc", "multirc:f1a"])
def test_records_of_evaluate_are_scored_again_by_their_metric(tmp_path, label):
    """Three questions of three answers (true, false, true): the first wrong in one answer; it
    alone is dirty."""
    task = registry.get_task(label)
    items = [
        item
        for n in range(3)
        for item in task.items(task.example | {"id": str(n)}, task.protocol, 0)
    ]
    kept = [outcome(item, item.right[0] if item.id != "0-1" else 0) for item in items]
    record = {
        "task": label,
        "shots": 32,
        "seed": 0,
        "protocol": repr(task.protocol),
        "outcomes": "x.jsonl",
        "scores": {},
    }
    (tmp_path / "x.json").write_text(json.dumps(record))
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, kept)))
    (tmp_path / "overlap").mkdir()
    (tmp_path / "overlap" / "multirc.json").write_text(
        json.dumps({item.id: item.group == "0" for item in items})
    )
    rows_ = {row["metric"]: row for row in clean_scores.compare(tmp_path / "overlap", tmp_path)}
    questions = rows_["group_accuracy"]
    assert [round(questions[part]["value"], 1) for part in ("all", "dirty", "clean")] == [
        66.7,
        0.0,
        100.0,
    ]
    assert [questions[part]["n"] for part in ("all", "dirty", "clean")] == [3, 1, 2] and questions[
        "relative"
    ] == pytest.approx(50)
    assert (questions["task"], questions["shots"]) == (label, "32")
    if label.endswith("f1a"):
        assert (
            rows_["f1a"]["all"]["value"] == pytest.approx(200 * 6 / 13)
            and rows_["f1a"]["clean"]["value"] == 100
        )


def test_records_of_evaluate_are_verified_by_their_seal(tmp_path):
    task = registry.get_task("piqa")
    (item,) = task.items(task.example | {"id": "0"}, task.protocol, 0)
    record = {
        "task": "piqa",
        "shots": 0,
        "seed": 0,
        "protocol": repr(task.protocol),
        "outcomes": "x.jsonl",
        "scores": {},
    }
    outcomes.save_record(tmp_path / "x.json", record, print)
    (tmp_path / "x.jsonl").write_text(outcomes.encode_line(outcome(item, item.right[0]), "x"))
    (tmp_path / "overlap").mkdir()
    (tmp_path / "overlap" / "piqa.json").write_text('{"0": false}')
    (row,) = clean_scores.compare(tmp_path / "overlap", tmp_path)
    assert row["all"]["value"] == 100
    for name, old, new in (
        ("x.jsonl", "-1.0", "-9.0"),
        ("x.json", '"seed": 0', '"seed": 1'),
        ("x.json", "x.jsonl", "../x"),
    ):
        content = (tmp_path / name).read_text()
        assert old in content
        (tmp_path / name).write_text(content.replace(old, new))
        with pytest.raises(
            ValueError, match=rf"{name}.* is damaged, or was edited: its seal is wrong"
        ):
            clean_scores.compare(tmp_path / "overlap", tmp_path)
        (tmp_path / name).write_text(content)


def test_ones_own_task_is_compared_where_its_file_is_and_ignored_where_it_was_not_checked(tmp_path):
    (tmp_path / "taste_test.jsonl").write_text(
        '{"context": "Sugar is", "completions": [" sweet", " sour"], "label": 0}\n'
    )
    task = registry.get_task("taste", tmp_path)
    (item,) = task.items(
        {"id": "0", **json.loads((tmp_path / "taste_test.jsonl").read_text())}, task.protocol, 0
    )
    record = {
        "task": "taste",
        "shots": 0,
        "seed": 0,
        "protocol": repr(task.protocol),
        "outcomes": "x.jsonl",
        "scores": {},
    }
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text(json.dumps(record))
    (tmp_path / "results" / "x.jsonl").write_text(json.dumps(outcome(item, 0)))
    (tmp_path / "results" / "piqa.jsonl").write_text('{"id": "0", "score": 1}')
    for name, folder in (("taste", tmp_path), ("piqa", None)):
        overlap = tmp_path / f"overlap of {name}"
        overlap.mkdir()
        (overlap / f"{name}.json").write_text('{"0": false}')
        (row,) = clean_scores.compare(overlap, tmp_path / "results", folder)
        assert (row["task"], row["all"]["value"]) == (name, 100)
