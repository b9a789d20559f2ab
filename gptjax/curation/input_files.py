"""The files of a data set, on this machine or at any place that fsspec opens, and how they are cut
into tasks.
"""

import contextlib
import dataclasses
import glob
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, cast

from gptjax.config import find_files
from gptjax.config.curation import Corpus
from gptjax.runtime import errors

MAX_FILES = 2**20  # of a data set: a page's number has a place for as many


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file of a data set. number: its place there. name: without the folder that all of them have
    in common; part of its pages' ids. path: as `open_file` takes it. state: size, and what else
    changes with the content (a time, an etag).
    """

    number: int
    name: str
    path: str
    format: str
    compression: str
    size: int
    state: str


def list_files(corpus: Corpus) -> tuple[list[InputFile], str | None]:
    """Returns (the files of a data set in order of name, a remark on what is skipped). Raises a
    one-line ValueError if there is none, or too many."""
    assert corpus.path is not None
    if "://" in corpus.path:
        found, remark = _list_remote(corpus.path)
    else:
        listing = find_files.find(corpus.path, find_files.PAGE_FORMATS)
        found = {
            str(file): (state.st_size, f"{state.st_size} {state.st_mtime_ns}")
            for file, state in listing.states.items()
        }
        remark = listing.remark()
    if len(found) > MAX_FILES:
        raise ValueError(
            f"{corpus.name} has {len(found):,} files; give at most {MAX_FILES:,}, for example by "
            "joining pages into .warc or .jsonl files"
        )
    parents = {str(pathlib.PurePosixPath(path).parent) for path in found}
    top = _common_folder(parents)
    files = []
    for number, (path, (size, state)) in enumerate(sorted(found.items())):
        name = str(pathlib.PurePosixPath(path).relative_to(top))
        kind, compression = find_files.file_type(
            pathlib.PurePosixPath(path), find_files.PAGE_FORMATS
        )
        files.append(InputFile(number, name, path, kind, compression, size, state))
    return files, remark


def _common_folder(folders: set[str]) -> str:
    """The deepest folder that holds all of these."""
    parts = [pathlib.PurePosixPath(folder).parts for folder in folders]
    shared = itertools.takewhile(lambda names: len({*names}) == 1, zip(*parts, strict=False))
    return str(pathlib.PurePosixPath(*(names[0] for names in shared)))


def _list_remote(path: str) -> tuple[dict[str, tuple[int, str]], str | None]:
    """The files at a place of fsspec: path -> (size, state), and a remark on what is skipped."""
    with _remote_errors(path):
        import fsspec

        file_system, root = fsspec.core.url_to_fs(path)
        paths = file_system.glob(root) if glob.has_magic(root) else file_system.find(root)
        infos = [file_system.info(found) for found in cast(list[str], paths)]
    outer = path.partition("::")[2]  # of zip://*.html::s3://bucket/pages.zip
    files, skipped = {}, []
    for info in infos:
        name = pathlib.PurePosixPath(info["name"])
        if info["type"] != "file":
            continue
        if not find_files.file_type(name, find_files.PAGE_FORMATS)[0]:
            skipped.append(name.name)
            continue
        changes = [str(info[key]) for key in ("etag", "ETag", "mtime", "created") if key in info]
        if info["size"] is None:
            raise ValueError(f"{path}: the size of {name} is not known; copy it here first")
        place = file_system.unstrip_protocol(info["name"]) + f"::{outer}" * bool(outer)
        files[place] = int(info["size"]), " ".join([str(info["size"]), *changes])
    if not files:
        raise ValueError(
            f"{path} has no file of a known format; "
            f"{find_files.format_hint(find_files.PAGE_FORMATS)}"
        )
    remark = f"skipped: {len(skipped):,} of unknown format ({', '.join(skipped[:3])})"
    return files, remark if skipped else None


@contextlib.contextmanager
def _remote_errors(path: str) -> Iterator[None]:
    """Raises errors of fsspec, and of the package of a place, in one line."""
    try:
        yield
    except Exception as error:  # every file system has its own
        reason = f"{type(error).__name__}: {errors.first_line(error)}"
        raise ValueError(f"{path} cannot be read by fsspec ({reason})") from None


@contextlib.contextmanager
def open_file(file: InputFile) -> Iterator[BinaryIO]:
    """Opens a file for reading bytes."""
    if "://" not in file.path:
        try:
            raw = open(file.path, "rb")
        except OSError as error:
            raise ValueError(f"{file.path} cannot be read: {error.strerror or error}") from None
        with raw:
            yield raw
        return
    with _remote_errors(file.path):
        import fsspec

        file_system, path = fsspec.core.url_to_fs(file.path)
        opened: Any = file_system.open(path, "rb")
    with opened as raw:
        yield raw


def group_files(files: Sequence[InputFile], n_bytes: int) -> list[list[InputFile]]:
    """Returns consecutive files in groups of about n_bytes; a larger file is a group of its own."""
    groups: list[list[InputFile]] = []
    size = 0
    for file in files:
        if not groups or size + file.size > n_bytes:
            groups.append([])
            size = 0
        groups[-1].append(file)
        size += file.size
    return groups
