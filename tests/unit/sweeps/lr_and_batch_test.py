"""The best learning rate and batch of results whose optima are known."""

import math

import pytest

from gptjax.sweeps import lr_and_batch
from tests.outcomes import make_result

PEAKS, NOISE = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), 1024.0
BATCHES = (128, 512, 2048)


def arm(peak, best, *edits, **more):
    """Its loss is a parabola in log peak, least at `best`."""
    return make_result(
        *edits, f"train.schedule.peak_lr={peak}", losses=(3 + math.log(peak / best) ** 2,), **more
    )


def batch(tokens, peak, exponent=1.0):
    """As the noise scale says: 5,000 (1 + B / noise) tokens to a loss of 3.5 at the best peak,
    more elsewhere."""
    best = 1e-2 / (1 + NOISE / tokens) ** exponent
    away = 1 + math.log(peak / best) ** 2
    curve = [(256, 5.5), (5000 * (1 + tokens / NOISE) * away, 3.5)]
    edits = (
        f"train.batch_tokens={tokens}",
        f"train.microbatch_rows={tokens // 64}",
        "train.total_tokens=204800",
        f"loop.every_eval={tokens}",
    )
    return arm(peak, best, *edits, curve=curve, noise_scale=NOISE)


def test_the_best_peak_and_the_parabolas(tmp_path):
    found = lr_and_batch.lr_section([arm(peak, 5e-3) for peak in PEAKS], tmp_path / "rates.png")
    assert found.rows[0][1:] == ("0.003", f"{3 + math.log(0.6) ** 2:.4f}", "0.005")
    assert found.picture.read_bytes().startswith(b"\x89PNG")


def test_a_best_peak_at_the_edge_is_said(tmp_path):
    assert (
        lr_and_batch.lr_section([arm(peak, 1e-4) for peak in PEAKS], tmp_path / "rates.png").rows[
            0
        ][3]
        == "at the edge: search further"
    )


def test_arms_are_searched_apart_and_need_three_peaks(tmp_path):
    two = [
        arm(peak, best, f"model.n_layers={n}")
        for n, best in ((2, 3e-3), (4, 1e-3))
        for peak in PEAKS
    ]
    found = lr_and_batch.lr_section(two, tmp_path / "rates.png")
    assert [(row[0], row[1]) for row in found.rows] == [
        ("n_layers=2", "0.003"),
        ("n_layers=4", "0.001"),
    ]
    assert lr_and_batch.lr_section(two[:2], tmp_path / "rates.png") is None
    assert (
        lr_and_batch.lr_section(
            [*two[:2], make_result("train.schedule.peak_lr=1")], tmp_path / "rates.png"
        )
        is None
    )  # it has not finished


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_batches_that_do_as_the_noise_scale_says(exponent, tmp_path):
    results = [batch(tokens, peak, exponent) for tokens in BATCHES for peak in PEAKS]
    (group,) = lr_and_batch.group_by_batch(lr_and_batch.group_searches(results))
    made, _, noise = lr_and_batch.compare_batches(group)
    assert noise == NOISE and [search.batch_tokens for search in group] == list(BATCHES)
    for found in made:
        assert found.predicted_peaks[0 if exponent == 0.5 else 1] == pytest.approx(
            found.search.fitted_peak, rel=0.02
        )
    section = lr_and_batch.batch_section(results, tmp_path / "batches.png")
    assert [row[0] for row in section.rows] == ["128", "512", "2,048"] and {
        row[4] for row in section.rows
    } == {"1.02k"}
    assert "noise scale 1,024 tokens" in section.note and section.picture.read_bytes().startswith(
        b"\x89PNG"
    )


def test_tokens_to_a_loss():
    made, target, _ = lr_and_batch.compare_batches(
        lr_and_batch.group_by_batch(
            lr_and_batch.group_searches([batch(t, p) for t in BATCHES for p in PEAKS])
        )[0]
    )
    assert target == pytest.approx(max(found.search.best_arm.loss.mean for found in made))
    assert lr_and_batch.tokens_to_reach([(0, 5.0), (100, 4.0), (200, 2.0)], 3.0) == 150
    assert (
        lr_and_batch.tokens_to_reach([(10, 2.0)], 3.0) == 10
        and lr_and_batch.tokens_to_reach([(10, 4.0)], 3.0) == math.inf
    )
    assert [found.predicted_tokens / made[0].predicted_tokens for found in made] == pytest.approx(
        [1, 1.5 / 1.125, 3 / 1.125]
    )


def test_without_a_noise_scale_batches_are_told_without_prediction(tmp_path):
    results = [arm(1e-2, 1e-2, f"train.batch_tokens={tokens}") for tokens in BATCHES]
    section = lr_and_batch.batch_section(results, tmp_path / "batches.png")
    assert "no noise scale was measured" in section.note and {row[3] for row in section.rows} == {
        ""
    }
    assert lr_and_batch.batch_section(results[:2], tmp_path / "batches.png") is None
