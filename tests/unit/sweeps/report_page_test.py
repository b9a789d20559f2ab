"""Reports of sweeps whose runs are made up."""

import json
import math

import pytest

from gptjax import sweep as program
from gptjax.config import overrides, sweep
from gptjax.sweeps import comparison, report, report_page, run_status
from gptjax.sweeps.points import arms
from tests.outcomes import SMOKE, expand

FINALS = {1e-3: (3.0, 3.1, 3.2), 3e-3: (2.9, 3.01, 3.09)}  # by peak, three seeds


@pytest.fixture
def directory(tmp_path):
    """A finished sweep of two arms and three seeds."""
    asked = sweep.Sweep(
        description="which is <best>?",
        recipe="smoke",
        points=sweep.grid(sweep.each("train.schedule.peak_lr", *FINALS), sweep.seeds(3)),
    )
    run_status.write_sweep(tmp_path, "mine", asked, SMOKE, expand(asked))
    for point in expand(asked):
        loss = FINALS[point.config.train.schedule.peak_lr][point.config.seed]
        records = [
            {"step": 1, "tokens": 256, "tokens_per_s": 1.0, "seconds": 9.0},
            {"step": 20, "tokens": 5120, "tokens_per_s": 100.0, "seconds": 51.0},
            {"step": 20, "tokens": 5120, "validation_loss": loss + 1},
            {"step": 40, "tokens": 10240, "validation_loss": loss},
        ]
        recorded(tmp_path / point.name, *records)
    return tmp_path


