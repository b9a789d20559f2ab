"""Laws that are known, found again from runs that obey them."""

import numpy as np
import pytest
import scipy.stats

from gptjax.sweeps import scaling_fit

DRAW = np.random.default_rng(0)
SIZES = np.array([1e5, 3e5, 1e6, 3e6, 1e7, 3e7])


def noisy(losses):
    return losses * np.exp(DRAW.normal(0, 1e-3, len(losses)))


def test_kaplans_law_of_size_is_found_again_and_foretells():
    n = np.repeat(SIZES, 3)
    found = scaling_fit.fit(
        scaling_fit.FORMS["power"], [n], noisy((8.8e13 / n) ** 0.076), np.repeat(range(6), 3)
    )
    value, low, high = found.parameter_intervals()["a"]
    assert value == pytest.approx(0.076, abs=1e-3) and low < 0.076 < high and high - low < 5e-3
    right = (8.8e13 / 1e9) ** 0.076
    assert found.predict(1e9) == pytest.approx(right, rel=5e-3)
    assert found.relative_error == pytest.approx(1e-3, rel=0.5)


def test_an_arm_that_went_wrong_bends_the_law_little(monkeypatch):
    """Huber's loss: one of nine arms is 10% above. By squares the exponent would be 8% off."""
    monkeypatch.setattr(scaling_fit, "N_DRAWS", 3)
    sizes, wrong = np.geomspace(1e4, 1e8, 9), np.exp(0.1 * (np.arange(9) == 8))
    found = scaling_fit.fit(
        scaling_fit.FORMS["power"], [sizes], (8.8e13 / sizes) ** 0.076 * wrong, range(9)
    )
    assert found.parameter_intervals()["a"][0] == pytest.approx(0.076, rel=0.01)


def test_intervals_hold_the_truth_about_as_often_as_they_say(monkeypatch):
    """Of a prediction and of the exponent, through five arms of three seeds; percentiles of the
    arms' residuals held 6 of 7."""
    monkeypatch.setattr(scaling_fit, "N_DRAWS", 39)  # the fewest whose outermost are 95% apart
    sizes, arms, held = np.geomspace(1e4, 1e6, 5), np.repeat(range(5), 3), np.zeros(2, int)
    for seed in range(40):
        draw = np.random.default_rng(100 + seed)  # not the draws of the bootstrap
        noise = np.repeat(draw.normal(0, 4e-3, 5), 3) + draw.normal(0, 6e-3, 15)
        found = scaling_fit.fit(
            scaling_fit.FORMS["power"],
            [sizes[arms]],
            (8.8e8 / sizes[arms]) ** 0.076 * np.exp(noise),
            arms,
            seed,
        )
        (low, high), (_, least, most) = (
            found.predict_interval(2e6),
            found.parameter_intervals()["a"],
        )
        held += low < (8.8e8 / 2e6) ** 0.076 < high, least < 0.076 < most
    assert (held >= 37).all(), held


def test_an_interval_is_as_wide_as_students(monkeypatch):
    """Where errors are far below Huber's delta and the law is a line in logarithms, theory has
    the width, here of 5 - 2 degrees."""
    monkeypatch.setattr(scaling_fit, "N_DRAWS", 400)
    sizes = np.geomspace(1e4, 1e6, 5)
    found = scaling_fit.fit(
        scaling_fit.FORMS["power"],
        [sizes],
        (8.8e8 / sizes) ** 0.076 * np.exp(1e-5 * np.array([1, -2, 1, 1.5, -1.5])),
        range(5),
    )
    x = np.stack([np.ones(5), np.log(sizes)], 1)
    at = np.array([1, np.log(2e6)])
    expected = (
        2 * scipy.stats.t.ppf(0.975, 3) * found.spread * np.sqrt(at @ np.linalg.inv(x.T @ x) @ at)
    )
    low, high = found.predict_interval(2e6)
    assert np.log(high / low) == pytest.approx(expected, rel=0.15)


def test_seeds_of_an_arm_are_not_arms():
    """The same losses three times over say nothing more."""
    losses = noisy((8.8e13 / SIZES) ** 0.076)
    once, thrice = (
        scaling_fit.fit(
            scaling_fit.FORMS["power"],
            [np.repeat(SIZES, k)],
            np.repeat(losses, k),
            np.repeat(range(6), k),
        )
        for k in (1, 3)
    )
    assert thrice.predict_interval(1e9) == pytest.approx(once.predict_interval(1e9), rel=1e-4)
    assert thrice.parameter_intervals()["a"] == pytest.approx(
        once.parameter_intervals()["a"], rel=1e-2
    )


