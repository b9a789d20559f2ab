"""A job's directory: a record of what is being made there, so that only the same command continues
it after a kill.

A job is a program that writes many files over hours (prepare, decontaminate). Its record is a JSON
object of all that decides its files. Of these, "fingerprint" is the state of the text before it is
read (names, sizes and times of files); the record is in job.json until the job is finished.
"""

import pathlib
from collections.abc import Callable
from typing import Any

from gptjax.runtime import checksums

FIELD_NAMES = {
    "fingerprint": "state of its text (the files' names, sizes or times, or Python's version)",
    "block": "number of characters a shard",
    "tasks": "set of tasks",
    "held_out": "validation split",
    "before": "stage before it",
    "texts": "input",
    "data sets": "list of data sets",
    "state": "state of its own files",
}
MAX_CHARS = 80  # of a value in an error


def check_start(
    directory: pathlib.Path, job: dict[str, Any], pattern: str, print_line: Callable[[str], None]
) -> None:
    """Checks that the job can start in `directory`, or go on there. Writes nothing.

    The text may have changed since an unfinished start. pattern: a glob of files that only a job
    leaves there. A damaged record is reported by `print_line`: the files that it is about carry
    digests of their own. Raises ValueError if the directory is of another job, or has such files
    and no record.
    """
    if (directory / "job.json").exists():
        try:
            record = checksums.read(directory / "job.json")
        except ValueError as error:
            print_line(f"{error}; it is written again")
        else:
            check_same(directory, record, without_fingerprint(job))
    elif any(directory.glob(pattern)):
        raise ValueError(f"{directory} holds files of something else; give an empty directory")


def without_fingerprint(job: dict[str, Any]) -> dict[str, Any]:
    """Returns the record of a job on its text in any state."""
    return {name: value for name, value in job.items() if name != "fingerprint"}


def check_same(
    directory: pathlib.Path,
    record: dict[str, Any],
    job: dict[str, Any],
    advice: str = "give an empty directory or delete that one",
) -> None:
    """Raises ValueError, saying in words what differs and `advice`, unless every field of `job` has
    the same value in `record`, which `directory` has."""
    for name, value in job.items():
        if name in record and record[name] == value:
            continue
        old, new = (
            _describe_difference(record[name], value)
            if name in record
            else ("none", _truncate(value))
        )
        label = FIELD_NAMES[name] if name in FIELD_NAMES else name
        detail = f": it has {old}, now it is {new}" if name != "fingerprint" else ""
        raise ValueError(f"{directory} was prepared with another {label}{detail}; {advice}")


def _describe_difference(old: Any, new: Any) -> tuple[str, str]:
    """Returns two values as an error shows them; of objects, the fields in which they differ."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return _truncate(old), _truncate(new)
    if "description" in old and "description" in new and old["description"] != new["description"]:
        return _truncate(old["description"]), _truncate(new["description"])
    fields = [
        name
        for name in (*old, *(name for name in new if name not in old))
        if name not in old or name not in new or old[name] != new[name]
    ]
    old_text, new_text = (
        ", ".join(
            f"{name} {_truncate(values[name])}" if name in values else f"no {name}"
            for name in fields
        )
        for values in (old, new)
    )
    return old_text, new_text


def _truncate(value: Any) -> str:
    return str(value)[:MAX_CHARS]
