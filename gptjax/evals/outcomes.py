"""Evaluations on disk: NAME.jsonl, an outcome a line, and NAME.json, the record of their scores.
Each line and each record ends with a seal (runtime/checksums.py), so that one that was changed
or damaged is noticed, and never taken for what the model said."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gptjax.config import parse
from gptjax.runtime import atomic, checksums

WarnFn = Callable[[str], None]


def encode_line(outcome: Mapping[str, Any], name: str) -> str:
    """An outcome as a line of NAME.jsonl; its seal is of NAME, too."""
    return json.dumps(checksums.add_seal(outcome, name)) + "\n"


def read(path: Path, warn: WarnFn) -> dict[str, dict[str, Any]]:
    """The outcomes in NAME.jsonl by their items' ids; none if there is no file. A last line that a
    kill cut short goes. Others that are not as they were written are named by `warn` and go too,
    so that those items are asked again."""
    if not path.exists():
        return {}
    content = parse.disk_bytes(path)
    *lines, torn = content.split(b"\n")
    outcomes: dict[str, dict[str, Any]] = {}
    intact, damaged = [], []
    for number, line in enumerate(lines, 1):
        outcome = _decode_line(line, path.stem)
        if outcome is None:
            damaged.append(number)
        else:
            intact.append(line)
            outcomes[outcome["id"]] = outcome
    if damaged:
        numbers = (
            f"{'lines' if len(damaged) > 1 else 'line'} "
            f"{', '.join(f'{n:,}' for n in damaged[:5])}{' ...' if len(damaged) > 5 else ''}"
        )
        warn(
            f"{path}: {numbers} of {len(lines):,} are not as they were written; those items are "
            "asked again"
        )
    if damaged or torn:
        atomic.save(path, b"".join(line + b"\n" for line in intact))
    return outcomes


def _decode_line(content: bytes, name: str) -> dict[str, Any] | None:
    """The outcome of a line; None if it is damaged or has no id."""
    try:
        outcome = checksums.check_seal(parse.json_object(content, name), name, owner=name)
    except ValueError:
        return None
    return outcome if "id" in outcome and isinstance(outcome["id"], str) else None


def save_record(path: Path, record: Mapping[str, Any], warn: WarnFn) -> None:
    """Writes NAME.json. A record that stands there and was changed since is named by `warn`."""
    if path.exists():
        try:
            checksums.read(path)
        except ValueError as error:
            warn(f"{error}; it is written again, from the items' outcomes")
    checksums.save(path, record)
