"""Compressed files as streams of plain bytes, whole or refused: .gz, .xz and .zst of any number of members; and .zst, written."""

import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

PIECE = 2**20  # bytes read or handed on at once
FREE, MOST_TIMES = 2**26, 300  # a file that gives more than FREE bytes and MOST_TIMES its own size is a bomb; text shrinks to a tenth or so
LOOKED_AT = 2**24  # bytes of an .zst file whose frames are looked at beforehand: a program writes all alike
DICTIONARY = 2**30  # bytes of memory that an .xz may ask for: xz -9 takes 65 MiB
MAGIC = {
    ".gz": (b"\x1f\x8b",),
    ".xz": (b"\xfd7zXZ\0",),
    ".zst": (b"\x28\xb5\x2f\xfd", *(bytes((n, 0x2A, 0x4D, 0x18)) for n in range(0x50, 0x60))),
}


class Damaged(ValueError):
    """What is wrong with the bytes of a compressed file."""


def plain(raw: BinaryIO, compression: str) -> BinaryIO:
    """`raw` as a buffered stream of plain bytes, which raises Damaged for all that is not whole members from beginning to end.

    Memory is bounded, and so is what comes of a small file."""
    match compression:
        case ".gz":
            read: Callable[[int], bytes] = gzip.GzipFile(fileobj=raw, mode="rb").read
        case ".xz":
            read = _Xz(raw).read
        case ".zst":
            import pyarrow  # not zstandard: that takes a file cut short for a whole one

            read = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd").read
        case _:
            return raw
    return io.BufferedReader(_Plain(raw, read), PIECE)  # type: ignore[return-value]


class _Plain(io.RawIOBase):
    def __init__(self, raw: BinaryIO, read: Callable[[int], bytes]):
        self._raw, self._read, self._n = raw, read, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            part = self._read(min(len(buffer), PIECE))
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
            raise Damaged(str(error)) from None
        except OSError as error:
            if error.errno is not None:  # the disk's, not the decoder's
                raise
            raise Damaged((str(error).splitlines() or ["unreadable"])[0]) from None
        self._n += len(part)
        if self._n > FREE and self._n > MOST_TIMES * self._raw.tell():
            raise Damaged(f"it grows to over {MOST_TIMES} times its size, as no text does")
        buffer[: len(part)] = part
        return len(part)


class _Xz:
    """The plain bytes of an .xz file. CPython's LZMAFile takes a later stream that is damaged or padded for the end (its issue 88300)."""

    def __init__(self, raw: BinaryIO):
        self._raw, self._rest = raw, b""
        self._stream: lzma.LZMADecompressor | None = None
        self._first = True

    def read(self, n: int) -> bytes:
        """At least one byte, or b"" at the end."""
        while True:
            if self._stream is None and not self._begun():
                return b""
            assert self._stream is not None
            if self._stream.needs_input and not self._rest:
                self._rest = self._raw.read(PIECE)
                if not self._rest:
                    raise Damaged("it ends within a stream")
            part = self._stream.decompress(self._rest, n)
            self._rest = b""
            if self._stream.eof:
                self._rest, self._stream = self._stream.unused_data, None
            if part:
                return part

    def _begun(self) -> bool:
        """Is there another stream? Between streams may be zero bytes, in fours."""
        zeros = 0
        while True:
            self._rest = self._rest or self._raw.read(PIECE)
            after = self._rest.lstrip(b"\0")
            zeros += len(self._rest) - len(after)
            if after or not self._rest:
                break
            self._rest = b""
        if zeros % 4 or (zeros and self._first):
            raise Damaged("there are zero bytes that are no padding of the format")
        self._rest = after
        if after:
            self._stream, self._first = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=DICTIONARY), False
        return bool(after)


def checked(raw: BinaryIO, compression: str) -> bool:
    """Has every part of the file a checksum, so that damage to it is noticed? Damaged if it is not of this compression at all. `raw` is at
    its beginning, and can seek; little of it is read."""
    begins = raw.read(8)
    if not begins.startswith(MAGIC[compression]):
        raise Damaged(f"its first bytes are not those of a {compression} file")
    if compression == ".xz":
        return len(begins) == 8 and begins[7] & 15 != 0
    raw.seek(0)
    return compression == ".gz" or all(_zst_flags(raw))


