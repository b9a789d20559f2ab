"""Points trained as one program, and each by itself: the same curves, the same parameters, runs
that continue."""

import contextlib
import dataclasses
import os
import signal

import numpy as np
import pytest

from gptjax import sweep as program
from gptjax import train
from gptjax.config import schema, sweep
from gptjax.distributed import processes
from gptjax.report import console, events, loss_plot
from gptjax.sweeps import local_runner, run_status, vmapped_runs
from gptjax.training import checkpoint, pretraining
from gptjax.weights import load
from tests import short_run, tiny
from tests.outcomes import expand

SETS = (
    "model.n_layers=1",
    "train.steps=4",
    "loop.every_eval=2",
    "loop.every_log=100",
    "model.dropout.residual=0.1",
)


@pytest.fixture(autouse=True)
def lean(monkeypatch):
    """One device, no samples, no pictures."""
    tiny.limit_devices(monkeypatch, 1)
    monkeypatch.setattr(loss_plot, "draw", lambda run: run)
    monkeypatch.setattr(pretraining.PretrainingObjective, "generate_samples", lambda *args: [])


@pytest.fixture
def asked(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 400)
    points = sweep.grid(
        sweep.each("train.schedule.peak_lr", 1e-3, 1e-2),
        sweep.each("train.optimizer.weight_decay", 0.0, 1.0),
        sweep.seeds(2),
    )
    return sweep.Sweep(
        description="?",
        recipe="smoke",
        points=points,
        overrides=(
            f"data.sources=Text(path='{text}')",
            "data.validation=Tail(fraction=0.1)",
            *SETS,
        ),
    )


def groups_of(points, directory, size=8):
    return vmapped_runs.batchable_groups(
        points, size, lambda point: run_status.saved_step(point, directory)
    )


def train_group(group, directory):
    return vmapped_runs.train_vmapped(group, directory, console.Console(quiet=True))


def stop_at(monkeypatch, step):
    """From here on SIGTERM arrives while step number `step` of this process is computed."""
    steps, real = iter(range(1, step + 1)), vmapped_runs.VmappedRuns.step

    def signaled(*args):
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(vmapped_runs.VmappedRuns, "step", signaled)


def curve(run):
    return [
        (r["step"], name, r[name])
        for r in events.read(run)
        for name in ("loss", "validation_loss", "grad_norm", "lr")
        if name in r
    ]


def test_each_comes_out_as_a_run_by_itself(asked, tmp_path):
    points = expand(asked)
    (group,) = groups_of(points, tmp_path / "all")
    assert train_group(group, tmp_path / "all")
    assert all(run_status.read_status(point, tmp_path / "all").state == "done" for point in points)
    for point in (points[0], points[7]):  # differ in all that varies
        alone = tmp_path / "alone" / point.name
        assert train.main(["--config=smoke", f"--run_dir={alone}", *point.arguments]) == 0
        one, other = curve(tmp_path / "all" / point.name), curve(alone)
        assert [x[:2] for x in one] == [x[:2] for x in other] and len(one) == 14
        np.testing.assert_allclose([x[2] for x in one], [x[2] for x in other], rtol=2e-5)
        mine, its = (load.load(str(run)).config for run in (tmp_path / "all" / point.name, alone))
        assert mine == its == point.config


def test_a_stop_leaves_runs_that_continue_by_themselves(asked, tmp_path, monkeypatch):
    points = expand(dataclasses.replace(asked, points=asked.points[:2]))
    (group,) = groups_of(points, tmp_path)
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert not train_group(group, tmp_path)
    assert [run_status.read_status(point, tmp_path).step for point in points] == [2, 2]
    alone = tmp_path / "alone"
    for run in (tmp_path / points[1].name, alone):
        assert train.main(["--config=smoke", f"--run_dir={run}", *points[1].arguments]) == 0
    one, other = curve(tmp_path / points[1].name), curve(alone)
    assert [x[:2] for x in one] == [x[:2] for x in other]
    np.testing.assert_allclose([x[2] for x in one], [x[2] for x in other], rtol=2e-5)
    assert run_status.read_status(points[1], tmp_path).state == "done"
    with pytest.raises(ValueError, match="points are at different steps: step 2 .*, step 4 "):
        train_group(group, tmp_path)


