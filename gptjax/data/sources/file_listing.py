"""The files of text that a path names, on this machine or at any place that fsspec opens."""

import contextlib
import dataclasses
import errno
import glob
import io
import pathlib
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

from gptjax.config import find_files
from gptjax.runtime import errors

# What file systems call a mark that changes with the content of a file.
STAMPS = ("etag", "ETag", "md5Hash", "blob_id", "generation", "mtime", "LastModified", "created")
RETRY_SECONDS = (1, 5, 30)  # waits before a failed read is tried again


@dataclasses.dataclass(frozen=True)
class File:
    """A file. name: as `open_file` takes it. size: in bytes; None if it is not known. stamp: a mark
    that changes with its content, such as its time or an ETag."""

    name: str
    size: int | None
    stamp: str


def list_files(
    path: str, formats: find_files.Formats = find_files.FORMATS
) -> tuple[list[File], str | None]:
    """Returns (the files that a file, directory or glob names, by name; a remark on what is
    skipped, as find_files.Listing.remark). formats: extension -> format, of which they are. Raises
    a one-line ValueError if there is none, or the place cannot be reached."""
    if "://" in path:
        return _list_remote(path, formats)
    listing = find_files.find(path, formats)
    files = [
        File(str(file), state.st_size, str(state.st_mtime_ns))
        for file, state in listing.states.items()
    ]
    return files, listing.remark()


@contextlib.contextmanager
def open_file(name: str) -> Iterator[BinaryIO]:
    """Opens a file for reading bytes. Raises OSError, then or while it is read."""
    with contextlib.ExitStack() as stack:
        if "://" not in name:
            yield stack.enter_context(open(name, "rb"))
            return
        try:
            import fsspec.core

            opened: Any = fsspec.core.open(name, "rb")
            raw = _RemoteFile(stack.enter_context(opened), name)
        except Exception as error:  # every file system has its own
            raise _as_os_error(error, name) from None
        yield stack.enter_context(io.BufferedReader(raw))


class _RemoteFile(io.RawIOBase):
    """A file of fsspec, whose files of S3, GCS and HTTP lack what Python's have, such as
    readline(size). A read that the network fails is tried again."""

    def __init__(self, file: Any, name: str):
        self._file, self._name = file, name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any, /) -> int:
        start = self._file.tell()
        for seconds in (*RETRY_SECONDS, None):
            try:
                content = self._file.read(len(buffer))
                break
            except Exception as error:  # every file system has its own
                if seconds is None or not _is_of_network(error):
                    raise _as_os_error(error, self._name) from None
            time.sleep(seconds)
            self._file.seek(start)
        buffer[: len(content)] = content
        return len(content)


def _is_of_network(error: Exception) -> bool:
    """Whether another try may help."""
    return isinstance(error, ConnectionError | TimeoutError) or (
        type(error).__module__.startswith("aiohttp.")
    )


def _as_os_error(error: Exception, name: str) -> OSError:
    reason = isinstance(error, OSError) and error.strerror or errors.first_line(error)
    return OSError(errno.EIO, reason or type(error).__name__, name)


def _list_remote(path: str, formats: find_files.Formats) -> tuple[list[File], str | None]:
    try:
        import fsspec.core

        file_system, root = fsspec.core.url_to_fs(path)
        infos = _infos(file_system, root)
        names = {found: file_system.unstrip_protocol(found) for found in infos}
    except Exception as error:  # every file system has its own
        reason = f"{type(error).__name__}: {errors.first_line(error)}"
        raise ValueError(f"{path} cannot be read by fsspec ({reason})") from None
    outer = path.partition("::")[2]  # of zip://*.html::s3://bucket/pages.zip
    files, skipped = [], []
    for found, info in infos.items():
        name = pathlib.PurePosixPath(found)
        if info["type"] != "file":
            continue
        if not find_files.file_type(name, formats)[0] or name.name.startswith("."):
            skipped.append(name.name)
            continue
        if info.get("size") is None:  # HTTP's listings have no sizes
            info = file_system.info(found)
        stamp = next((str(info[key]) for key in STAMPS if info.get(key)), "")
        files.append(File(names[found] + f"::{outer}" * bool(outer), info["size"], stamp))
    if not files:
        hint = find_files.format_hint(formats)
        raise ValueError(f"{path}: there is no file of text; {hint}")
    remark = f"skipped: {len(skipped):,} of unknown format ({', '.join(sorted(skipped)[:3])})"
    return sorted(files, key=lambda file: file.name), remark if skipped else None


def _infos(file_system: Any, root: str) -> dict[str, dict[str, Any]]:
    """Path -> what the file system says of it, of every entry that a path or glob names."""
    if glob.has_magic(root):
        return file_system.glob(root, detail=True)
    info = file_system.info(root)
    return {root: info} if info["type"] == "file" else file_system.find(root, detail=True)
