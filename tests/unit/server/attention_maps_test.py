"""Attention maps against softmax(q k^T / sqrt(d_head)) in numpy, from the model's parameters."""

import jax
import numpy as np
import pytest

from gptjax.config import schema
from gptjax.model import activations, gpt
from gptjax.server import attention_maps
from tests import tiny

N_CTX = 48
KINDS = {
    "banded and dense": {},
    "grouped heads, rotary": {
        "heads": schema.AttentionHeads(n_kv_heads=2),
        "positions": (schema.Rotary(),),
        "norm_type": schema.RMSNorm(),
        "biases": "none",
        "attention": (schema.Dense(),),
    },
}
IDS = np.random.default_rng(3).integers(0, 61, 40).tolist()


@pytest.fixture(params=list(KINDS))
def lm(request):
    return tiny.make_peaked_model(n_ctx=N_CTX, n_layers=3, **KINDS[request.param])


def rotate(x_TNH):
    """Element i is the real part, i + H / 2 the imaginary part of a number whose angle grows."""
    T, _, H = x_TNH.shape
    angles_TH = np.arange(T)[:, None] * 10_000.0 ** (-np.arange(0, H, 2) / H)
    z = (x_TNH[..., : H // 2] + 1j * x_TNH[..., H // 2 :]) * np.exp(1j * angles_TH)[:, None]
    return np.concatenate([z.real, z.imag], axis=-1)


def numpy_weights(lm, ids, layer):
    """(N, T, S) in float64."""
    c = lm.model.config
    p = jax.tree.map(np.float64, gpt.layer_params(c, lm.params, layer))
    # A layer's input is the model's own.
    x_TD = np.float64(activations.hidden_states(lm, jax.numpy.array([ids]))[layer][0])
    qkv = p["attention"]["qkv"]
    if c.n_kv_heads == c.n_heads:
        x_TD = (x_TD - x_TD.mean(-1, keepdims=True)) / np.sqrt(x_TD.var(-1) + 1e-5)[:, None]
        x_TD = x_TD * p["norm_1"]["gain_D"] + p["norm_1"]["bias_D"]
        weight_QDNH = qkv["weight_DQNH"].transpose(1, 0, 2, 3)
        q, k = (
            np.einsum("td,dnh->tnh", x_TD, w) + b
            for w, b in zip(weight_QDNH[:2], qkv["bias_QNH"][:2], strict=True)
        )
    else:
        x_TD = x_TD / np.sqrt((x_TD**2).mean(-1) + c.norm_type.eps)[:, None]
        x_TD = x_TD * p["norm_1"]["gain_D"]
        q, k = (
            rotate(np.einsum("td,dnh->tnh", x_TD, qkv[name]["weight_D" + letter + "H"]))
            for name, letter in (("query", "N"), ("key", "K"))
        )
        k = np.repeat(k, c.n_heads // c.n_kv_heads, axis=1)
    scores = np.einsum("tnh,snh->nts", q, k) / np.sqrt(c.d_head)
    back = np.arange(len(ids))[:, None] - np.arange(len(ids))
    pattern = c.attention[layer % len(c.attention)]
    is_visible = (back >= 0) & (
        back < (pattern.window if isinstance(pattern, schema.Banded) else back.size)
    )
    e = np.where(is_visible, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("n", [1, 17, 40])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_weights_are_those_of_the_layer_and_head(lm, layer, n):
    expected_NTS = numpy_weights(lm, IDS[:n], layer)
    maps = attention_maps.make_maps(lm)
    assert (maps.n_layers, maps.n_heads) == (3, 4)
    for head in (None, 0, 3):
        found = maps.compute(IDS[:n], layer, head)
        expected_TS = expected_NTS.mean(0) if head is None else expected_NTS[head]
        assert found.first == 0 and not found.earlier_T.any()
        np.testing.assert_allclose(found.weights_TS, expected_TS, atol=2e-5)
        np.testing.assert_array_equal(found.weights_TS > 0, expected_TS > 0)
        np.testing.assert_allclose(found.weights_TS.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("n", [9, 23, 40])
def test_of_a_long_conversation_the_last_tokens_are_shown(lm, monkeypatch, n):
    monkeypatch.setattr(attention_maps, "MAX_TOKENS", 8)
    for layer in range(3):
        expected_TS = numpy_weights(lm, IDS[:n], layer)[2]
        found = attention_maps.make_maps(lm).compute(IDS[:n], layer, 2)
        assert found.first == n - 8 and found.weights_TS.shape == (8, 8)
        np.testing.assert_allclose(found.weights_TS, expected_TS[-8:, -8:], atol=2e-5)
        np.testing.assert_allclose(found.earlier_T, expected_TS[-8:, :-8].sum(-1), atol=2e-5)


def test_a_length_is_compiled_once_for_all_layers_and_heads():
    lm = tiny.make_peaked_model(n_ctx=44, n_layers=3)  # another context than all others
    maps, compiled = attention_maps.make_maps(lm), []

    def count(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(count)
    for n in (33, 40):
        for layer in range(3):
            for head in (None, 0, 3):
                maps.compute(IDS[:n], layer, head)
    jax.monitoring.unregister_event_duration_listener(count)
    assert len(compiled) == 1
