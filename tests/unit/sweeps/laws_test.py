"""Laws that are known, found again from runs that obey them."""

import numpy as np
import pytest

from gptjax.sweeps import laws

DRAW = np.random.default_rng(0)
SIZES = np.array([1e5, 3e5, 1e6, 3e6, 1e7, 3e7])


def noisy(losses):
    return losses * np.exp(DRAW.normal(0, 1e-3, len(losses)))


def test_kaplans_law_of_size_is_found_again_and_foretells():
    n = np.repeat(SIZES, 3)
    found = laws.fit(laws.FORMS["power"], [n], noisy((8.8e13 / n) ** 0.076), np.repeat(range(6), 3))
    value, low, high = found.intervals()["a"]
    assert value == pytest.approx(0.076, abs=1e-3) and low < 0.076 < high and high - low < 5e-3
    right = (8.8e13 / 1e9) ** 0.076
    assert found.loss(1e9) == pytest.approx(right, rel=5e-3)
    assert found.error == pytest.approx(1e-3, rel=0.5)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    held = 0
    for seed in range(12):
        losses = (8.8e13 / SIZES) ** 0.076 * np.exp(np.random.default_rng(seed).normal(0, 3e-3, len(SIZES)))
        low, high = laws.fit(laws.FORMS["power"], [SIZES], losses, range(6)).interval(1e9)
        held += low < (8.8e13 / 1e9) ** 0.076 < high
    assert held >= 9


def test_a_floor_is_found_where_there_is_one():
    found = laws.fit(laws.FORMS["offset"], [SIZES], 1.7 + 400 * SIZES**-0.34, range(6))
    assert found.parameters == pytest.approx([1.7, 400, 0.34], rel=0.02)


@pytest.mark.parametrize("name", ["chinchilla", "kaplan"])
def test_laws_of_size_and_data(name):
    n, d = (a.ravel() for a in np.meshgrid(SIZES, [1e7, 1e8, 1e9, 1e10]))
    right = {"chinchilla": [1.69, 406.4, 0.34, 410.7, 0.28], "kaplan": [6.4e13, 0.076, 1.8e13, 0.103]}[name]
    form = laws.FORMS[name]
    losses = np.exp(form.log_loss(np.array(right), [n, d]))
    found = laws.fit(form, [n, d], losses, range(len(n)))
    assert found.error < 2e-3
    assert found.loss(1e9, 1e11) == pytest.approx(np.exp(form.log_loss(np.array(right), [np.float64(1e9), np.float64(1e11)])), rel=0.02)


def test_the_search_gets_to_the_minimum_through_noise():
    """A fit is no worse than the truth that the losses were made of."""
    n, d = (a.ravel() for a in np.meshgrid(SIZES, [1e7, 1e8, 1e9, 1e10]))
    noise = np.random.default_rng(0).normal(0, 3e-3, len(n))
    form = laws.FORMS["chinchilla"]
    log_losses = form.log_loss(np.array([1.69, 406.4, 0.34, 410.7, 0.28]), [n, d]) + noise
    assert laws.fit(form, [n, d], np.exp(log_losses), range(len(n))).error < np.sqrt(np.mean(noise**2))


def test_a_law_needs_more_arms_than_it_has_parameters():
    with pytest.raises(ValueError, match="has 2 parameters: give 3 arms or more, not 2"):
        laws.fit(laws.FORMS["power"], [[1, 1, 2, 2]], [3, 3, 2, 2], [0, 0, 1, 1])


def test_the_frontier_has_what_nothing_cheaper_beats():
    small, large = [(1, 5.0), (2, 4.0), (8, 3.9)], [(3, 6.0), (4, 3.95), (8, 3.0)]
    assert laws.frontier([small, large]) == [(1, 5.0), (2, 4.0), (4, 3.95), (8, 3.0)]
