"""What cannot be removed is told, is out of the way, and goes when it can."""

import shutil

import pytest

from gptjax.runtime import storage


@pytest.fixture
def busy(monkeypatch):
    """Names whose removal fails, as on NFS while another host reads there."""
    names, real = set(), shutil.rmtree

    def rmtree(path, *args, **kwargs):
        if any(name in path.name for name in names):
            raise OSError(39, "Directory not empty", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    return names


def made(tmp_path, *names):
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "held").write_text("")
    return storage.Directory(tmp_path)


def there(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir())


def test_a_checkpoint_that_cannot_be_removed_is_no_longer_listed(tmp_path, busy):
    place = made(tmp_path, "10", "20")
    busy.add("removed")
    with pytest.raises(OSError, match="Directory not empty"):
        place.remove(10)
    assert place.steps() == [20] and place.clean() == [
        f"{place.path}/10.removed cannot be removed: Directory not empty"
    ]
    made(tmp_path, "10")
    with pytest.raises(OSError):
        place.remove(10)  # a second one of that step takes another name
    assert there(tmp_path) == ["10.removed", "10.removed-1", "20"] and len(place.clean()) == 2
    busy.clear()
    assert place.clean() == [] and there(tmp_path) == ["20"]


def test_leftovers_of_a_save_are_moved_out_of_the_way(tmp_path, busy):
    place = made(tmp_path, "30.saving")
    busy.add("saving")
    assert place.clean() == [f"{place.path}/30.saving cannot be removed: Directory not empty"]
    assert not place.staging_path(30).exists() and there(tmp_path) == ["30.removed"]
    made(tmp_path, "30", "30.saving")
    place.commit(30, "{}")
    assert place.steps() == [30] and (tmp_path / "30" / "files.json").exists()
    assert place.clean() == [] and there(tmp_path) == ["30"]
