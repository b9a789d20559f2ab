import dataclasses
import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import schema
from gptjax.model import gpt, layers
from tests import tiny

config = functools.partial(tiny.config, n_layers=4)  # two periods


def test_more_tokens_than_the_context():
    _, built, state = tiny.make_step(config())
    with pytest.raises(
        ValueError, match="13 tokens are more than the model's context of 12: give at most 12"
    ):
        built.model.apply({"params": state.params}, jnp.zeros((1, 13), jnp.int32))


@pytest.mark.parametrize("changes", [{"n_ctx": 10}, {"d_model": 8}, {"n_layers": 6}])
def test_parameters_of_another_model_are_refused(changes):
    _, built, _ = tiny.make_step(config())
    _, other, _ = tiny.make_step(config(**changes))
    tokens_BT = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    params = jax.eval_shape(other.model.init, jax.random.key(0), tokens_BT)
    with pytest.raises((flax.errors.ScopeParamShapeError, AssertionError), match="shape|3 periods"):
        jax.eval_shape(built.model.apply, params, tokens_BT)


@pytest.mark.parametrize(
    "compute, platform, dtype, unroll",
    [
        ({}, "cpu", jnp.float32, True),
        ({}, "tpu", jnp.bfloat16, False),
        ({"remat": "full"}, "cpu", jnp.float32, False),
        ({"dtype": "bfloat16", "scan_layers": True}, "cpu", jnp.bfloat16, False),
    ],
)
def test_auto_is_resolved_by_platform(compute, platform, dtype, unroll):
    manner = gpt.execution_policy(schema.Compute(**compute), platform)
    assert (manner.dtype, manner.unroll, manner.kernel) == (
        dtype,
        unroll,
        "blocks" if platform == "cpu" else "splash",
    )


def test_initial_weights_have_the_configs_deviations():
    init = schema.Init(weight=0.02, token=0.03, position=0.01, residual="depth_scaled")
    c = config(d_model=128, n_ctx=96, n_vocab=512, init=init, n_layers=8)
    _, _, state = tiny.make_step(c)
    block = state.params["periods"]["block_1"]
    expected = {
        "token": (state.params["token_VD"], 0.03),
        "position": (state.params["position_TD"], 0.01),
        "qkv": (block["attention"]["qkv"]["weight_DQNH"], 0.02),
        "out": (block["attention"]["out"]["weight_DNH"], 0.02 / 4),  # sqrt(2 * 8 layers)
        "up": (block["mlp"]["up"]["weight_DF"], 0.02),
        "down": (block["mlp"]["down"]["weight_DF"], 0.02 / 4),
    }
    for name, (leaf, deviation) in expected.items():
        assert np.std(leaf) == pytest.approx(deviation, rel=0.03), name
        assert abs(np.mean(leaf)) < deviation / 20, name
    assert not np.any(block["mlp"]["up"]["bias_F"]) and np.all(
        np.asarray(state.params["norm"]["gain_D"]) == 1
    )
    _, _, other = tiny.make_step(dataclasses.replace(c, seed=1))
    assert np.any(np.asarray(state.params["token_VD"]) != np.asarray(other.params["token_VD"]))
    of_periods = block["mlp"]["up"]["weight_DF"]
    assert np.any(
        np.asarray(of_periods[0]) != np.asarray(of_periods[1])
    )  # each period has its own draw


def test_post_norm_is_as_in_gpt1():
    """norm(x + f(x)), no final norm: every row of the output has mean 0 and variance 1 at the
    initial gains."""
    c = config(norm="post")
    _, built, state = tiny.make_step(c)
    assert "norm" not in state.params
    x_BTD = jax.jit(built.model.apply)({"params": state.params}, jnp.zeros((1, 5), jnp.int32))
    np.testing.assert_allclose(np.mean(x_BTD, -1), 0, atol=1e-5)
    np.testing.assert_allclose(np.var(x_BTD, -1), 1, atol=1e-2)


def test_dropout_masks_differ_by_layer(monkeypatch):
    """By the keys that they come from."""
    keys = []

    def noted(module, x, rate, train):
        if train:
            keys.append(tuple(jax.random.key_data(module.make_rng("dropout")).tolist()))
        return x

    monkeypatch.setattr(layers, "dropout", noted)
    c = config(n_layers=3, attention=(schema.Dense(),), dropout=schema.Dropout(residual=0.1))
    _, built, state = tiny.make_step(c)
    built.model.apply(
        {"params": state.params},
        tiny.random_tokens(c, 1)[:, :-1],
        train=True,
        rngs={"dropout": jax.random.key(0)},
    )
    assert len(keys) == len(set(keys)) == 1 + 3 * 2


def test_unrolled_and_scanned_periods_agree():
    """With weights of a size at which the order of layers matters."""
    c = config()
    _, built, state = tiny.make_step(tiny.replace_parts(c, compute={"scan_layers": True}))
    params = state.params | {"periods": jax.tree.map(lambda x: 10 * x, state.params["periods"])}
    policies = [
        gpt.execution_policy(schema.Compute(scan_layers=scan_layers), "cpu")
        for scan_layers in (False, True)
    ]
    models = [built.model.clone(execution_policy=policy) for policy in policies]
    looped, scanned, turned = jax.jit(
        lambda p, q, t: (
            models[0].apply({"params": p}, t),
            models[1].apply({"params": p}, t),
            models[1].apply({"params": q}, t),
        )
    )(
        params,
        params | {"periods": jax.tree.map(lambda x: x[::-1], params["periods"])},
        tiny.random_tokens(c, 2)[:, :-1],
    )
    np.testing.assert_allclose(looped, scanned, atol=1e-4)
    assert np.abs(looped - turned).max() > 0.1


def test_gelu_forms_differ_as_stated():
    from gptjax.model.mlp import gelu

    x = jnp.linspace(-3, 3, 101)
    np.testing.assert_allclose(
        gelu(x, "tanh"),
        0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        atol=1e-6,
    )
    np.testing.assert_allclose(gelu(x, "erf"), x * jax.scipy.stats.norm.cdf(x), atol=1e-6)
    np.testing.assert_allclose(gelu(x, "sigmoid"), x / (1 + np.exp(-1.702 * x)), atol=1e-6)
    assert 1e-4 < np.abs(gelu(x, "tanh") - gelu(x, "erf")).max() < 1e-3


def test_padding_columns_are_minus_infinity():
    y = gpt.logits(jnp.ones((1, 2, 4)), jnp.ones((8, 4)), 5)
    assert np.all(np.asarray(y[..., :5]) == 4) and np.all(np.isneginf(y[..., 5:]))


def test_the_gradient_of_unstack_layers_is_that_of_slicing():
    tree = {"a": jnp.arange(6.0).reshape(3, 2), "b": jnp.arange(3.0)}

    def value(parts):
        return sum(i * (part["a"] ** 2).sum() + part["b"] for i, part in enumerate(parts))

    found = jax.grad(lambda t: value(gpt.unstack_layers(t)))(tree)
    expected = jax.grad(lambda t: value([jax.tree.map(lambda x, i=i: x[i], t) for i in range(3)]))(
        tree
    )
    jax.tree.map(np.testing.assert_allclose, found, expected)