def recorded(run, *records):
    (run / "checkpoints/40").mkdir(parents=True, exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def results(directory):
    return comparison.compare_arms(arms(expand(run_status.read_sweep(directory)[1])), directory)


def test_an_estimate_is_a_mean_with_students_interval():
    found = comparison.mean_interval([1.0, 2.0, 3.0])
    assert (
        found.mean == 2
        and found.half_width == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
        and not found.is_significant
    )
    assert (
        str(comparison.mean_interval([1.5])) == "1.5000"
        and not comparison.mean_interval([1.5]).is_significant
    )


def test_arms_are_compared_seed_by_seed(directory):
    baseline, other = results(directory)
    assert (
        baseline.label == "peak_lr=0.001"
        and baseline.difference is None
        and baseline.loss.mean == pytest.approx(3.1)
    )
    # The seeds' own spread is 0.1, that of the pairs 0.01: so the difference is clear, though the
    # intervals of the losses overlap.
    assert other.difference.mean == pytest.approx(-0.1) and other.difference.is_significant
    assert other.loss.mean + other.loss.half_width > baseline.loss.mean - baseline.loss.half_width
    assert (
        baseline.tokens_per_s == 50.5
        and baseline.runs[0].seconds == 60
        and baseline.runs[0].curve == ((5120, 4.0), (10240, 3.0))
    )


def test_what_is_not_finished_is_said_and_counts_for_nothing(directory):
    (directory / "peak_lr=0.003,seed=2/checkpoints/40").rmdir()
    _, other = results(directory)
    assert other.n_unfinished == 1 and other.loss.n == 2 and other.difference.n == 2
    assert report_page.table_rows([other])[0][1] == "2 of 3 finished"
    for seed in range(3):
        (directory / f"peak_lr=0.003,seed={seed}/metrics.jsonl").unlink()
    assert report_page.table_rows(results(directory))[1][2:4] == (
        "not finished",
        "no seed in common",
    )


def test_the_report(directory, capsys):
    assert program.main(["report", str(directory)]) == 0
    said = capsys.readouterr().out
    table = [line for line in said.splitlines() if line.startswith("|")]
    assert len(table) == 4 and len({len(line) for line in table}) == 1  # aligned
    assert (
        "3.1000 \u00b1 0.2484" in table[2]
        and "-0.1000 \u00b1 0.0248, clear" in table[3]
        and "baseline" in table[2]
    )
    assert (directory / "report.md").read_text() in said
    html = (directory / "report.html").read_text()
    assert "which is &lt;best&gt;?" in html and html.count("data:image/png;base64,") == 2
    assert all(
        (directory / name).read_bytes().startswith(b"\x89PNG")
        for name in ("arms.png", "curves.png")
    )


@pytest.mark.parametrize("n, marker", [(1, "o"), (2, "")])
def test_an_arm_that_was_evaluated_once_is_a_point_that_is_seen(n, marker, directory, monkeypatch):
    drawn = []
    monkeypatch.setattr(report_page, "style_axes", lambda axes: drawn.extend(axes.lines))
    monkeypatch.setattr(
        report_page, "_mean_curve", lambda result: [(1.0 + i, 3.0, 2.9, 3.1) for i in range(n)]
    )
    report_page.plot_curves(results(directory), directory / "curves.png")
    assert len(drawn) == 4 and {str(line.get_marker()) for line in drawn} == {marker}


def test_the_curves_join_seeds_where_all_were_evaluated(directory):
    with (directory / "peak_lr=0.001,seed=1/metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 39, "tokens": 10000, "validation_loss": 3.3}) + "\n")
    baseline, _ = results(directory)
    first, second = report_page._mean_curve(baseline)
    assert first == (5120, pytest.approx(4.1), 4.0, 4.2) and second[0] == 10240


def test_runs_are_reported_as_they_were_begun(directory):
    """Though the recipe is another by now."""
    _, asked, _, _ = run_status.read_sweep(directory)
    points = expand(asked)
    before = overrides.override(points[0].config, "model.d_model=64")
    (directory / points[0].name / "config.json").write_text(json.dumps(overrides.flatten(before)))
    assert run_status.with_saved_config(points[0], directory).config == before
    assert run_status.with_saved_config(points[1], directory) == points[1]
    assert program.main(["report", str(directory)]) == 0
    assert "d_model=64" in (directory / "report.md").read_text()


def test_a_difference_is_to_the_baseline_whichever_arm_stands_between(tmp_path):
    peaks = {1e-3: 3.0, 3e-3: 2.0, 1e-2: 2.5}
    asked = sweep.Sweep(
        description="?", recipe="smoke", points=sweep.each("train.schedule.peak_lr", *peaks)
    )
    for point in expand(asked):
        recorded(
            tmp_path / point.name,
            {
                "step": 40,
                "tokens": 10240,
                "validation_loss": peaks[point.config.train.schedule.peak_lr],
            },
        )
    found = comparison.compare_arms(arms(expand(asked)), tmp_path)
    assert [arm.difference and arm.difference.mean for arm in found] == [None, -1.0, -0.5]


def test_a_final_loss_is_the_last_one_and_the_noise_scale_a_median_of_the_second_half(tmp_path):
    (point,) = expand(sweep.Sweep(description="?", recipe="smoke", points=sweep.seeds(1)))
    noise = [
        {"step": n, "tokens": 256 * n, "noise_scale": scale}
        for n, scale in enumerate([900, 900, 900, 7, 1000, 8], 1)
    ]
    best = {"step": 20, "tokens": 5120, "validation_loss": 2.0}
    recorded(
        tmp_path / point.name, *noise, best, {"step": 40, "tokens": 10240, "validation_loss": 2.5}
    )
    run = comparison.load_run(point, tmp_path)
    assert run.final_loss == 2.5 and run.noise_scale == 8
    recorded(
        tmp_path / point.name, *[line | {"noise_scale": -line["noise_scale"]} for line in noise]
    )
    assert (
        comparison.load_run(point, tmp_path).noise_scale is None
    )  # an estimate below 0 says nothing


DAMAGES = {
    "metrics.jsonl": [
        b"\xff\x00\n",
        b"[" * 100_000 + b"\n{}",
        b"{}",
        b"[]",
        b"null\n{}",
        (b'{"step": "x"}\n{}'),
        b'{"step": -1, "validation_loss": 2}\n{}\n',
        b'{"step": true}\n',
        b'{"step": 1, "validation_loss": [3]}\n',
        (b'{"step": 1, "tokens": null, "validation_loss": 2}\n'),
        b'{"step": 1, "tokens": 1e999, "validation_loss": 2}\n',
        (b'{"step": 1, "seconds": ') + b"9" * 5000 + b"}\n",
        b'{"step": 1, "seconds": ' + b"9" * 400 + b"}\n",
        b'{"step": 1, "loss": "$x^{$"}\n',
        (b'{"step": 1}\n\n{"step": 2}\n'),
        None,
    ],
    "config.json": [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"name": 3}', None],
}


@pytest.mark.parametrize("file", DAMAGES)
def test_what_is_damaged_is_named_and_the_others_are_reported(directory, capsys, file, monkeypatch):
    for parts in ("PICTURES", "SECTIONS"):  # nothing is drawn
        monkeypatch.setattr(report, parts, ())
    there = directory / "peak_lr=0.003,seed=1" / file
    for damage in DAMAGES[file]:
        if there.is_file():
            there.unlink()
        if damage is None:
            there.mkdir()
        else:
            there.write_bytes(damage)
        assert program.main(["report", str(directory)]) == 0, damage
        said = capsys.readouterr()
        lines = [
            line
            for line in said.out.splitlines()
            if str(there if damage is not None else there.parent) in line
        ]
        assert len(lines) == 1 and lines[0].startswith(
            ("Damaged: peak_lr=0.003,seed=1: ", "Refused: peak_lr=0.003,seed=1: ")
        ), (damage, said)
        assert (
            "3.1000 \u00b1 0.2484" in said.out and "Traceback" not in said.err and not said.err
        ), damage


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\xff",
        b"[]",
        b"3",
        b"[" * 100_000,
        b"{}",
        b'{"name": ' + b"9" * 5000 + b"}",
        {"name": 3},
        {"about": None},
        {"config": 3},
        {"config": {"a": 1}},
        {"recipe": ["smoke"]},
        {"points": "seed=1"},
        {"points": ["seed=1"]},
        {"points": [[1]]},
        {"points": []},
        {"points": [["seed=1"], ["seed=1"]]},
        {"sets": {"a": 1}},
        {"sets": [None]},
        {"check": 7},
        {"points": [["seed=1"]] * 20_000},
    ],
)
def test_a_damaged_sweep_json_is_one_line_that_names_it(directory, damage):
    there = directory / "sweep.json"
    changed = (
        damage
        if isinstance(damage, bytes)
        else json.dumps(json.loads(there.read_text()) | damage).encode()
    )
    there.write_bytes(changed)
    with pytest.raises(ValueError) as refused:
        program.main(["report", str(directory)])
    assert (
        str(there) in str(refused.value)
        and "\n" not in str(refused.value)
        and len(str(refused.value)) < 500
    )


