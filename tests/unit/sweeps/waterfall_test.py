"""Steps of made-up sweeps: which losses are compared, and how."""

import json
import math

import pytest

from gptjax import sweep as program
from gptjax.config import sweep
from gptjax.config.layer import AttentionHeads
from gptjax.config.schema import Banded, Dense
from gptjax.configs import small
from gptjax.sweeps import comparison, generation_cost, run_status, waterfall
from gptjax.sweeps.points import arms
from tests.outcomes import SMOKE, expand, make_result

PEAKS = (1e-3, 3e-3, 9e-3)
NAMES = ("GPT-3", "RMSNorm", "no biases")
EDITS = ((), ("model.norm_type=RMSNorm()",), ("model.norm_type=RMSNorm()", "model.biases=none"))
# by step, seeds 1 to 3 at the best peak; the seed that chose it, 0, is 1 lower
LOSSES = ((4.0, 4.1, 4.2), (3.9, 4.01, 4.09), (4.0, 3.9, 4.1))
BEST = (3e-3, 3e-3, 9e-3)


def loss(step, peak, seed):
    if seed:
        return LOSSES[step][seed - 1]
    return 3.0 + abs(math.log(peak / BEST[step]))


@pytest.fixture
def directory(tmp_path):
    """A finished sweep of three steps: three peaks with seed 0, three more seeds at the best."""
    points = []
    for step, edits in enumerate(EDITS):
        tried = [(peak, 0) for peak in PEAKS] + [(BEST[step], seed) for seed in (1, 2, 3)]
        points += [
            (f"train.schedule.peak_lr={peak}", f"seed={seed}", *edits) for peak, seed in tried
        ]
    asked = sweep.Sweep(description="?", recipe="smoke", points=tuple(points), steps=NAMES)
    run_status.write_sweep(tmp_path, "steps", asked, SMOKE, expand(asked))
    for point in expand(asked):
        config = point.config
        step = next(i for i in (2, 1, 0) if all(edit in point.own for edit in EDITS[i]))
        value = loss(step, config.train.schedule.peak_lr, config.seed)
        run = tmp_path / point.name
        (run / "checkpoints/40").mkdir(parents=True)
        record = {"step": 40, "tokens": 10240, "validation_loss": value}
        (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    return tmp_path


def compare(directory):
    _, asked, points = run_status.load(directory)
    results = comparison.compare_arms(arms(points), directory)
    return waterfall.compare_steps(waterfall.name_arms(results, asked.steps), asked.steps)


def test_a_step_is_compared_with_the_one_before_it_seed_by_seed(directory):
    first, second, third = compare(directory)
    assert first.change is None and first.losses == {1: 4.0, 2: 4.1, 3: 4.2}
    assert second.change.mean == pytest.approx(-0.1) and second.change.is_significant
    # by hand: differences -0.1, -0.09, -0.11; Student's t of 2 degrees of freedom 4.3027
    assert second.change.half_width == pytest.approx(4.3027 * 0.01 / math.sqrt(3), rel=1e-4)
    # 0.1, -0.11, 0.01: their standard deviation is 0.1054
    assert third.change.mean == pytest.approx(0.0, abs=1e-9)
    assert third.change.half_width == pytest.approx(4.3027 * 0.10536 / math.sqrt(3), rel=1e-3)
    assert not third.change.is_significant


def test_the_seed_that_chose_the_peak_is_left_out_and_an_edge_is_said(directory):
    steps = compare(directory)
    assert [step.peak for step in steps] == list(BEST)
    assert [step.is_at_edge for step in steps] == [False, False, True]
    assert all(set(step.losses) == {1, 2, 3} for step in steps)


def test_the_peak_is_chosen_among_those_with_the_most_seeds():
    """Without the seed on which all were tried."""
    low = make_result(f"train.schedule.peak_lr={PEAKS[0]}", "seed=0", losses=(3.2,))
    first = make_result(f"train.schedule.peak_lr={PEAKS[1]}", "seed=0", losses=(3.0,))
    later = make_result(f"train.schedule.peak_lr={PEAKS[1]}", "seed=1", losses=(3.9,))
    best = comparison.ArmResult("", (*first.runs, *later.runs), None, None)
    assert waterfall.choose_arm([low, best]) == (best, {1: 3.9})
    assert waterfall.choose_arm([low, first]) == (first, {0: 3.0})  # there is no other seed
    second = make_result(f"train.schedule.peak_lr={PEAKS[2]}", "seed=0", losses=(3.4,))
    more = make_result(f"train.schedule.peak_lr={PEAKS[2]}", "seed=1", losses=(3.8,))
    other = comparison.ArmResult("", (*second.runs, *more.runs), None, None)
    assert waterfall.choose_arm([low, best, other]) == (other, {1: 3.8})
    assert waterfall.choose_arm([make_result("seed=1")])[1] == {}  # not finished


def test_the_report(directory, capsys, monkeypatch):
    monkeypatch.setattr(generation_cost, "cache_bytes_per_token", lambda model: 128.0)
    monkeypatch.setattr(generation_cost, "decode_speeds", lambda models, rounds: [1e3, 2e3, 3e3])
    assert program.main(["report", str(directory), "--decode_rounds=2"]) == 0
    said = capsys.readouterr()
    assert not said.err
    rows = [line.split(" | ") for line in said.out.partition("## Steps")[2].splitlines()]
    rows = {row[0].strip("| "): [cell.strip(" |") for cell in row] for row in rows if len(row) > 3}
    assert rows["RMSNorm"][2:5] == ["4.0000 \u00b1 0.2370", "-0.1000 \u00b1 0.0248, clear", "0.003"]
    assert rows["no biases"][3:5] == ["+0.0000 \u00b1 0.2617, not clear", "0.009 (edge)"]
    assert rows["in all"][3].startswith("-0.1000 \u00b1 ") and rows["GPT-3"][3] == ""
    assert rows["GPT-3"][-2:] == ["128", "1,000"] and rows["no biases"][-1] == "3,000"
    assert "Not clear: no biases." in said.out
    assert (directory / "waterfall.png").read_bytes().startswith(b"\x89PNG")
    assert "RMSNorm, peak 0.001" in said.out.partition("## Steps")[0]


def test_an_unfinished_sweep_is_reported(directory, capsys, monkeypatch):
    monkeypatch.setattr(generation_cost, "cache_bytes_per_token", lambda model: 128.0)
    for run in directory.glob("*norm_type*"):
        (run / "metrics.jsonl").unlink()
    assert program.main(["report", str(directory)]) == 0
    said = capsys.readouterr()
    assert (
        not said.err and "not finished" in said.out and "Not clear: RMSNorm, no biases" in said.out
    )


def test_steps_that_do_not_fit_the_points_are_refused(directory):
    stored = json.loads((directory / "sweep.json").read_text()) | {"steps": ["GPT-3"]}
    (directory / "sweep.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="names 1 steps, but its points are 3"):
        program.main(["report", str(directory)])


@pytest.mark.parametrize(
    "attention, n_slots", [((Dense(),), 32), ((Banded(window=8), Dense()), 20)]
)
def test_the_cache_has_a_key_and_a_value_of_each_kv_head_and_layer(attention, n_slots):
    model = small.smoke().model
    model = type(model)(
        n_layers=2,
        n_heads=4,
        d_model=32,
        n_vocab=model.n_vocab,
        n_ctx=32,
        attention=attention,
        heads=AttentionHeads(n_kv_heads=2),
    )
    # two layers, keys and values, 2 heads of 8, 2 bytes; slots averaged over the layers
    assert generation_cost.cache_bytes_per_token(model) == 2 * 2 * 2 * 8 * 2 * n_slots / 32


def test_decoding_is_timed_for_every_model():
    (speed,) = generation_cost.decode_speeds([small.smoke().model], rounds=1)
    assert speed > 0
