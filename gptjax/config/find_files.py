"""Finds the text files that a path names: a file, a directory or a glob. The last two follow one
rule, and everything skipped is reported.
"""

import collections
import contextlib
import contextvars
import dataclasses
import fnmatch
import glob
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath

from gptjax.config import parse

Formats = Mapping[str, str]  # extension -> format
FORMATS: Formats = {
    ".txt": ".txt",
    ".jsonl": ".jsonl",
    ".ndjson": ".jsonl",
    ".json": ".jsonl",
    ".parquet": ".parquet",
}
# Those that curation reads.
PAGE_FORMATS: Formats = {
    ".warc": ".warc",
    ".wet": ".warc",
    ".html": ".html",
    ".htm": ".html",
    **FORMATS,
}
COMPRESSIONS = (".gz", ".xz", ".zst")
# Skipped like folders whose names begin with a dot: they hold no text.
OTHER_FOLDERS = {"checkpoints", "__pycache__", "__MACOSX"}


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files that a path names. states: each file, sorted by name, with its stat result.
    skipped: reason -> names of skipped entries, for display.
    """

    states: dict[Path, os.stat_result]
    skipped: dict[str, list[str]]

    @property
    def files(self) -> list[Path]:
        """The paths of the files, sorted."""
        return list(self.states)

    @property
    def n_bytes(self) -> int:
        """Total size of the files."""
        return sum(state.st_size for state in self.states.values())

    def remark(self) -> str | None:
        """One line on what was skipped; None if nothing was."""
        lines = [
            f"{len(names):,} {why} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for why, names in self.skipped.items()
        ]
        return f"skipped: {'; '.join(lines)}" if lines else None


def format_hint(formats: Formats) -> str:
    """Says which formats may be given."""
    *names, last = dict.fromkeys(formats.values())
    return (
        f"give {', '.join(names)} or {last}, each plain or .gz, .xz or .zst; .ndjson and .json are "
        "read as .jsonl, one object per line"
    )


def file_type(path: PurePath, formats: Formats = FORMATS) -> tuple[str, str]:
    """Returns (format, compression) by the file's name, each "" if unknown, ignoring case:
    (".jsonl", ".xz").
    """
    name = path.name.lower()
    compression = next((ending for ending in COMPRESSIONS if name.endswith(ending)), "")
    name = name.removesuffix(compression)
    return next(
        (holds for ending, holds in formats.items() if name.endswith(ending) and name != ending), ""
    ), compression


def stem(path: Path) -> str:
    """Returns a file's name without the extensions that `file_type` recognizes."""
    format_, compression = file_type(path)
    name = path.name[: len(path.name) - len(compression)]
    return name.rpartition(".")[0] if format_ else name


_listings: contextvars.ContextVar[dict[tuple[str, tuple[str, ...]], Listing] | None] = (
    contextvars.ContextVar("listings", default=None)
)


@contextlib.contextmanager
def list_once() -> Iterator[None]:
    """While entered (as all of a program's main is), `find` lists each path only once.

    So all callers see the same files. Listing 20,000 files takes half a second on a local disk, and
    minutes on some network file systems.
    """
    token = _listings.set({}) if _listings.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _listings.reset(token)


def find(path: str, formats: Formats = FORMATS) -> Listing:
    """Returns the files that `path` names: each real file once, following links, cutting cycles.

    In a directory or glob these are skipped: hidden files and folders and OTHER_FOLDERS, unless the
    glob itself names them; files of unknown format; JSON that is not one object per line. Raises a
    one-line ValueError if there is no file, if the named file has no known format, if a folder
    cannot be read, or if an entry with the name of a text file is a pipe, a device or a broken
    link.
    """
    listings = _listings.get()
    if listings is None:
        return _list(path, formats)
    key = path, tuple(formats)
    if key not in listings:
        listings[key] = _list(path, formats)
    return listings[key]


