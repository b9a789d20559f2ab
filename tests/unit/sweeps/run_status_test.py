"""How far a point is, from its directory alone."""

import json

import pytest

from gptjax.config import overrides, sweep
from gptjax.sweeps import run_status
from tests.outcomes import SMOKE, expand


@pytest.fixture
def point():
    (made,) = expand(sweep.Sweep(about="?", recipe="smoke", points=sweep.each("seed", 3)))
    return made


def records(directory, point, *lines):
    there = directory / point.name
    there.mkdir(exist_ok=True)
    (there / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return there


def test_from_nothing_to_done(tmp_path, point):
    assert run_status.read_status(point, tmp_path) == run_status.RunStatus("waiting", 0, 40, None)
    there = records(
        tmp_path,
        point,
        {"step": 1, "loss": 4.0},
        {"step": 1, "validation_loss": 3.9},
        {"step": 2, "loss": 3.8},
    )
    assert run_status.read_status(point, tmp_path) == run_status.RunStatus("begun", 2, 40, 3.9)
    records(tmp_path, point, {"step": 40, "loss": 3.0}, {"step": 40, "validation_loss": 3.1})
    assert run_status.read_status(point, tmp_path).state == "begun"  # not saved yet
    (there / "checkpoints/40").mkdir(parents=True)
    assert run_status.read_status(point, tmp_path) == run_status.RunStatus("done", 40, 40, 3.1)


def test_a_torn_line_and_a_loss_that_is_no_number_are_passed_over(tmp_path, point):
    there = records(
        tmp_path, point, {"step": 1, "validation_loss": 3.9}, {"step": 2, "validation_loss": "NaN"}
    )
    with (there / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "validation_')
    assert run_status.read_status(point, tmp_path).loss == 3.9


def test_of_a_long_record_the_end_is_read(tmp_path, point):
    lines = [{"step": n, "loss": 4.0} for n in range(1, 3000)] + [
        {"step": 3000, "validation_loss": 2.5}
    ]
    records(tmp_path, point, *lines)
    assert (
        run_status.read_status(point, tmp_path).loss == 2.5
        and run_status.read_status(point, tmp_path).step == 3000
    )


def test_the_record_of_a_sweep_comes_back(tmp_path):
    asked = sweep.Sweep(
        about="why?",
        recipe="smoke",
        points=sweep.grid(sweep.seeds(2), sweep.each("train.steps", 3)),
        sets=("loop.every_log=1",),
    )
    run_status.write_sweep(tmp_path / "there", "mine", asked, SMOKE)
    assert run_status.read_sweep(tmp_path / "there") == ("mine", asked, SMOKE)
    with pytest.raises(ValueError, match="no sweep is in"):
        run_status.read_sweep(tmp_path)


def test_a_run_of_another_config_is_not_taken_over(tmp_path, point):
    assert run_status.find_conflict(point, tmp_path) == ""
    other = overrides.override(point.config, "model.n_layers=4")
    (tmp_path / point.name).mkdir()
    (tmp_path / point.name / "config.json").write_text(json.dumps(overrides.flatten(other)))
    assert "holds a run of another config (model.n_layers: 4 -> 2)" in run_status.find_conflict(
        point, tmp_path
    )


def test_a_sweep_is_read_as_it_was_written_and_older_ones_too(tmp_path):
    asked = sweep.Sweep(
        about="?",
        recipe="smoke",
        points=sweep.seeds(2),
        sets=("train.steps=3",),
        check=sweep.each("seed", 7),
    )
    run_status.write_sweep(tmp_path, "mine", asked, SMOKE)
    assert run_status.read_sweep(tmp_path) == ("mine", asked, SMOKE)
    record = json.loads((tmp_path / "sweep.json").read_text())
    (tmp_path / "sweep.json").write_text(json.dumps(record | {"recipe": "gone.py:mine"}))
    _, sweep_spec, points = run_status.load(tmp_path)
    assert sweep_spec.recipe == "gone.py:mine" and points == expand(asked)
    del record["check"], record["config"]
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    _, old, recipe = run_status.read_sweep(tmp_path)
    assert old.check == () and old.points == sweep.seeds(2) and recipe == SMOKE
