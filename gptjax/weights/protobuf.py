"""Protocol buffers without their library: the fields of a message by number."""

import struct
from typing import Any


class MalformedMessage(Exception):
    """What is wrong with some bytes, in a few words."""


def need(so: bool, otherwise: str) -> None:
    if not so:
        raise MalformedMessage(otherwise)


def varint(content: bytes, at: int) -> tuple[int, int]:
    """(an integer in groups of 7 bits, at most ten of them; where it goes on). MalformedMessage if there is none."""
    value = shift = 0
    while True:
        need(at < len(content), "it ends in the middle of a number")
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        need(shift < 70, "an integer of more than ten bytes")


class Message:
    """The fields of a message: integers, and bytes for texts and messages; of a number that comes again the last counts, or all.
    MalformedMessage for bytes that are no message, and for a field of the other kind."""

    def __init__(self, content: bytes):
        self._fields: dict[int, list[Any]] = {}
        at = 0
        while at < len(content):
            tag, at = varint(content, at)
            number, kind = tag >> 3, tag & 7
            if kind == 0:
                value, at = varint(content, at)
            elif kind == 2:
                size, at = varint(content, at)
                need(at + size <= len(content), "a field that is longer than its message")
                value, at = content[at : at + size], at + size
            else:
                need(kind in (1, 5), f"a protocol buffer of wire type {kind}")
                size, form = (8, "<Q") if kind == 1 else (4, "<I")
                need(at + size <= len(content), "a field that is longer than its message")
                (value,), at = struct.unpack_from(form, content, at), at + size
            self._fields.setdefault(number, []).append(value)

    def __contains__(self, number: int) -> bool:
        return number in self._fields

    def integer(self, number: int, default: int = 0) -> int:
        value = self._fields.get(number, [default])[-1]
        need(isinstance(value, int), f"field {number} is no integer")
        return value

    def content(self, number: int) -> bytes:
        return self.contents(number)[-1] if number in self else b""

    def contents(self, number: int) -> list[bytes]:
        values = self._fields.get(number, [])
        need(all(isinstance(value, bytes) for value in values), f"field {number} is no bytes")
        return values
