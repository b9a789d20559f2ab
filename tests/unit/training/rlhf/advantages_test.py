"""Advantages are the formulas of their papers, and those of OpenAI's 2019 code, written in NumPy
from its description."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import rlhf
from gptjax.training.rlhf import advantages


def answers(seed=0, rows=5, width=9):
    """(random numbers (rows, width), a mask of answers of 1 to 6 tokens)."""
    draw = np.random.default_rng(seed)
    mask = np.zeros((rows, width), np.float32)
    for row in mask:
        n = int(draw.integers(1, 7))
        first = int(draw.integers(0, width - n + 1))
        row[first : first + n] = 1
    return draw.normal(size=(rows, width)).astype(np.float32) + 0.7, mask


def summed_gae(rewards, values, mask, discount, lam):
    """Equation 16 of 1506.02438 as a sum, row by row."""
    out = np.zeros_like(rewards)
    for b in range(len(mask)):
        where = np.flatnonzero(mask[b])
        v = [*values[b, where], 0.0]
        deltas = [rewards[b, t] + discount * v[i + 1] - v[i] for i, t in enumerate(where)]
        for i, t in enumerate(where):
            out[b, t] = sum((discount * lam) ** k * d for k, d in enumerate(deltas[i:]))
    return out


@pytest.mark.parametrize(("discount", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_gae_is_the_sum_of_its_paper_whatever_stands_around_the_answer(discount, lam):
    (rewards, mask), (values, _) = answers(), answers(seed=1)
    fn = jax.jit(advantages.gae, static_argnums=(3, 4))
    ours = fn(rewards, values, mask, discount, lam)
    expected = summed_gae(rewards, values, mask, discount, lam)
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    other = np.where(mask > 0, values, np.nan), np.where(mask > 0, rewards, 1e9)
    again = fn(other[1], other[0], mask, discount, lam)
    np.testing.assert_array_equal(again, ours)


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize(("kind", "ddof"), [("biased", 0), ("unbiased", 1)])
def test_whitening_divides_by_the_deviation_and_may_keep_the_mean(kind, ddof, shift_mean):
    x, mask = answers()
    chosen = x[mask > 0].astype(np.float64)
    expected = (chosen - chosen.mean()) / chosen.std(ddof=ddof)
    expected += 0 if shift_mean else chosen.mean()
    ours = np.asarray(advantages.whiten(x, mask, kind, shift_mean))
    np.testing.assert_allclose(ours[mask > 0], expected, rtol=1e-5, atol=1e-6)
    assert not ours[mask == 0].any()


def test_groups_are_compared_with_themselves():
    scores = jnp.array([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
    by_deviation = advantages.group_means(rlhf.GroupMean(answers=3), scores)
    first = np.array([-2.0, -1.0, 3.0])
    np.testing.assert_allclose(by_deviation[:3], first / (np.std(first, ddof=1) + 1e-4), rtol=1e-6)
    np.testing.assert_array_equal(by_deviation[3:], np.zeros(3))
    plain = advantages.group_means(rlhf.GroupMean(answers=3, divide_by="one"), scores)
    np.testing.assert_allclose(plain[:3], first, rtol=1e-6)
    others = advantages.leave_one_out(rlhf.LeaveOneOut(answers=3), scores)
    np.testing.assert_allclose(others, [1 - 4, 2 - 3.5, 6 - 1.5, 0, 0, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(6.0, 1.0), (6.6, 1 + 0.1 * 64 / 1000), (60.0, 1 + 0.2 * 64 / 1000), (0.0, 1 - 0.2 * 0.064)],
)
def test_the_adaptive_coefficient_moves_by_a_fifth_at_most(kl, factor):
    spec = rlhf.AdaptiveKl(target=6.0, horizon=1000.0)
    coef = advantages.next_kl_coef(spec, jnp.float32(0.15), jnp.float32(kl), 64)
    assert float(coef) == pytest.approx(0.15 * factor, rel=1e-6)
    assert advantages.next_kl_coef(rlhf.FixedKl(), 0.15, jnp.float32(kl), 64) == 0.15
