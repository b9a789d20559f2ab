"""LongRoPE: the configured context alone chooses the factors, for a text of any length."""

import jax
import numpy as np
import pytest

from gptjax.config import schema
from gptjax.model import inference, rotary
from tests import tiny

SHORT, LONG = (1.0, 1.5), (4.0, 8.0)
ROPE = schema.Rotary(
    scaling=schema.LongRope(short_factors=SHORT, long_factors=LONG, original_context=8, scale=1.2)
)


@pytest.mark.parametrize("n_ctx, factors", [(8, SHORT), (9, LONG), (16, LONG)])
def test_the_configured_context_chooses(n_ctx, factors):
    frequencies, scale = rotary.frequencies(ROPE, 4, n_ctx)
    base = np.array([1.0, 1e4**-0.5])
    np.testing.assert_allclose(frequencies, base / factors, rtol=1e-6)
    assert scale == 1.2


def test_factors_do_not_switch_under_a_cache():
    """Of a model of 16 positions: keys of a text that is shorter than the original context of 8 are
    those of the whole text, and so are the hidden states beyond it."""
    c = tiny.config(n_ctx=16, n_layers=1, attention=(schema.Dense(),), positions=(ROPE,))
    _, built, state = tiny.make_step(c)
    lm, tokens = inference.prepare(built.model, state.params), tiny.random_tokens(c, 1)[:, :16]
    prefill = jax.jit(inference.prefill, static_argnames="capacity")
    whole, expected = prefill(lm, tokens, np.array([16], np.int32), capacity=16)
    cache, _ = prefill(lm, tokens[:, :4], np.array([4], np.int32), capacity=16)
    first_keys = np.asarray(cache.layers[0].k_BKHS[..., :4])
    np.testing.assert_allclose(first_keys, whole.layers[0].k_BKHS[..., :4], atol=1e-6)
    decode_step = jax.jit(inference.decode_step)
    for i in (4, 8, 12):
        cache, x = decode_step(lm, cache, tokens[:, i : i + 4], np.array([4], np.int32))
        np.testing.assert_allclose(x, expected[:, i : i + 4], atol=2e-5)
