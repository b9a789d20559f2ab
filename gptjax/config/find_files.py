"""Which files of text a path names: a file, a directory or a glob, the last two by one rule, and
nothing is left out unsaid."""

import collections
import contextlib
import contextvars
import dataclasses
import fnmatch
import glob
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from gptjax.config import parse

FORMATS = {
    ".txt": ".txt",
    ".jsonl": ".jsonl",
    ".ndjson": ".jsonl",
    ".json": ".jsonl",
    ".parquet": ".parquet",
}  # ending -> what it holds
COMPRESSIONS = (".gz", ".xz", ".zst")
FORMAT_HINT = (
    "give .txt, .jsonl or .parquet, each plain or .gz, .xz or .zst; .ndjson and .json are read as "
    ".jsonl is, an object a line"
)
OTHER_FOLDERS = {
    "checkpoints",
    "__pycache__",
    "__MACOSX",
}  # which hold no text, beside those whose names begin with a dot


@dataclasses.dataclass(frozen=True)
class Listing:
    """states: each file, sorted by name, and its state when it was listed. skipped: why -> the
    names of what was not taken, for people."""

    states: dict[Path, os.stat_result]
    skipped: dict[str, list[str]]

    @property
    def files(self) -> list[Path]:
        return list(self.states)

    @property
    def n_bytes(self) -> int:
        return sum(state.st_size for state in self.states.values())

    def remark(self) -> str | None:
        """What was passed over, in a line; None if nothing was."""
        lines = [
            f"{len(names):,} {why} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for why, names in self.skipped.items()
        ]
        return f"passed over: {'; '.join(lines)}" if lines else None


def file_type(path: Path) -> tuple[str, str]:
    """The format and the compression that a file's name tells, each "" if none, in any case of
    letters: (".jsonl", ".xz")."""
    name = path.name.lower()
    compression = next((ending for ending in COMPRESSIONS if name.endswith(ending)), "")
    name = name.removesuffix(compression)
    return next(
        (holds for ending, holds in FORMATS.items() if name.endswith(ending) and name != ending), ""
    ), compression


def stem(path: Path) -> str:
    """A file's name without the endings that `file_type` reads."""
    format_, compression = file_type(path)
    name = path.name[: len(path.name) - len(compression)]
    return name.rpartition(".")[0] if format_ else name


_listings: contextvars.ContextVar[dict[str, Listing] | None] = contextvars.ContextVar(
    "listings", default=None
)


@contextlib.contextmanager
def list_once() -> Iterator[None]:
    """Let `find` list each path once while this is entered, as all of a program's main is: what a
    path names is then what it named at first, for all that ask. 20,000 files take half a second
    of a local disk, and minutes of some in a network."""
    token = _listings.set({}) if _listings.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _listings.reset(token)


def find(path: str) -> Listing:
    """The files that `path` names: each real file once, links followed, cycles cut.

    Of a directory or a glob, hidden files and folders and OTHER_FOLDERS are passed over, unless the
    glob itself names them, and so is what has no known format, or is JSON without an object a line.
    ValueError, in one line: there is no file; the one that is named is of no known format; a folder
    cannot be read; what has the name of a text is a pipe, a device, or a link to nothing.
    """
    listings = _listings.get()
    if listings is None:
        return _list(path)
    if path not in listings:
        listings[path] = _list(path)
    return listings[path]


def _list(path: str) -> Listing:
    try:
        where = parse.path(path)
    except ValueError as error:
        raise ValueError(f"Text(path={path!r}): {error}") from None
    skipped: Skipped = collections.defaultdict(set)
    if where.is_dir():
        return _select(
            path,
            (entry for _, entries in _walk_folders(where, skipped) for entry in entries),
            skipped,
            "has no text file",
        )
    if where.exists() or where.is_symlink() or not glob.has_magic(path):
        if not where.exists() and not where.is_symlink():
            raise ValueError(f"Text(path={path!r}) does not exist; {FORMAT_HINT}")
        if not file_type(where)[0]:
            raise ValueError(f"Text(path={path!r}): the name tells no known format; {FORMAT_HINT}")
        return Listing({where: stat_regular(where)}, {})
    every = where.parts[1:] if where.is_absolute() else where.parts
    parts = tuple(
        part
        for part, after in zip(every, (*every[1:], ""), strict=True)
        if not part == after == "**"
    )  # twice is as once
    return _select(
        path, _match(Path(where.anchor), parts, skipped), skipped, "matches no file of text"
    )


