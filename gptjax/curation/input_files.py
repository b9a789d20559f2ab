"""The files of a data set, on this machine or at any place that fsspec opens, and how they are cut
into tasks.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence

from gptjax.config import find_files
from gptjax.config.curation import Corpus
from gptjax.data.sources import file_listing

MAX_FILES = 2**20  # of a data set: a page's number has a place for as many


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file of a data set. number: its place there. name: without the folder that all of them have
    in common; part of its pages' ids. path: as `open_file` takes it. state: size, and a mark that
    changes with the content.
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
    found, remark = file_listing.list_files(corpus.path, find_files.PAGE_FORMATS)
    if len(found) > MAX_FILES:
        raise ValueError(
            f"{corpus.name} has {len(found):,} files; give at most {MAX_FILES:,}, for example by "
            "joining pages into .warc or .jsonl files"
        )
    # of zip://a.html::s3://bucket/pages.zip the first place is the file's
    paths = [pathlib.PurePosixPath(file.name.partition("::")[0]) for file in found]
    top = _common_folder([path.parent for path in paths])
    files = []
    for number, (file, path) in enumerate(zip(found, paths, strict=True)):
        if file.size is None:
            raise ValueError(f"{file.name}: its size is not known; copy it here first")
        kind, compression = find_files.file_type(path, find_files.PAGE_FORMATS)
        name, state = str(path.relative_to(top)), f"{file.size} {file.stamp}"
        files.append(InputFile(number, name, file.name, kind, compression, file.size, state))
    return files, remark


def _common_folder(folders: Sequence[pathlib.PurePosixPath]) -> pathlib.PurePosixPath:
    """The deepest folder that holds all of these."""
    parts = zip(*(folder.parts for folder in folders), strict=False)
    shared = itertools.takewhile(lambda names: len({*names}) == 1, parts)
    return pathlib.PurePosixPath(*(names[0] for names in shared))


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
