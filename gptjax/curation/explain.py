"""What became of a document: which stage dropped it, and why."""

import pathlib
from collections.abc import Iterator

from gptjax.curation import parts


def explain(directory: pathlib.Path, wanted: str) -> list[str]:
    """Returns a line for each document with the id or URL `wanted`, or of which it is a piece: the
    stage that dropped it and why, or that it was kept. Raises ValueError if there is none.
    """
    folders = stage_folders(directory)
    lines, found = [], set()
    for folder in folders:
        for path in sorted(folder.glob("*.dropped.parquet")):
            for number, page_id, url, reason, detail, _ in _search(path, wanted):
                other = _id_of(folders, detail)
                lines.append(
                    f"{page_id}{f' ({url})' * bool(url)}: dropped by {folder.name}: {reason}"
                    f"{f' ({other})' * bool(other)}"
                )
                found.add(number)
    for path in sorted(folders[-1].glob("*.parquet")):
        if not path.name.endswith(".dropped.parquet"):
            for _, page_id, url, *_ in _search(path, wanted):
                lines.append(f"{page_id}{f' ({url})' * bool(url)}: kept, in {path}")
    if not lines:
        raise ValueError(
            f"{directory} has no document with the id or URL {wanted}; an id is as "
            f"{_example(folders)}"
        )
    return lines


def stage_folders(directory: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders of the stages, in order. Raises ValueError if there is none."""
    folders = sorted(directory.glob("[0-9][0-9]-*"))
    if not folders:
        raise ValueError(f"{directory} has no stage of a curation; give the --out of one")
    return folders


def _search(path: pathlib.Path, wanted: str) -> Iterator[tuple]:
    names = parts.DROPPED_SCHEMA.names if ".dropped." in path.name else parts.SCHEMA.names[:3]
    for row in parts.read_rows(path, names):
        if wanted in (row[1], row[2]) or row[1].startswith(f"{wanted}/"):
            yield row


def _id_of(folders: list[pathlib.Path], detail: str) -> str:
    """A detail as it is shown: "of page NUMBER" with the id of that page."""
    if not detail.startswith("of page "):
        return detail
    number = int(detail.removeprefix("of page "))
    for folder in folders:
        for path in sorted(folder.glob("*.parquet")):
            for row in parts.read_rows(path, ["number", "id"]):
                if row[0] == number:
                    return f"of {row[1]}"
    return detail


def _example(folders: list[pathlib.Path]) -> str:
    for path in sorted(folders[0].glob("*.parquet")):
        for (page_id,) in parts.read_rows(path, ["id"]):
            return page_id
    return "DATA_SET/FILE#NUMBER"
