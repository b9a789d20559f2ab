"""Reads TensorFlow checkpoints (PREFIX.index and PREFIX.data-0000i-of-0000n) without TensorFlow.

The index is a LevelDB table (tensorflow/core/lib/io/format.cc, table_builder.cc): blocks of sorted
entries, each followed by a byte for its compression and a masked CRC32C; an index of blocks; a
footer with the handles of the last two. Its first entry, with the empty key, is a
BundleHeaderProto, the others are tensor name -> BundleEntryProto
(core/protobuf/tensor_bundle.proto). The CRC of every block is checked, and that of every tensor
when it is first read.
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
FOOTER_BYTES = 48  # two handles of at most 20 bytes, padding, the magic number
# DataType in core/framework/types.proto.
FLOAT_DTYPES = {1: np.dtype("<f4"), 2: np.dtype("<f8"), 19: np.dtype("<f2")}
# Variables of a training checkpoint other than weights.
OPTIMIZER_PATTERN = re.compile(r".*/Adam(_1)?|.*_power|global_step")


class TensorBundle:
    """The float tensors of a checkpoint, without the prefix "model/" and without optimizer moments.
    Implements safetensors.Tensors.

    Raises a one-line ValueError for a missing or damaged file, and for a tensor of another type or
    saved in slices.
    """

    def __init__(self, index: Path):
        """index: the file PREFIX.index."""
        self.path = index
        self.shapes: dict[str, tuple[int, ...]] = {}
        # Dtype, file number, offset, bytes, CRC.
        self._entries: dict[str, tuple[np.dtype, int, int, int, int]] = {}
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
            reason = error if isinstance(error, protobuf.MalformedMessage) else type(error).__name__
            raise ValueError(f"{index} is damaged ({reason}); fetch it again") from None

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
        """A part of a tensor, as float32."""
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
                f"{file} is damaged: the tensor {name} does not match its CRC; fetch it again"
            )
        return array


def masked_crc(content: Any) -> int:
    """Returns the CRC32C as TensorFlow stores it (core/lib/hash/crc32c.h): rotated, plus a
    constant.
    """
    import google_crc32c

    crc = google_crc32c.value(bytes(content))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _read_table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the entries of a table."""
    protobuf.require(
        len(content) >= FOOTER_BYTES and struct.unpack("<Q", content[-8:])[0] == MAGIC,
        "it does not end as a table does",
    )
    # The handle of the metaindex block, which is empty.
    _, _, offset = _read_handle(content, len(content) - FOOTER_BYTES)
    start, size, _ = _read_handle(content, offset)
    for _, handle in _read_block(content, start, size):
        block_start, block_size, _ = _read_handle(handle, 0)
        yield from _read_block(content, block_start, block_size)


def _read_handle(content: bytes, offset: int) -> tuple[int, int, int]:
    """Returns (start, size, offset after the handle) of a block."""
    start, offset = protobuf.read_varint(content, offset)
    size, offset = protobuf.read_varint(content, offset)
    return start, size, offset


def _read_block(content: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields the entries of a block, whose keys are stored without the prefix shared with the
    previous one.
    """
    protobuf.require(4 <= size <= len(content) - start - 5, "a block that exceeds the file")
    protobuf.require(
        content[start + size] == 0, "a block is compressed, which TensorFlow does not do here"
    )
    (crc,) = struct.unpack_from("<I", content, start + size + 1)
    protobuf.require(
        masked_crc(content[start : start + size + 1]) == crc, "a block does not match its CRC"
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
