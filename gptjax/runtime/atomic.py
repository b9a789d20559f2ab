"""Atomic file writes: a file exists completely or not at all, even after a power failure."""

import contextlib
import json
import os
import pathlib
import shutil
import socket
from collections.abc import Iterator
from typing import Any, BinaryIO


def save(path: pathlib.Path, content: bytes) -> None:
    """Writes a file atomically; concurrent writers of the same file do not interfere. Raises
    OSError with the file's name.
    """
    with atomic_write(path) as stream:
        stream.write(content)


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Context manager of `save` for content written in parts: the file appears, synced to disk,
    when the block completes, and never if it fails. Raises OSError with the file's name; one of the
    block about another file is raised as it is.
    """
    partial = _partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        sync(path.parent)
    except OSError as error:
        name = error.filename
        if name is not None and pathlib.Path(name) not in (partial, *partial.parents):
            raise
        raise OSError(
            error.errno,
            f"cannot be written ({error.strerror or error}); what is finished is kept",
            str(path),
        ) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def link(path: pathlib.Path, new: pathlib.Path) -> None:
    """Makes `new` a link to a file, or a copy where the file system has no links."""
    if new.exists() and new.samefile(path):
        return
    partial = _partial_path(new)
    try:
        os.link(path, partial)
        partial.replace(new)
    except OSError:
        with atomic_write(new) as out, path.open("rb") as content:
            shutil.copyfileobj(content, out)


def _partial_path(path: pathlib.Path) -> pathlib.Path:
    """The file in which this process prepares `path`."""
    return path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.partial")


def json_bytes(value: Any) -> bytes:
    """Returns a value as the content of a JSON file, indented for human readers."""
    return (json.dumps(value, indent=1) + "\n").encode()


def sync(path: pathlib.Path) -> None:
    """Waits until a file, or the entries of a directory, are on disk; otherwise a power failure
    could lose a rename. Skipped for directories where the file system does not support it.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(fd)
    finally:
        os.close(fd)


def remove_partial(directory: pathlib.Path) -> None:
    """Removes partial files in `directory` that killed processes on this machine left behind."""
    for path in directory.glob(f"*.{socket.gethostname()}-*.partial"):
        if not _is_running(int(path.name.removesuffix(".partial").rpartition("-")[2])):
            path.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    """Whether a process exists and has not ended: as a zombie it waits for its parent, which may
    be an init that takes its time."""
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # another user's
        return True
