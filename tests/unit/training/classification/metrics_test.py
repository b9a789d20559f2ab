"""Metrics against figures worked out by hand, and against their textbook formulas."""

import numpy as np
import pytest

from gptjax.training.classification import metrics

DRAW = np.random.default_rng(0)


def said(classes, n=2):
    """Scores whose highest are `classes`."""
    return np.eye(n, dtype=np.float32)[np.array(classes)]


def test_the_best_epoch_is_the_first_of_the_highest_that_is_still_there():
    lines = [
        {"step": n, "accuracy": score}
        for n, score in ((10, 50.0), (20, 70.0), (30, 90.0), (40, 90.0), (50, 95.0))
    ]
    assert metrics.best_steps([{"step": 1, "loss": 3.0}, *lines], "accuracy", [10, 20, 30, 40]) == [
        30,
        40,
        20,
        10,
    ]
    assert metrics.best_steps(lines, "f1", [10]) == []


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews", "pearson"])
def test_scores_that_are_no_numbers_are_no_answers(metric):
    """argmax of NaN is 0: a model of NaN would be right wherever class 0 is."""
    y_BC = said([0, 1, 0])
    y_BC[2] = np.nan
    assert np.isnan(metrics.score(metric, y_BC, np.array([0.0, 1.0, 0.0])))
    with pytest.raises(ValueError, match="scores of 1 of 3 examples are NaN or infinite"):
        metrics.predicted_classes(metric, y_BC)


def test_an_epoch_that_came_to_no_number_is_not_the_best():
    lines = [
        {"step": n, "accuracy": score} for n, score in ((10, 50.0), (20, float("nan")), (30, 40.0))
    ]
    assert metrics.best_steps(lines, "accuracy", [10, 20, 30]) == [10, 30]


def test_accuracy():
    assert metrics.score("accuracy", said([0, 2, 1, 1], 3), np.array([0, 2, 2, 1])) == 75.0


def test_f1_is_of_class_one():
    # 2 found, 1 wrongly, 2 missed: precision 2/3, recall 1/2.
    assert metrics.score(
        "f1", said([1, 1, 1, 0, 0, 0]), np.array([1, 1, 0, 1, 1, 0])
    ) == pytest.approx(100 * 2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))


def test_matthews_is_its_formula():
    for _ in range(20):
        answers, labels = DRAW.integers(0, 2, 30), DRAW.integers(0, 2, 30)
        tp, tn = np.sum(answers & labels), np.sum((1 - answers) & (1 - labels))
        fp, fn = np.sum(answers & (1 - labels)), np.sum((1 - answers) & labels)
        formula = (tp * tn - fp * fn) / np.sqrt(
            float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
        )
        assert metrics.score("matthews", said(answers), labels.astype(np.float32)) == pytest.approx(
            100 * formula, abs=1e-6
        )


def test_pearson_is_of_the_expected_score():
    y = DRAW.normal(size=(40, 6)).astype(np.float32)
    labels = DRAW.uniform(0, 5, 40)
    shares = np.exp(y) / np.exp(y).sum(1, keepdims=True)
    expected = sum(c * shares[:, c] for c in range(6))
    np.testing.assert_allclose(metrics.predicted_classes("pearson", y), expected, rtol=1e-5)
    centred = expected - expected.mean(), labels - labels.mean()
    r = (centred[0] * centred[1]).sum() / np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    assert metrics.score("pearson", y, labels) == pytest.approx(100 * r, abs=1e-4)
    assert np.isfinite(metrics.predicted_classes("pearson", y * 1e4)).all()


@pytest.mark.parametrize("metric", ["f1", "matthews", "pearson"])
def test_an_empty_answer_scores_zero(metric):
    assert metrics.score(metric, said([0, 0, 0]), np.array([0.0, 0.0, 0.0])) == 0
    if metric != "f1":
        assert metrics.score(metric, said([1, 1, 1]), np.array([0.0, 1.0, 0.0])) == 0


def test_answers_come_in_microbatches_of_one_size_and_unknown_labels_have_no_loss():
    rows = np.stack([np.array([1000, -1, 0, 2000, -1, 0, 1000]), np.arange(7)], 1).astype(np.int32)
    sizes = []

    def asked(params, part):
        sizes.append(len(part))
        return np.stack([part[:, 1], -part[:, 1]], 1) * params, part[:, 1] * 1.0

    given, loss = metrics.predict(asked, 2, rows, 4, lambda array, letters: array)
    assert sizes == [4, 4] and given[:, 0].tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert loss == pytest.approx(np.mean([0, 2, 3, 5, 6]))
    assert np.isnan(metrics.predict(asked, 2, rows[[1, 4]], 4, lambda array, letters: array)[1])
