"""Minimal protocol buffer parser: the fields of a message by number, without the
protobuf library.
"""

import struct
from typing import Any


class MalformedMessage(Exception):
    """Malformed bytes, with a short description."""


def require(condition: bool, message: str) -> None:
    """Raises MalformedMessage unless `condition` holds."""
    if not condition:
        raise MalformedMessage(message)


def read_varint(content: bytes, offset: int) -> tuple[int, int]:
    """Returns (a varint of at most ten bytes, the offset after it). Raises MalformedMessage if
    there is none.
    """
    value = shift = 0
    while True:
        require(offset < len(content), "it ends in the middle of a number")
        byte = content[offset]
        value |= (byte & 127) << shift
        offset, shift = offset + 1, shift + 7
        if byte < 128:
            return value, offset
        require(shift < 70, "an integer of more than ten bytes")


class Message:
    """The fields of a message: integers, and bytes for strings and submessages. Of a repeated
    field, the last value counts, or all.

    Raises MalformedMessage for bytes that are not a message, and for access to a field of the other
    type.
    """

    def __init__(self, content: bytes):
        self._fields: dict[int, list[Any]] = {}
        offset = 0
        while offset < len(content):
            tag, offset = read_varint(content, offset)
            number, kind = tag >> 3, tag & 7
            if kind == 0:
                value, offset = read_varint(content, offset)
            elif kind == 2:
                size, offset = read_varint(content, offset)
                require(offset + size <= len(content), "a field that is longer than its message")
                value, offset = content[offset : offset + size], offset + size
            else:
                require(kind in (1, 5), f"a protocol buffer of wire type {kind}")
                size, form = (8, "<Q") if kind == 1 else (4, "<I")
                require(offset + size <= len(content), "a field that is longer than its message")
                (value,), offset = struct.unpack_from(form, content, offset), offset + size
            self._fields.setdefault(number, []).append(value)

    def __contains__(self, number: int) -> bool:
        return number in self._fields

    def integer(self, number: int, default: int = 0) -> int:
        """The value of an integer field."""
        value = self._fields.get(number, [default])[-1]
        require(isinstance(value, int), f"field {number} is no integer")
        return value

    def content(self, number: int) -> bytes:
        """The last value of a bytes field; b"" if it is missing."""
        return self.contents(number)[-1] if number in self else b""

    def contents(self, number: int) -> list[bytes]:
        """All values of a bytes field."""
        values = self._fields.get(number, [])
        require(all(isinstance(value, bytes) for value in values), f"field {number} is no bytes")
        return values
