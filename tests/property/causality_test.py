"""The future never leaks: by gradient, for every pattern, norm placement and way of running the
layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import schema
from gptjax.model import gpt, inference
from gptjax.model.attention import dispatch, patterns, tpu_splash
from tests import tiny


def build(c, platform="cpu"):
    """(model, parameters) of a config."""
    model = gpt.GPT(c.model, gpt.execution_policy(c.compute, platform))
    tokens_BT = np.zeros((1, 1), np.int32)
    return model, jax.jit(model.init)(jax.random.key(0), tokens_BT)["params"]


def sensitivity(c, T=12, end_of_text=None, platform="cpu"):
    """(T, T): how much hidden state t moves with the embedding of token s; rows of the Jacobian
    through the token table."""
    model, params = build(c, platform)
    tokens_BT = jnp.arange(T)[None]  # each token once, so a row of the table is a position
    segments_BT = None if end_of_text is None else gpt.segment_ids(tokens_BT, end_of_text)

    def hidden(table):
        x_BTD = model.apply({"params": params | {"token_VD": table}}, tokens_BT, segments_BT)
        return x_BTD[0] @ jnp.arange(1.0, c.model.d_model + 1)

    jacobian_TVD = jax.jit(jax.jacrev(hidden))(params["token_VD"])
    return np.abs(jacobian_TVD[:, :T]).sum(-1)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("name", tiny.EVERY_PATTERN)
def test_one_layer_sees_just_its_pattern(name, norm):
    pattern = tiny.EVERY_PATTERN[name]
    moved = sensitivity(tiny.config(n_layers=1, attention=(pattern,), norm=norm)) > 1e-7
    np.testing.assert_array_equal(moved, np.asarray(patterns.mask(pattern, 12, 12)))


@pytest.mark.parametrize("name", tiny.EVERY_PATTERN)
def test_splash_sees_just_its_pattern(name, monkeypatch):
    monkeypatch.setitem(
        dispatch.KERNELS, "splash", functools.partial(tpu_splash.attend, interpret=True)
    )
    pattern = tiny.EVERY_PATTERN[name]
    c = tiny.replace_parts(
        tiny.config(n_layers=1, attention=(pattern,)), compute={"dtype": "float32"}
    )
    moved = sensitivity(c, platform="tpu") > 1e-7
    np.testing.assert_array_equal(moved, np.asarray(patterns.mask(pattern, 12, 12)))


@pytest.mark.parametrize("scan_layers", [True, False])
def test_no_future_through_all_layers(scan_layers):
    c = tiny.config(n_layers=4)
    moved = sensitivity(tiny.replace_parts(c, compute={"scan_layers": scan_layers}))
    assert np.all(moved[np.triu_indices(12, 1)] == 0) and np.all(np.diag(moved) > 1e-7)


@pytest.mark.parametrize("changes", [
    {"positions": (schema.Rotary(),), "heads": schema.AttentionHeads(n_kv_heads=2, qk_norm=True)},
    {"norm": "both", "norm_type": schema.RMSNorm(), "mlp": schema.GeGLU(d_ff=8), "n_layers": 3},
    {"heads": schema.AttentionHeads(sinks=True, softcap=2.0), "biases": "none"},
], ids=str)  # fmt: skip
def test_no_future_in_the_families_after_gpt3(changes):
    moved = sensitivity(tiny.config(**changes))
    assert np.all(moved[np.triu_indices(12, 1)] == 0) and np.all(np.diag(moved) > 1e-7)


def test_masked_documents_do_not_attend_to_each_other():
    moved = sensitivity(tiny.config(), end_of_text=4) > 1e-7
    assert not moved[5:, :5].any()  # token 4 ends the first document
    assert moved[4, :5].all() and moved[11, 5]


@pytest.mark.parametrize("name", tiny.EVERY_PATTERN)
def test_no_future_through_the_cache(name):
    """One layer, read as 5 tokens at once, 4 at once and 3 one by one: each position moves with
    just the tokens that its pattern shows."""
    pattern = tiny.EVERY_PATTERN[name]
    model, params = build(tiny.config(n_layers=1, attention=(pattern,)))
    tokens_BT = np.arange(12, dtype=np.int32)[None]

    def hidden(table):
        reader = inference.prepare(model, params | {"token_VD": table})
        memory, x_BTD = inference.prefill(reader, tokens_BT[:, :5], np.array([5]), 12)
        parts = [x_BTD]
        for start, n in ((5, 4), (9, 1), (10, 1), (11, 1)):
            memory, x_BTD = inference.decode_step(
                reader, memory, tokens_BT[:, start : start + n], np.array([n])
            )
            parts.append(x_BTD)
        return jnp.concatenate(parts, axis=1)[0] @ jnp.arange(1.0, 17)

    moved = np.abs(jax.jit(jax.jacrev(hidden))(params["token_VD"])[:, :12]).sum(-1)
    assert np.all(moved[np.triu_indices(12, 1)] == 0)
    np.testing.assert_array_equal(moved > 1e-7, np.asarray(patterns.mask(pattern, 12, 12)))