def test_the_forms_are_those_of_the_papers():
    """At one place each, written out; Kaplan et al.'s (1.5) with all the data there could be is
    their (1.1)."""
    at = lambda name, p, *x: float(  # noqa: E731
        np.exp(scaling_fit.FORMS[name].log_loss(np.array(p), [np.float64(v) for v in x]))
    )
    assert at("power", [8.8e13, 0.076], 1e9) == pytest.approx(88_000**0.076)
    assert at("offset", [1.69, 406.4, 0.34], 1e8) == pytest.approx(1.69 + 406.4 / 1e8**0.34)
    kaplan = [6.4e13, 0.076, 1.8e13, 0.103]
    assert at("kaplan", kaplan, 1e9, 1e10) == pytest.approx(
        (64_000 ** (0.076 / 0.103) + 1_800) ** 0.103
    )
    assert at("kaplan", kaplan, 1e9, 1e40) == pytest.approx(64_000**0.076)
    assert at("chinchilla", [1.69, 406.4, 0.34, 410.7, 0.28], 1e8, 1e9) == pytest.approx(
        1.69 + 406.4 / 1e8**0.34 + 410.7 / 1e9**0.28
    )


def test_a_floor_is_found_where_there_is_one():
    found = scaling_fit.fit(
        scaling_fit.FORMS["offset"], [SIZES], 1.7 + 400 * SIZES**-0.34, range(6)
    )
    assert found.parameters == pytest.approx([1.7, 400, 0.34], rel=0.02)


@pytest.mark.parametrize("name", ["chinchilla", "kaplan"])
def test_laws_of_size_and_data(name):
    n, d = (a.ravel() for a in np.meshgrid(SIZES, [1e7, 1e8, 1e9, 1e10]))
    right = {
        "chinchilla": [1.69, 406.4, 0.34, 410.7, 0.28],
        "kaplan": [6.4e13, 0.076, 1.8e13, 0.103],
    }[name]
    form = scaling_fit.FORMS[name]
    losses = np.exp(form.log_loss(np.array(right), [n, d]))
    found = scaling_fit.fit(form, [n, d], losses, range(len(n)))
    assert found.relative_error < 2e-3
    assert found.predict(1e9, 1e11) == pytest.approx(
        np.exp(form.log_loss(np.array(right), [np.float64(1e9), np.float64(1e11)])), rel=0.02
    )


def test_the_search_gets_to_the_minimum_through_noise():
    """A fit is no worse than the truth that the losses were made of."""
    n, d = (a.ravel() for a in np.meshgrid(SIZES, [1e7, 1e8, 1e9, 1e10]))
    noise = np.random.default_rng(0).normal(0, 3e-3, len(n))
    form = scaling_fit.FORMS["chinchilla"]
    log_losses = form.log_loss(np.array([1.69, 406.4, 0.34, 410.7, 0.28]), [n, d]) + noise
    assert scaling_fit.fit(
        form, [n, d], np.exp(log_losses), range(len(n))
    ).relative_error < np.sqrt(np.mean(noise**2))


def test_of_arms_that_tell_nothing_there_are_numbers_all_the_same():
    """Powers and exponentials overflow; warnings are errors here."""
    for seed in range(3):
        losses = np.exp(np.random.default_rng(50 + seed).normal(size=3))
        found = scaling_fit.fit(scaling_fit.FORMS["power"], [SIZES[:3]], losses, range(3), seed)
        for low, high in [
            found.predict_interval(1e9),
            *(ends for _, *ends in found.parameter_intervals().values()),
        ]:
            assert 0 < low <= high < np.inf


def test_a_law_needs_more_arms_than_it_has_parameters():
    with pytest.raises(ValueError, match="has 2 parameters: give 3 arms or more, not 2"):
        scaling_fit.fit(scaling_fit.FORMS["power"], [[1, 1, 2, 2]], [3, 3, 2, 2], [0, 0, 1, 1])


def test_the_frontier_has_what_nothing_cheaper_beats():
    small, large = [(1, 5.0), (2, 4.0), (8, 3.9)], [(3, 6.0), (4, 3.95), (8, 3.0)]
    assert scaling_fit.pareto_frontier([small, large]) == [(1, 5.0), (2, 4.0), (4, 3.95), (8, 3.0)]
