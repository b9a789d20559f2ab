"""Which items of a task's files are for training, and which to validate on."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any


def split(
    train: str,
    dev: str | None,
    dev_fraction: float,
    read: Callable[[str], Iterator[tuple[str, Any]]],
    key: Callable[[Any], str],
) -> dict[str, Iterator[tuple[str, Any]]]:
    """Returns {"train": items, "dev": items}, each (where it stands, item) as read(path) yields
    them: those of the files `dev`, or else a share of those of `train`, chosen by a hash. Items of
    the same key(item), such as all answers to one prompt, fall on the same side. Raises ValueError
    if one side has none."""
    if dev is not None:
        return {"train": read(train), "dev": read(dev)}
    parts: dict[str, list] = {"train": [], "dev": []}
    for where, item in read(train):
        number = int(hashlib.sha256(key(item).encode()).hexdigest()[:15], 16)
        parts["dev" if number < dev_fraction * 16**15 else "train"].append((where, item))
    n_rows = sum(map(len, parts.values()))
    for name, part in parts.items():
        if not part:
            raise ValueError(
                f"{train} has {n_rows:,} rows, of which task.dev_fraction={dev_fraction} leaves "
                f"none for {name}: give more rows, another share, or a file with task.dev"
            )
    return {name: iter(part) for name, part in parts.items()}


def split_task(
    task: Any, read: Callable[[str, str], Iterator[tuple[str, Any]]], key: Callable[[Any], str]
) -> dict[str, Iterator[tuple[str, Any]]]:
    """Returns `split` of a config.chat.Conversations, Preferences or Rankings. read(path, form):
    conversations.read or preferences.read."""
    return split(task.train, task.dev, task.dev_fraction, lambda path: read(path, task.form), key)
