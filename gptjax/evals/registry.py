"""Registry of evaluation tasks by name. The modules of tasks/, each with a tuple TASKS, are
imported on first use.
"""

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
EARLIER_NAMES = {"language_modelling": "language_modeling"}  # of groups, still accepted


@functools.cache
def families() -> Mapping[str, tuple[Task, ...]]:
    """Returns the tasks of each module of tasks/, by module name."""
    folder = importlib.import_module("gptjax.evals.tasks")
    names = sorted(info.name for info in pkgutil.iter_modules(folder.__path__))
    return {name: importlib.import_module(f"{folder.__name__}.{name}").TASKS for name in names}


@functools.cache
def all_tasks() -> Mapping[str, Task]:
    """Returns all tasks by name, in the order of their modules' names."""
    tasks: dict[str, Task] = {}
    for task in (task for members in families().values() for task in members):
        assert task.name not in tasks, f"two tasks are called {task.name}"
        tasks[task.name] = task
    return tasks


@functools.cache
def groups() -> Mapping[str, tuple[Task, ...]]:
    """Returns groups of tasks by name: families, SuperGLUE's eight tasks, and all tasks of the
    GPT-2 and of the GPT-3 paper.
    """
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
    """Returns the task of that name, or else that of a file in `folder`. NAME:CONVENTION replaces
    its protocol by that convention's. Raises ValueError with the nearest names.
    """
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
            f"{base_name}_test.jsonl in --task_data=DIR"
        )
    if convention and convention not in task.conventions:
        raise ValueError(
            f"{base_name} has no convention {convention!r}; it has "
            f"{', '.join(task.conventions) or 'none but its own'}"
        )
    return dataclasses.replace(task, protocol=task.conventions[convention]) if convention else task


def own_tasks(folder: pathlib.Path | None) -> dict[str, Task]:
    """Returns the tasks of a folder's files that are called as none of the registry."""
    names = custom_tasks.task_names(folder) if folder is not None else []
    own = [name for name in names if name not in all_tasks()]
    return {name: get_task(name, folder) for name in own}


def get_tasks(names: Iterable[str], folder: pathlib.Path | None) -> dict[str, Task]:
    """Returns the tasks of these names, expanding groups. Raises ValueError with the
    nearest names.
    """
    tasks: dict[str, Task] = {}
    for name in (EARLIER_NAMES.get(name, name) for name in names):
        is_group = name not in all_tasks() and name in groups()
        if is_group and custom_tasks.find_task(name, folder) is not None:
            raise ValueError(
                f"{name} is a group of tasks, and {folder} has a file of that name: rename the "
                "file, or give another --task_data"
            )
        tasks |= (
            {task.name: task for task in groups()[name]}
            if is_group
            else {name: get_task(name, folder)}
        )
    return tasks
