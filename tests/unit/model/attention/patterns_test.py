import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import schema
from gptjax.model.attention import patterns, reference
from tests import tiny

PICTURES = {
    schema.Dense(): "#..... ##.... ###... ####.. #####. ######",
    schema.Banded(window=2): "#..... ##.... .##... ..##.. ...##. ....##",
    schema.Strided(stride=3): "#..... ##.... ###... ####.. .####. ..####",
    schema.Fixed(block=3, summary=1): "#..... ##.... ###... ..##.. ..###. ..####",
}


@pytest.mark.parametrize("pattern", PICTURES, ids=lambda p: type(p).__name__)
def test_pattern_pictures(pattern):
    assert patterns.picture(pattern, 6).split() == PICTURES[pattern].split()


def test_strided_sees_every_stride_th_key_before():
    assert patterns.picture(schema.Strided(stride=3), 9).split()[8] == "..#..####"


@pytest.mark.parametrize("name", tiny.EVERY_PATTERN)
def test_mask_of_the_last_queries_is_the_end_of_the_whole(name):
    pattern = tiny.EVERY_PATTERN[name]
    np.testing.assert_array_equal(patterns.mask(pattern, 5, 11), patterns.mask(pattern, 11, 11)[6:])


@pytest.mark.parametrize("name", tiny.EVERY_PATTERN)
def test_attention_is_the_mean_of_seen_values_when_scores_are_equal(name):
    pattern = tiny.EVERY_PATTERN[name]
    v_BSNH = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 3, 4)), jnp.float32)
    out_BTNH = reference.attend(jnp.zeros_like(v_BSNH), jnp.zeros_like(v_BSNH), v_BSNH, pattern)
    seen = np.asarray(patterns.mask(pattern, 7, 7), np.float32)
    expected = np.einsum("ts,bsnh->btnh", seen / seen.sum(-1, keepdims=True), v_BSNH)
    np.testing.assert_allclose(out_BTNH, expected, atol=1e-6)


def test_a_window_as_wide_as_the_context_is_dense():
    q = jnp.asarray(np.random.default_rng(0).normal(size=(1, 9, 2, 4)), jnp.float32)
    np.testing.assert_array_equal(
        reference.attend(q, q, q, schema.Banded(window=9)),
        reference.attend(q, q, q, schema.Dense()),
    )


def test_shapes_are_checked():
    q = jnp.zeros((1, 9, 2, 4))
    with pytest.raises(
        ValueError, match=r"attend: S=8 in v_BSKH \(1, 8, 2, 4\), but S=9 in k_BSKH"
    ):
        reference.attend(q, q, q[:, :8], schema.Dense())