def stat_regular(file: Path) -> os.stat_result:
    """The state of a file. ValueError, in one line, if it is none: a pipe or a device would be
    read for ever."""
    try:
        status = file.stat()
    except OSError as error:
        what = (
            "is a link to a file that is not there: mend or remove it"
            if file.is_symlink()
            else f"cannot be read: {error.strerror}"
        )
        raise ValueError(f"{file} {what}") from None
    if not stat.S_ISREG(status.st_mode):
        kinds = {
            stat.S_IFIFO: "a named pipe",
            stat.S_IFCHR: "a device",
            stat.S_IFBLK: "a device",
            stat.S_IFSOCK: "a socket",
        }
        what = (
            kinds[stat.S_IFMT(status.st_mode)]
            if stat.S_IFMT(status.st_mode) in kinds
            else "a directory"
        )
        raise ValueError(f"{file} is {what}, no file: give text that lies on a disk")
    return status


Skipped = collections.defaultdict[str, set[Path]]  # why -> what


def _select(path: str, entries: Iterator[Path], skipped: Skipped, nothing: str) -> Listing:
    """Of the entries, each real file of a known format once; one that is no link goes before links
    to it. nothing: for the error where there is none."""
    files: dict[tuple[int, int], Path] = {}
    states: dict[Path, os.stat_result] = {}
    for file in sorted(set(entries), key=lambda file: (file.is_symlink(), file)):
        if file.is_dir():
            continue
        if not file_type(file)[0]:
            skipped["of no known format"].add(file)
            continue
        state = stat_regular(file)
        if _is_single_json_value(file):
            skipped["JSON that has not an object a line"].add(file)
            continue
        if files.setdefault((state.st_dev, state.st_ino), file) is not file:
            skipped["there by another name"].add(file)
        else:
            states[file] = state
    listing = Listing(
        {file: states[file] for file in sorted(states)},
        {why: sorted(file.name for file in each) for why, each in skipped.items()},
    )
    if not states:
        raise ValueError(
            f"Text(path={path!r}) {nothing}{f' ({listing.remark()})' if skipped else ''}; "
            f"{FORMAT_HINT}"
        )
    return listing


def _is_single_json_value(file: Path) -> bool:
    """Is it a .json file whose value takes many lines, as a report or settings have it?"""
    if not file.name.lower().endswith(".json"):
        return False
    try:
        with file.open("rb") as stream:
            return stream.readline(100).strip() in (b"{", b"[")
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None


def _walk_folders(root: Path, skipped: Skipped) -> Iterator[tuple[Path, list[Path]]]:
    """`root` and the folders below it, with what is visible in them: each real one once, those
    that are no links first."""
    seen: set[tuple[int, int]] = set()
    stack, links = [root], collections.deque[Path]()
    while stack or links:
        folder = stack.pop() if stack else links.popleft()
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            skipped["there by another name"].add(folder)
            continue
        seen.add((status.st_dev, status.st_ino))
        entries = _visible(folder, skipped)
        yield folder, entries
        inner = [entry for entry in entries if entry.is_dir()]
        stack += [entry for entry in reversed(inner) if not entry.is_symlink()]
        links += [entry for entry in inner if entry.is_symlink()]


def _visible(folder: Path, skipped: Skipped) -> list[Path]:
    """What lies in a folder, sorted, without what is passed over."""
    entries = []
    for entry in sorted(_list_folder(folder)):
        if entry.name.startswith(".") or (entry.name in OTHER_FOLDERS and entry.is_dir()):
            skipped["hidden, or in a folder of other things"].add(entry)
        else:
            entries.append(entry)
    return entries


def _list_folder(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise ValueError(f"{folder} cannot be read: {error.strerror}") from None


def _match(folder: Path, parts: tuple[str, ...], skipped: Skipped) -> Iterator[Path]:
    """What a glob's parts name below a folder. `**` is the folder and all below it, by the
    directory's rule."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        for below, entries in _walk_folders(folder, skipped):
            yield from _match(below, rest, skipped) if rest else entries
        return
    if not glob.has_magic(part):
        inner = [folder / part]
    else:
        entries = (
            sorted(_list_folder(folder)) if part.startswith(".") else _visible(folder, skipped)
        )
        inner = [entry for entry in entries if fnmatch.fnmatchcase(entry.name, part)]
    for entry in inner:
        if rest and entry.is_dir():
            yield from _match(entry, rest, skipped)
        elif not rest and (entry.exists() or entry.is_symlink()):
            yield entry
