"""Decompression of .gz, .xz and .zst files of any number of members, as a stream that raises an
error for any file that is not complete."""

import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

BUFFER_BYTES = 2**20  # read at once
# A file with more decompressed bytes than this, and more times its own size, is refused as a
# decompression bomb; text shrinks to about a tenth.
BOMB_BYTES, BOMB_RATIO = 2**26, 300
# Bytes of a .zst file whose frames are checked before it is read: a program writes all alike.
SCAN_BYTES = 2**24
XZ_MEMORY_BYTES = 2**30  # that decompressing an .xz file may take; files of xz -9 take 65 MiB
MAGIC = {
    ".gz": (b"\x1f\x8b",),
    ".xz": (b"\xfd7zXZ\0",),
    ".zst": (b"\x28\xb5\x2f\xfd", *(bytes((n, 0x2A, 0x4D, 0x18)) for n in range(0x50, 0x60))),
}


class CorruptFile(ValueError):
    """A compressed file is damaged; the message says how, without the file's name."""


def decompress(raw: BinaryIO, compression: str) -> BinaryIO:
    """Returns `raw` as a buffered stream of decompressed bytes. Reading it raises CorruptFile for a
    file that is not whole members from beginning to end.

    compression: ".gz", ".xz", ".zst", or "" for none. Memory is bounded, and a small file that
    decompresses to a huge one is refused (BOMB_RATIO)."""
    match compression:
        case ".gz":
            # not read, whose error loses up to n bytes before the damage
            read: Callable[[int], bytes] = gzip.GzipFile(fileobj=raw, mode="rb").read1
        case ".xz":
            read = _Xz(raw).read
        case ".zst":
            import pyarrow  # not zstandard, which does not notice that a file is cut short

            read = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd").read
        case _:
            return raw
    return io.BufferedReader(_Stream(raw, read), BUFFER_BYTES)  # type: ignore[return-value]


class _Stream(io.RawIOBase):
    """The bytes of a decoder's `read`, whose errors are raised as CorruptFile."""

    def __init__(self, raw: BinaryIO, read: Callable[[int], bytes]):
        self._raw, self._read, self._n = raw, read, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            part = self._read(min(len(buffer), BUFFER_BYTES))
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
            raise CorruptFile(str(error)) from None
        except OSError as error:
            if error.errno is not None:  # the disk's, not the decoder's
                raise
            raise CorruptFile((str(error).splitlines() or ["unreadable"])[0]) from None
        self._n += len(part)
        if self._n > BOMB_BYTES and self._n > BOMB_RATIO * self._raw.tell():
            raise CorruptFile(f"it grows to over {BOMB_RATIO} times its size, as no text does")
        buffer[: len(part)] = part
        return len(part)


class _Xz:
    """Decoder of an .xz file. lzma.LZMAFile would not do: it ends silently at zeros between streams
    and at a later stream that is damaged (github.com/python/cpython, issue 88300)."""

    def __init__(self, raw: BinaryIO):
        self._raw, self._rest = raw, b""
        self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES)

    def read(self, n: int) -> bytes:
        """Returns 1 to n decompressed bytes, or b"" at the end."""
        while not self._stream.eof or self._next_stream():
            if self._stream.needs_input and not self._rest:
                self._rest = self._raw.read(BUFFER_BYTES)
                if not self._rest:
                    raise CorruptFile("it ends within a stream")
            part = self._stream.decompress(self._rest, n)
            self._rest = self._stream.unused_data
            if part:
                return part
        return b""

    def _next_stream(self) -> bool:
        """Goes to the next stream and returns whether there is one. Between streams and after the
        last one there may be zero bytes, in fours."""
        zeros = 0
        while piece := self._rest or self._raw.read(BUFFER_BYTES):
            self._rest = piece.lstrip(b"\0")
            zeros += len(piece) - len(self._rest)
            if self._rest:
                break
        if zeros % 4:
            raise CorruptFile("there are zero bytes that are no padding of the format")
        if self._rest:
            self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES)
        return bool(self._rest)


def has_checksums(raw: BinaryIO, compression: str) -> bool:
    """Whether every member of the file has a checksum, so that damage is noticed; of a .zst file,
    every frame that begins in its first SCAN_BYTES.

    `raw` must be at its beginning and seekable; little of it is read. Raises CorruptFile if its
    first bytes are not those of this compression.
    """
    if not raw.read(8).startswith(MAGIC[compression]):
        raise CorruptFile(f"its first bytes are not those of a {compression} file")
    raw.seek(0)
    return compression == ".gz" or all(_xz_flags(raw) if compression == ".xz" else _zst_flags(raw))


def _xz_flags(raw: BinaryIO) -> Iterator[bool]:
    """Yields, for each stream of an .xz file from the last to the first, whether it has checksums.

    By sections 2.1.2 and 4 of the .xz file format a footer has the size of the index before it, and
    the index the sizes of the blocks. Stops at damage, which reading the file reports.
    """
    end = raw.seek(0, io.SEEK_END)
    for _ in range(SCAN_BYTES // 4):
        if end < 12:
            return
        raw.seek(end - 12)
        footer = raw.read(12)
        if footer[8:] == bytes(4):  # padding
            end -= 4
            continue
        index_end, index_size = end - 12, 4 * int.from_bytes(footer[4:8], "little") + 4
        if footer[10:] != b"YZ" or index_size > min(index_end, SCAN_BYTES):
            return
        yield footer[9] & 15 != 0
        raw.seek(index_end - index_size)
        index = iter(raw.read(index_size)[1:])
        sizes = [
            (_varint(index), _varint(index))[0] for _ in range(min(_varint(index), index_size))
        ]
        end = index_end - index_size - sum(-(-size // 4) * 4 for size in sizes) - 12


def _varint(content: Iterator[int]) -> int:
    """Returns a variable-length integer (.xz file format, section 1.2): seven bits a byte, the
    lowest first, the last byte below 128."""
    value = shift = 0
    for byte in content:
        value, shift = value | (byte & 127) << shift, shift + 7
        if byte < 128:
            break
    return value


def _zst_flags(raw: BinaryIO) -> Iterator[bool]:
    """Yields, for each frame of a .zst file (RFC 8878, section 3.1.1), whether it has a checksum.
    Stops at damage, which reading the file reports.
    """
    while raw.tell() < SCAN_BYTES and len(head := raw.read(5)) == 5:
        if head[1:4] == b"\x2a\x4d\x18":  # a frame to be skipped: its length follows
            raw.seek(int.from_bytes(head[4:] + raw.read(3), "little"), io.SEEK_CUR)
            continue
        if head[:4] != MAGIC[".zst"][0]:
            return
        flags = head[4]
        yield bool(flags & 4)
        single = flags >> 5 & 1
        raw.seek(
            (not single) + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6], io.SEEK_CUR
        )
        last = False
        while not last:
            if len(block := raw.read(3)) < 3:
                return
            number = int.from_bytes(block, "little")
            last, one_byte, size = bool(number & 1), number >> 1 & 3 == 1, number >> 3
            raw.seek(1 if one_byte else size, io.SEEK_CUR)
        raw.seek(4 if flags & 4 else 0, io.SEEK_CUR)
