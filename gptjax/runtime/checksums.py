"""Records and arrays that carry their own SHA-256: damage to them is noticed when they are read.

A record is a JSON object; its seal is the digest of the rest of it. Manifests, jobs, checkpoints
and evaluations are sealed so; metrics.jsonl, which grows line by line, is not (report/events.py).
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
    """SHA-256 of the JSON of a record without its seal. owner: what the record belongs to, so
    that it is not taken for that of another."""
    content = json.dumps(
        {name: value for name, value in record.items() if name != SEAL}, sort_keys=True
    )
    return hashlib.sha256((owner + content).encode(errors="backslashreplace")).hexdigest()


def add_seal(record: Mapping[str, Any], owner: str = "") -> dict[str, Any]:
    """The record as JSON will give it back (lists for tuples), and its seal."""
    as_json = json.loads(json.dumps(record))
    return as_json | {SEAL: seal(as_json, owner)}


def check_seal(record: Mapping[str, Any], where: str, owner: str = "") -> dict[str, Any]:
    """The record without its seal. ValueError, which begins with `where`, if that is missing or
    does not fit."""
    if SEAL not in record or record[SEAL] != seal(record, owner):
        problem = "another" if SEAL in record else "missing, as in those of earlier versions"
        raise ValueError(f"{where} is damaged, or was changed by hand: its seal is {problem}")
    return {name: value for name, value in record.items() if name != SEAL}


def save(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, with its seal."""
    atomic.save(path, atomic.json_bytes(add_seal(record)))


def read(path: pathlib.Path) -> dict[str, Any]:
    """What `save` wrote, without the seal. ValueError, in one line, if it is missing, damaged or
    not sealed."""
    return check_seal(parse.read_json(path), str(path))


def save_array(path: pathlib.Path, array: np.ndarray) -> None:
    """Write an array as .npy, followed by the digest of all that."""
    content = npy_bytes(array)
    atomic.save(path, content + DIGEST_MARK + hashlib.sha256(content).digest())


def read_array(path: pathlib.Path) -> np.ndarray:
    """What `save_array` wrote. ValueError, in one line, if it is missing or damaged."""
    content = parse.read_bytes(path)
    end = len(DIGEST_MARK) + hashlib.sha256().digest_size
    if content[-end:] != DIGEST_MARK + hashlib.sha256(content[:-end]).digest():
        raise ValueError(f"{path} is damaged: its content does not fit its digest")
    return np.load(io.BytesIO(content[:-end]), allow_pickle=False)


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as an .npy file."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.getvalue() + array.tobytes()
