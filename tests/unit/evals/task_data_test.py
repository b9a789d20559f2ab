"""Rows from files, from TFDS, and made; and the line that each bad input gets."""

import dataclasses
import json
import time

import numpy as np
import pytest

from gptjax.config.evaluation import Protocol, Total, Windows
from gptjax.evals import task_data
from gptjax.evals.task import Task
from tests.unit.training.classification import examples_test

QUIZ = Task(
    name="quiz",
    summary="questions",
    protocol=Protocol(shots=1, method=Total(), metric="accuracy"),
    items=lambda row, protocol, shots: [],
    schema={
        "q": "text: what is asked",
        "options": "[text]",
        "right": "number: of the right one",
        "hard": "truth",
        "more": "[[text]]",
    },
    example={},
    data_hint="quiz.tgz of example.org",
)
ROW = {"q": "one?", "options": ["a", "b"], "right": 0, "hard": False, "more": [["x"], []]}


def found(task=QUIZ, split="validation", folder=None, **kw):
    return task_data.load_rows(task, task.protocol, split, folder, **kw)


def written(tmp_path, content, name="quiz.jsonl"):
    text = (
        content
        if isinstance(content, bytes)
        else "".join(json.dumps(row) + "\n" for row in content).encode()
    )
    (tmp_path / name).write_bytes(text)
    return str(tmp_path)


def refused(match, *args, **kw):
    with pytest.raises(ValueError, match=match) as error:
        found(*args, **kw)
    assert "\n" not in str(error.value)


def test_a_files_rows_have_ids_and_the_splits_file_comes_first(tmp_path):
    folder = written(tmp_path, [ROW, {**ROW, "q": "two?"}])
    assert [row["id"] for row in found(folder=folder).rows] == ["0", "1"]
    written(tmp_path, [{**ROW, "id": 7, "extra": 1}], "quiz_validation.jsonl")
    there = found(folder=folder)
    assert there.source.endswith("quiz_validation.jsonl") and there.rows == (
        {**ROW, "id": "7", "extra": 1},
    )
    assert (
        len(found(split="train", folder=folder).rows) == 2
    )  # quiz.jsonl is what has no file of its own
    assert len(found(split="validation[:3]", folder=folder).rows) == 1


def test_blank_lines_marks_and_lone_surrogates_do_no_harm(tmp_path):
    line = json.dumps({**ROW, "q": "\ud800", "options": ["\ud83d\ude00", "b"]})
    folder = written(tmp_path, b"\xef\xbb\xbf\n" + line.encode() + b"\r\n\n")
    assert found(folder=folder).rows[0]["q"] == "\ufffd"
    assert found(folder=folder).rows[0]["options"] == ["\U0001f600", "b"]


