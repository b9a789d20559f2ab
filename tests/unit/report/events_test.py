"""metrics.jsonl is valid JSON, exact, and after a kill and a resume reads like the uninterrupted
run."""

import errno
import hashlib
import json
import math
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from gptjax.report import events
from gptjax.runtime import errors


def board_events(run):
    """What TensorBoard's files hold: a record is an 8-byte length, a 4-byte checksum, the event,
    a 4-byte checksum."""
    found = []
    for file in sorted((run / "tensorboard").iterdir()):
        raw = file.read_bytes()
        while raw:
            size = int.from_bytes(raw[:8], "little")
            found.append(event_pb2.Event.FromString(raw[12 : 12 + size]))
            raw = raw[16 + size :]
    return found


def test_values_are_exact_and_in_the_order_given(tmp_path):
    third = np.float32(1 / 3)
    with events.Events(tmp_path, 0) as record:
        record.write(1, {"tokens": 512, "loss": float(third), "lr": 1e-300, "note": "hello"})
        assert len(events.read(tmp_path)) == 1  # before it is closed
        record.write(2, {"loss": third, "tokens": np.int64(1024)})
    assert (
        (tmp_path / "metrics.jsonl")
        .read_text()
        .startswith('{"step": 1, "tokens": 512, "loss": 0.3333333432674408, "lr": 1e-300, "note"')
    )
    first, second = events.read(tmp_path)
    assert first == {"step": 1, "tokens": 512, "loss": float(third), "lr": 1e-300, "note": "hello"}
    assert np.float32(second["loss"]) == third and second["tokens"] == 1024


def test_what_is_not_a_number_is_valid_json(tmp_path):
    with events.Events(tmp_path, 0) as record:
        record.write(1, {"loss": math.nan, "up": math.inf, "down": -math.inf})

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line == {"step": 1, "loss": "NaN", "up": "Infinity", "down": "-Infinity"}
    (back,) = events.read(tmp_path)
    assert math.isnan(back["loss"]) and back["up"] == math.inf and back["down"] == -math.inf


