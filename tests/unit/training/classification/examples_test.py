"""Labelled examples from files and TFDS, the same whatever the format; and the sentence that
each bad input gets."""

import csv
import dataclasses
import io
import json
import time

import numpy as np
import pytest

from gptjax.config.classification import ClassificationTask
from gptjax.training.classification import examples
from gptjax.training.classification.examples import Example

PAIRS = ClassificationTask(
    kind="entailment", fields=("a", "b"), label="gold", labels=("yes", "no"), metric="accuracy"
)
QUIZ = ClassificationTask(
    kind="choice",
    fields=("article", "questions"),
    answers=("options",),
    label="answers",
    labels=tuple("ABC"),
    metric="accuracy",
)
ROWS = [
    {"idx": "7", "a": '"no" was said.', "b": "caf\u00e9, or not", "gold": "yes"},
    {"idx": "8", "a": "two", "b": "three", "gold": "no"},
    {"idx": "9", "a": "four", "b": "five", "gold": "0"},
]
QUESTIONS = {
    "article": "a text",
    "questions": ["first?", "second?"],
    "options": [["x", "y", "z"], ["u", "v", "w"]],
    "answers": ["B", "A"],
}


def table(rows, **how):
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(rows[0]), **how)
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue()


def as_tsv(rows):
    return "".join(
        "\t".join(map(str, line)) + "\n"
        for line in [list(rows[0]), *(row.values() for row in rows)]
    )


def as_jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


WRITTEN = {".tsv": as_tsv, ".csv": table, ".jsonl": as_jsonl}


def written(tmp_path, rows, kind=".jsonl"):
    path = tmp_path / f"data{kind}"
    path.write_bytes(
        rows
        if isinstance(rows, bytes)
        else (rows if isinstance(rows, str) else WRITTEN[kind](rows)).encode()
    )
    return str(path)


def read(task, split="train", said=lambda line: None):
    return examples.read(task, split, said)


def refused(task, match, split="train"):
    with pytest.raises(ValueError, match=match) as error:
        read(task, split)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_format_gives_the_same_examples(tmp_path, kind):
    found = read(dataclasses.replace(PAIRS, train=written(tmp_path, ROWS, kind)))
    assert found == [
        Example(('"no" was said.', "caf\u00e9, or not"), (), 0.0, "7"),
        Example(("two", "three"), (), 1.0, "8"),
        Example(("four", "five"), (), 0.0, "9"),
    ]


def test_a_byte_order_mark_windows_lines_and_quoted_line_ends_do_no_harm(tmp_path):
    rows = [{**row, "a": row["a"] + "\nnext line"} for row in ROWS]
    content = b"\xef\xbb\xbf" + table(rows, lineterminator="\r\n").encode()
    found = read(dataclasses.replace(PAIRS, train=written(tmp_path, content, ".csv")))
    assert [example.texts[0] for example in found] == [row["a"] for row in rows]


def test_a_list_of_questions_is_an_example_each(tmp_path):
    found = read(dataclasses.replace(QUIZ, train=written(tmp_path, [QUESTIONS])))
    assert found == [
        Example(("a text", "first?"), ("x", "y", "z"), 1.0, "0-0"),
        Example(("a text", "second?"), ("u", "v", "w"), 0.0, "0-1"),
    ]


def test_answers_are_a_column_each_or_one_list(tmp_path):
    task = dataclasses.replace(QUIZ, fields=("text",), label="right", labels=("1", "2"))
    rows = [
        {"text": "t", "one": "x", "two": "y", "both": ["x", "y"], "right": right}
        for right in (1, 2)
    ]
    there = written(tmp_path, rows)
    columns = read(dataclasses.replace(task, answers=("one", "two"), train=there))
    assert columns == read(dataclasses.replace(task, answers=("both",), train=there))
    assert columns[1] == Example(("t",), ("x", "y"), 1.0, "1")


