"""Records and arrays with a SHA-256 of their own, so that damage is detected on reading.

A record is a JSON object; its seal is the digest of the rest of it. Manifests, jobs, checkpoints
and evaluations are sealed this way; metrics.jsonl, which grows line by line, is not
(report/events.py).
"""

import hashlib
import io
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from gptjax.config import parse
from gptjax.runtime import atomic

SEAL = "seal"
DIGEST_MARK = b"gptjax SHA-256: "


def seal(record: Mapping[str, Any], owner: str = "") -> str:
    """Returns the SHA-256 of the JSON of a record without its seal. owner: the name of what the
    record belongs to, so that it is not accepted as another's.
    """
    content = json.dumps(
        {name: value for name, value in record.items() if name != SEAL}, sort_keys=True
    )
    return hashlib.sha256((owner + content).encode(errors="backslashreplace")).hexdigest()


def add_seal(record: Mapping[str, Any], owner: str = "") -> dict[str, Any]:
    """Returns the record as it will be read back from JSON (lists for tuples), with its seal."""
    as_json = json.loads(json.dumps(record))
    return as_json | {SEAL: seal(as_json, owner)}


def check_seal(record: Mapping[str, Any], where: str, owner: str = "") -> dict[str, Any]:
    """Returns the record without its seal. Raises ValueError, starting with `where`, if the seal is
    missing or wrong.
    """
    if SEAL not in record or record[SEAL] != seal(record, owner):
        problem = "wrong" if SEAL in record else "missing, as in those of earlier versions"
        raise ValueError(f"{where} is damaged, or was edited: its seal is {problem}")
    return {name: value for name, value in record.items() if name != SEAL}


def save(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Writes a record as JSON, with its seal."""
    atomic.save(path, atomic.json_bytes(add_seal(record)))


def read(path: pathlib.Path) -> dict[str, Any]:
    """Reads a record written by `save`, without the seal. Raises a one-line ValueError if it is
    missing, damaged or not sealed.
    """
    return check_seal(parse.read_json(path), str(path))


def save_array(path: pathlib.Path, array: np.ndarray) -> None:
    """Writes an array in .npy format, followed by its digest."""
    content = npy_bytes(array)
    atomic.save(path, content + DIGEST_MARK + hashlib.sha256(content).digest())


def read_array(path: pathlib.Path) -> np.ndarray:
    """Reads an array written by `save_array`. Raises a one-line ValueError if it is missing or
    damaged.
    """
    content = parse.read_bytes(path)
    end = len(DIGEST_MARK) + hashlib.sha256().digest_size
    if content[-end:] != DIGEST_MARK + hashlib.sha256(content[:-end]).digest():
        raise ValueError(f"{path} is damaged: its content does not match its digest")
    return np.load(io.BytesIO(content[:-end]), allow_pickle=False)


def file_digest(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def npy_bytes(array: np.ndarray) -> bytes:
    """Returns an array in .npy format."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.getvalue() + array.tobytes()