def _zst_flags(raw: BinaryIO) -> Iterator[bool]:
    """Of each frame of a .zst file: has it a checksum? RFC 8878, section 3.1.1. Damage ends the walk: reading tells of it."""
    while raw.tell() < LOOKED_AT and len(head := raw.read(5)) == 5:
        if head[1:4] == b"\x2a\x4d\x18":  # a frame to be skipped: its length follows
            raw.seek(int.from_bytes(head[4:] + raw.read(3), "little"), io.SEEK_CUR)
            continue
        if head[:4] != MAGIC[".zst"][0]:
            return
        flags = head[4]
        yield bool(flags & 4)
        single = flags >> 5 & 1
        raw.seek((not single) + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6], io.SEEK_CUR)
        last = False
        while not last:
            if len(block := raw.read(3)) < 3:
                return
            number = int.from_bytes(block, "little")
            last, one_byte, size = bool(number & 1), number >> 1 & 3 == 1, number >> 3
            raw.seek(1 if one_byte else size, io.SEEK_CUR)
        raw.seek(4 if flags & 4 else 0, io.SEEK_CUR)


# --- writing -------------------------------------------------------------------------------------------------------------------

FRAME = 2**17  # plain bytes in a frame
AT_ONCE = 64  # frames whose checksums are computed side by side


class ZstWriter:
    """A stream of plain bytes into `raw` as .zst frames, each with its checksum: pyarrow writes none. To be closed; `raw` stays open."""

    def __init__(self, raw: BinaryIO):
        import pyarrow

        self._raw, self._held, self._codec = raw, bytearray(), pyarrow.Codec("zstd")

    def __enter__(self) -> "ZstWriter":
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is None:
            self._write(len(self._held))

    def write(self, content: bytes) -> None:
        self._held += content
        if len(self._held) >= FRAME * AT_ONCE:
            self._write(len(self._held) // FRAME * FRAME)

    def _write(self, size: int) -> None:
        frames = [bytes(self._held[at : min(at + FRAME, size)]) for at in range(0, size, FRAME)]
        del self._held[:size]
        for frame, checksum in zip(frames, xxh64(frames), strict=True):
            packed = bytearray(self._codec.compress(frame, asbytes=True))
            packed[4] |= 4
            self._raw.write(bytes(packed) + checksum.to_bytes(8, "little")[:4])


P1, P2, P3, P4, P5 = 11400714785074694791, 14029467366897019727, 1609587929392839161, 9650029242287828579, 2870177450012600261
MASK = 2**64 - 1


def xxh64(texts: list[bytes]) -> list[int]:
    """XXH64 with seed 0 of each text: xxhash's doc/xxhash_spec.md. Those of one length go side by side, in NumPy."""
    import numpy as np

    found: list[int] = [0] * len(texts)
    for length in {len(text) for text in texts}:
        places = [n for n, text in enumerate(texts) if len(text) == length]
        stripes = np.stack([np.frombuffer(texts[n], "<u8", length // 32 * 4) for n in places]).reshape(len(places), -1, 4)
        lanes = np.array([P1 + P2 & MASK, P2, 0, -P1 & MASK], np.uint64) + np.zeros((len(places), 4), np.uint64)
        for stripe in np.ascontiguousarray(stripes.transpose(1, 0, 2)):
            lanes += stripe * np.uint64(P2)
            lanes = (lanes << np.uint64(31) | lanes >> np.uint64(33)) * np.uint64(P1)
        for n, lane in zip(places, lanes.tolist(), strict=True):
            found[n] = _finished(texts[n], lane)
    return found


def _finished(text: bytes, lanes: list[int]) -> int:
    value = P5
    if len(text) >= 32:
        value = sum(_rotated(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True)) & MASK
        for lane in lanes:
            value = ((value ^ _rotated(lane * P2 & MASK, 31) * P1 & MASK) * P1 + P4) & MASK
    value, at = value + len(text) & MASK, len(text) // 32 * 32
    while at + 8 <= len(text):
        lane = _rotated(int.from_bytes(text[at : at + 8], "little") * P2 & MASK, 31) * P1 & MASK
        value, at = (_rotated(value ^ lane, 27) * P1 + P4) & MASK, at + 8
    if at + 4 <= len(text):
        value, at = (_rotated(value ^ int.from_bytes(text[at : at + 4], "little") * P1 & MASK, 23) * P2 + P3) & MASK, at + 4
    for byte in text[at:]:
        value = _rotated(value ^ byte * P5 & MASK, 11) * P1 & MASK
    for shift, factor in ((33, P2), (29, P3), (32, 1)):
        value = (value ^ value >> shift) * factor & MASK
    return value


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> 64 - bits) & MASK