def test_a_group_continues_from_its_last_intact_checkpoints_as_if_never_stopped(
    asked, tmp_path, monkeypatch
):
    """Both points lose their newest checkpoint, and their records have lines beyond the one before,
    the last of them torn."""
    sets = (*asked.overrides, "train.steps=6", "loop.every_save=2")
    points = expand(dataclasses.replace(asked, points=asked.points[:2], overrides=sets))
    for directory in (tmp_path / "whole", tmp_path / "stopped"):
        (group,) = groups_of(points, directory)
        with monkeypatch.context() as patch:
            if directory.name == "stopped":
                stop_at(patch, 5)
            assert train_group(group, directory) == (directory.name == "whole")
    runs = [tmp_path / "stopped" / point.name for point in points]
    for run in runs:
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "4", "5"]
        (run / "checkpoints" / "5" / "files.json").unlink()
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 6, "loss": 1.0}\n{"step": 7, "lo')
    (group,) = groups_of(points, tmp_path / "stopped")
    assert train_group(group, tmp_path / "stopped")
    for run in runs:
        whole = tmp_path / "whole" / run.name
        assert short_run.curve(run) == short_run.curve(whole)
        saved, expected = (
            checkpoint.CheckpointReader(r / "checkpoints", print)._read_record(6)["leaves"]
            for r in (run, whole)
        )
        assert saved == expected  # digests of every leaf


def test_a_point_whose_updates_are_not_finite_gives_up_and_moves_no_other(asked, tmp_path):
    asked = dataclasses.replace(asked, overrides=(*asked.overrides, "train.max_nonfinite_steps=2"))
    for place, peak in (
        ("well", 1e-3),
        ("ill", 1e30),
    ):  # whose first update is finite, and after it nothing
        edits = (
            ("train.schedule.peak_lr=1e-3", "seed=0"),
            (f"train.schedule.peak_lr={peak}", "seed=1"),
        )
        group = expand(dataclasses.replace(asked, points=edits))
        assert train_group(group, tmp_path / place)
    assert curve(tmp_path / "well" / group[0].name) == curve(
        tmp_path / "ill" / group[0].name
    )  # bit for bit
    given_up = group[1]
    assert run_status.read_status(group[0], tmp_path / "ill").state == "done"
    found = run_status.read_status(given_up, tmp_path / "ill")
    assert (found.state, found.step, found.reason) == (
        "given up",
        3,
        "gave up: 2 updates in a row were not finite, up to step 3",
    )
    assert not list((tmp_path / "ill" / given_up.name).glob("checkpoints/*"))
    progress, through = local_runner.run(
        "smoke",
        [given_up],
        tmp_path / "ill",
        local_runner.make_slots(1, None),
        1,
        lambda progress: None,
    )
    assert through and progress.failures == {given_up.name: found.reason}  # and is not begun again


def test_what_one_program_can_train(tmp_path):
    of = lambda *axes: expand(  # noqa: E731
        sweep.Sweep(description="?", recipe="smoke", points=sweep.grid(*axes))
    )
    seeds = of(sweep.seeds(5))
    assert [len(group) for group in groups_of(seeds, tmp_path, 2)] == [2, 2, 1]
    assert [
        len(g) for g in groups_of(of(sweep.each("model.n_layers", 2, 4), sweep.seeds(2)), tmp_path)
    ] == [2, 2]
    clipped = of(sweep.each("train.optimizer.clip_norm", "1.0", "None"))
    assert len(groups_of(clipped, tmp_path)) == 2
    (tmp_path / "seed=3" / "checkpoints" / "20").mkdir(parents=True)
    names = [[point.name for point in group] for group in groups_of(seeds, tmp_path)]
    assert names == [["seed=0", "seed=1", "seed=2", "seed=4"], ["seed=3"]]
    with pytest.raises(ValueError, match="--vmap=0"):
        groups_of(seeds, tmp_path, 0)


def test_a_record_with_other_values_leaves_the_first_as_it_was():
    config = schema.AdamW(weight_decay=0.1)
    made = vmapped_runs.replace_unchecked(config, {"weight_decay": "traced"})
    assert made.weight_decay == "traced" and config.weight_decay == 0.1 and made.b1 == config.b1


def test_by_the_command(asked, tmp_path, capsys, monkeypatch):
    """One program for both points, watched for hangs."""
    watched, real = [], processes.ProcessGroup.watchdog

    @contextlib.contextmanager
    def watchdog(group, seconds):
        with real(group, seconds):
            watched.append(seconds)
            yield
            watched.append([run_status.read_status(p, tmp_path / "runs").state for p in points])

    asked = dataclasses.replace(asked, overrides=(*asked.overrides, "loop.hang_seconds=77"))
    points = expand(dataclasses.replace(asked, points=asked.points[:2]))
    monkeypatch.setattr(processes.ProcessGroup, "watchdog", watchdog)
    monkeypatch.setattr(
        program.registry, "sweep", lambda name: dataclasses.replace(asked, points=asked.points[:2])
    )
    assert program.main(["--sweep=any", f"--dir={tmp_path / 'runs'}", "--vmap=8"]) == 0
    said = capsys.readouterr().out
    assert "1 of 1 groups" in said and "2 of 2 points done" in said
    assert watched == [77.0, ["done", "done"]]
    assert "step 4  tokens 1.02k  validation loss" in said  # of both: their mean
