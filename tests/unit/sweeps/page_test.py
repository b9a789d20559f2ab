"""Reports of sweeps whose runs are made up."""

import json
import math

import pytest

from gptjax import sweep as program
from gptjax.config import overrides, sweep
from gptjax.sweeps import comparing, page, standing

FINALS = {1e-3: (3.0, 3.1, 3.2), 3e-3: (2.9, 3.01, 3.09)}  # by peak, three seeds


@pytest.fixture
def directory(tmp_path):
    """A finished sweep of two arms and three seeds."""
    asked = sweep.Sweep(
        about="which is <best>?", recipe="smoke", points=sweep.grid(sweep.each("train.schedule.peak", *FINALS), sweep.seeds(3))
    )
    standing.write(tmp_path, "mine", asked)
    for point in sweep.planned(asked):
        loss = FINALS[point.config.train.schedule.peak][point.config.seed]
        records = [
            {"step": 1, "tokens": 256, "tokens_per_s": 1.0, "seconds": 9.0},
            {"step": 20, "tokens": 5120, "tokens_per_s": 100.0, "seconds": 51.0},
            {"step": 20, "tokens": 5120, "validation_loss": loss + 1},
            {"step": 40, "tokens": 10240, "validation_loss": loss},
        ]
        there = tmp_path / point.name
        (there / "checkpoints/40").mkdir(parents=True)
        (there / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


def results(directory):
    return comparing.compared(sweep.arms(sweep.planned(standing.read(directory)[1])), directory)


def test_an_estimate_is_a_mean_with_students_interval():
    found = comparing.estimate([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.half == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4) and not found.clear
    assert str(comparing.estimate([1.5])) == "1.5000" and not comparing.estimate([1.5]).clear


def test_arms_are_compared_seed_by_seed(directory):
    baseline, other = results(directory)
    assert baseline.label == "peak=0.001" and baseline.difference is None and baseline.loss.mean == pytest.approx(3.1)
    # The seeds' own spread is 0.1, that of the pairs 0.01: so the difference is clear, though the intervals of the losses overlap.
    assert other.difference.mean == pytest.approx(-0.1) and other.difference.clear
    assert other.loss.mean + other.loss.half > baseline.loss.mean - baseline.loss.half
    assert baseline.tokens_per_s == 50.5 and baseline.runs[0].seconds == 60 and baseline.runs[0].curve == ((5120, 4.0), (10240, 3.0))


def test_what_is_not_finished_is_said_and_counts_for_nothing(directory):
    (directory / "peak=0.003,seed=2/checkpoints/40").rmdir()
    _, other = results(directory)
    assert other.unfinished == 1 and other.loss.n == 2 and other.difference.n == 2
    assert page.rows([other])[0][1] == "2 of 3 finished"
    for seed in range(3):
        (directory / f"peak=0.003,seed={seed}/metrics.jsonl").unlink()
    assert page.rows(results(directory))[1][2:4] == ("not finished", "no seed in common")


def test_the_report(directory, capsys):
    assert program.main(["report", str(directory)]) == 0
    said = capsys.readouterr().out
    table = [line for line in said.splitlines() if line.startswith("|")]
    assert len(table) == 4 and len({len(line) for line in table}) == 1  # aligned
    assert "3.1000 \u00b1 0.2484" in table[2] and "-0.1000 \u00b1 0.0248, clear" in table[3] and "baseline" in table[2]
    assert (directory / "report.md").read_text() in said
    html = (directory / "report.html").read_text()
    assert "which is &lt;best&gt;?" in html and html.count("data:image/png;base64,") == 2
    assert all((directory / name).read_bytes().startswith(b"\x89PNG") for name in ("arms.png", "curves.png"))


def test_the_curves_join_seeds_where_all_were_evaluated(directory):
    with (directory / "peak=0.001,seed=1/metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 39, "tokens": 10000, "validation_loss": 3.3}) + "\n")
    baseline, _ = results(directory)
    first, second = page._joined(baseline)
    assert first == (5120, pytest.approx(4.1), 4.0, 4.2) and second[0] == 10240


def test_runs_are_reported_as_they_were_begun(directory):
    """Though the recipe is another by now."""
    name, asked = standing.read(directory)
    points = sweep.planned(asked)
    before = overrides.override(points[0].config, "model.d_model=64")
    (directory / points[0].name / "config.json").write_text(json.dumps(overrides.flat(before)))
    assert standing.recorded(points[0], directory).config == before
    assert standing.recorded(points[1], directory) == points[1]
    assert program.main(["report", str(directory)]) == 0
    assert "d_model=64" in (directory / "report.md").read_text()


def test_no_sweep_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="no sweep is in"):
        program.main(["report", str(tmp_path)])
