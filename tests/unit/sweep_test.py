"""The program's arguments: which sweep, what is printed for launchers, what is refused."""

import json
import os
import shlex

import pytest
import yaml

from gptjax import sweep, train
from gptjax.config import count, overrides
from gptjax.config.batch_schedule import BatchSchedule
from gptjax.configs import registry
from gptjax.runtime import lock
from gptjax.sweeps import run_status
from tests.outcomes import expand

GRID = ["--config=smoke", "--grid", "train.schedule.peak_lr=1e-3|3e-3"]


def test_a_dry_run_shows_every_point_and_makes_nothing(tmp_path, capsys):
    assert sweep.main([*GRID, "--seeds=2", f"--dir={tmp_path / 's'}", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert (
        said.count("  waiting      34,720     40  2.14e+09\n") == 4
        and f"\n{'point':19}  state    parameters  steps     FLOPs\n" in said
        and "8.58e+09 FLOPs in all" in said
        and not (tmp_path / "s").exists()
    )
    assert sweep.main(["--config=smoke", "--grid", "model.n_heads=2|5", "--dry-run"]) == 1
    assert "n_heads=5  refused: " in capsys.readouterr().out
    assert sweep.main(["--sweep=smoke_peak", "--grid", "model.n_layers=2|4", "--dry-run"]) == 0
    assert "8 points of smoke in runs/sweeps/smoke_peak" in capsys.readouterr().out
    assert (
        sweep.main(["--sweep=sizes", "--seeds=2", "--dry-run"]) == 0
    )  # what is to check the laws, too
    assert "32 points of micro" in capsys.readouterr().out


@pytest.mark.parametrize(
    "sets",
    [
        ["train.steps=20"],
        ["train.total_tokens=10_000"],
        ["train.batch_ramp=Ramp(start_tokens=64,over_tokens=5000)"],
    ],
)
def test_a_dry_run_and_the_report_count_the_flops_of_the_steps_that_are_taken(
    sets, tmp_path, capsys
):
    config = overrides.override(registry.config("smoke"), *sets)
    batches = BatchSchedule(config)
    flops = count.train_flops_per_token(config.model) * sum(
        batches.rows(step) * config.model.n_ctx for step in range(batches.n_steps)
    )
    arguments = [
        "--config=smoke",
        "--seeds=2",
        f"--dir={tmp_path}",
        *(part for edit in sets for part in ("--set", edit)),
    ]
    assert sweep.main([*arguments, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert (
        said.count(f" {batches.n_steps}  {flops:.2e}\n") == 2
        and f"{2 * flops:.2e} FLOPs in all" in said
    )
    name, asked, recipe = sweep.parse_sweep(sweep.parse_arguments(arguments))
    run_status.write_sweep(tmp_path, name, asked, recipe, expand(asked))
    assert sweep.main(["report", str(tmp_path)]) == 0
    assert f"| {flops:.2e}" in capsys.readouterr().out


def test_the_sweeps_are_listed(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert sweep.main(["--list"]) == 0
    said = capsys.readouterr().out
    assert "smoke_peak" in said and "16 points of micro" in said
    assert "for another\n    English text (state" in said
    assert all(len(line) <= 80 for line in said.splitlines())


@pytest.mark.parametrize(
    "arguments,message",
    [
        ([], "say which sweep: --sweep=NAME"),
        (["--sweep=smoke_peak", "--seeds=2"], "are the same run"),  # it has seeds of its own
        (["--grid", "seed=1|2"], "--grid and --seeds vary a recipe: say which with --config=NAME"),
        (["--config=smoke", "--grid", "seed"], "--grid seed: give a path and its values"),
        (["--config=smoke", "--grid", "seed=1|"], "--grid seed=1|: give a path and its values"),
        (
            [*GRID, *(f"--grid=model.n_layers={'|'.join(map(str, range(100)))}" for _ in range(2))],
            "axes of 2 x 100 x 100 points: a sweep has",
        ),
        ([*GRID, "--jobs=9999"], "--jobs=9999: give 1 to"),
        ([*GRID, "--dir="], "an empty path"),
        ([*GRID, "--tune=2", "--point=1"], "--tune=2 chooses points by the results of others"),
        ([*GRID, "--tune=2", "--launch=slurm"], "--tune=2 chooses points by the results of others"),
        ([*GRID, "--point=2"], "--point=2: give 0 to 1"),
        ([*GRID, "--", "--nodes=2"], "--nodes=2: what stands after -- is for a launcher"),
        ([*GRID, "--dir=gs://b/s"], "--dir=gs://b/s: a sweep on this machine goes to a directory"),
        (
            ["--config=smoke", "--grid", "model.n_heads=2|5", "--launch=slurm"],
            "points that cannot be: n_heads=5",
        ),
    ],
)
def test_invalid_arguments_are_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as refused:
        sweep.main(arguments)
    assert (
        message in str(refused.value)
        and "\n" not in str(refused.value)
        and not list(tmp_path.iterdir())
    )


@pytest.mark.parametrize(
    "flag", ["--seeds", "--jobs", "--devices", "--vmap", "--retries", "--point", "--tune"]
)
@pytest.mark.parametrize(
    "value", ["-1", "0", "1.5", "nan", "1e19", "9" * 5000, "\u0662x", "", "True"]
)
def test_numbers_are_whole_and_in_their_bounds(flag, value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if value == "0" and flag in ("--retries", "--point"):
        return
    with pytest.raises(SystemExit) as refused:
        sweep.main([*GRID, f"{flag}={value}"])
    said = capsys.readouterr().err
    assert (
        refused.value.code == 2
        and f"argument {flag}: " in said
        and said.count("\n") == 1
        and len(said) < 300
    )
    assert not list(tmp_path.iterdir())


def test_a_sweep_that_runs_is_not_begun_a_second_time(tmp_path):
    with lock.hold(tmp_path, "sweep's directory", print):
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(
            ValueError,
            match=(
                f"is in use: process {os.getpid()} on .* works there; wait until it ends, stop "
                "it, or give another"
            ),
        ):
            sweep.main([*GRID, f"--dir={tmp_path}"])
        assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_value_that_no_terminal_can_show_is_shown_all_the_same(capsys):
    assert (
        sweep.main(
            ["--config=smoke", "--grid", "loop.sample_prompt=a\udcff|$x^{$|[/b]", "--dry-run"]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "a\ufffd" in said and shlex.quote("loop.sample_prompt=a\ufffd") in said


def test_a_slurm_array_has_an_element_a_point(capsys):
    assert (
        sweep.main(
            [*GRID, "--seeds=2", "--launch=slurm", "--", "--nodes=2", "--sbatch=--partition=gpu"]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert (
        "#SBATCH --array=0-3\n" in said
        and "#SBATCH --nodes=2\n" in said
        and "#SBATCH --partition=gpu\n" in said
    )
    line = said.splitlines()[-1]
    assert (
        line.startswith("srun ")
        and "-m gptjax.sweep --config=smoke --grid 'train.schedule.peak_lr=1e-3|3e-3' --seeds=2"
        in line
    )
    assert (
        line.endswith(' --dir=runs/sweeps/smoke_grid --point="$SLURM_ARRAY_TASK_ID"')
        and "--launch" not in line
    )


def test_a_jobset_for_each_point(capsys):
    arguments = [
        "--launch",
        "jobset",
        "--dir=gs://b/s",
        "--",
        "--name=peaks",
        "--image=i",
        "--accelerator=v5p:2x2x2",
    ]
    assert sweep.main([*GRID, *arguments]) == 0
    first, second = yaml.safe_load_all(capsys.readouterr().out)
    assert [jobset["metadata"]["name"] for jobset in (first, second)] == ["peaks-0", "peaks-1"]
    pod = second["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    command = pod["containers"][0]["command"][2]
    assert command == (
        "exec python -m gptjax.train --config=smoke --run_dir=gs://b/s/peak_lr=3e-3 --set "
        "train.schedule.peak_lr=3e-3"
    )


def test_a_point_alone(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(train, "main", lambda arguments: told.append(arguments) or 0)
    assert sweep.main([*GRID, f"--dir={tmp_path}", "--point=1"]) == 0
    assert told == [
        [
            "--config=smoke",
            f"--run_dir={tmp_path}/peak_lr=3e-3",
            "--set",
            "train.schedule.peak_lr=3e-3",
        ]
    ]
    assert (
        run_status.read_sweep(tmp_path)[0] == "smoke_grid"
        and json.loads((tmp_path / "sweep.json").read_text())["recipe"] == "smoke"
    )


def test_tuning_trains_what_the_results_ask_for_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    rounds = []

    def finish(name, sweep_spec, points, directory, *rest):
        new = [point for point in points if not (directory / point.name).exists()]
        rounds.append([point.name for point in new])
        for point in new:
            loss = abs(point.config.train.schedule.peak_lr - 9e-3)
            (directory / point.name / "checkpoints/40").mkdir(parents=True)
            record = {"step": 40, "tokens": 10240, "validation_loss": loss}
            (directory / point.name / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        return 0

    monkeypatch.setattr(sweep, "run_points", finish)
    arguments = [*GRID, "--tune=2", f"--dir={tmp_path / 's'}"]
    assert sweep.main(arguments) == 0
    found = [
        ["peak_lr=1e-3", "peak_lr=3e-3"],
        ["peak_lr=0.009,seed=0"],  # the highest was the best
        ["peak_lr=0.027,seed=0"],
        ["peak_lr=0.009,seed=1", "peak_lr=0.009,seed=2"],
    ]
    assert rounds == found
    rounds.clear()
    assert sweep.main(arguments) == 0
    assert rounds == [[]]  # all are known before anything runs, so that a report has them all
    _, _, points = run_status.load(tmp_path / "s")
    assert [point.name for point in points] == [name for names in found for name in names]
    rounds.clear()
    assert sweep.main([*GRID, f"--dir={tmp_path / 's'}"]) == 0 and rounds == [[]]
