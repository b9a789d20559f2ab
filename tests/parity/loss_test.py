"""The chunked cross-entropy equals the plain one, in value and gradient; both ends of the model,
on a table that is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import schema
from gptjax.model import embedding
from gptjax.sharding import device_mesh, rules
from gptjax.training import loss


def arrays(T, V=256, n_vocab=200, dtype=jnp.float32, B=3):
    k = jax.random.split(jax.random.key(0), 4)
    x_BTD = jax.random.normal(k[0], (B, T, 8), dtype)
    token_VD = jax.random.normal(k[1], (V, 8))
    targets_BT = jax.random.randint(k[2], (B, T), 0, n_vocab)
    return x_BTD, token_VD, targets_BT, jax.random.uniform(k[3], (B, T)) / (B * T), n_vocab


@pytest.mark.parametrize("T", [1, 7, 16, 33])
@pytest.mark.parametrize("chunk_bytes", [2**30, 3 * 256 * 4 * 5, 3 * 256 * 4])
def test_chunks_change_nothing(monkeypatch, T, chunk_bytes):
    monkeypatch.setattr(loss, "CHUNK_BYTES", chunk_bytes)
    x, w, t, weights, n_vocab = arrays(T)
    expected = jax.value_and_grad(loss.cross_entropy_reference, (0, 1))(x, w, t, weights, n_vocab)
    found = jax.value_and_grad(
        lambda x, w: 3.0 * loss.cross_entropy(x, w, t, weights, n_vocab), (0, 1)
    )(x, w)
    found = jax.tree.map(lambda a: a / 3.0, found)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6), found, expected
    )
    np.testing.assert_allclose(
        loss.cross_entropy(x, w, t, weights, n_vocab), expected[0], rtol=1e-6
    )


def test_the_softcap_of_the_logits(monkeypatch):
    """In chunks with gradients, against JAX's own; columns of padding stay out."""
    monkeypatch.setattr(loss, "CHUNK_BYTES", 3 * 256 * 4 * 5)
    x, w, t, weights, n_vocab = arrays(16)

    def capped(x, w):
        return loss.cross_entropy(x, w, t, weights, n_vocab, softcap=2.0)

    def reference(x, w):
        y_BTV = 2.0 * jnp.tanh(jnp.einsum("BTD,VD->BTV", x, w[:n_vocab]) / 2.0)
        target_BT = jnp.take_along_axis(y_BTV, t[..., None], axis=-1)[..., 0]
        return jnp.sum(weights * (jax.nn.logsumexp(y_BTV, axis=-1) - target_BT))

    found, expected = (jax.value_and_grad(fn, (0, 1))(x, w) for fn in (capped, reference))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
    assert loss.cross_entropy(x, w, t, weights, n_vocab) > 1.1 * found[0]


def test_logits_of_a_chunk_are_all_that_lives(monkeypatch):
    """No array of B x T x V elements in the compiled program's shapes when a chunk is smaller."""
    monkeypatch.setattr(loss, "CHUNK_BYTES", 3 * 256 * 4 * 8)
    x, w, t, weights, n_vocab = arrays(64)
    text = (
        jax.jit(jax.grad(loss.cross_entropy, (0, 1)), static_argnums=4)
        .lower(x, w, t, weights, n_vocab)
        .as_text()
    )
    assert "3x8x256" in text and "3x64x256" not in text
    assert (
        "3x64x256"
        in jax.jit(jax.grad(loss.cross_entropy_reference, (0, 1)), static_argnums=4)
        .lower(x, w, t, weights, n_vocab)
        .as_text()
    )


def test_padded_vocabulary_gets_no_probability_and_no_gradient():
    x, w, t, weights, n_vocab = arrays(9)
    gradient = jax.grad(loss.cross_entropy, 1)(x, w, t, weights, n_vocab)
    assert np.all(gradient[n_vocab:] == 0) and np.any(gradient[:n_vocab] != 0)
    changed = w.at[n_vocab:].set(100.0)
    assert loss.cross_entropy(x, changed, t, weights, n_vocab) == loss.cross_entropy(
        x, w, t, weights, n_vocab
    )


@pytest.fixture
def place():
    return rules.Sharding(
        rules.PRESETS["fsdp_tensor"],
        device_mesh.make_mesh(schema.Mesh(fsdp=2, tensor=2, context=2)),
    )


@pytest.mark.parametrize(
    "chunk_bytes", [2**30, 2 * 128 * 4 * 3]
)  # of a device's 2 rows of 8 positions and 128 ids: one chunk, and three
def test_cut_over_devices(monkeypatch, place, chunk_bytes):
    """Value and gradients, with the vocabulary, the rows and the sequence cut in two; the value
    alone too, which is what evaluates."""
    monkeypatch.setattr(loss, "CHUNK_BYTES", chunk_bytes)
    x, w, t, weights, n_vocab = arrays(16, B=4)
    expected = jax.value_and_grad(loss.cross_entropy_reference, (0, 1))(x, w, t, weights, n_vocab)
    value, found = jax.jit(
        lambda x, w: (
            loss.cross_entropy(x, w, t, weights, n_vocab, place),
            jax.value_and_grad(loss.cross_entropy, (0, 1))(x, w, t, weights, n_vocab, place),
        )
    )(x, w)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6), found, expected
    )
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    assert found[1][1].addressable_shards[0].data.shape == (128, 2), (
        "the table's gradient lies as the table does"
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_looked_up_in_a_table_that_is_cut(place, dtype):
    """Value, and a gradient that is a float32 sum whatever the type is: one id is drawn a
    hundred times."""
    table, tokens = (
        jax.random.normal(jax.random.key(0), (256, 8)),
        jax.random.randint(jax.random.key(1), (4, 64), 0, 256),
    )
    tokens = jnp.where(jnp.arange(64)[None] % 2 == 0, 7, tokens)
    g = jax.random.normal(jax.random.key(2), (4, 64, 8), dtype)
    expected = jnp.zeros((256, 8)).at[tokens].add(g.astype(jnp.float32))
    for where in (place, rules.UNSHARDED):

        def out_and_gradient(table):
            out, pull = jax.vjp(lambda table: embedding.embed(table, tokens, dtype, where), table)  # noqa: B023
            return out, *pull(g)

        out, found = jax.jit(out_and_gradient)(table)
        np.testing.assert_array_equal(out, table.astype(dtype)[tokens])
        np.testing.assert_allclose(found, expected, atol=2e-5)
