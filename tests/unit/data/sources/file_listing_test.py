import pytest

from gptjax.data.sources import file_listing
from tests import bucket

CONTENT = bytes(range(256)) * 2**16


@pytest.fixture
def place(monkeypatch):
    waits = []
    monkeypatch.setattr(file_listing.time, "sleep", waits.append)
    place = bucket.BucketFileSystem()
    place.pipe("/files/a.bin", CONTENT)
    place.waits = waits
    yield place
    place.errors.clear()
    place.rm("/files", recursive=True)


def read(name="bucket://files/a.bin"):
    with file_listing.open_file(name) as file:
        file.seek(1000)
        return file.read(5) + file.read()


def test_a_read_that_the_network_fails_is_tried_again(place):
    place.errors[:] = [ConnectionResetError("gone"), TimeoutError()]
    assert read() == CONTENT[1000:] and place.waits == [1, 5]


def test_a_network_that_stays_away_is_an_error_with_the_name_of_the_file(place):
    place.errors[:] = [ConnectionError("host is gone")] * 9
    with pytest.raises(OSError, match="host is gone: 'bucket://files/a.bin'"):
        read()
    assert place.waits == [1, 5, 30]


@pytest.mark.parametrize("error", [ValueError("no ranges"), PermissionError(13, "not yours")])
def test_other_errors_are_not_tried_again(place, error):
    place.errors[:] = [error]
    with pytest.raises(OSError, match="(no ranges|not yours): 'bucket://files/a.bin'"):
        read()
    assert place.waits == []


def test_a_file_that_is_not_there_is_an_os_error(place):
    with pytest.raises(OSError, match="bucket://files/b.bin"):
        read("bucket://files/b.bin")
