"""Files that are there whole or not at all, also after a power cut."""

import contextlib
import json
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any, BinaryIO


def save(path: pathlib.Path, content: bytes) -> None:
    """Write a file so that a kill leaves it whole or absent, and processes that write the same
    one do not meet. OSError names the file."""
    with atomic_write(path) as stream:
        stream.write(content)


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[BinaryIO]:
    """`save` for what is written bit by bit: the file is there, and on the disk, when the block
    is done, and never if it fails."""
    partial = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        sync(path.parent)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot be written ({error.strerror or error}); what is finished is kept",
            str(path),
        ) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def json_bytes(value: Any) -> bytes:
    """How a JSON file of ours is written: for people, too."""
    return (json.dumps(value, indent=1) + "\n").encode()


def sync(path: pathlib.Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk: what a rename promises else
    is lost with the power. Some file systems cannot for directories: then it is left to them."""
    fd = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(fd)
    finally:
        os.close(fd)


def remove_partial(directory: pathlib.Path) -> None:
    """Remove the parts of files that killed processes of this machine left in `directory`."""
    for path in directory.glob(f"*.{socket.gethostname()}-*.partial"):
        try:
            os.kill(
                int(path.name.removesuffix(".partial").rpartition("-")[2]), 0
            )  # signal 0 only asks whether it lives
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except PermissionError:  # it lives, and is another user's
            continue