BAD = {
    "missing": (
        {"right": None, "q": "x"},
        "quiz.jsonl line 2: right holds null, not number: of the right one",
    ),
    "no column": (
        "q",
        r"line 2 has no column 'q' \(text: what is asked\): it has options, right, hard, more",
    ),
    "a number": ({"q": 3}, "line 2: q holds number, not text: what is asked"),
    "a truth": ({"right": True}, "line 2: right holds truth, not number"),
    "no truth": ({"hard": 1}, "line 2: hard holds number, not truth"),
    "no list": ({"options": "a"}, r"line 2: options holds text, not \[text\]"),
    "a mixed list": (
        {"options": ["a", 1]},
        r"line 2: options holds \[number or text\], not \[text\]",
    ),
    "not deep": ({"more": ["x"]}, r"line 2: more holds \[text\], not \[\[text\]\]"),
    "too deep": ({"options": [["x"]]}, r"line 2: options holds \[\[text\]\], not \[text\]"),
    "an object": ({"q": {}}, "line 2: q holds an object, not text"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_one_line_with_file_line_and_column(tmp_path, name):
    change, said = BAD[name]
    bad = (
        {key: value for key, value in ROW.items() if key != change}
        if isinstance(change, str)
        else {**ROW, **change}
    )
    refused(said, folder=written(tmp_path, [ROW, bad]))


def test_bad_files_are_one_line(tmp_path):
    broken = json.dumps(ROW).encode() + b'\n{"q": \n'
    refused(r"quiz.jsonl line 2 is not JSON: Expecting value", folder=written(tmp_path, broken))
    refused(
        r"quiz.jsonl line 1 holds a JSON list, not an object", folder=written(tmp_path, b"[1]\n")
    )
    refused(r"quiz.jsonl line 1 is not UTF-8 text", folder=written(tmp_path, b'{"q": "\xff"}\n'))
    refused(
        r"quiz.jsonl has no row; give quiz_SPLIT.jsonl with the columns q \(text\), options "
        r"\(\[text\]\)",
        folder=written(tmp_path, b"\n"),
    )
    same = [{**ROW, "id": "a"}, {**ROW, "id": "b"}, {**ROW, "id": "a"}]
    refused(
        r"quiz.jsonl line 3 has the id 'a', which line 1 has too: give each its own",
        folder=written(tmp_path, same),
    )
    mixed = [ROW, {**ROW, "id": 0}]
    refused(r"line 2 has the id '0', which line 1 has too", folder=written(tmp_path, mixed))
    refused(
        r"nowhere is not a folder: give the one that has NAME_SPLIT.jsonl or NAME.jsonl, such as "
        r"quiz_validation.jsonl",
        folder="nowhere",
    )


def test_missing_data_are_a_one_line_error_with_how_to_get_them(tmp_path):
    began = time.monotonic()
    refused(
        r"^quiz: no folder of .jsonl files is given; give quiz_SPLIT.jsonl .*: quiz.tgz of "
        r"example.org$"
    )
    refused(
        r"^quiz: no quiz_train.jsonl or quiz.jsonl in /.*; give quiz_SPLIT.jsonl",
        split="train[:9]",
        folder=str(tmp_path),
    )
    task = dataclasses.replace(QUIZ, tfds="quiz/hard")
    refused(
        r"^quiz: no quiz_validation.jsonl or quiz.jsonl in .*, and Tfds\(name='quiz/hard'\) is not "
        r"prepared under .*"
        r"`tfds build quiz/hard .*; or give quiz_SPLIT.jsonl with the columns q \(text\).*: "
        r"quiz.tgz of example.org$",
        task=task,
        folder=str(tmp_path),
        data_dir=str(tmp_path),
    )
    assert time.monotonic() - began < 5


def test_a_text_that_is_read_whole_may_be_a_plain_file(tmp_path):
    task = dataclasses.replace(
        QUIZ,
        protocol=Protocol(shots=0, method=Windows(), metric="perplexity"),
        schema={"text": "text"},
    )
    folder = written(tmp_path, b"one\n two\n", "quiz_test.txt")
    assert found(task, "test", folder).rows == ({"text": "one\n two\n", "id": "0"},)
    refused("quiz_test.txt is empty", task, "test", written(tmp_path, b" \n", "quiz_test.txt"))
    refused("no quiz_test.jsonl", QUIZ, "test", folder)  # a choice needs more than a text


def test_made_rows_come_from_the_seed(tmp_path):
    task = dataclasses.replace(
        QUIZ,
        make_rows=lambda protocol, seed, split: [{**ROW, "q": f"{protocol.shots} {seed} {split}"}],
    )
    there = found(task, seed=5)
    assert there.source == "quiz, made from seed 5" and there.rows == (
        {**ROW, "q": "1 5 validation", "id": "0"},
    )
    assert found(task, folder=written(tmp_path, [ROW])).source.endswith(
        "quiz.jsonl"
    )  # a file, OpenAI's own for one, comes before
    broken = dataclasses.replace(QUIZ, make_rows=lambda protocol, seed, split: [{"q": "x"}])
    refused("quiz, made from seed 0 example 1 has no column 'options'", broken)


def test_a_prepared_data_set_is_read_as_pythons_own_values(tmp_path):
    examples_test.race(tmp_path)
    schema = {
        "article": "text",
        "questions": "[text]",
        "options": "[[text]]",
        "answers": "[text]",
        "class": "number",
    }
    task = dataclasses.replace(QUIZ, tfds="race", schema=schema)
    there = found(task, "train", data_dir=str(tmp_path))
    assert there.source == "race train" and len(there.rows) == 4
    assert [row["id"] for row in there.rows] == ["0", "1", "2", "3"]
    assert there.rows[0]["options"] == [["x", "y", "z"], ["u", "v", "w"]] and there.rows[0][
        "article"
    ].startswith("caf\u00e9 ")
    assert json.dumps(there.rows)  # nothing of NumPy's is left
    pairs = dataclasses.replace(
        task,
        schema={"a": "[text]"},
        from_tfds=lambda row: {"a": [row["article"]]},
        merge_rows=lambda given: [{"a": [text for row in given for text in row["a"]]}],
    )
    assert len(found(pairs, "train", data_dir=str(tmp_path)).rows[0]["a"]) == 4
    refused(r"^quiz: .*split='dev'\): Unknown split 'dev'", task, "dev", data_dir=str(tmp_path))


def test_values_of_numpy_become_pythons():
    example = {
        "a": np.int32(3),
        "b": b"caf\xc3\xa9",
        "c": np.array([b"x", b"y"], object),
        "d": {"e": np.bool_(True)},
        "f": np.array(2.5),
    }
    assert task_data.decode_example(example, "here") == {
        "a": 3,
        "b": "caf\u00e9",
        "c": ["x", "y"],
        "d": {"e": True},
        "f": 2.5,
    }
    with pytest.raises(ValueError, match="^here is not UTF-8 text"):
        task_data.decode_example(b"\xff", "here")
