"""Points trained as one program, and each by itself: the same curves, the same parameters, runs
that go on."""

import dataclasses

import numpy as np
import pytest

from gptjax import sweep as program
from gptjax import train
from gptjax.config import schema, sweep
from gptjax.report import events
from gptjax.sweeps import local_runner, run_status, vmapped_runs
from gptjax.weights import load
from tests.outcomes import expand

SETS = ("train.steps=4", "loop.every_eval=2", "loop.every_log=100", "model.dropout.residual=0.1")


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
        about="?",
        recipe="smoke",
        points=points,
        sets=(f"data.sources=Text(path='{text}')", "data.validation=Tail(fraction=0.1)", *SETS),
    )


def curve(run):
    return [
        (r["step"], name, r[name])
        for r in events.read(run)
        for name in ("loss", "validation_loss", "grad_norm", "lr")
        if name in r
    ]


def test_each_comes_out_as_a_run_by_itself(asked, tmp_path):
    points = expand(asked)
    (group,) = vmapped_runs.batchable_groups(points, 8)
    assert vmapped_runs.train_vmapped(group, tmp_path / "all", lambda line: None, lambda: False)
    assert all(run_status.read_status(point, tmp_path / "all").state == "done" for point in points)
    for point in (points[0], points[7]):  # differ in all that varies
        alone = tmp_path / "alone" / point.name
        assert train.main(["--config=smoke", f"--run={alone}", *point.arguments]) == 0
        one, other = curve(tmp_path / "all" / point.name), curve(alone)
        assert [x[:2] for x in one] == [x[:2] for x in other] and len(one) == 14
        np.testing.assert_allclose([x[2] for x in one], [x[2] for x in other], rtol=2e-5)
        mine, its = (load.load(str(run)).config for run in (tmp_path / "all" / point.name, alone))
        assert mine == its == point.config


def test_a_stop_leaves_runs_that_go_on_by_themselves(asked, tmp_path):
    points = expand(dataclasses.replace(asked, points=asked.points[:2]))
    (group,) = vmapped_runs.batchable_groups(points, 8)
    steps = iter([False, True])
    assert not vmapped_runs.train_vmapped(group, tmp_path, lambda line: None, lambda: next(steps))
    assert [run_status.read_status(point, tmp_path).step for point in points] == [2, 2]
    for point in points:
        assert (
            train.main(["--config=smoke", f"--run={tmp_path / point.name}", *point.arguments]) == 0
        )
    alone = tmp_path / "alone"
    assert train.main(["--config=smoke", f"--run={alone}", *points[1].arguments]) == 0
    one, other = curve(tmp_path / points[1].name), curve(alone)
    assert [x[:2] for x in one] == [x[:2] for x in other]
    np.testing.assert_allclose([x[2] for x in one], [x[2] for x in other], rtol=2e-5)
    assert all(run_status.read_status(point, tmp_path).state == "done" for point in points)


def test_a_point_whose_updates_are_not_finite_gives_up_and_moves_no_other(asked, tmp_path):
    asked = dataclasses.replace(asked, sets=(*asked.sets, "train.max_nonfinite_steps=2"))
    for place, peak in (
        ("well", 1e-3),
        ("ill", 1e30),
    ):  # whose first update is finite, and after it nothing
        edits = (
            ("train.schedule.peak_lr=1e-3", "seed=0"),
            (f"train.schedule.peak_lr={peak}", "seed=1"),
        )
        group = expand(dataclasses.replace(asked, points=edits))
        assert vmapped_runs.train_vmapped(group, tmp_path / place, lambda line: None, lambda: False)
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


def test_what_one_program_can_train():
    of = lambda *axes: expand(  # noqa: E731
        sweep.Sweep(about="?", recipe="smoke", points=sweep.grid(*axes))
    )
    seeds = of(sweep.seeds(5))
    assert [len(group) for group in vmapped_runs.batchable_groups(seeds, 2)] == [2, 2, 1]
    assert [
        len(g)
        for g in vmapped_runs.batchable_groups(
            of(sweep.each("model.n_layers", 2, 4), sweep.seeds(2)), 8
        )
    ] == [2, 2]
    clipped = of(sweep.each("train.optimizer.clip_norm", "1.0", "None"))
    assert len(vmapped_runs.batchable_groups(clipped, 8)) == 2
    with pytest.raises(ValueError, match="--together=0"):
        vmapped_runs.batchable_groups(seeds, 0)


def test_a_record_with_other_values_leaves_the_first_as_it_was():
    config = schema.AdamW(weight_decay=0.1)
    made = vmapped_runs.replace_unchecked(config, {"weight_decay": "traced"})
    assert made.weight_decay == "traced" and config.weight_decay == 0.1 and made.b1 == config.b1


def test_by_the_command(asked, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        program.registry, "sweep", lambda name: dataclasses.replace(asked, points=asked.points[:2])
    )
    assert program.main(["--sweep=any", f"--dir={tmp_path / 'runs'}", "--together=8"]) == 0
    said = capsys.readouterr().out
    assert "1 of 1 groups" in said and "2 of 2 points done" in said
