"""A file that is saved is whole, and on the disk before its name is: a power cut leaves the old
one or the new one."""

import errno
import os
import subprocess
import time

import psutil
import pytest

from gptjax.runtime import atomic, storage


@pytest.fixture
def moments(monkeypatch):
    """What is brought to the disk and what is renamed, by name, in order."""
    seen, fsync, replace, rename = [], os.fsync, os.replace, os.rename

    def synced(number):
        seen.append(f"sync {os.path.basename(os.readlink(f'/proc/self/fd/{number}'))}")
        fsync(number)

    def moved(act):
        return lambda a, b, **more: [
            act(a, b, **more),
            seen.append(f"rename {os.path.basename(b)}"),
        ][0]

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved(replace))
    monkeypatch.setattr(os, "rename", moved(rename))
    return seen


def test_a_file_is_synced_before_its_rename_and_the_rename_before_returning(tmp_path, moments):
    atomic.save(tmp_path / "config.json", b"new")
    assert (tmp_path / "config.json").read_bytes() == b"new"
    assert moments == [
        f"sync config.json.{os.uname().nodename}-{os.getpid()}.partial",
        "rename config.json",
        f"sync {tmp_path.name}",
    ]


def test_a_checkpoint_is_on_the_disk_before_it_is_valid(tmp_path, moments):
    place = storage.Directory(tmp_path)
    (tmp_path / "5.saving" / "d").mkdir(parents=True)
    (tmp_path / "5.saving" / "d" / "values").write_bytes(b"1")
    place.commit(5, "{}")
    assert moments == [
        "sync values",
        "sync files.json",
        "rename 5",
        f"sync {tmp_path.name}",
    ] and place.steps() == [5]


def test_a_file_system_that_cannot_sync_directories_is_tolerated(tmp_path, monkeypatch):
    fsync = os.fsync

    def refused(number):
        if os.path.isdir(f"/proc/self/fd/{number}"):
            raise OSError(22, "Invalid argument")
        fsync(number)

    monkeypatch.setattr(os, "fsync", refused)
    atomic.save(tmp_path / "a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with (
        pytest.raises(OSError, match="Input/output error: 'bucket://a'"),
        atomic.atomic_write(tmp_path / "outer"),
        atomic.atomic_write(tmp_path / "inner"),
    ):
        raise OSError(errno.EIO, "Input/output error", "bucket://a")
    full = OSError(errno.ENOSPC, "No space left on device")
    message = r"cannot be written \(No space left on device\); what is finished is kept: '.*inner'"
    with (
        pytest.raises(OSError, match=f"{message}$"),
        atomic.atomic_write(tmp_path / "outer"),
        atomic.atomic_write(tmp_path / "inner"),
    ):
        raise full
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_also_while_nobody_has_noticed_its_end(tmp_path):
    """A zombie is one whose parent, for an orphan the system's init, has not waited for it."""
    host = os.uname().nodename
    ended = subprocess.Popen(["true"])
    while psutil.Process(ended.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    kept = tmp_path / f"a.npy.{host}-{os.getpid()}.partial"
    others = [tmp_path / f"{name}.npy.{host}-{ended.pid}.partial" for name in "bc"]
    for file in (kept, *others):
        file.touch()
    atomic.remove_partial(tmp_path)
    assert list(tmp_path.iterdir()) == [kept]
    ended.wait()
    others[0].touch()
    atomic.remove_partial(tmp_path)
    assert list(tmp_path.iterdir()) == [kept]
