"""TensorFlow checkpoints (PREFIX.index and PREFIX.data-0000i-of-0000n), read without TensorFlow.

The index is a table as LevelDB's (tensorflow/core/lib/io/format.cc, table_builder.cc): blocks of
sorted entries, each followed by a byte that says how it is compressed and a masked CRC32C; an index
of blocks; a footer with the places of the last two. Its first entry, of the empty key, is a
BundleHeaderProto, the others are tensor name -> BundleEntryProto
(core/protobuf/tensor_bundle.proto). The CRC of every block is checked, and that of every tensor
once, when it is first read.
"""

import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.config import parse
from gptjax.weights import protobuf

MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES = 48  # bytes: two places of at most 20, padding, the magic number
FLOAT_DTYPES = {
    1: np.dtype("<f4"),
    2: np.dtype("<f8"),
    19: np.dtype("<f2"),
}  # DataType in core/framework/types.proto
OPTIMIZER_PATTERN = re.compile(
    r".*/Adam(_1)?|.*_power|global_step"
)  # what a training checkpoint has beside the weights


class TensorBundle:
    """The float tensors of a checkpoint, without the prefix "model/" and without an optimizer's
    moments. A safetensors.Tensors.

    ValueError, in one line, for a file that is missing or damaged, and for a tensor of another
    type or in slices."""

    def __init__(self, index: Path):
        """index: the file PREFIX.index."""
        self.path = index
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._entries: dict[
            str, tuple[np.dtype, int, int, int, int]
        ] = {}  # type, number of the file, offset, bytes, CRC
        self._arrays: dict[str, np.ndarray] = {}
        try:
            table = dict(_read_table(parse.disk_bytes(index)))
            header = protobuf.Message(table.pop(b""))
            self._n_files = header.integer(1)
            if header.integer(2):
                raise ValueError(
                    f"{index}: a checkpoint of a big-endian machine cannot be read; save it again "
                    "on another"
                )
            for key, value in table.items():
                self._add_entry(key.decode(), protobuf.Message(value))
        except OSError as error:
            raise ValueError(f"{index} cannot be read: {error.strerror}") from None
        except (protobuf.MalformedMessage, KeyError, struct.error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{index} is damaged "
                f"({error if isinstance(error, protobuf.MalformedMessage) else type(error).__name__}); "  # noqa: E501
                "fetch it again"
            ) from None

    def _add_entry(self, full: str, entry: protobuf.Message) -> None:
        name = full.removeprefix("model/")
        if OPTIMIZER_PATTERN.fullmatch(name):
            return
        kind, offset, size = (entry.integer(number) for number in (1, 4, 5))
        if kind not in FLOAT_DTYPES or 7 in entry:
            raise ValueError(
                f"{self.path}: the tensor {full} is of DataType {kind}, or saved in slices; "
                "allowed are whole float tensors"
            )
        shape = tuple(
            protobuf.Message(dim).integer(1)
            for dim in protobuf.Message(entry.content(2)).contents(2)
        )
        protobuf.require(
            size == FLOAT_DTYPES[kind].itemsize * math.prod(shape),
            f"the tensor {full} has {size} bytes, not those of its shape",
        )
        self.shapes[name], self._entries[name] = (
            shape,
            (FLOAT_DTYPES[kind], entry.integer(3), offset, size, entry.integer(6)),
        )

    def read(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
        if name not in self._arrays:
            self._arrays[name] = self._memory_map(name)
        return self._arrays[name][part].astype(np.float32)

    def _memory_map(self, name: str) -> np.ndarray:
        dtype, number, offset, size, crc = self._entries[name]
        file = self.path.with_name(f"{self.path.stem}.data-{number:05}-of-{self._n_files:05}")
        if not file.exists():
            raise ValueError(f"{file} is missing; fetch it again")
        if file.stat().st_size < offset + size:
            raise ValueError(
                f"{file} is damaged: {file.stat().st_size:,} bytes, too few for the tensor {name}; "
                "fetch it again"
            )
        array = np.memmap(file, dtype, "r", offset, self.shapes[name])
        if masked_crc(array) != crc:
            raise ValueError(
                f"{file} is damaged: the tensor {name} does not have its CRC; fetch it again"
            )
        return array


def masked_crc(content: Any) -> int:
    """CRC32C as TensorFlow stores it (core/lib/hash/crc32c.h): rotated, plus a constant."""
    import google_crc32c

    crc = google_crc32c.value(bytes(content))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _read_table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a table."""
    protobuf.require(
        len(content) >= FOOTER_BYTES and struct.unpack("<Q", content[-8:])[0] == MAGIC,
        "it does not end as a table does",
    )
    _, _, offset = _read_handle(
        content, len(content) - FOOTER_BYTES
    )  # an index of blocks about the table itself, which is empty
    start, size, _ = _read_handle(content, offset)
    for _, handle in _read_block(content, start, size):
        block_start, block_size, _ = _read_handle(handle, 0)
        yield from _read_block(content, block_start, block_size)


def _read_handle(content: bytes, offset: int) -> tuple[int, int, int]:
    """(start, size, where it goes on) of a block."""
    start, offset = protobuf.read_varint(content, offset)
    size, offset = protobuf.read_varint(content, offset)
    return start, size, offset


def _read_block(content: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a block: each key without what it shares with the one before."""
    protobuf.require(4 <= size <= len(content) - start - 5, "a block that does not lie in the file")
    protobuf.require(
        content[start + size] == 0, "a block is compressed, which TensorFlow does not do here"
    )
    (crc,) = struct.unpack_from("<I", content, start + size + 1)
    protobuf.require(
        masked_crc(content[start : start + size + 1]) == crc, "a block does not have its CRC"
    )
    (n_restarts,) = struct.unpack_from("<I", content, start + size - 4)
    offset, end, key = start, start + size - 4 - 4 * n_restarts, b""
    while offset < end:
        n_shared, offset = protobuf.read_varint(content, offset)
        n_own, offset = protobuf.read_varint(content, offset)
        length, offset = protobuf.read_varint(content, offset)
        key = key[:n_shared] + content[offset : offset + n_own]
        yield key, content[offset + n_own : offset + n_own + length]
        offset += n_own + length
