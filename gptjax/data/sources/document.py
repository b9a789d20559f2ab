"""What every corpus yields."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """text: valid Unicode. key: what decides its side of the held-out split. progress: the fraction
    of the source read when it is finished. file_index: the number of the file that it is of."""

    text: str
    key: str
    progress: float
    file_index: int = 0


def text_key(text: str) -> str:
    """The key of a text that has no better one: its SHA-256, so that exact copies fall on the
    same side."""
    return hashlib.sha256(text.encode()).hexdigest()
