"""TensorFlow checkpoints (PREFIX.index and PREFIX.data-0000i-of-0000n), read without TensorFlow.

The index is a table as LevelDB's (tensorflow/core/lib/io/format.cc, table_builder.cc): blocks of sorted entries, each followed by a byte
that says how it is compressed and a masked CRC32C; an index of blocks; a footer with the places of the last two. Its first entry, of the
empty key, is a BundleHeaderProto, the others are tensor name -> BundleEntryProto (core/protobuf/tensor_bundle.proto). The CRC of every
block is checked, and that of every tensor once, when it is first read.
"""

import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.config import parse
from gptjax.interop import protobuf

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
        self._entries: dict[str, tuple[np.dtype, int, int, int, int]] = {}  # type, number of the file, offset, bytes, CRC
        self._arrays: dict[str, np.ndarray] = {}
        try:
            table = dict(_table(parse.disk_bytes(index)))
            header = protobuf.Message(table.pop(b""))
            self._n_files = header.integer(1)
            if header.integer(2):
                raise ValueError(f"{index}: a checkpoint of a big-endian machine cannot be read; save it again on another")
            for key, value in table.items():
                self._add(key.decode(), protobuf.Message(value))
        except OSError as error:
            raise ValueError(f"{index} cannot be read: {error.strerror}") from None
        except (protobuf.MalformedMessage, KeyError, struct.error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{index} is damaged ({error if isinstance(error, protobuf.MalformedMessage) else type(error).__name__}); fetch it again"
            ) from None

    def _add(self, full: str, entry: protobuf.Message) -> None:
        name = full.removeprefix("model/")
        if OPTIMIZER.fullmatch(name):
            return
        kind, offset, size = (entry.integer(number) for number in (1, 4, 5))
        if kind not in FLOATS or 7 in entry:
            raise ValueError(f"{self.where}: the tensor {full} is of DataType {kind}, or saved in slices; allowed are whole float tensors")
        shape = tuple(protobuf.Message(dim).integer(1) for dim in protobuf.Message(entry.content(2)).contents(2))
        protobuf.need(size == FLOATS[kind].itemsize * math.prod(shape), f"the tensor {full} has {size} bytes, not those of its shape")
        self.shapes[name], self._entries[name] = shape, (FLOATS[kind], entry.integer(3), offset, size, entry.integer(6))

    def read(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
        if name not in self._arrays:
            self._arrays[name] = self._mapped(name)
        return self._arrays[name][part].astype(np.float32)

    def _mapped(self, name: str) -> np.ndarray:
        dtype, number, offset, size, crc = self._entries[name]
        file = self.where.with_name(f"{self.where.stem}.data-{number:05}-of-{self._n_files:05}")
        if not file.exists():
            raise ValueError(f"{file} is missing; fetch it again")
        if file.stat().st_size < offset + size:
            raise ValueError(f"{file} is damaged: {file.stat().st_size:,} bytes, too few for the tensor {name}; fetch it again")
        array = np.memmap(file, dtype, "r", offset, self.shapes[name])
        if masked_crc(array) != crc:
            raise ValueError(f"{file} is damaged: the tensor {name} does not have its CRC; fetch it again")
        return array


def masked_crc(content: Any) -> int:
    """CRC32C as TensorFlow stores it (core/lib/hash/crc32c.h): rotated, plus a constant."""
    import google_crc32c

    crc = google_crc32c.value(bytes(content))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a table."""
    protobuf.need(len(content) >= FOOTER and struct.unpack("<Q", content[-8:])[0] == MAGIC, "it does not end as a table does")
    _, _, at = _place(content, len(content) - FOOTER)  # an index of blocks about the table itself, which is empty
    start, size, _ = _place(content, at)
    for _, place in _block(content, start, size):
        begin, length, _ = _place(place, 0)
        yield from _block(content, begin, length)


def _place(content: bytes, at: int) -> tuple[int, int, int]:
    """(start, size, where it goes on) of a block."""
    start, at = protobuf.varint(content, at)
    size, at = protobuf.varint(content, at)
    return start, size, at


def _block(content: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a block: each key without what it shares with the one before."""
    protobuf.need(4 <= size <= len(content) - start - 5, "a block that does not lie in the file")
    protobuf.need(content[start + size] == 0, "a block is compressed, which TensorFlow does not do here")
    (crc,) = struct.unpack_from("<I", content, start + size + 1)
    protobuf.need(masked_crc(content[start : start + size + 1]) == crc, "a block does not have its CRC")
    (n_restarts,) = struct.unpack_from("<I", content, start + size - 4)
    at, end, key = start, start + size - 4 - 4 * n_restarts, b""
    while at < end:
        shared, at = protobuf.varint(content, at)
        own, at = protobuf.varint(content, at)
        length, at = protobuf.varint(content, at)
        key = key[:shared] + content[at : at + own]
        yield key, content[at + own : at + own + length]
        at += own + length
