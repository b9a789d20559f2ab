"""Evaluations on disk: NAME.jsonl, an outcome a line, and NAME.json, the record of their scores. Each line and each record ends with a
seal, a digest of the rest, so that one that was changed or damaged is noticed, and never taken for what the model said."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gptjax.config import parse
from gptjax.data import saving

SEAL = "seal"
Warn = Callable[[str], None]


def seal(kept: Mapping[str, Any], name: str = "") -> str:
    """Sixteen hexadecimal digits of all that is kept but the seal itself. name: of the evaluation that an outcome belongs to."""
    told = json.dumps({key: value for key, value in kept.items() if key != SEAL}, sort_keys=True)
    return hashlib.sha256(f"{name} {told}".encode(errors="backslashreplace")).hexdigest()[:16]


def line(outcome: Mapping[str, Any], name: str) -> str:
    """An outcome as a line of NAME.jsonl."""
    plain = json.loads(json.dumps(outcome))  # tuples become lists, as they will be when the seal is compared
    return json.dumps(plain | {SEAL: seal(plain, name)}) + "\n"


def read(path: Path, warn: Warn) -> dict[str, dict[str, Any]]:
    """The outcomes in NAME.jsonl by their items' ids; none if there is no file. A last line that a kill cut short goes. Others that are not
    as they were written are named by `warn` and go too, so that those items are asked again."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    *whole, cut = content.split(b"\n")
    found: dict[str, dict[str, Any]] = {}
    kept, damaged = [], []
    for number, text in enumerate(whole, 1):
        outcome = _sealed(text, path.stem)
        if outcome is None:
            damaged.append(number)
        else:
            kept.append(text)
            found[outcome["id"]] = outcome
    if damaged:
        lines = f"{'lines' if len(damaged) > 1 else 'line'} {', '.join(f'{n:,}' for n in damaged[:5])}{' ...' if len(damaged) > 5 else ''}"
        warn(f"{path}: {lines} of {len(whole):,} are not as they were written; those items are asked again")
    if damaged or cut:
        saving.save(path, b"".join(text + b"\n" for text in kept))
    return found


def _sealed(content: bytes, name: str) -> dict[str, Any] | None:
    """The outcome of a line; None if it has no seal, or another."""
    try:
        outcome = parse.json_object(content, name)
    except ValueError:
        return None
    whole = SEAL in outcome and outcome[SEAL] == seal(outcome, name) and isinstance(outcome.get("id"), str)
    return {key: value for key, value in outcome.items() if key != SEAL} if whole else None


def save_record(path: Path, record: Mapping[str, Any], warn: Warn) -> None:
    """Writes NAME.json. A record that stands there and was changed since is named by `warn`."""
    if path.exists():
        try:
            read_record(path)
        except ValueError as error:
            warn(f"{error}; it is written again, from the items' outcomes")
    plain = json.loads(json.dumps(record))
    saving.save(path, (json.dumps(plain | {SEAL: seal(plain)}, indent=1) + "\n").encode())


def read_record(path: Path) -> dict[str, Any]:
    """The record in NAME.json. ValueError, in one line, if it cannot be read or is not as it was written."""
    record = parse.json_file(path)
    if SEAL not in record or record[SEAL] != seal(record):
        seal_is = "another" if SEAL in record else "missing, as in those of earlier versions"
        raise ValueError(f"{path} is not as gptjax.evaluate writes it: its seal is {seal_is}")
    return record
