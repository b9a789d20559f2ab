"""One program at a time in a directory: a lock of the operating system, which ends with the
program however that ends."""

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LOCK_FILE = "gptjax.lock"
NO_LOCK_ERRNOS = (
    errno.ENOLCK,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EINVAL,
)  # file systems that have no locks say one of these


@contextlib.contextmanager
def hold(directory: Path, what: str, warn: Callable[[str], None]) -> Iterator[None]:
    """While entered, `directory`, which is made, is this program's alone; gptjax.lock in it says
    whose. what: "run directory", for errors.

    ValueError, in one line, if another program has it (its host and pid named), or if it cannot be
    written. Where the file system has no locks, `warn` is told so, and two programs can meet."""
    made = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = _open(directory / LOCK_FILE, warn)
    except OSError as error:
        raise ValueError(
            f"cannot write to the {what} {directory}: {error.strerror}; make it writable or give "
            f"another {_flag_name(what)}"
        ) from error
    if file is None:
        raise ValueError(
            f"{directory} is in use: {_describe_owner(directory)} works there; wait until it ends, "
            "stop it, or give another "
            f"{_flag_name(what)}"
        )
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            # before the lock is given back: who has opened it meanwhile sees that it is gone, and
            # tries again
            (directory / LOCK_FILE).unlink()
            if made:
                directory.rmdir()  # where nothing was put there
        file.close()


def _open(path: Path, warn: Callable[[str], None]) -> Any:
    """The file, locked, and saying that it is ours; None if another has it."""
    import fcntl

    while True:
        file = path.open("a+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCK_ERRNOS:
                file.close()
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    return None
                raise
            warn(
                f"{path.parent} is on a file system without locks ({error.strerror}): see that no "
                "other program works there"
            )
        try:
            if (
                os.fstat(file.fileno()).st_ino == path.stat().st_ino
            ):  # else its last holder has removed it
                file.truncate(0)
                file.write(f"{socket.gethostname()} {os.getpid()}\n".encode())
                os.fsync(file.fileno())  # other hosts look at it
                return file
        except FileNotFoundError:
            pass
        file.close()


def owner(directory: Path) -> str:
    """What the lock of `directory` says, which is "HOST PID"; "" where there is none."""
    try:
        return (directory / LOCK_FILE).read_text(errors="replace").strip()
    except OSError:
        return ""


def _describe_owner(directory: Path) -> str:
    """Who has the lock: it writes that as soon as it has it."""
    for _ in range(20):
        host, _, pid = owner(directory).partition(" ")
        if pid:
            return f"process {pid} on {host}"
        time.sleep(0.05)
    return "another program"


def _flag_name(what: str) -> str:
    return "--run" if what == "run directory" else "directory"
