"""Answers as files, as GLUE's server wants them: TASK.tsv with the header index and prediction,
ordered by index."""

import json

import numpy as np
import pytest

from gptjax.configs import finetuning
from gptjax.training.classification import predictions
from gptjax.training.classification.examples import Example

# What two programs that make GLUE submissions write (jiant's benchmark_submission_formatter.py,
# keras-nlp's glue.py).
FILES = {
    "cola": ("CoLA", "1"),
    "sst2": ("SST-2", "1"),
    "mrpc": ("MRPC", "1"),
    "stsb": ("STS-B", "1.000"),
    "qqp": ("QQP", "1"),
    "mnli": ("MNLI-m", "neutral"),
    "mnli_mm": ("MNLI-mm", "neutral"),
    "qnli": ("QNLI", "not_entailment"),
    "rte": ("RTE", "not_entailment"),
}


@pytest.mark.parametrize("name", FILES)
def test_each_task_is_written_as_glue_has_it(name, tmp_path):
    task, (file, spelled) = finetuning.TASKS[name], FILES[name]
    order = [10, 2, 0, 1]  # TFDS shuffles, and text would sort 10 before 2
    examples = [Example(("x",) * len(task.fields), (), None, str(n)) for n in order]
    y = 100 * np.eye(len(task.labels), dtype=np.float32)[[0, 1, 1, 1]]
    predictions.write_predictions(tmp_path, task, "test", examples, y)
    lines = (tmp_path / f"{file}.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    assert [line.split("\t")[0] for line in lines[1:]] == ["0", "1", "2", "10"]
    assert [line.split("\t")[1] for line in lines[1:4]] == [spelled] * 3 and lines[4].split("\t")[
        1
    ] != spelled
    predictions.write_predictions(tmp_path, task, "dev", examples, y)
    assert {path.name for path in tmp_path.iterdir()} == {f"{file}.tsv", "test.jsonl", "dev.jsonl"}


def test_scores_that_are_no_numbers_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="NaN or infinite"):
        predictions.write_predictions(
            tmp_path,
            finetuning.TASKS["sst2"],
            "dev",
            [Example(("x",), (), 0.0, "0")],
            np.array([[np.nan, np.inf]], np.float32),
        )
    assert list(tmp_path.iterdir()) == []


def test_every_glue_task_of_the_paper_is_there_and_no_other_is_submitted():
    assert {name for name, task in finetuning.TASKS.items() if task.submission} == set(FILES)


def test_scores_are_written_for_every_example(tmp_path):
    task = finetuning.TASKS["race_high"]
    examples = [
        Example(("a", "b"), tuple("wxyz"), 2.0, "3-0"),
        Example(("a", "c"), tuple("wxyz"), None, "3-1"),
    ]
    predictions.write_predictions(
        tmp_path, task, "test", examples, np.array([[0, 1, 5, 2], [3, 1, 0, 2]], np.float32)
    )
    first, second = map(json.loads, (tmp_path / "test.jsonl").read_text().splitlines())
    assert first == {"index": "3-0", "label": 2.0, "answer": "2", "scores": [0.0, 1.0, 5.0, 2.0]}
    assert second["label"] is None and second["answer"] == "0"
    assert not list(tmp_path.glob("*.tsv"))
