import jax.numpy as jnp
import pytest

from gptjax.config import schema
from gptjax.training import schedule


def at(spec, *tokens):
    return [float(schedule.learning_rate(spec, jnp.float32(t))) for t in tokens]


def test_cosine_of_gpt3():
    """Appendix B: linear over 375M tokens, cosine to 10% by 260B, constant to 300B."""
    spec = schema.Cosine(
        peak_lr=6e-4, warmup_tokens=375_000_000, decay_tokens=260_000_000_000, final_fraction=0.1
    )
    assert at(spec, 0, 187.5e6, 375e6, 260e9, 300e9) == pytest.approx(
        [0, 3e-4, 6e-4, 6e-5, 6e-5], rel=1e-6
    )
    assert at(spec, (260e9 + 375e6) / 2) == pytest.approx([3.3e-4], rel=1e-6)


def test_linear_is_gpt1s_fine_tuning():
    """(x / w if x <= w else 1) * (1 - x), with x the fraction done."""
    spec = schema.Linear(peak_lr=6.25e-5, warmup_tokens=200, decay_tokens=100_000)
    assert at(spec, 100, 200, 50_000, 100_000, 200_000) == pytest.approx(
        [6.25e-5 * 0.5 * 0.999, 6.25e-5 * 0.998, 6.25e-5 * 0.5, 0, 0], rel=1e-5, abs=1e-12
    )


def test_constant():
    assert at(schema.Constant(peak_lr=1e-3), 0, 1e9) == pytest.approx([1e-3, 1e-3])
    assert at(schema.Constant(peak_lr=1e-3, warmup_tokens=10), 5, 10, 1e9) == pytest.approx(
        [5e-4, 1e-3, 1e-3]
    )
