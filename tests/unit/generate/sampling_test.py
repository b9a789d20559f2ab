import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.generate import sampling
from gptjax.generate.sampling import SamplingParams

LOGITS = jnp.log(jnp.array([[0.5, 0.25, 0.15, 0.1], [0.1, 0.1, 0.2, 0.6]]))


def alive(**kw):
    return np.isfinite(sampling.filter_logits(LOGITS, SamplingParams(**kw))).tolist()


def test_greedy_and_top_1_agree():
    key = jax.random.key(0)
    assert sampling.sample(LOGITS, SamplingParams(temperature=0), key).tolist() == [0, 3]
    assert sampling.sample(LOGITS, SamplingParams(top_k=1), key).tolist() == [0, 3]
    assert sampling.sample(LOGITS, SamplingParams(top_p=1e-6), key).tolist() == [0, 3]


def test_top_k():
    assert alive(top_k=2) == [[True, True, False, False], [False, False, True, True]]
    assert alive(top_k=9) == [[True] * 4] * 2


def test_top_p_keeps_the_token_that_crosses():
    assert alive(top_p=0.6) == [[True, True, False, False], [False, False, False, True]]
    assert alive(top_p=0.75) == [[True, True, False, False], [False, False, True, True]]
    assert alive(top_p=1.0) == [[True] * 4] * 2


def test_top_p_is_taken_after_top_k():
    assert alive(top_p=0.6)[0] == [True, True, False, False]
    assert alive(top_p=0.6, top_k=2)[0] == [True, False, False, False]  # of 2/3 and 1/3


def test_top_p_is_taken_after_temperature():
    assert alive(top_p=0.75, temperature=0.1)[0] == [True, False, False, False]


def test_frequencies_follow_the_distribution():
    draw = jax.vmap(lambda k: sampling.sample(LOGITS, SamplingParams(temperature=2.0), k))(
        jax.random.split(jax.random.key(0), 20000)
    )
    expected = np.sqrt([0.5, 0.25, 0.15, 0.1])
    np.testing.assert_allclose(
        np.bincount(draw[:, 0], minlength=4) / 20000, expected / expected.sum(), atol=0.012
    )


def test_tokens_of_any_block_are_drawn_as_often_as_their_probability_says():
    """300 tokens, two blocks and a part of a third: chi-squared of 299 degrees of freedom."""
    n, key = 60_000, jax.random.key(2)
    logits = jax.random.normal(key, (1, 300)).at[0, 150].set(4.0)
    uniforms = jax.random.uniform(key, (n, 2))
    tokens = np.asarray(sampling.draw(jnp.tile(logits, (n, 1)), uniforms))
    expected = n * np.asarray(jax.nn.softmax(logits[0]))
    found = np.bincount(tokens, minlength=300)
    assert np.sum((found - expected) ** 2 / expected) < 299 + 5 * np.sqrt(2 * 299)


def test_a_token_without_probability_is_never_drawn():
    """At each border between two of the 393 blocks of GPT-2's vocabulary, of which most have no
    token of top-k, and where rounding decides."""
    draw = np.random.default_rng(0)
    for _ in range(4):
        p = draw.uniform(0.1, 1, 393) * (draw.random(393) < 0.3)
        borders = (np.cumsum(p) / p.sum())[:, None]
        near = np.clip(borders * (1 + np.arange(-8, 9) * 2.0**-24), 0, 1 - 2.0**-23).ravel()
        logits = jnp.repeat(jnp.log(p.astype(np.float32)), sampling.BLOCK)
        logits = jnp.where(jnp.arange(len(logits)) % sampling.BLOCK == 5, logits, -jnp.inf)
        uniforms = jnp.stack([near, np.zeros_like(near)], 1).astype(jnp.float32)
        one = jax.jit(jax.vmap(lambda u, y=logits: sampling.draw(y[None], u[None])[0]))
        tokens = np.asarray(one(uniforms))
        assert (tokens % sampling.BLOCK == 5).all()
        assert set(tokens // sampling.BLOCK) == set(np.flatnonzero(p))


@pytest.mark.parametrize("temperature", [1e-3, 1e-38, 5e-324])
def test_a_tiny_temperature_is_greedy(temperature):
    scores = jax.random.normal(jax.random.key(1), (3, 500)) * 3 + jnp.array([[0.0], [1e4], [-1e4]])
    scores = scores.at[:, 400:].set(-jnp.inf)  # padding
    for key in jax.random.split(jax.random.key(0), 2):
        for more in ({}, {"top_k": 9}, {"top_p": 0.9}):
            chosen = sampling.sample(scores, SamplingParams(temperature=temperature, **more), key)
            assert chosen.tolist() == jnp.argmax(scores, axis=-1).tolist()


@pytest.mark.parametrize("temperature", [1e38, 1e300])
def test_the_largest_temperatures_are_uniform_except_for_padding(temperature):
    scores = jnp.arange(8.0)[None].at[:, 5:].set(-jnp.inf)
    for more in ({}, {"top_p": 1.0}, {"top_k": 10**18}):
        kept = sampling.filter_logits(scores, SamplingParams(temperature=temperature, **more))
        np.testing.assert_array_equal(np.isfinite(kept), [[True] * 5 + [False] * 3])
        assert float(jax.nn.softmax(kept)[0, 0]) == pytest.approx(0.2)


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": -1.0},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
    ],
)
def test_values_that_leave_no_token_are_refused(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}="):
        SamplingParams(**bad)
