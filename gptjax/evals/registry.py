"""The name of a task -> the task. The modules of tasks/ are imported when first asked for: each
has TASKS, a tuple of them."""

import dataclasses
import difflib
import functools
import importlib
import pathlib
import pkgutil
from collections.abc import Iterable, Mapping

from gptjax.evals import custom_tasks
from gptjax.evals.task import Task

SUPERGLUE = ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc")


@functools.cache
def families() -> Mapping[str, tuple[Task, ...]]:
    """The tasks of each module of tasks/, by its name."""
    folder = importlib.import_module("gptjax.evals.tasks")
    names = sorted(info.name for info in pkgutil.iter_modules(folder.__path__))
    return {name: importlib.import_module(f"{folder.__name__}.{name}").TASKS for name in names}


@functools.cache
def all_tasks() -> Mapping[str, Task]:
    """All tasks by name, in the order of their modules' names."""
    tasks: dict[str, Task] = {}
    for task in (task for members in families().values() for task in members):
        assert task.name not in tasks, f"two tasks are called {task.name}"
        tasks[task.name] = task
    return tasks


@functools.cache
def groups() -> Mapping[str, tuple[Task, ...]]:
    """Families, and what papers treat together: SuperGLUE's eight tasks, all of GPT-2's, all of
    GPT-3's."""
    papers = {
        name: tuple(
            task
            for task in all_tasks().values()
            if any(score.paper == paper for score in task.paper_scores)
        )
        for name, paper in (("gpt2", "GPT-2"), ("gpt3", "GPT-3"))
    }
    return {**families(), "superglue": tuple(all_tasks()[name] for name in SUPERGLUE), **papers}


def get_task(name: str, folder: pathlib.Path | None = None) -> Task:
    """The task of that name, else that of its file in `folder`; NAME:CONVENTION: with that
    convention as its protocol. Raises ValueError with the nearest names."""
    base_name, _, convention = name.partition(":")
    task = (
        all_tasks()[base_name]
        if base_name in all_tasks()
        else custom_tasks.find_task(base_name, folder)
    )
    if task is None:
        near = difflib.get_close_matches(base_name, [*all_tasks(), *groups()], n=3, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(all_tasks())}"
        )
        raise ValueError(
            f"no task is called {base_name!r}; {hint}; a task of your own is a file "
            f"{base_name}_test.jsonl in --data=DIR"
        )
    if convention and convention not in task.conventions:
        raise ValueError(
            f"{base_name} has no convention {convention!r}; it has "
            f"{', '.join(task.conventions) or 'none but its own'}"
        )
    return dataclasses.replace(task, protocol=task.conventions[convention]) if convention else task


def get_tasks(names: Iterable[str], folder: pathlib.Path | None) -> dict[str, Task]:
    """The tasks of these names, and all of a group where it is named. Raises ValueError with the
    nearest names."""
    tasks: dict[str, Task] = {}
    for name in names:
        is_group = name not in all_tasks() and name in groups()
        if is_group and custom_tasks.find_task(name, folder) is not None:
            raise ValueError(
                f"{name} is a group of tasks, and {folder} has a file of that name: rename the "
                "file, or give another --data"
            )
        tasks |= (
            {task.name: task for task in groups()[name]}
            if is_group
            else {name: get_task(name, folder)}
        )
    return tasks
