"""The chunked cross-entropy equals the plain one, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.learn import loss


def arrays(T, V=256, n_vocab=200, dtype=jnp.float32):
    k = jax.random.split(jax.random.key(0), 4)
    x_BTD = jax.random.normal(k[0], (3, T, 8), dtype)
    token_VD = jax.random.normal(k[1], (V, 8))
    targets_BT = jax.random.randint(k[2], (3, T), 0, n_vocab)
    return x_BTD, token_VD, targets_BT, jax.random.uniform(k[3], (3, T)) / (3 * T), n_vocab


@pytest.mark.parametrize("T", [1, 7, 16, 33])
@pytest.mark.parametrize("chunk_bytes", [2**30, 3 * 256 * 4 * 5, 3 * 256 * 4])
def test_chunks_change_nothing(monkeypatch, T, chunk_bytes):
    monkeypatch.setattr(loss, "CHUNK_BYTES", chunk_bytes)
    x, w, t, weights, n_vocab = arrays(T)
    expected = jax.value_and_grad(loss.plain, (0, 1))(x, w, t, weights, n_vocab)
    found = jax.value_and_grad(lambda x, w: 3.0 * loss.cross_entropy(x, w, t, weights, n_vocab) / 3.0, (0, 1))(x, w)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6), found, expected)
    np.testing.assert_allclose(loss.cross_entropy(x, w, t, weights, n_vocab), expected[0], rtol=1e-6)


def test_logits_of_a_chunk_are_all_that_lives(monkeypatch):
    """No array of B x T x V elements in the compiled program's shapes when a chunk is smaller."""
    monkeypatch.setattr(loss, "CHUNK_BYTES", 3 * 256 * 4 * 8)
    x, w, t, weights, n_vocab = arrays(64)
    text = jax.jit(jax.grad(loss.cross_entropy, (0, 1)), static_argnums=4).lower(x, w, t, weights, n_vocab).as_text()
    assert "3x8x256" in text and "3x64x256" not in text
    assert "3x64x256" in jax.jit(jax.grad(loss.plain, (0, 1)), static_argnums=4).lower(x, w, t, weights, n_vocab).as_text()


def test_padded_vocabulary_gets_no_probability_and_no_gradient():
    x, w, t, weights, n_vocab = arrays(9)
    gradient = jax.grad(loss.cross_entropy, 1)(x, w, t, weights, n_vocab)
    assert np.all(gradient[n_vocab:] == 0) and np.any(gradient[:n_vocab] != 0)
    changed = w.at[n_vocab:].set(100.0)
    assert loss.cross_entropy(x, changed, t, weights, n_vocab) == loss.cross_entropy(x, w, t, weights, n_vocab)