def _list(path: str, formats: Formats) -> Listing:
    try:
        where = parse.path(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    skipped: Skipped = collections.defaultdict(set)
    if where.is_dir():
        return _select(
            path,
            (entry for _, entries in _walk_folders(where, skipped) for entry in entries),
            skipped,
            "has no text file",
            formats,
        )
    if where.exists() or where.is_symlink() or not glob.has_magic(path):
        if not where.exists() and not where.is_symlink():
            raise ValueError(f"{path} does not exist; {format_hint(formats)}")
        if not file_type(where, formats)[0]:
            raise ValueError(f"{path}: unknown format by its name; {format_hint(formats)}")
        return Listing({where: stat_regular(where)}, {})
    every = where.parts[1:] if where.is_absolute() else where.parts
    # Repeated ** are the same as one.
    parts = tuple(
        part
        for part, after in zip(every, (*every[1:], ""), strict=True)
        if not part == after == "**"
    )
    return _select(
        path,
        _match(Path(where.anchor), parts, skipped),
        skipped,
        "matches no file of text",
        formats,
    )


def stat_regular(file: Path) -> os.stat_result:
    """Returns the stat of a regular file. Raises a one-line ValueError for anything else: reading a
    pipe or device might never end.
    """
    try:
        status = file.stat()
    except OSError as error:
        problem = (
            "is a broken link: fix or remove it"
            if file.is_symlink()
            else f"cannot be read: {error.strerror}"
        )
        raise ValueError(f"{file} {problem}") from None

    if not stat.S_ISREG(status.st_mode):
        kinds = {
            stat.S_IFIFO: "a named pipe",
            stat.S_IFCHR: "a device",
            stat.S_IFBLK: "a device",
            stat.S_IFSOCK: "a socket",
        }
        kind = (
            kinds[stat.S_IFMT(status.st_mode)]
            if stat.S_IFMT(status.st_mode) in kinds
            else "a directory"
        )
        raise ValueError(f"{file} is {kind}, not a file: give text that lies on a disk")
    return status


Skipped = collections.defaultdict[str, set[Path]]  # reason -> entries


def _select(
    path: str, entries: Iterator[Path], skipped: Skipped, nothing: str, formats: Formats
) -> Listing:
    """Lists the real files of a known format among the entries, each once, by its own name rather
    than that of a link. nothing: the error text if there is none.
    """
    files: dict[tuple[int, int], Path] = {}
    states: dict[Path, os.stat_result] = {}
    for file in sorted(set(entries), key=lambda file: (file.is_symlink(), file)):
        if file.is_dir():
            continue
        if not file_type(file, formats)[0]:
            skipped["of unknown format"].add(file)
            continue
        state = stat_regular(file)
        if _is_single_json_value(file):
            skipped["JSON that is not one object per line"].add(file)
            continue
        if files.setdefault((state.st_dev, state.st_ino), file) is not file:
            skipped["listed under another name"].add(file)
        else:
            states[file] = state
    listing = Listing(
        {file: states[file] for file in sorted(states)},
        {why: sorted(file.name for file in each) for why, each in skipped.items()},
    )
    if not states:
        raise ValueError(
            f"{path} {nothing}{f' ({listing.remark()})' if skipped else ''}; {format_hint(formats)}"
        )
    return listing


def _is_single_json_value(file: Path) -> bool:
    """Whether a .json file holds one value spread over lines, like a report or settings."""
    if not file.name.lower().endswith(".json"):
        return False
    try:
        with file.open("rb") as stream:
            return stream.readline(100).strip() in (b"{", b"[")
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None


def _walk_folders(root: Path, skipped: Skipped) -> Iterator[tuple[Path, list[Path]]]:
    """Yields `root` and the folders below it, with their visible entries: each real folder once, by
    its own name rather than that of a link.
    """
    seen: set[tuple[int, int]] = set()
    stack, links = [root], collections.deque[Path]()
    while stack or links:
        folder = stack.pop() if stack else links.popleft()
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            skipped["listed under another name"].add(folder)
            continue
        seen.add((status.st_dev, status.st_ino))
        entries = _visible(folder, skipped)
        yield folder, entries
        inner = [entry for entry in entries if entry.is_dir()]
        stack += [entry for entry in reversed(inner) if not entry.is_symlink()]
        links += [entry for entry in inner if entry.is_symlink()]


def _visible(folder: Path, skipped: Skipped) -> list[Path]:
    """Returns the entries of a folder, sorted, without hidden files and OTHER_FOLDERS."""
    entries = []
    for entry in sorted(_list_folder(folder)):
        if entry.name.startswith(".") or (entry.name in OTHER_FOLDERS and entry.is_dir()):
            skipped["hidden, or in a folder that is not for text"].add(entry)
        else:
            entries.append(entry)
    return entries


def _list_folder(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise ValueError(f"{folder} cannot be read: {error.strerror}") from None


def _match(folder: Path, parts: tuple[str, ...], skipped: Skipped) -> Iterator[Path]:
    """Yields the entries below a folder that match a glob's parts. `**` matches the folder and all
    below it, by the rule for directories.
    """
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
