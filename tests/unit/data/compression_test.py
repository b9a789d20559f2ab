"""Every compression with every damage, to the first member and to later ones: the whole text or a refusal, never a part of it."""

import gzip
import io
import lzma
import shutil
import subprocess

import pyarrow
import pytest

from gptjax.data import compression

TEXTS = [b"the first member " * 5, b"and the second, which is another " * 3, b"the last"]


def zst(content: bytes) -> bytes:
    out = io.BytesIO()
    with compression.ZstWriter(out) as stream:
        stream.write(content)
    return out.getvalue()


COMPRESS = {".gz": lambda content: gzip.compress(content, mtime=0), ".xz": lzma.compress, ".zst": zst}


def plain(content: bytes, ending: str) -> bytes:
    return compression.plain(io.BytesIO(content), ending).read()


def damages(members: list[bytes]):
    """(what was done, the file, where it may be read: what it must then be)."""
    whole, texts = b"".join(members), b"".join(TEXTS)
    for at in range(len(whole)):
        yield f"bit of byte {at}", whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :], texts
    for at in range(1, len(whole)):
        if at not in (len(members[0]), len(members[0]) + len(members[1])):  # a file that ends where a member does is whole
            yield f"cut at {at}", whole[:at], texts
    for number in range(3):
        before, after = b"".join(members[: number + 1]), b"".join(members[number + 1 :])
        for junk in (b"<html>503</html>", b"x", b"\xff" * 40, members[0][:3], members[0][: len(members[0]) // 2]):
            yield f"{junk[:9]!r} after member {number}", before + junk + after, texts
        for zeros in (1, 3, 4, 8, 512):
            yield f"{zeros} zeros after member {number}", before + b"\0" * zeros + after, texts
    yield "zeros before", bytes(4) + whole, texts
    yield "two members changed", members[0] + members[2] + members[1], TEXTS[0] + TEXTS[2] + TEXTS[1]


@pytest.mark.parametrize("ending", COMPRESS)
def test_whole_or_refused(ending):
    members = [COMPRESS[ending](text) for text in TEXTS]
    assert plain(b"".join(members), ending) == b"".join(TEXTS)
    n_refused = 0
    for what, content, expected in damages(members):
        try:
            assert plain(content, ending) == expected, what
        except compression.Damaged:
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
    monkeypatch.setattr(compression, "FREE", 2**22)
    bomb = COMPRESS[ending](bytes(2**25))
    with pytest.raises(compression.Damaged, match="over 300 times its size"):
        plain(bomb, ending)


def test_files_without_checksums_are_known():
    bare = pyarrow.Codec("zstd").compress(b"text " * 9, asbytes=True)
    skipped = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
    known = {".zst": [(zst(TEXTS[0]), True), (bare, False), (skipped + zst(TEXTS[0]), True), (zst(TEXTS[0]) + skipped + bare, False)]}
    known[".xz"] = [(lzma.compress(b"x"), True), (lzma.compress(b"x", check=lzma.CHECK_NONE), False)]
    known[".gz"] = [(gzip.compress(b"x"), True)]
    for ending, files in known.items():
        for content, expected in files:
            assert compression.checked(io.BytesIO(content), ending) is expected
        with pytest.raises(compression.Damaged, match="first bytes"):
            compression.checked(io.BytesIO(b"text"), ending)


def test_xxh64_is_the_published_one():
    assert compression.xxh64([b"", b"abc"]) == [0xEF46DB3751D8E999, 0x44BC2CF5AD770999]
    # From the algorithm's own test program: https://github.com/Cyan4973/xxHash; here as the zstd program checks it.
    if shutil.which("zstd"):
        for size in (1, 7, 31, 32, 33, 100, compression.FRAME + 5):
            content = bytes(n * 31 % 251 for n in range(size))
            subprocess.run(["zstd", "-qt"], input=zst(content), check=True)
            assert subprocess.run(["zstd", "-qdc"], input=zst(content), capture_output=True, check=True).stdout == content


def test_frames_are_cut_and_joined_again():
    content = bytes(n % 256 for n in range(3 * compression.FRAME + 100))
    out = io.BytesIO()
    with compression.ZstWriter(out) as stream:
        for at in range(0, len(content), 1000):
            stream.write(content[at : at + 1000])
    assert plain(out.getvalue(), ".zst") == content and compression.checked(io.BytesIO(out.getvalue()), ".zst")
