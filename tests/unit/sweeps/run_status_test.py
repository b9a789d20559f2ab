"""How far a point is, from its directory alone."""

import json
import pathlib
import re

import pytest

from gptjax import sweep as program
from gptjax.config import overrides, sweep
from gptjax.sweeps import local_runner, run_status
from tests.outcomes import SMOKE, expand

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"


@pytest.fixture
def point():
    (made,) = expand(sweep.Sweep(description="?", recipe="smoke", points=sweep.each("seed", 3)))
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
        description="why?",
        recipe="smoke",
        points=sweep.grid(sweep.seeds(2), sweep.each("train.steps", 3)),
        overrides=("loop.every_log=1",),
    )
    points = expand(asked)
    run_status.write_sweep(tmp_path / "there", "mine", asked, SMOKE, points)
    names = {point.own: point.name for point in points}
    assert run_status.read_sweep(tmp_path / "there") == ("mine", asked, SMOKE, names)
    with pytest.raises(ValueError, match="no sweep is in"):
        run_status.read_sweep(tmp_path)
    record = json.loads((tmp_path / "there" / "sweep.json").read_text())
    (tmp_path / "there" / "sweep.json").write_text(json.dumps(record | {"recipe": "gone.py:mine"}))
    _, sweep_spec, loaded = run_status.load(tmp_path / "there")
    assert sweep_spec.recipe == "gone.py:mine" and loaded == points


def test_a_run_of_another_config_is_not_taken_over(tmp_path, point):
    assert run_status.find_conflict(point, tmp_path) == ""
    other = overrides.override(point.config, "model.n_layers=4")
    (tmp_path / point.name).mkdir()
    (tmp_path / point.name / "config.json").write_text(json.dumps(overrides.flatten(other)))
    assert "holds a run of another config (model.n_layers: 4 -> 2)" in run_status.find_conflict(
        point, tmp_path
    )


@pytest.fixture
def earlier(tmp_path):
    """The directory of a sweep that an earlier version began: its sweep.json, and a finished run of
    two, whose config.json has the old names of fields too."""
    stored = json.loads((GOLDEN / "earlier_sweep.json").read_text())
    for name, content in stored.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)
    (tmp_path / "peak=1e-3,seed=0" / "checkpoints" / "12").mkdir(parents=True)
    return tmp_path


NEW = [("train.schedule.peak_lr=1e-3", "seed=0"), ("train.schedule.peak_lr=1e30", "seed=0")]


def test_a_sweep_of_an_earlier_version_is_read(earlier):
    name, sweep_spec, points = run_status.load(earlier)
    assert name == "smoke_grid" and sweep_spec.description == "smoke by train.schedule.peak"
    assert "train.max_nonfinite_steps=3" in sweep_spec.overrides
    assert [point.own for point in points] == [*NEW, ("model.n_heads=2", "seed=7")]
    assert [point.name for point in points] == [
        "peak=1e-3,seed=0",
        "peak=1e30,seed=0",
        "n_heads=2,seed=7",
    ]
    assert [point.holdout for point in points] == [False, False, True]
    assert [point.error for point in points] == ["", "", ""]
    assert [run_status.read_status(p, earlier).state for p in points] == ["done", "waiting"] + [
        "waiting"
    ]
    assert run_status.read_sweep(earlier)[2] == SMOKE  # it did not store its recipe's config
    # the first version had no points to hold out
    record = json.loads((earlier / "sweep.json").read_text())
    del record["check"]
    (earlier / "sweep.json").write_text(json.dumps(record))
    assert run_status.read_sweep(earlier)[1].holdout == ()


def test_a_sweep_of_an_earlier_version_continues_in_the_directories_it_has(
    earlier, capsys, monkeypatch
):
    """Written anew in the new words, it still has the old names; one that was added has its own."""
    command = ["--config=smoke", "--grid", "train.schedule.peak_lr=1e-3|1e30|2e-3", "--seeds=1"]
    sets = [f"--set={text}" for text in run_status.load(earlier)[1].overrides]
    assert program.main([*command, *sets, f"--dir={earlier}", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert re.search("\npeak=1e-3,seed=0 +done", said)
    assert re.search("\npeak=1e30,seed=0 +waiting", said)
    started = []
    monkeypatch.setattr(
        program.local_runner,
        "run",
        lambda recipe, points, directory, *rest: (
            started.extend(p.name for p in points) or local_runner.Progress(None),
            True,
        ),
    )
    for _ in range(2):
        started.clear()
        program.main([*command, *sets, f"--dir={earlier}"])
        assert started == ["peak=1e-3,seed=0", "peak=1e30,seed=0", "peak_lr=2e-3,seed=0"]
    assert json.loads((earlier / "sweep.json").read_text())["directories"] == started
    assert program.main(["report", str(earlier)]) == 0
    assert "4.933" in capsys.readouterr().out


def test_a_damaged_list_of_directories_is_named(tmp_path):
    asked = sweep.Sweep(description="?", recipe="smoke", points=sweep.seeds(2))
    run_status.write_sweep(tmp_path, "mine", asked, SMOKE, expand(asked)[:1])
    with pytest.raises(ValueError, match="sweep.json: 1 directories for 2 points; restore"):
        run_status.read_sweep(tmp_path)
    assert run_status.stored_directories(tmp_path) == {}
