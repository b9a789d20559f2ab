"""metrics.jsonl is valid JSON, exact, and after a kill and a resume reads like the uninterrupted run."""

import json
import math

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from gptjax.report import events


def board_events(run):
    """What TensorBoard's files hold: a record is an 8-byte length, a 4-byte checksum, the event, a 4-byte checksum."""
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
        (tmp_path / "metrics.jsonl").read_text().startswith('{"step": 1, "tokens": 512, "loss": 0.3333333432674408, "lr": 1e-300, "note"')
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


@pytest.mark.parametrize("torn", ["", '{"step": 5, "lo', '{"step": 5}', '{"step": 5, "loss": 1.0}\n{"st'])
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
