"""A document: a text and the key that assigns it to the training or the validation split."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """A text of a source.

    text: valid Unicode, not empty. key: decides its split. progress: the fraction of the source
    that is read after it, from 0 to 1. file_index: its file, counted from 0.
    """

    text: str
    key: str
    progress: float
    file_index: int = 0


def text_key(text: str) -> str:
    """Returns the key of a text that has no other: its SHA-256 in hexadecimal, so that exact copies
    are in the same split."""
    return hashlib.sha256(text.encode()).hexdigest()
