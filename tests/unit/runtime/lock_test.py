"""A directory is one program's at a time; the lock ends with the program, however that ends; a
file system without locks is told."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gptjax.runtime import lock

HOLDER = """
import sys, time
from pathlib import Path
from gptjax.runtime import lock
with lock.hold(Path(sys.argv[1]), "run directory", print):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(directory):
    return lock.hold(directory, "run directory", print)


def test_a_second_program_is_refused_until_the_first_is_killed(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        who = f"process {holder.pid} on {socket.gethostname()} works there"
        with pytest.raises(
            ValueError,
            match=(
                f"{tmp_path} is in use: {who}; wait until it ends, stop it, or give another "
                "--run_dir"
            ),
        ):
            with hold(tmp_path):
                pass
        assert lock.owner(tmp_path) == f"{socket.gethostname()} {holder.pid}"
        holder.send_signal(signal.SIGKILL)
    assert lock.owner(tmp_path)  # it stays, but holds nobody back
    with hold(tmp_path):
        assert lock.owner(tmp_path) == f"{socket.gethostname()} {os.getpid()}"
    assert list(tmp_path.iterdir()) == []


def test_a_directory_made_for_the_lock_is_removed_with_it(tmp_path):
    with hold(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / "gptjax.lock").exists()
    assert not (tmp_path / "a" / "b").exists()
    with hold(tmp_path / "c"):
        (tmp_path / "c" / "work").write_text("")
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["work"]
    with pytest.raises(KeyError), hold(tmp_path / "c"):
        raise KeyError
    with hold(tmp_path / "c"):
        pass


def test_a_lock_that_its_holder_removed_meanwhile_is_not_taken_for_one(tmp_path, monkeypatch):
    """Opened before the holder ended, locked after: then a third could make a new file, and lock
    that."""
    real, calls = fcntl.flock, []

    def late(file, how):
        if not calls:
            (tmp_path / "gptjax.lock").unlink()
        calls.append(how)
        return real(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with hold(tmp_path):
        assert len(calls) == 2 and lock.owner(tmp_path).endswith(str(os.getpid()))
        with pytest.raises(ValueError, match="is in use"), hold(tmp_path):
            pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_reported_and_used(tmp_path, monkeypatch, number):
    def none(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    said = []
    with lock.hold(tmp_path, "run directory", said.append):
        assert lock.owner(tmp_path)
    (line,) = said
    assert (
        line.startswith(f"{tmp_path} is on a file system without locks (")
        and "make sure that no other program works there" in line
    )


def test_an_unwritable_directory_is_a_one_line_error(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "run" / "gptjax.lock").mkdir(parents=True)
    for there in (
        tmp_path / "file",
        tmp_path / "file" / "run",
        tmp_path / "run",
        Path("/proc/nowhere"),
    ):
        with pytest.raises(
            ValueError,
            match=(
                f"cannot write to the run directory {there}: .*; make it writable or give another "
                "--run_dir"
            ),
        ):
            with hold(there):
                pass
