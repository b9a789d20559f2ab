"""What became of a document: which stage dropped it, and why."""

import pathlib
import re
from collections.abc import Iterator

from gptjax.curation import parts


def explain(directory: pathlib.Path, wanted: str) -> list[str]:
    """Returns a line for each document with the id or URL `wanted`, and each of its pieces: the
    stage that dropped it and why, or the last stage that kept it. Raises a one-line ValueError if
    there is none.
    """
    folders = stage_folders(directory)
    lines: dict[int, str] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.parquet")):
            for number, page_id, url, *why in _search(path, wanted):
                name = f"{page_id}{f' ({url})' * bool(url)}"
                lines[number] = f"{name}: kept by {folder.name}, in {path}"
                if why:
                    detail = _resolve_number(folders, why[1])
                    lines[number] = (
                        f"{name}: dropped by {folder.name}: {why[0]}{f' ({detail})' * bool(detail)}"
                    )
    if not lines:
        raise ValueError(
            f"{directory} has no document with the id or URL {wanted}; an id is as "
            f"{_example(folders)}"
        )
    return [lines[number] for number in sorted(lines)]


def stage_folders(directory: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders of the stages, in order. Raises ValueError if there is none."""
    folders = sorted(directory.glob("[0-9][0-9]-*"))
    if not folders:
        raise ValueError(f"{directory} has no stage of a curation; give the --out of one")
    return folders


def _search(path: pathlib.Path, wanted: str) -> Iterator[tuple]:
    """The rows of a file with the id or URL, or of pieces of such a document: number, id, URL, and
    of a file of what was dropped reason and detail."""
    is_piece = re.compile(re.escape(wanted) + r"(, piece \d+)+").fullmatch
    names = parts.DROPPED_SCHEMA.names[:5] if ".dropped." in path.name else parts.SCHEMA.names[:3]
    for row in parts.read_rows(path, names):
        if wanted in (row[1], row[2]) or is_piece(row[1]):
            yield row


def _resolve_number(folders: list[pathlib.Path], detail: str) -> str:
    """A detail as it is shown: "of page NUMBER" with the id of that page."""
    match = re.fullmatch(r"of page (\d+)", detail)
    for folder in folders if match else ():
        for path in sorted(folder.glob("*.parquet")):
            for number, page_id in parts.read_rows(path, ["number", "id"]):
                if number == int(match[1]):  # type: ignore[index]
                    return f"of {page_id}"
    return detail


def _example(folders: list[pathlib.Path]) -> str:
    for path in sorted(folders[0].glob("*.parquet")):
        for (page_id,) in parts.read_rows(path, ["id"]):
            return page_id
    return "DATA_SET/FILE#NUMBER"
