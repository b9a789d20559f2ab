"""TensorFlow checkpoints (PREFIX.index and PREFIX.data-0000i-of-0000n), read without TensorFlow.

The index is a table as LevelDB's (tensorflow/core/lib/io/format.cc, table_builder.cc): blocks of sorted entries, each followed by a byte
that says how it is compressed and a masked CRC32C; an index of blocks; a footer with the places of the last two. Its first entry, of the
empty key, is a BundleHeaderProto, the others are tensor name -> BundleEntryProto (core/protobuf/tensor_bundle.proto). The CRC of every
block is checked, and that of every tensor once, when it is first read.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = 0xDB4775248B80FB57
FOOTER = 48  # bytes: two places of at most 20, padding, the magic number
FLOATS = {1: np.dtype("<f4"), 2: np.dtype("<f8"), 19: np.dtype("<f2")}  # DataType in core/framework/types.proto
OPTIMIZER = re.compile(r".*/Adam(_1)?|.*_power|global_step")  # what a training checkpoint has beside the weights


class Bundle:
    """The float tensors of a checkpoint, without the prefix "model/" and without an optimizer's moments. A tensors.Tensors.

    ValueError, in one line, for a file that is missing or damaged, and for a tensor of another type or in slices."""

    def __init__(self, index: Path):
        """index: the file PREFIX.index."""
        self.where = index
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._entries: dict[str, dict[int, Any]] = {}
        self._arrays: dict[str, np.ndarray] = {}
        try:
            table = dict(_table(index.read_bytes()))
            header = _fields(table.pop(b""))
            self._n_files = header.get(1, 0)
            if header.get(2, 0):
                raise ValueError(f"{index}: a checkpoint of a big-endian machine cannot be read; save it again on another")
            for key, value in table.items():
                self._add(key.decode(), _fields(value))
        except (IndexError, KeyError, struct.error, UnicodeDecodeError, AssertionError) as error:
            raise ValueError(f"{index} is damaged ({error or type(error).__name__}); fetch it again") from None

    def _add(self, full: str, entry: dict[int, Any]) -> None:
        name = full.removeprefix("model/")
        if OPTIMIZER.fullmatch(name):
            return
        if entry[1] not in FLOATS or 7 in entry:
            raise ValueError(
                f"{self.where}: the tensor {full} is of DataType {entry[1]}, or saved in slices; allowed are whole float tensors"
            )
        shape = _fields(entry.get(2, b""), repeated=2)
        self.shapes[name] = tuple(_fields(dim).get(1, 0) for dim in shape.get(2, []))
        self._entries[name] = entry

    def read(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
        if name not in self._arrays:
            self._arrays[name] = self._mapped(name)
        return self._arrays[name][part].astype(np.float32)

    def _mapped(self, name: str) -> np.ndarray:
        entry, shape = self._entries[name], self.shapes[name]
        file = self.where.with_name(f"{self.where.stem}.data-{entry.get(3, 0):05}-of-{self._n_files:05}")
        dtype, offset, size = FLOATS[entry[1]], entry.get(4, 0), entry.get(5, 0)
        if not file.exists():
            raise ValueError(f"{file} is missing; fetch it again")
        if file.stat().st_size < offset + size or size != dtype.itemsize * int(np.prod(shape)):
            raise ValueError(f"{file} is damaged: {file.stat().st_size:,} bytes, too few for the tensor {name}; fetch it again")
        array = np.memmap(file, dtype, "r", offset, shape)
        if masked_crc(array) != entry[6]:
            raise ValueError(f"{file} is damaged: the tensor {name} does not have its CRC; fetch it again")
        return array


def masked_crc(content: Any) -> int:
    """CRC32C as TensorFlow stores it (core/lib/hash/crc32c.h): rotated, plus a constant."""
    import google_crc32c

    crc = google_crc32c.value(bytes(content))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a table."""
    assert len(content) >= FOOTER and struct.unpack("<Q", content[-8:])[0] == MAGIC, "it does not end as a table does"
    _, _, at = _place(content, len(content) - FOOTER)  # an index of blocks about the table itself, which is empty
    start, size, _ = _place(content, at)
    for _, place in _block(content, start, size):
        begin, length, _ = _place(place, 0)
        yield from _block(content, begin, length)


def _place(content: bytes, at: int) -> tuple[int, int, int]:
    """(start, size, where it goes on) of a block."""
    start, at = _varint(content, at)
    size, at = _varint(content, at)
    return start, size, at


def _block(content: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a block: each key without what it shares with the one before."""
    assert content[start + size] == 0, "a block is compressed, which TensorFlow does not do here"
    (crc,) = struct.unpack_from("<I", content, start + size + 1)
    assert masked_crc(content[start : start + size + 1]) == crc, "a block does not have its CRC"
    (n_restarts,) = struct.unpack_from("<I", content, start + size - 4)
    at, end, key = start, start + size - 4 - 4 * n_restarts, b""
    while at < end:
        shared, at = _varint(content, at)
        own, at = _varint(content, at)
        length, at = _varint(content, at)
        key = key[:shared] + content[at : at + own]
        yield key, content[at + own : at + own + length]
        at += own + length


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """(an integer in groups of 7 bits, where it goes on)."""
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _fields(message: bytes, repeated: int | None = None) -> dict[int, Any]:
    """A protocol buffer by field number: integers and bytes; of the field `repeated` a list."""
    fields: dict[int, Any] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(message, at)
        elif kind == 2:
            size, at = _varint(message, at)
            value, at = message[at : at + size], at + size
        else:
            size, form = (8, "<Q") if kind == 1 else (4, "<I")
            assert kind in (1, 5), f"a protocol buffer of wire type {kind}"
            (value,), at = struct.unpack_from(form, message, at), at + size
        if number == repeated:
            fields.setdefault(number, []).append(value)
        else:
            fields[number] = value
    return fields
