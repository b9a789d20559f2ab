"""Records and arrays that carry their own SHA-256: damage to them is noticed when they are read."""

import hashlib
import io
import json
import pathlib
from typing import Any

import numpy as np

from gptjax.config import parse
from gptjax.data import saving

MARK = b"gptjax SHA-256: "


def save(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Write a record as JSON, with its seal."""
    saving.save(path, json.dumps(record | {"seal": seal(record)}, indent=1).encode())


def read(path: pathlib.Path) -> dict[str, Any]:
    """What `save` wrote, without the seal. ValueError, in one line, if it is missing, damaged or not sealed."""
    record = parse.json_file(path)
    if "seal" not in record or record.pop("seal") != seal(record):
        raise ValueError(f"{path} is damaged: its content does not fit its seal")
    return record


def seal(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def save_array(path: pathlib.Path, array: np.ndarray) -> None:
    """Write an array as .npy, followed by the digest of all that."""
    content = npy(array)
    saving.save(path, content + MARK + hashlib.sha256(content).digest())


def read_array(path: pathlib.Path) -> np.ndarray:
    """What `save_array` wrote. ValueError, in one line, if it is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    end = len(MARK) + hashlib.sha256().digest_size
    if content[-end:] != MARK + hashlib.sha256(content[:-end]).digest():
        raise ValueError(f"{path} is damaged: its content does not fit its digest")
    return np.load(io.BytesIO(content[:-end]), allow_pickle=False)


def npy(array: np.ndarray) -> bytes:
    """An array as an .npy file."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.getvalue() + array.tobytes()
