"""Which files of text a path names: a file, a directory or a glob, the last two by one rule, and nothing is left out unsaid."""

import collections
import dataclasses
import fnmatch
import glob
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from gptjax.config import parse

FORMATS = {".txt": ".txt", ".jsonl": ".jsonl", ".ndjson": ".jsonl", ".json": ".jsonl", ".parquet": ".parquet"}  # ending -> what it holds
COMPRESSIONS = (".gz", ".xz", ".zst")
ALLOWED = "give .txt, .jsonl or .parquet, each plain or .gz, .xz or .zst; .ndjson and .json are read as .jsonl is, an object a line"
LEFT_ALONE = {
    "checkpoints",
    "__pycache__",
    "__MACOSX",
}  # folders that hold other things than text, beside those whose names begin with a dot


@dataclasses.dataclass(frozen=True)
class Found:
    """files: sorted by name. passed_over: why -> the names of what was not taken, for people."""

    files: list[Path]
    passed_over: dict[str, list[str]]

    def remark(self) -> str | None:
        """What was passed over, in a line; None if nothing was."""
        told = [
            f"{len(names):,} {why} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" for why, names in self.passed_over.items()
        ]
        return f"passed over: {'; '.join(told)}" if told else None


def kind(path: Path) -> tuple[str, str]:
    """The format and the compression that a file's name tells, each "" if none, in any case of letters: (".jsonl", ".xz")."""
    name = path.name.lower()
    compression = next((ending for ending in COMPRESSIONS if name.endswith(ending)), "")
    name = name.removesuffix(compression)
    return next((holds for ending, holds in FORMATS.items() if name.endswith(ending) and name != ending), ""), compression


def stem(path: Path) -> str:
    """A file's name without the endings that `kind` reads."""
    format_, compression = kind(path)
    name = path.name[: len(path.name) - len(compression)]
    return name.rpartition(".")[0] if format_ else name


def found(path: str) -> Found:
    """The files that `path` names: each real file once, links followed, cycles cut.

    Of a directory or a glob, hidden files and folders and those of LEFT_ALONE are passed over, unless the glob itself names them, and so is
    what has no known format, or is JSON without an object a line. ValueError, in one line: there is no file; the one that is named is of
    no known format; a folder cannot be read; what has the name of a text is a pipe, a device, or a link to nothing.
    """
    try:
        where = parse.path(path)
    except ValueError as error:
        raise ValueError(f"Text(path={path!r}): {error}") from None
    passed: Passed = collections.defaultdict(set)
    if where.is_dir():
        return _told(path, (file for _, listed in _folders(where, passed) for file in listed), passed, "has no text file")
    if where.exists() or where.is_symlink() or not glob.has_magic(path):
        if not where.exists() and not where.is_symlink():
            raise ValueError(f"Text(path={path!r}) does not exist; {ALLOWED}")
        if not kind(where)[0]:
            raise ValueError(f"Text(path={path!r}): the name tells no known format; {ALLOWED}")
        regular(where)
        return Found([where], {})
    every = where.parts[1:] if where.is_absolute() else where.parts
    parts = tuple(part for part, after in zip(every, (*every[1:], ""), strict=True) if not part == after == "**")  # twice is as once
    return _told(path, _matching(Path(where.anchor), parts, passed), passed, "matches no file of text")


def regular(file: Path) -> os.stat_result:
    """The state of a file. ValueError, in one line, if it is none: a pipe or a device would be read for ever."""
    try:
        state = file.stat()
    except OSError as error:
        what = "is a link to a file that is not there: mend or remove it" if file.is_symlink() else f"cannot be read: {error.strerror}"
        raise ValueError(f"{file} {what}") from None
    if not stat.S_ISREG(state.st_mode):
        kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}
        what = kinds[stat.S_IFMT(state.st_mode)] if stat.S_IFMT(state.st_mode) in kinds else "a directory"
        raise ValueError(f"{file} is {what}, no file: give text that lies on a disk")
    return state


Passed = collections.defaultdict[str, set[Path]]  # why -> what


def _told(path: str, entries: Iterator[Path], passed: Passed, nothing: str) -> Found:
    """Of the entries, each real file of a known format once; one that is no link goes before links to it."""
    known: dict[tuple[int, int], Path] = {}
    for file in sorted(set(entries), key=lambda file: (file.is_symlink(), file)):
        if file.is_dir():
            continue
        if not kind(file)[0]:
            passed["of no known format"].add(file)
            continue
        state = regular(file)
        if _one_value(file):
            passed["JSON that has not an object a line"].add(file)
            continue
        first = known.setdefault((state.st_dev, state.st_ino), file)
        if first is not file:
            passed["there by another name"].add(file)
    told = Found(sorted(known.values()), {why: sorted(file.name for file in files) for why, files in passed.items()})
    if not known:
        raise ValueError(f"Text(path={path!r}) {nothing}{f' ({told.remark()})' if passed else ''}; {ALLOWED}")
    return told


def _one_value(file: Path) -> bool:
    """Is it a .json file whose value takes many lines, as a report or settings have it?"""
    if not file.name.lower().endswith(".json"):
        return False
    try:
        with file.open("rb") as stream:
            return stream.readline(100).strip() in (b"{", b"[")
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None


def _folders(root: Path, passed: Passed) -> Iterator[tuple[Path, list[Path]]]:
    """`root` and the folders below it, with what is listed in them: each real one once, those that are no links first."""
    seen: set[tuple[int, int]] = set()
    left, linked = [root], collections.deque[Path]()
    while left or linked:
        folder = left.pop() if left else linked.popleft()
        state = folder.stat()
        if (state.st_dev, state.st_ino) in seen:
            passed["there by another name"].add(folder)
            continue
        seen.add((state.st_dev, state.st_ino))
        listed = _listed(folder, passed)
        yield folder, listed
        inner = [entry for entry in listed if entry.is_dir()]
        left += [entry for entry in reversed(inner) if not entry.is_symlink()]
        linked += [entry for entry in inner if entry.is_symlink()]


def _listed(folder: Path, passed: Passed) -> list[Path]:
    """What lies in a folder, sorted, without what is passed over."""
    entries = []
    for entry in sorted(_entries(folder)):
        if entry.name.startswith(".") or (entry.name in LEFT_ALONE and entry.is_dir()):
            passed["hidden, or in a folder of other things"].add(entry)
        else:
            entries.append(entry)
    return entries


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise ValueError(f"{folder} cannot be read: {error.strerror}") from None


def _matching(folder: Path, parts: tuple[str, ...], passed: Passed) -> Iterator[Path]:
    """What a glob's parts name below a folder. `**` is the folder and all below it, by the directory's rule."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        for below, listed in _folders(folder, passed):
            yield from _matching(below, rest, passed) if rest else listed
        return
    if not glob.has_magic(part):
        inner = [folder / part]
    else:
        listed = sorted(_entries(folder)) if part.startswith(".") else _listed(folder, passed)
        inner = [entry for entry in listed if fnmatch.fnmatchcase(entry.name, part)]
    for entry in inner:
        if rest and entry.is_dir():
            yield from _matching(entry, rest, passed)
        elif not rest and (entry.exists() or entry.is_symlink()):
            yield entry
