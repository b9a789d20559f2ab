"""Checkpoint storage: a directory, where a rename makes a checkpoint valid, or a bucket, where its
last object does.

Both have DIR/<step> for each checkpoint, with files.json listing its files.
"""

import contextlib
import itertools
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptjax.runtime import atomic, run_dir

SAVING_SUFFIX, REMOVED_SUFFIX, LISTING = ".saving", ".removed", "files.json"


class Directory:
    """Storage on a file system. A checkpoint is written as <step>.saving, and a rename to <step>
    makes it valid.
    """

    def __init__(self, path: Path):
        self.path: Any = Path(path).absolute()

    def create(self) -> None:
        """Creates the directory and checks that it is writable; raises OSError if not."""
        self.path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.path):
            pass

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, valid or damaged, oldest first."""
        if not self.path.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.path.iterdir() if entry.name.isdecimal())

    def staging_path(self, step: int) -> Any:
        """Path to write a checkpoint to before it is valid."""
        return self.path / f"{step}{SAVING_SUFFIX}"

    def commit(self, step: int, listing: str) -> None:
        """Syncs a written checkpoint to disk and makes it valid, replacing any earlier one of that
        step.
        """
        (self.staging_path(step) / LISTING).write_text(listing)
        for _, file in self.list_files(self.staging_path(step)):
            atomic.sync(file)
        with contextlib.suppress(FileNotFoundError):
            self._move_aside(self.path / str(step), step)
        self.staging_path(step).rename(self.path / str(step))
        atomic.sync(self.path)

    def remove(self, step: int) -> None:
        """Removes one checkpoint; a kill during removal leaves garbage but no partial checkpoint.
        Raises OSError if some of it remains.
        """
        shutil.rmtree(self._move_aside(self.path / str(step), step))

    def clean(self) -> list[str]:
        """Removes what is not a checkpoint: names made of a step and one of our suffixes, including
        any that Orbax appends.

        Returns a warning for each that cannot be removed, such as one that another host has open on
        NFS: it is moved out of the way and tried again next time.
        """
        warnings = []
        for entry in self.path.iterdir():
            step, dot, rest = entry.name.partition(".")
            if step.isdecimal() and (dot + rest).startswith((SAVING_SUFFIX, REMOVED_SUFFIX)):
                try:
                    shutil.rmtree(entry)
                except OSError as error:
                    warnings.append(f"{entry} cannot be removed: {error.strerror or error}")
                    if rest.startswith(SAVING_SUFFIX[1:]):
                        with contextlib.suppress(OSError):
                            self._move_aside(entry, int(step))
        return warnings

    def _move_aside(self, path: Any, step: int) -> Any:
        """Renames `path` to an unused name that is not a checkpoint's."""
        for number in itertools.count():
            there = self.path / f"{step}{REMOVED_SUFFIX}{f'-{number}' if number else ''}"
            if not there.exists():
                return path.rename(there)

    def list_files(self, folder: Any) -> Iterator[tuple[str, Any]]:
        """Yields (name, path) of every file below a folder, sorted."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                yield file.relative_to(folder).as_posix(), file

    def file_size(self, file: Any) -> int:
        """Size of a file in bytes."""
        return file.stat().st_size

    def free_bytes(self) -> int:
        """Free space in bytes."""
        return shutil.disk_usage(self.path).free


class Bucket(Directory):
    """Storage in an object store, which has no rename: a checkpoint is written in place and valid
    once its listing exists, the last object to be written and the first to be removed.
    """

    def __init__(self, path: str):
        from etils import epath

        self.path = epath.Path(path)

    def create(self) -> None:
        probe = self.path / "probe"
        probe.write_text("")
        probe.unlink()

    def steps(self) -> list[int]:
        return [step for step, valid in self._list_checkpoints() if valid]

    def staging_path(self, step: int) -> Any:
        return self.path / str(step)

    def commit(self, step: int, listing: str) -> None:
        (self.path / str(step) / LISTING).write_text(listing)

    def remove(self, step: int) -> None:
        (self.path / str(step) / LISTING).unlink()
        (self.path / str(step)).rmtree()

    def clean(self) -> list[str]:
        for step, valid in self._list_checkpoints():
            if not valid:
                (self.path / str(step)).rmtree()
        return []

    def list_files(self, folder: Any) -> Iterator[tuple[str, Any]]:
        self._clear_listing_cache()
        pending = [folder]
        while pending:
            for entry in sorted(pending.pop().iterdir()):
                if entry.is_dir():
                    pending.append(entry)
                else:
                    yield entry.relative_to(folder).as_posix(), entry

    def file_size(self, file: Any) -> int:
        return file.stat().length

    def free_bytes(self) -> int:
        return sys.maxsize

    def _list_checkpoints(self) -> list[tuple[int, bool]]:
        """Returns (step, whether it is valid) of every checkpoint, including incomplete ones."""
        self._clear_listing_cache()
        if not self.path.exists():
            return []
        steps = sorted(int(entry.name) for entry in self.path.iterdir() if entry.name.isdecimal())
        return [(step, (self.path / str(step) / LISTING).exists()) for step in steps]

    def _clear_listing_cache(self) -> None:
        """Clears fsspec's cached listings, which miss what Orbax writes without fsspec."""
        from etils.epath import backend

        backend.fsspec_backend.fs(str(self.path)).invalidate_cache()


def open_storage(path: Path | str) -> Directory:
    """Returns the storage at a local path or a bucket URL."""
    return Directory(Path(path)) if run_dir.bucket_url(str(path)) is None else Bucket(str(path))
