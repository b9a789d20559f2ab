"""Evaluation results on disk: NAME.jsonl with one outcome per line, and NAME.json with the record
of their scores.

Each line and each record has a seal (runtime/checksums.py), so that an edited or damaged one is
detected and never used as a model's answer.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gptjax.config import parse
from gptjax.runtime import atomic, checksums

WarnFn = Callable[[str], None]


def encode_line(outcome: Mapping[str, Any], name: str) -> str:
    """Returns an outcome as a line of NAME.jsonl; its seal depends on NAME too."""
    return json.dumps(checksums.add_seal(outcome, name)) + "\n"


def read(path: Path, warn: WarnFn) -> dict[str, dict[str, Any]]:
    """Reads the outcomes in NAME.jsonl, by item id; {} if there is no file.

    An incomplete last line, left by a kill, is removed. Other damaged lines are reported to `warn`
    and removed too, so that their items are evaluated again.
    """
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
            f"{path}: {numbers} of {len(lines):,} are damaged or were edited; those items are "
            "evaluated again"
        )
    if damaged or torn:
        atomic.save(path, b"".join(line + b"\n" for line in intact))
    return outcomes


def _decode_line(content: bytes, name: str) -> dict[str, Any] | None:
    """Parses the outcome of a line; None if it is damaged or has no id."""
    try:
        outcome = checksums.check_seal(parse.json_object(content, name), name, owner=name)
    except ValueError:
        return None
    return outcome if "id" in outcome and isinstance(outcome["id"], str) else None


def save_record(path: Path, record: Mapping[str, Any], warn: WarnFn) -> None:
    """Writes NAME.json. An existing record that was edited or damaged is reported to `warn`."""
    if path.exists():
        try:
            checksums.read(path)
        except ValueError as error:
            warn(f"{error}; it is written again, from the items' outcomes")
    checksums.save(path, record)
