"""Accuracy on pairs, whose interval covers the truth although pairs of one prompt depend on each
other, and the calibration of probabilities."""

import numpy as np
import pytest

from gptjax.training import pair_accuracy


def test_pairs_are_of_different_ranks_and_of_completions_that_are_there():
    scores = np.array([[3.0, 1.0, 2.0, 9.0], [1.0, 5.0, 0.0, 0.0]])
    ranks = np.array([[0, 1, 1, -1], [1, 0, 2, -1]])
    pairs = pair_accuracy.find_pairs(scores, ranks)
    assert sorted(zip(pairs.prompt.tolist(), pairs.margin.tolist(), strict=True)) == [
        (0, 1.0), (0, 2.0), (1, 1.0), (1, 4.0), (1, 5.0),
    ]  # fmt: skip


def test_a_share_of_independent_pairs_has_the_interval_of_wilson():
    margin = np.where(np.arange(400) < 284, 1.0, -1.0)
    accuracy = pair_accuracy.measure(pair_accuracy.Pairs(np.arange(400), margin))
    assert (accuracy.low, accuracy.high) == pytest.approx(pair_accuracy.wilson(0.71, 400), abs=2e-3)
    assert str(accuracy) == "accuracy 71.0% (66.4 to 75.2, 95%) of 400 pairs"


def simulate(draw, n_prompts=60, K=6):
    """Scores whose noise belongs to a completion, so that its pairs are right and wrong together;
    one of three prompts has but two completions."""
    quality = draw.normal(size=(n_prompts, K))
    ranks = np.argsort(np.argsort(-quality, axis=1), axis=1)
    ranks[::3, 2:] = -1
    ranks[::3, :2] = np.argsort(np.argsort(-quality[::3, :2], axis=1), axis=1)
    return quality + 1.5 * draw.normal(size=quality.shape), ranks


def test_the_interval_covers_the_true_accuracy_where_pairs_depend_on_each_other():
    draw = np.random.default_rng(0)
    margins = pair_accuracy.find_pairs(*simulate(draw, 20_000)).margin
    truth, found = np.mean(margins > 0), []
    for _ in range(400):
        accuracy = pair_accuracy.measure(pair_accuracy.find_pairs(*simulate(draw)))
        low, high = pair_accuracy.wilson(accuracy.share, accuracy.n_pairs)
        found.append((accuracy.low < truth < accuracy.high, low < truth < high))
    coverage, as_if_independent = np.mean(found, axis=0)
    assert 0.92 < coverage < 0.98 and as_if_independent < 0.9


@pytest.mark.parametrize("margin, share", [(1.0, 1.0), (-1.0, 0.0), (0.0, 0.0)])
def test_prompts_count_where_all_pairs_are_alike(margin, share):
    pairs = pair_accuracy.Pairs(np.repeat([0, 4], 50), np.full(100, margin))
    accuracy = pair_accuracy.measure(pairs)
    assert accuracy.share == share and accuracy.n_prompts == 2
    assert (accuracy.low, accuracy.high) == pair_accuracy.wilson(share, 2)


def test_calibration_of_probabilities_that_are_right():
    draw = np.random.default_rng(0)
    margin = np.abs(draw.normal(size=20_000))
    is_right = draw.random(margin.size) < 1 / (1 + np.exp(-margin))
    pairs = pair_accuracy.Pairs(np.arange(margin.size), np.where(is_right, margin, -margin))
    right = pair_accuracy.calibrate(pairs)
    assert right.error < 0.02 and right.n_pairs.sum() == margin.size
    assert np.all(np.diff(right.predicted) > 0.03) and np.all(right.predicted > 0.5)
    assert np.mean((right.low <= right.predicted) & (right.predicted <= right.high)) > 0.8
    proud = pair_accuracy.calibrate(pair_accuracy.Pairs(pairs.prompt, 5 * pairs.margin))
    assert proud.error > 0.1
