"""The name of a task -> the task. The modules of tasks/ are imported when first asked for: each has TASKS, a tuple of them."""

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
def every() -> Mapping[str, Task]:
    """All tasks by name, in the order of their modules' names."""
    found: dict[str, Task] = {}
    for task in (task for members in families().values() for task in members):
        assert task.name not in found, f"two tasks are called {task.name}"
        found[task.name] = task
    return found


@functools.cache
def groups() -> Mapping[str, tuple[Task, ...]]:
    """Families, and what papers treat together: SuperGLUE's eight tasks, all of GPT-2's, all of GPT-3's."""
    papers = {
        name: tuple(task for task in every().values() if any(one.paper == paper for one in task.published))
        for name, paper in (("gpt2", "GPT-2"), ("gpt3", "GPT-3"))
    }
    return {**families(), "superglue": tuple(every()[name] for name in SUPERGLUE), **papers}


def task(name: str, folder: pathlib.Path | None = None) -> Task:
    """The task of that name, else that of its file in `folder`; NAME:CONVENTION: with that convention as its protocol. Raises ValueError
    with the nearest names."""
    bare, _, convention = name.partition(":")
    one = every()[bare] if bare in every() else custom_tasks.found(bare, folder)
    if one is None:
        near = difflib.get_close_matches(bare, [*every(), *groups()], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(every())}"
        raise ValueError(f"no task is called {bare!r}; {hint}; a task of your own is a file {bare}_test.jsonl in --data=DIR")
    if convention and convention not in one.conventions:
        raise ValueError(f"{bare} has no convention {convention!r}; it has {', '.join(one.conventions) or 'none but its own'}")
    return dataclasses.replace(one, protocol=one.conventions[convention]) if convention else one


def named(names: Iterable[str], folder: pathlib.Path | None) -> dict[str, Task]:
    """The tasks of these names, and all of a group where it is named. Raises ValueError with the nearest names."""
    found: dict[str, Task] = {}
    for name in names:
        whole = name not in every() and name in groups()
        if whole and custom_tasks.found(name, folder) is not None:
            raise ValueError(f"{name} is a group of tasks, and {folder} has a file of that name: rename the file, or give another --data")
        found |= {one.name: one for one in groups()[name]} if whole else {name: task(name, folder)}
    return found
