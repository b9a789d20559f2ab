"""Tasks by name, by family, by convention, and of one's own files."""

import json

import pytest

from gptjax.config import evaluation
from gptjax.evals import registry, task_data


def test_every_task_renders_its_example():
    for name, task in registry.all_tasks().items():
        row = task_data.check_row(task.example, task.schema, name)
        for shots in (0, 1):
            items = list(task.items(row, task.protocol, shots))
            assert items and all(item.contexts and item.completions for item in items), name
            assert any(item.right or item.demonstration for item in items) and all(
                item.as_demonstration for item in items if item.right
            ), name


def test_names_families_and_conventions():
    assert list(registry.get_tasks(["hellaswag", "arc"], None)) == [
        "hellaswag",
        "arc_easy",
        "arc_challenge",
    ]
    assert len(registry.get_tasks(["arithmetic"], None)) >= 10
    language_modeling = registry.get_tasks(["language_modeling"], None)
    assert "ptb" in language_modeling
    assert language_modeling == registry.get_tasks(["language_modelling"], None)  # its earlier name
    with pytest.raises(ValueError, match="no task is called 'helaswag'; did you mean hellaswag"):
        registry.get_tasks(["helaswag"], None)
    with pytest.raises(ValueError, match="piqa has no convention 'mine'; it has none but its own"):
        registry.get_tasks(["piqa:mine"], None)


def test_groups_are_what_papers_treat_together():
    assert list(registry.get_tasks(["superglue"], None)) == [
        "boolq",
        "cb",
        "copa",
        "multirc",
        "record",
        "rte",
        "wic",
        "wsc",
    ]
    assert {"lambada", "hellaswag", "wsc", "two_digit_addition"} <= set(
        registry.get_tasks(["gpt3"], None)
    )
    assert {"lambada", "cbt_cn", "wikitext103"} <= set(
        registry.get_tasks(["gpt2"], None)
    ) and "hellaswag" not in registry.groups()["gpt2"]


def written(folder, name, *lines):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_file_of_contexts_and_completions_is_a_task_that_writes(tmp_path):
    written(
        tmp_path,
        "sums_test",
        {"context": "1 + 1 =", "completion": " 2"},
        {"context": "2 + 2 =", "completion": " 4"},
    )
    written(tmp_path, "sums_train", {"context": "3 + 3 =", "completion": " 6"})
    (task,) = registry.get_tasks(["sums"], tmp_path).values()
    assert task.splits == ("test", "train") and isinstance(task.protocol.method, evaluation.Greedy)
    (item, _) = (
        item
        for row in task_data.load_rows(task, task.protocol, "test", str(tmp_path)).rows
        for item in task.items(row, task.protocol, 0)
    )
    assert item.as_demonstration == "1 + 1 = 2" and item.answers == ("2",)
    assert task.score is not None
    assert [task.score("exact_match", said, item) for said in (" 2 ", "The 2", "3")] == [
        1.0,
        0.0,
        0.0,
    ]
    assert [task.score("f1", said, item) for said in ("The 2", "3")] == [1.0, 0.0]


def test_a_file_with_completions_is_a_task_that_chooses(tmp_path):
    written(
        tmp_path, "taste", {"context": "Sugar is", "completions": [" sweet", " sour"], "label": 0}
    )
    task = registry.get_task("taste", tmp_path)
    assert task.splits == ("test", "test") and isinstance(task.protocol.method, evaluation.PerToken)
    (row,) = task_data.load_rows(task, task.protocol, "test", str(tmp_path)).rows
    (item,) = task.items(row, task.protocol, 0)
    assert item.right == (0,) and item.as_demonstration == "Sugar is sweet"
    with pytest.raises(ValueError, match="item 0 has label 2 and 2 completions"):
        task.items({**row, "label": 2}, task.protocol, 0)


def test_a_custom_task_without_its_file_is_unknown(tmp_path):
    with pytest.raises(
        ValueError,
        match=(
            "no task is called 'zzz'; .*a task of your own is a file zzz_test.jsonl in "
            "--task_data=DIR"
        ),
    ):
        registry.get_task("zzz", tmp_path)