@pytest.mark.parametrize(
    "torn", ["", '{"step": 5, "lo', '{"step": 5}', '{"step": 5, "loss": 1.0}\n{"st']
)
def test_a_killed_run_reads_like_the_uninterrupted_one(tmp_path, torn):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    with events.Events(whole, 0) as record:
        for step in range(1, 8):
            record.write(step, {"loss": 1 / step})
    with events.Events(killed, 0) as record:
        for step in range(1, 5):
            record.write(step, {"loss": 1 / step})
    with (killed / "metrics.jsonl").open("a") as file:
        file.write(torn)
    assert events.read(killed)[3] == {"step": 4, "loss": 0.25}
    with events.Events(killed, 3) as record:
        for step in range(3, 8):
            record.write(step, {"loss": 1 / step})
    assert (killed / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert [entry.name for entry in killed.iterdir() if entry.suffix == ".tmp"] == []


def test_a_new_run_starts_an_empty_record(tmp_path):
    with events.Events(tmp_path, 0) as record:
        record.write(0, {"loss": 1.0})
    events.Events(tmp_path, 0).close()
    assert events.read(tmp_path) == [] and (tmp_path / "metrics.jsonl").read_text() == ""


def test_no_record_is_empty_and_a_broken_middle_is_named(tmp_path):
    assert events.read(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2, is not a record of a step"):
        events.read(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"stop": 1}\n')
    with pytest.raises(ValueError, match="line 1, is not a record"):
        events.read(tmp_path)


def test_tensorboard_gets_the_same_numbers_and_hides_what_is_taken_again(tmp_path):
    with events.Events(tmp_path, 0) as record:
        for step in (1, 2, 3):
            record.write(step, {"loss": 1 / step})
    with events.Events(tmp_path, 2) as record:
        record.write(2, {"loss": 0.5})
    found = board_events(tmp_path)
    scalars = [(e.step, v.tag, v.simple_value) for e in found for v in e.summary.value]
    assert sorted(scalars) == sorted([(s, "loss", float(np.float32(1 / s))) for s in (1, 2, 3, 2)])
    restarts = [e.step for e in found if e.session_log.status == event_pb2.SessionLog.START]
    assert sorted(restarts) == [0, 2]


# --- what a checkpoint knows of the record --------------------------------------------------------


def sealed(directory, steps):
    """The seal after so many steps, of which two more follow."""
    with events.Events(directory, 0) as record:
        for step in range(1, steps + 1):
            record.write(step, {"loss": 1 / step})
        seal = record.seal(steps)
        for step in (steps + 1, steps + 2):
            record.write(step, {"loss": 1 / step})
    return seal


def test_a_run_goes_on_after_the_bytes_that_its_checkpoint_knows(tmp_path):
    seal = sealed(tmp_path, 4)
    file = tmp_path / "metrics.jsonl"
    whole = file.read_bytes()
    for rest in (
        whole,
        whole[: seal["bytes"]],
        whole[:-5],
        whole[: seal["bytes"]] + b"\xff\x00\n{",
    ):  # what follows does not matter
        file.write_bytes(rest)
        assert events.check(tmp_path, 4, seal) == seal["bytes"]
    with events.Events(tmp_path, 5, events.check(tmp_path, 4, seal)) as record:
        record.write(5, {"loss": 1 / 5})
        assert (
            record.seal(5)["sha256"]
            == hashlib.sha256(b"".join(whole.splitlines(True)[:5])).hexdigest()
        )
    assert file.read_bytes() == b"".join(whole.splitlines(True)[:5])


DAMAGE = {
    "a digit": (lambda b: b.replace(b"0.5", b"0.6"), "some lines were changed"),
    "half": (lambda b: b[:30], "the line of step 2 is not where it should be"),
    "nothing": (lambda b: b"", "the line of step 1 is not where it should be"),
    "no file": (None, "the line of step 1 is not where it should be"),
    "a line": (
        lambda b: b"".join(b.splitlines(True)[:1] + b.splitlines(True)[2:]),
        "the line of step 2 is not where it should be",
    ),
    "twice": (lambda b: b.splitlines(True)[0] + b, "the line of step 2 is not where it should be"),
    "turned": (
        lambda b: b"".join(b.splitlines(True)[::-1]),
        "the line of step 1 is not where it should be",
    ),
    "no UTF-8": (lambda b: b.replace(b"loss", b"lo\xffs", 1), "line 1, is not a record of a step"),
    "no JSON": (lambda b: b.replace(b"}", b"", 1), "line 1, is not a record of a step"),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("known", [True, False])
def test_a_changed_record_is_reported(tmp_path, name, known):
    """Also for a checkpoint of an earlier version, which knows nothing of it; but then a digit
    may be another."""
    change, message = DAMAGE[name]
    seal, file = sealed(tmp_path, 4), tmp_path / "metrics.jsonl"
    content = file.read_bytes()
    file.unlink()
    if change:
        file.write_bytes(change(content))
    if name == "a digit" and not known:
        assert events.check(tmp_path, 4, None) == seal["bytes"]
        return
    with pytest.raises(ValueError) as refused:
        events.check(tmp_path, 4, seal if known else None)
    said = str(refused.value)
    assert (
        said.startswith(f"{file} is not as it was when step 4 was saved: {message}")
        and "\n" not in said
        and "\ufffd" not in said[:99]
    )
    assert said.endswith(
        "put a copy of it back, give another --run_dir, or --new_record continues from the "
        "checkpoints "
        "alone"
    )


def test_a_line_that_lost_only_its_end_is_whole(tmp_path):
    sealed(tmp_path, 2)
    file = tmp_path / "metrics.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert [line["step"] for line in events.read(tmp_path)] == [1, 2, 3, 4]
    with events.Events(tmp_path, 5, events.check(tmp_path, 4, None)) as record:
        record.write(5, {"loss": 0.2})
    assert file.read_bytes() == whole + b'{"step": 5, "loss": 0.2}\n'


def test_a_full_disk_is_one_line(tmp_path, capfd):
    """The file and the step are named, nothing is left to be written at the end, and TensorBoard
    ends with a line."""

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    class Full:
        def __init__(self, room):
            self.room, self.file = room, (tmp_path / "metrics.jsonl").open("ab", buffering=0)

        def write(self, content):
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            n, self.room = min(self.room, len(content)), max(0, self.room - len(content))
            return self.file.write(content[:n])

        def close(self):
            self.file.close()

    said = []
    with pytest.raises(OSError) as error, events.Events(tmp_path, 0, warn=said.append) as record:
        record.write(1, {"loss": 1.0})
        record._file.close()
        record._file = Full(35)
        record._board.close()
        record._board._writer = SimpleNamespace(write_event=full, flush=full, close=full)
        record.write(2, {"loss": 0.5})
        record.write(3, {"loss": 0.25})
    status, line = errors.classify_error(error.value)
    assert status == 2 and line == (
        f"{tmp_path / 'metrics.jsonl'}: cannot be written at step 3 (No space left on device); "
        "fix that, and the same command continues"
    )
    assert said == ["TensorBoard receives no more of this run: No space left on device"]
    assert (
        tmp_path / "metrics.jsonl"
    ).read_bytes() == b'{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n{"step": 3'
    assert [line["step"] for line in events.read(tmp_path)] == [1, 2] and capfd.readouterr() == (
        "",
        "",
    )


def test_a_record_that_is_set_aside_is_never_overwritten(tmp_path):
    for content in ("a", "b"):
        (tmp_path / "metrics.jsonl").write_text(content)
        events.move_aside(tmp_path, 8)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "metrics.jsonl.lost-1": "a",
        "metrics.jsonl.lost-2": "b",
    }
    events.move_aside(tmp_path / "none", 8)


def test_torch_is_hidden_for_a_while_where_it_was_not_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with events._hide_torch(), pytest.raises(ImportError):
        import torch  # noqa: F401
    assert "torch" not in sys.modules
    monkeypatch.setitem(sys.modules, "torch", sys)
    with events._hide_torch():
        assert sys.modules["torch"] is sys
    assert sys.modules["torch"] is sys