NAMES = [
    "$x^{$",
    "$",
    "a$b$c",
    r"\$\alpha",
    "[/b][red]",
    "<b>&",
    "a\udcff",
    "\u4f60\U0001f600",
    "a\nb\tc\x1b[0m",
    "|",
    "_x",
    "%s{0}",
    "x" * 500,
]


def test_any_name_is_drawn_and_written_as_it_is(tmp_path, capsys):
    """Arms that differ in a text of theirs; each picture is drawn with all of them, and nothing
    warns."""
    asked = sweep.Sweep(
        description="which $x^{$ \udcff | is best?\n# no",
        recipe="smoke",
        points=sweep.each("loop.sample_prompt", *NAMES),
    )
    run_status.write_sweep(tmp_path, "a$b\udcff", asked, SMOKE, expand(asked))
    for number, point in enumerate(expand(asked)):
        recorded(
            tmp_path / point.name,
            {"step": 20, "tokens": 5120, "validation_loss": 4.0},
            {"step": 40, "tokens": 10240, "validation_loss": 3 + number / 10},
        )
    assert program.main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert not said.err and (tmp_path / "arms.png").exists() and (tmp_path / "curves.png").exists()
    table = [
        line
        for line in (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    assert (
        len(table) == 2 + len(NAMES) and "sample_prompt=$x^{$ " in table[2] and "\ufffd" in table[8]
    )
    assert "sample_prompt=&lt;b&gt;&amp;" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_report_of_nothing_is_a_report(tmp_path, capsys):
    asked = sweep.Sweep(
        description="?", recipe="smoke", points=sweep.each("train.schedule.peak_lr", -1, -2)
    )
    run_status.write_sweep(tmp_path, "none", asked, SMOKE, expand(asked))
    assert program.main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.out.count("Refused: peak_lr=-") == 2 and not said.err


def test_a_picture_that_cannot_be_drawn_is_a_warning(directory, capsys):
    (directory / "arms.png").mkdir()
    assert program.main(["report", str(directory)]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("warning: no arms.png: IsADirectoryError") and "3.1000" in said.out
    assert (directory / "report.html").read_text().count("data:image/png;base64,") == 1


def test_no_sweep_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="no sweep is in"):
        program.main(["report", str(tmp_path)])
