"""Every task is whole: its example is as its schema says, becomes items, and is put as the
golden file shows."""

import dataclasses
from pathlib import Path
from typing import get_args

import pytest

from gptjax.config import evaluation
from gptjax.evals import registry, task_data
from gptjax.evals.task import GPT2_CONFIGS, GPT3_CONFIGS
from tests.golden import prompts, published

GOLDEN = Path(__file__).parents[3] / "golden"
TASKS = registry.all_tasks()


def test_prompts_are_as_they_were():
    """A change of any prompt shows here: `python -m tests.golden.prompts >
    tests/golden/prompts.txt`, and look at what git says."""
    found = "\n".join(prompts.lines()) + "\n"
    assert found == (GOLDEN / "prompts.txt").read_text(), "a prompt has changed"


def test_published_scores_are_as_they_were():
    """A change of any figure shows here; those of the two papers' tables were compared with a
    transcription of their own."""
    assert "\n".join(published.lines()) + "\n" == (GOLDEN / "published.txt").read_text(), (
        "a paper's score has changed"
    )


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_whole(name):
    task = TASKS[name]
    assert task.summary and task.data_hint and "id" not in task.schema
    assert task_data.check_row(task.example, task.schema, name) == task.example
    for way in [task.protocol, *task.conventions.values()]:
        assert way.metric in get_args(evaluation.Metric)
        for shots in {0, 1, way.shots}:
            items = list(task.items(task.example, way, shots))
            assert items and len({item.id for item in items}) == len(items)
            for item in items:
                assert (
                    item.completions
                    and all(item.completions)
                    and set(item.right) <= set(range(len(item.completions)))
                )
                assert len(item.contexts) in (1, len(item.completions))
                if isinstance(way.method, evaluation.ChoiceMethod):
                    assert (
                        len(set(item.completions)) == len(item.completions) > 1
                        or len(set(item.contexts)) > 1
                    )
                if isinstance(way.method, evaluation.GenerationMethod):
                    assert item.answers


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, task in TASKS.items()
        if isinstance(task.protocol.method, evaluation.GenerationMethod) and task.score
    ],
)
def test_what_a_demonstration_shows_is_right(name):
    """Scorers that leave a reference out may give less than 1, but never 0; another text gets 0."""
    task = TASKS[name]
    assert task.score is not None
    for way in [task.protocol, *task.conventions.values()]:
        for item in (
            task.items(task.example, way, 0)
            if isinstance(way.method, get_args(evaluation.GenerationMethod))
            else ()
        ):
            assert task.score(way.metric, item.completions[0], item) > 0.4
            assert task.score(way.metric, "something else entirely", item) == 0


@pytest.mark.parametrize("name", TASKS)
def test_published_scores_are_of_known_configs_and_in_range(name):
    for one in TASKS[name].paper_scores:
        assert set(one.scores) <= {*GPT2_CONFIGS, *GPT3_CONFIGS} and one.shots in (
            "zero",
            "one",
            "few",
        )
        assert one.metric in get_args(evaluation.Metric)
        assert all(
            0 <= score <= (200 if one.metric == "perplexity" else 100)
            for score in one.scores.values()
        )


def test_two_tasks_of_one_name_are_refused(monkeypatch):
    from gptjax.evals.tasks import lambada

    monkeypatch.setattr(
        lambada, "TASKS", (lambada.TASKS[0], dataclasses.replace(lambada.TASKS[0], summary="again"))
    )
    registry.families.cache_clear()
    registry.all_tasks.cache_clear()
    with pytest.raises(AssertionError, match="two tasks are called lambada"):
        registry.all_tasks()
    monkeypatch.undo()
    registry.families.cache_clear()
    registry.all_tasks.cache_clear()
