"""The GPT with a memory: it reads tokens, keeps their keys and values, and reads on from there.

`prepare` the model once, then `prefill` the beginnings of a batch of texts and, by `decode_step`,
read one or more tokens at a time. These are pure functions, to be jitted by who uses them: with the
cache donated where it is not needed again; else a prefix that was read once serves many
continuations (`kv_cache.take_rows` repeats its rows). Where all is known beforehand,
`forward_tree` reads texts that share their beginnings in one pass, without a cache."""

import dataclasses
import functools
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp

from gptjax.model import gpt, kv_cache, layers
from gptjax.model.attention import tree
from gptjax.sharding import rules, trees
from gptjax.sharding.shapes import shaped


class NonFiniteLogits(ValueError):
    """A model's logits are NaN or infinite, so that nothing it says means anything."""

    def __init__(self):
        super().__init__(
            "the model's probabilities are no numbers (NaN): its parameters are damaged, or went "
            "wrong in training; take others"
        )


class InferenceModel(flax.struct.PyTreeNode):
    """A model with its parameters laid out for reading: weights in the type of computation, each
    period by itself."""

    params: Any
    model: gpt.GPT = flax.struct.field(pytree_node=False)


@functools.partial(jax.jit, static_argnums=0)
def prepare(model: gpt.GPT, params: Any) -> InferenceModel:
    """Parameters as GPT has them -> InferenceModel: a copy, made once so that no token pays for a
    cast or a slice of the weights. Where the activations lie is left to the compiler: one token
    does not divide over devices. bfloat16 on CPU, where XLA's products of it take 40 times as
    long as those of float32: the weights are rounded to it, and the rest is float32."""
    execution_policy, dtype = model.execution_policy, model.execution_policy.dtype
    if dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
        execution_policy = dataclasses.replace(execution_policy, dtype=jnp.float32)

    def cast_weight(path, x):  # layer norms are computed in float32 whatever the rest is
        if trees.leaf_name(path).rpartition("/")[2].startswith(("gain", "bias")):
            return x
        # Two casts, there and back, XLA would leave out.
        return (
            x.astype(dtype)
            if dtype == execution_policy.dtype
            else jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        )

    params = jax.tree_util.tree_map_with_path(cast_weight, params)
    return InferenceModel(
        params | {"periods": gpt.unstack_layers(params["periods"])},
        model.clone(sharding=rules.UNSHARDED, execution_policy=execution_policy),
    )


@shaped
def prefill(
    lm: InferenceModel, tokens_BT: jax.Array, counts_B: jax.Array, capacity: int
) -> tuple[kv_cache.KVCache, jax.Array]:
    """Read the beginnings of texts: of row b its first counts_B[b] tokens, the rest is padding.
    Returns the cache, with room for texts of `capacity` tokens (at least T, at most n_ctx), and
    the final hidden states (B, T, D); padding's mean nothing."""
    no_caches = (None,) * lm.model.config.n_layers
    return _forward_cached(lm, no_caches, jnp.zeros_like(counts_B), capacity, tokens_BT, counts_B)


@shaped
def decode_step(
    lm: InferenceModel, cache: kv_cache.KVCache, tokens_BT: jax.Array, counts_B: jax.Array
) -> tuple[kv_cache.KVCache, jax.Array]:
    """Read on: of row b counts_B[b] more tokens, perhaps none, the rest is padding. No row may
    exceed the capacity (see `kv_cache.resize`): what exceeds it overwrites. Returns the cache
    and the final hidden states (B, T, D) of the new tokens; padding's mean nothing."""
    return _forward_cached(lm, cache.layers, cache.lengths_B, cache.capacity, tokens_BT, counts_B)


@shaped
def forward_tree(
    lm: InferenceModel, tokens_BT: jax.Array, positions_BT: jax.Array, ends_BT: jax.Array
) -> jax.Array:
    """Read rows of forests (model/attention/tree.py), a row perhaps longer than the context, no
    position beyond it. Returns the final hidden states (B, T, D): of each node, as though its
    ancestors were the text before it. Activations lie where the reader's model places them."""
    layer_inputs = ({"tree": tree.TokenTree(positions_BT, ends_BT)},) * lm.model.config.n_layers
    return _apply_layers(lm, tokens_BT, positions_BT, layer_inputs)[0]


def _forward_cached(lm, layer_caches, starts_B, capacity, tokens_BT, counts_B):
    T, n_ctx = tokens_BT.shape[1], lm.model.config.n_ctx
    if not T <= capacity <= n_ctx:
        raise ValueError(
            f"a cache of {capacity} tokens for {T} new ones: give {T} to {n_ctx}, the model's "
            "context"
        )
    layer_inputs = [
        {"update": kv_cache.CacheUpdate(layer, starts_B, counts_B, capacity)}
        for layer in layer_caches
    ]
    x_BTD, outputs = _apply_layers(
        lm, tokens_BT, starts_B[:, None] + jnp.arange(T)[None], layer_inputs
    )
    return kv_cache.KVCache(
        tuple(output["update"] for output in outputs), starts_B + counts_B, capacity
    ), x_BTD


def _apply_layers(lm, tokens_BT, positions_BT, layer_inputs):
    """(final hidden states, what each layer left of what it found in its cache)."""
    model, params = lm.model, lm.params
    c = model.config
    x_BTD = jnp.take(params["token_VD"], tokens_BT, axis=0) + jnp.take(
        params["position_TD"], positions_BT, axis=0, mode="clip"
    )
    x_BTD, outputs = model.sharding(x_BTD, "BPD"), []
    for i, layer_input in enumerate(layer_inputs):
        period, block = divmod(i, len(c.attention))
        module = layers.Block(
            c, c.attention[block], model.execution_policy.kernel, model.sharding, parent=None
        )
        variables = {
            "params": params["periods"][period][f"block_{block}"],
            "cache": {"attention": layer_input},
        }
        x_BTD, updated = cast(Any, module.apply(variables, x_BTD, None, False, mutable="cache"))
        outputs.append(updated["cache"]["attention"])
    if c.norm == "pre":
        x_BTD = cast(
            jax.Array, layers.LayerNorm(parent=None).apply({"params": params["norm"]}, x_BTD)
        )
    return x_BTD, outputs


@shaped
def logits(lm: InferenceModel, x_BTD: jax.Array) -> jax.Array:
    """float32 (B, T, V): the logits of the token after each hidden state."""
    return gpt.logits(x_BTD, lm.params["token_VD"], lm.model.config.n_vocab)


@shaped
def last_hidden(x_BTD: jax.Array, counts_B: jax.Array) -> jax.Array:
    """(B, 1, D): the hidden state of each row's last own token."""
    return jnp.take_along_axis(x_BTD, jnp.maximum(counts_B - 1, 0)[:, None, None], axis=1)
