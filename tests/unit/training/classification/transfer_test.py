"""What a new model takes of a pre-trained one, leaf by leaf and layer by layer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import schema
from gptjax.config.classification import Everything, Layers, Nothing
from gptjax.config.finetuning import N_SPECIAL_TOKENS
from gptjax.model import gpt
from gptjax.training.classification import transfer
from tests import tiny

N_VOCAB = 61
PATTERNS = {"one layer a period": (schema.Dense(),), "two": tiny.GPT3}


@functools.cache  # drawing them takes longer than the tests
def pair(norm="pre", attention=tiny.GPT3):
    """(new model, new parameters, old parameters): more ids, a shorter context."""
    old = tiny.config(norm=norm, attention=attention, n_layers=4).model
    new = dataclasses.replace(old, n_vocab=N_VOCAB + N_SPECIAL_TOKENS, n_ctx=8)

    def drawn(model, seed):
        net = gpt.GPT(model, gpt.execution_policy(schema.Compute(), "cpu"))
        shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), np.zeros((1, 1), np.int32)))[
            "params"
        ]
        draw = np.random.default_rng(seed)
        return jax.tree.map(
            lambda x: jnp.asarray(draw.normal(size=x.shape), x.dtype), shapes
        )  # gains and biases differ too

    return new, drawn(new, 0), drawn(old, 10)


def layer(params, model, number):
    period, place = divmod(number, len(model.attention))
    return jax.tree.map(lambda x: np.asarray(x)[period], params["periods"][f"block_{place}"])


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, None])
def test_so_many_layers_are_taken(pattern, n):
    model, new, old = pair(attention=PATTERNS[pattern])
    made = transfer.transfer_params(
        new, old, model, N_VOCAB, Everything() if n is None else Layers(n=n)
    )
    assert jax.tree.map(np.shape, made) == jax.tree.map(np.shape, new)
    for number in range(4):
        taken = n is None or number < n
        assert same(layer(made, model, number), layer(old if taken else new, model, number)), number
        assert not same(layer(new, model, number), layer(old, model, number))
    assert same(made["norm"], (old if n is None else new)["norm"])


@pytest.mark.parametrize("what", [Everything(), Layers(n=0)])
def test_special_tokens_stay_new_and_positions_are_the_first(what):
    model, new, old = pair(norm="post")
    made = transfer.transfer_params(new, old, model, N_VOCAB, what)
    np.testing.assert_array_equal(made["token_VD"][:N_VOCAB], old["token_VD"][:N_VOCAB])
    np.testing.assert_array_equal(made["token_VD"][N_VOCAB:], new["token_VD"][N_VOCAB:])
    np.testing.assert_array_equal(made["position_TD"], old["position_TD"][:8])
    assert "norm" not in made


def test_nothing_is_nothing():
    model, new, old = pair()
    assert transfer.transfer_params(new, old, model, N_VOCAB, Nothing()) is new


def test_more_layers_than_there_are_are_refused():
    model, new, old = pair()
    with pytest.raises(
        ValueError,
        match=r"task.transfer=Layers\(n=5\): the model has 4 layers; give as many or fewer",
    ):
        transfer.transfer_params(new, old, model, N_VOCAB, Layers(n=5))
    with pytest.raises(ValueError, match="Layers.n=-1: give a whole number from 0"):
        Layers(n=-1)