@pytest.mark.parametrize("unknown", ["-1", -1, "-", "", None])
def test_a_test_set_needs_no_labels_and_the_others_leave_such_examples_out(tmp_path, unknown):
    there = written(tmp_path, [*ROWS, {**ROWS[0], "gold": unknown}])
    task, lines = dataclasses.replace(PAIRS, train=there, test=there), []
    assert [e.label for e in read(task, "test")] == [0, 1, 0, None]
    assert len(read(task, "train", lines.append)) == 3
    assert lines == [f"{there}: 1 of 4 examples have no label and are left out"]
    bare = written(tmp_path, [{k: v for k, v in row.items() if k != "gold"} for row in ROWS])
    assert [e.label for e in read(dataclasses.replace(PAIRS, test=bare), "test")] == [None] * 3
    refused(
        dataclasses.replace(PAIRS, train=bare),
        "data.jsonl line 1 has no column 'gold': it has idx, a, b; name the one of the labels "
        "with task.label",
    )
    blank = written(tmp_path, [{**row, "gold": ""} for row in ROWS])
    refused(
        dataclasses.replace(PAIRS, train=blank),
        "its examples are without a label; there is nothing to learn",
    )


def test_scores_between_classes_are_labels_of_pearson_alone(tmp_path):
    there = written(tmp_path, [{**ROWS[0], "gold": score} for score in ("0.25", "1.0", "0")])
    scored = dataclasses.replace(PAIRS, labels=tuple("01"), metric="pearson", train=there)
    assert [e.label for e in read(scored)] == [0.25, 1.0, 0.0]
    refused(
        dataclasses.replace(PAIRS, train=there),
        r"line 1: gold is '0.25'; give yes, no, or a number from 0 to 1, or other",
    )


