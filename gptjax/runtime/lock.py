"""Directory lock: one program at a time, by an operating system lock that ends with the program
however that ends.
"""

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LOCK_FILE = "gptjax.lock"
# Errors of file systems without locks.
NO_LOCK_ERRNOS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def hold(directory: Path, what: str, warn: Callable[[str], None]) -> Iterator[None]:
    """While entered, locks `directory` (created if missing) for this program; its file gptjax.lock
    names the owner.

    what: "run directory" or similar, for error messages. Raises a one-line ValueError if another
    program holds it (with host and pid), or if it cannot be written. On a file system without locks
    `warn` is called, and two programs can collide.
    """
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
            # Before the lock is released: a program that opened the file meanwhile sees that it is
            # gone, and tries again.
            (directory / LOCK_FILE).unlink()
            if made:
                directory.rmdir()  # fails, and stays, unless empty
        file.close()


def _open(path: Path, warn: Callable[[str], None]) -> Any:
    """Opens and locks the file and writes this process's name into it; None if another process
    holds it.
    """
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
                f"{path.parent} is on a file system without locks ({error.strerror}): make sure "
                "that no other program works there"
            )
        try:
            # Otherwise its last holder has removed the file.
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                file.truncate(0)
                file.write(f"{socket.gethostname()} {os.getpid()}\n".encode())
                os.fsync(file.fileno())  # other hosts read it
                return file
        except FileNotFoundError:
            pass
        file.close()


def owner(directory: Path) -> str:
    """Returns the owner in the lock file of `directory`, "HOST PID"; "" if there is none."""
    try:
        return (directory / LOCK_FILE).read_text(errors="replace").strip()
    except OSError:
        return ""


def _describe_owner(directory: Path) -> str:
    """Describes the holder of the lock, which writes its name right after locking."""
    for _ in range(20):
        host, _, pid = owner(directory).partition(" ")
        if pid:
            return f"process {pid} on {host}"
        time.sleep(0.05)
    return "another program"


def _flag_name(what: str) -> str:
    return "--run_dir" if what == "run directory" else "directory"
