"""Every compression with every damage, to the first member and to later ones: the whole text or
a refusal, never a part of it."""

import gzip
import io
import lzma
import random

import pyarrow
import pytest

from gptjax.data.sources import compression

TEXTS = [b"the first member " * 5, b"and the second, which is another " * 3, b"the last"]
ZST = [  # of each of them, by zstd 1.5 --check
    bytes.fromhex("28b52ffd0458c5000088746865206669727374206d656d62657220010083d0b904d91f331f"),
    bytes.fromhex(
        "28b52ffd04584d01001402616e6420746865207365636f6e642c20776869636820697320616e6f746865722001003991d413759492bc"
    ),
    bytes.fromhex("28b52ffd0458410000746865206c617374825640e5"),
]


def zst(content: bytes) -> bytes:
    """pyarrow's, which has no checksum, where zstd's is not above."""
    return (
        ZST[TEXTS.index(content)]
        if content in TEXTS
        else pyarrow.Codec("zstd").compress(content, asbytes=True)
    )


COMPRESS = {
    ".gz": lambda content: gzip.compress(content, mtime=0),
    ".xz": lzma.compress,
    ".zst": zst,
}


def plain(content: bytes, ending: str) -> bytes:
    return compression.decompress(io.BytesIO(content), ending).read()


def damages(members: list[bytes]):
    """(what was done, the file, where it may be read: what it must then be)."""
    whole, texts = b"".join(members), b"".join(TEXTS)
    for at in range(len(whole)):
        yield (
            f"bit of byte {at}",
            whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :],
            texts,
        )
    for at in range(1, len(whole)):
        if at not in (
            len(members[0]),
            len(members[0]) + len(members[1]),
        ):  # a file that ends where a member does is whole
            yield f"cut at {at}", whole[:at], texts
    for number in range(3):
        before, after = b"".join(members[: number + 1]), b"".join(members[number + 1 :])
        for junk in (
            b"<html>503</html>",
            b"x",
            b"\xff" * 40,
            members[0][:3],
            members[0][: len(members[0]) // 2],
        ):
            yield f"{junk[:9]!r} after member {number}", before + junk + after, texts
        for zeros in (1, 3, 4, 8, 512):
            yield f"{zeros} zeros after member {number}", before + b"\0" * zeros + after, texts
    yield "zeros before", bytes(4) + whole, texts
    yield (
        "two members changed",
        members[0] + members[2] + members[1],
        TEXTS[0] + TEXTS[2] + TEXTS[1],
    )


@pytest.mark.parametrize("ending", COMPRESS)
def test_whole_or_refused(ending):
    members = [COMPRESS[ending](text) for text in TEXTS]
    assert plain(b"".join(members), ending) == b"".join(TEXTS)
    n_refused = 0
    for what, content, expected in damages(members):
        try:
            assert plain(content, ending) == expected, what
        except compression.CorruptFile:
            n_refused += 1
    assert n_refused > 200


@pytest.mark.parametrize("ending", COMPRESS)
def test_what_the_formats_allow_is_read(ending):
    pack = COMPRESS[ending]
    assert plain(pack(b"") + pack(b"one ") + pack(b"") + pack(b"two"), ending) == b"one two"
    if ending != ".zst":
        assert plain(pack(b"one ") + bytes(8) + pack(b"two") + bytes(4), ending) == b"one two"


@pytest.mark.parametrize("ending", [".gz", ".xz"])
def test_a_bomb_is_refused(ending, monkeypatch):
    monkeypatch.setattr(compression, "BOMB_BYTES", 2**22)
    bomb = COMPRESS[ending](bytes(2**25))
    with pytest.raises(compression.CorruptFile, match="over 300 times its size"):
        plain(bomb, ending)


def test_files_without_checksums_are_known():
    bare = zst(b"text " * 9)
    skipped = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
    known = {
        ".zst": [
            (zst(TEXTS[0]), True),
            (bare, False),
            (skipped + zst(TEXTS[0]), True),
            (zst(TEXTS[0]) + skipped + bare, False),
        ]
    }
    checked, unchecked = (
        lzma.compress(b"x" * 10**5, check=check) for check in (lzma.CHECK_CRC32, lzma.CHECK_NONE)
    )
    streams = (
        checked,
        unchecked + checked,
        checked + bytes(8) + unchecked + bytes(4) + checked,
        checked + bytes(4) + checked + bytes(12),
    )
    known[".xz"] = [(unchecked, False), *zip(streams, (True, False, False, True), strict=True)]
    known[".xz"] += [
        (checked[:-5], True),
        (checked[:-12], True),
        (checked[:8], True),
    ]  # cut short: reading tells of it
    known[".gz"] = [(gzip.compress(b"x"), True)]
    for ending, files in known.items():
        for content, expected in files:
            assert compression.has_checksums(io.BytesIO(content), ending) is expected
        with pytest.raises(compression.CorruptFile, match="first bytes"):
            compression.has_checksums(io.BytesIO(b"text"), ending)


def test_every_frame_is_looked_at_over_all_its_blocks():
    noise = random.Random(0).randbytes(
        300_000
    )  # three blocks as they are; zeros are blocks of one byte
    frames = [zst(noise), ZST[0], zst(bytes(300_000)), ZST[1], zst(b""), ZST[2]]
    assert list(compression._zst_flags(io.BytesIO(b"".join(frames)))) == [False, True] * 3