BAD = {
    "no such label": (
        [{**ROWS[0], "gold": "maybe"}],
        ("line 1: gold is 'maybe'; give yes, no, or a number from 0 to 1, or other"),
    ),
    "a label beyond": (
        [ROWS[0], {**ROWS[0], "gold": 2}],
        ("line 2: gold is '2'; give yes, no, or a number from 0 to 1"),
    ),
    "not a number": ([{**ROWS[0], "gold": "nan"}], "gold is 'nan'; give yes"),
    "empty text": (
        [ROWS[0], {**ROWS[0], "b": " "}],
        ("line 2: b is empty; fill it, or leave the example out"),
    ),
    "no text": ([{**ROWS[0], "b": None}], "line 1: b is empty"),
    "a list": ([{**ROWS[0], "b": ["x", "y"]}], "line 1: b holds a list, not a text"),
    "missing column": (
        [{"a": "x", "gold": "yes"}],
        ("line 1 has no column 'b': it has a, gold; name the one that"),
    ),
    "one class": (
        [ROWS[0], ROWS[2]],
        ("its examples are all of one class, yes; there is nothing to learn"),
    ),
    "nothing": ("", "has no example; give another file with task.train=FILE"),
    "not JSON": ('{"a": \n', "line 1 is not JSON"),
    "not an object": ("[1]\n", "line 1 holds a JSON list, not an object"),
    "binary": (b"\x00\x01", "is not text: a zero byte at offset 0"),
    "not UTF-8": (b'{"a": "\xff"}', "is not UTF-8 text: byte 0xff at offset 7"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_content_is_one_clear_line(tmp_path, name):
    rows, said = BAD[name]
    refused(dataclasses.replace(PAIRS, train=written(tmp_path, rows)), said)


def test_bad_files_are_one_clear_line(tmp_path):
    refused(
        dataclasses.replace(PAIRS, train="no/such.tsv"),
        "no/such.tsv does not exist; give a .tsv or .csv or .jsonl file",
    )
    refused(
        dataclasses.replace(PAIRS, train=written(tmp_path, "x", ".txt")),
        "data.txt: give a .tsv, .csv, .jsonl file; a table's first line",
    )
    refused(
        PAIRS, "task.train is not given: a .tsv or .csv or .jsonl file with the columns a, b, gold"
    )
    short = written(tmp_path, "a\tb\tgold\nx\ty\tyes\nx\ty\n", ".tsv")
    refused(
        dataclasses.replace(PAIRS, train=short), "line 3 has 2 columns, and the first line names 3"
    )
    long = written(tmp_path, "a\tb\tgold\nx\ty\tyes\tmore\n", ".tsv")
    refused(
        dataclasses.replace(PAIRS, train=long), "line 2 has 4 columns, and the first line names 3"
    )
    wide = written(tmp_path, f"a,b,gold\n{'x' * 200_000},y,yes\n", ".csv")
    refused(
        dataclasses.replace(PAIRS, train=wide),
        r"line 2 cannot be read: field larger than field limit",
    )


TABLES = {
    "a quote that never ends": (
        ".csv",
        'a,b,gold\nx,y,yes\n"x,y,no\nx,y\n',
        ("line 3 cannot be read: unexpected end of data; mend"),
    ),
    "text after a quote": (
        ".csv",
        'a,b,gold\n"x\ny"z,y,yes\n',
        ("line 2 cannot be read: ',' expected after '\"'; mend its quotes"),
    ),
    "a column twice": (".csv", "a,b,gold,a\nx,y,yes,z\n", "line 1 names the column 'a' twice"),
    "a row too long after two lines": (
        ".csv",
        'a,b,gold\n"x\nx",y,yes\nx,y,no,z\n',
        ("line 4 has 4 columns, and the first line names 3"),
    ),
    "a carriage return": (".tsv", "a\tb\tgold\nx\ry\tz\tyes\n", "line 2 "),
    "only a header": (
        ".tsv",
        "a\tb\tgold\n",
        ("has no example; give another file with task.train=FILE"),
    ),
    "UTF-16": (
        ".csv",
        "a,b,gold\nx,y,yes\n".encode("utf-16"),
        ("is not text: a zero byte|is not UTF-8 text"),
    ),
    "a list of labels": (
        ".jsonl",
        json.dumps({"a": "x", "b": "y", "gold": []}),
        ("line 1: gold is an empty list"),
    ),
    "an object": (
        ".jsonl",
        json.dumps({"a": {"t": 1}, "b": "y", "gold": "yes"}),
        ("line 1: a holds an object, not a text"),
    ),
    "a label of another kind": (
        ".jsonl",
        json.dumps({"a": "x", "b": "y", "gold": {"yes": 1}}),
        ("line 1: gold holds an object"),
    ),
    "a score without end": (
        ".jsonl",
        '{"a": "x", "b": "y", "gold": 1e999}',
        ("line 1: gold is 'inf'; give yes"),
    ),
    "digits": (".csv", f"a,b,gold\nx,y,{'9' * 5000}\n", "line 2: gold is '999"),
    "a huge label": (".csv", f"a,b,gold\nx,y,{'z' * 5000}\n", "line 2: gold is 'zzz"),
    "huge columns": (
        ".tsv",
        "\t".join(str(n) for n in range(5000)) + "\n" + "\t".join("x" * 5000) + "\n",
        ("line 2 has no column 'gold'"),
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_bad_table_is_one_line_with_its_file_and_line(tmp_path, name):
    kind, content, said = TABLES[name]
    refused(dataclasses.replace(PAIRS, train=written(tmp_path, content, kind)), said)


def test_an_index_column_without_a_name_is_a_column(tmp_path):
    """As pandas writes it."""
    found = read(
        dataclasses.replace(
            PAIRS, train=written(tmp_path, ",a,b,gold\n0,x,y,yes\n\n1,x,z,no\n", ".csv")
        )
    )
    assert [example.texts for example in found] == [("x", "y"), ("x", "z")]


def test_names_that_are_numbers_are_labels_by_their_value(tmp_path):
    """1.0, as pandas makes of 1, is the class called 1, not that of number 1."""
    task = dataclasses.replace(
        PAIRS,
        labels=("1", "2", "5"),
        train=written(tmp_path, [{**ROWS[0], "gold": v} for v in ("1", 2, 5.0, 1.0)]),
    )
    assert [example.label for example in read(task)] == [0, 1, 2, 0]
    for wrong in ("0", 1.5, "3"):
        refused(
            dataclasses.replace(task, train=written(tmp_path, [{**ROWS[0], "gold": wrong}])),
            f"gold is '{wrong}'; give 1, 2, 5, or other",
        )
    with pytest.raises(ValueError, match="a label of metric=pearson is a number from 0 on"):
        dataclasses.replace(task, metric="pearson")


def test_labels_are_found_where_none_are_named(tmp_path):
    def found(values, **changes):
        rows = [{**ROWS[0], "gold": value} for value in values]
        return examples.infer_labels(
            dataclasses.replace(PAIRS, labels=(), train=written(tmp_path, rows), **changes)
        ).labels

    assert found(["no", "yes", None, "no", ""]) == ("no", "yes")
    assert found(["10", "9", 9.0, 10]) == ("9", "10") and found([True, False]) == ("False", "True")
    assert examples.infer_labels(PAIRS) is PAIRS
    for values, said in (
        (["a"], "data.jsonl: its examples are all of one class, a"),
        ([None], "data.jsonl: its examples are without a label"),
        ([["a"]], "data.jsonl line 1: gold holds a list"),
        (
            [f"text {n}" for n in range(21)],
            "gold has 21 different labels; name the column of the classes",
        ),
        (
            [f"text {n}" for n in range(1001)] * 2,
            "gold has 1,001 different labels; name the column of the classes",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            found(values)
    with pytest.raises(
        ValueError,
        match=(
            "data.jsonl line 1 has no column 'class': it has idx, a, b, gold; name the one of the "
            "labels"
        ),
    ):
        found(["a", "b"], label="class")
    with pytest.raises(ValueError, match="task.metric=f1 is of two classes"):
        found("abc", metric="f1")
    with pytest.raises(ValueError, match="name the answers of a choice"):
        dataclasses.replace(QUIZ, labels=())


NUMBERS = {
    "text": (["7", "a0"], "line 2: idx is 'a0', which is no number"),
    "none": (["7", None], "line 2: idx is 'None', which is no number"),
    "twice": (["7", "8", 7], "line 3: idx is 7, as in .*data.jsonl line 1"),
    "below zero": ([-1], "line 1: idx is '-1', which is no number"),
    "a fraction": ([7.5], "line 1: idx is '7.5', which is no number"),
    "a list": ([[7]], r"line 1: idx is '\[7\]', which is no number"),
    "true": ([True], "line 1: idx is 'True'"),
    "digits": (["9" * 5000], "line 1: idx is '999"),
    "an empty text": ([""], "line 1: idx is ''"),
    "Unicode": (["\u0667"], "line 1: idx is '\u0667'"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_test_set_that_glues_server_could_not_take_is_known_before_training(tmp_path, name):
    values, said = NUMBERS[name]
    task = dataclasses.replace(
        PAIRS,
        test=written(tmp_path, [{**ROWS[0], "idx": value} for value in values]),
        submission="RTE",
    )
    refused(
        task,
        said
        + (
            ".*; RTE.tsv names examples by theirs: give each its own, another column with "
            "task.index, or"
        ),
        "test",
    )
    assert len(read(dataclasses.replace(task, submission=None), "test")) == len(values)
    without = written(tmp_path, [{k: v for k, v in row.items() if k != "idx"} for row in ROWS])
    assert [example.index for example in read(dataclasses.replace(task, test=without), "test")] == [
        "0",
        "1",
        "2",
    ]  # counted
    partly = written(tmp_path, [ROWS[0], {k: v for k, v in ROWS[0].items() if k != "idx"}])
    refused(
        dataclasses.replace(task, test=partly),
        "line 2: idx is there in some examples and not in others",
        "test",
    )


@pytest.mark.parametrize(
    "name",
    ["../../evil", "/tmp/evil", "a/b", "..", ".", "", "a\nb", "a\0", "x" * 101, "-n", "\u212a"],
)
def test_a_submission_is_a_file_of_predictions(name):
    with pytest.raises(ValueError, match="task.submission=.*: it names a file of predictions/"):
        dataclasses.replace(PAIRS, submission=name)


def test_test_examples_of_the_training_set_are_counted(tmp_path):
    known = read(dataclasses.replace(PAIRS, train=written(tmp_path, ROWS)))
    assert examples.count_repeats(known, known[:2]) == 2
    assert (
        examples.count_repeats(known, [dataclasses.replace(known[0], texts=known[0].texts[::-1])])
        == 0
    )


def test_answers_are_as_many_as_labels_and_their_columns_there(tmp_path):
    there = written(tmp_path, [{**QUESTIONS, "options": [["x", "y"], ["u", "v", "w"]]}])
    refused(
        dataclasses.replace(QUIZ, train=there),
        r"question 1 has 2 answers, and task.labels=\('A', 'B', 'C'\) names 3; give as many",
    )
    there = written(tmp_path, [{"article": "x", "questions": "y", "answers": "A"}])
    refused(
        dataclasses.replace(QUIZ, train=there),
        "has no column 'options': .* name the one that is meant with task.answers",
    )


def test_an_unprepared_data_set_says_how_to_prepare_it_or_what_else_to_give(tmp_path):
    began = time.monotonic()
    task = dataclasses.replace(PAIRS, tfds="glue/rte", data_dir=str(tmp_path))
    refused(
        task,
        r"Tfds\(name='glue/rte'\) is not prepared under .*: on a machine with network run `tfds "
        r"build glue/rte .*task.train=FILE",
    )
    refused(
        dataclasses.replace(task, train="x.tsv"), "task.dev is not given", split="dev"
    )  # files and a data set are not mixed
    assert time.monotonic() - began < 5


def race(tmp_path):
    """A prepared array_record data set with RACE's features. TFDS parses lists of lists without
    TensorFlow, but does not write them so."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import example_serializer
    from tensorflow_datasets.core.features import feature

    def strings(nested):
        return np.array([np.asarray(one, object).item() for one in nested], object)

    def ragged(nested, info):
        if info.sequence_rank < 2:
            return (strings(nested) if info.sequence_rank else nested), info
        lengths = np.array([len(one) for one in nested])
        flat = feature.TensorInfo(shape=(None,), dtype=info.np_dtype)
        info = feature.TensorInfo(shape=(None,), dtype=np.int64)
        return {
            "ragged_row_lengths_0": (lengths, info),
            "ragged_flat_values": (strings([x for one in nested for x in one]), flat),
        }

    class Race(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # it may be made again
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text, many = tfds.features.Text(), tfds.features.Sequence(tfds.features.Text())
            lists = tfds.features.Sequence(tfds.features.Sequence(tfds.features.Text()))
            columns = {"article": text, "questions": many, "options": lists, "answers": many}
            columns |= {"class": tfds.features.ClassLabel(names=["yes", "no"]), "number": np.int32}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(columns))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for n in range(4):
                yield (
                    n,
                    {**QUESTIONS, "article": f"caf\u00e9 {n}", "class": n % 2, "number": 10 + n},
                )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example_serializer, "_add_ragged_fields", ragged)
        Race(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()


def test_a_prepared_data_set_is_read(tmp_path):
    race(tmp_path)
    task = dataclasses.replace(
        QUIZ, tfds="race", data_dir=str(tmp_path), splits=("train[:3]", "train[3:]")
    )
    found = read(task)
    assert len(found) == 6 and len(read(task, "dev")) == 2
    assert [(e.texts[1], e.answers, e.label) for e in found[:2]] == [
        ("first?", ("x", "y", "z"), 1.0),
        ("second?", ("u", "v", "w"), 0.0),
    ]
    assert all(e.texts[0].startswith("caf\u00e9 ") for e in found)
    classed = dataclasses.replace(
        PAIRS,
        fields=("article", "article"),
        label="class",
        tfds="race",
        data_dir=str(tmp_path),
        splits=("train", "train"),
        index="number",
    )
    assert {(e.index, e.texts[0][-1], e.label) for e in read(classed)} == {
        ("10", "0", 0),
        ("11", "1", 1),
        ("12", "2", 0),
        ("13", "3", 1),
    }
    refused(
        dataclasses.replace(task, splits=("train", "dev")),
        r"split='dev'\): Unknown split 'dev'.* task.dev=FILE",
        split="dev",
    )
