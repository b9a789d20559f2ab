"""Inference with a KV cache: prefill, decode steps, and tree attention.

`prepare` converts the parameters once. `prefill` runs a batch of prompts and fills the cache;
`decode_step` appends one or more tokens per row. All are pure functions that the caller jits: with
the cache donated, or kept so that one prefix serves many continuations (`kv_cache.take_rows`
repeats its rows). If all texts are known in advance, `forward_tree` runs those with common prefixes
in one pass, without a cache.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp

from gptjax.model import gpt, kv_cache, layers, scalar_head
from gptjax.model.attention import tree
from gptjax.sharding import rules, trees
from gptjax.sharding.shapes import shaped


class NonFiniteLogits(ValueError):
    """The model's logits are NaN or infinite, so its output is meaningless."""

    def __init__(self):
        super().__init__(
            "the model's logits are NaN or infinite: its parameters are damaged, or training "
            "diverged; use another checkpoint"
        )


class InferenceModel(flax.struct.PyTreeNode):
    """A GPT and its parameters prepared for inference: weights in the compute dtype, one subtree
    per period.
    """

    params: Any
    model: gpt.GPT = flax.struct.field(pytree_node=False)


@functools.partial(jax.jit, static_argnums=(0, 2))
def prepare(
    model: gpt.GPT, params: Any, sharding: rules.Sharding = rules.UNSHARDED
) -> InferenceModel:
    """Converts the parameters of a GPT for inference: a copy, so that no decode step pays for
    casting, slicing or gathering weights.

    sharding: Sharding.of_rows, where the rows divide over devices; else that of activations is left
    to the compiler, because a single token does not divide over devices.

    bfloat16 on CPU: weights are rounded to bfloat16 and everything else is float32, since XLA's
    bfloat16 matmuls on CPU take 40 times as long as float32 ones.
    """
    execution_policy, dtype = model.execution_policy, model.execution_policy.dtype
    mesh = model.sharding.mesh  # of compile-only devices, perhaps
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    if dtype == jnp.bfloat16 and platform == "cpu":
        execution_policy = dataclasses.replace(execution_policy, dtype=jnp.float32)

    # First, so that of a gathered copy no stack exists besides its slices.
    periods = gpt.unstack_layers(params["periods"]) if "periods" in params else []
    params = params | {"periods": periods}
    if dtype == execution_policy.dtype:
        params = cast_weights(params, dtype)
    else:  # a round trip through bfloat16 by two casts would be optimized away by XLA
        params = _map_weights(
            lambda x: jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7), params
        )
    return InferenceModel(
        sharding.shard_like_params(params),
        model.clone(sharding=sharding, execution_policy=execution_policy),
    )


def cast_weights(params: Any, dtype: Any) -> Any:
    """Returns the parameters of a GPT, with or without a scalar head, their weights in the dtype in
    which its forward pass reads them: what it computes does not change by a bit. What it reads in
    float32 stays: norms, biases, attention sinks, routers of experts, and the scalar head."""
    return _map_weights(lambda x: x.astype(dtype), params)


def _map_weights(fn: Callable[[jax.Array], jax.Array], params: Any) -> Any:
    def map_leaf(path, x):
        *modules, name = trees.leaf_name(path).split("/")
        is_float32 = name.startswith(("gain", "bias", "sink"))
        return x if is_float32 or {"router", scalar_head.NAME} & {*modules} else fn(x)

    return jax.tree_util.tree_map_with_path(map_leaf, params)


@shaped
def prefill(
    lm: InferenceModel, tokens_BT: jax.Array, counts_B: jax.Array, capacity: int
) -> tuple[kv_cache.KVCache, jax.Array]:
    """Runs the prompts: the first counts_B[b] tokens of row b; the rest is padding.

    Returns the cache, allocated for `capacity` tokens per row (T <= capacity <= n_ctx), and the
    final hidden states (B, T, D), meaningless at padding. With compute.prefill_chunk, prompts are
    read so many tokens at a time: of memory, only the cache and the hidden states then grow with T.
    """
    _check_capacity(lm, tokens_BT.shape[1], capacity)
    chunk = lm.model.execution_policy.prefill_chunk
    if chunk is not None and chunk < tokens_BT.shape[1]:
        return _prefill_by_chunks(lm, tokens_BT, counts_B, capacity, chunk)
    no_caches = (None,) * lm.model.config.n_layers
    return _forward_with_cache(
        lm, no_caches, jnp.zeros_like(counts_B), capacity, tokens_BT, counts_B
    )


def _prefill_by_chunks(lm, tokens_BT, counts_B, capacity, chunk):
    """`prefill`, each chunk over the cache of those before it."""
    B, T = tokens_BT.shape
    c, execution_policy = lm.model.config, lm.model.execution_policy
    tokens_BT = jnp.pad(tokens_BT, ((0, 0), (0, -T % chunk)))

    def read_chunk(i, state):
        cache, x_BTD = state
        new_BT = jax.lax.dynamic_slice_in_dim(tokens_BT, i * chunk, chunk, axis=1)
        new_B = jnp.clip(counts_B - i * chunk, 0, chunk)
        cache, new_BTD = _forward_with_cache(
            lm, cache.layers, cache.lengths_B, capacity, new_BT, new_B
        )
        return cache, jax.lax.dynamic_update_slice_in_dim(x_BTD, new_BTD, i * chunk, axis=1)

    cache = kv_cache.empty(
        c, B, capacity, execution_policy.kv_cache_dtype or execution_policy.dtype
    )
    x_BTD = jnp.zeros((*tokens_BT.shape, c.d_model), execution_policy.dtype)
    n_chunks = -(-counts_B.max() // chunk)  # of the longest row: the rest is padding
    cache, x_BTD = jax.lax.fori_loop(0, n_chunks, read_chunk, (cache, x_BTD))
    return cache, x_BTD[:, :T]


@shaped
def decode_step(
    lm: InferenceModel, cache: kv_cache.KVCache, tokens_BT: jax.Array, counts_B: jax.Array
) -> tuple[kv_cache.KVCache, jax.Array]:
    """Appends counts_B[b] tokens (possibly none) to row b; the rest of the row is padding.

    No row may exceed the cache's capacity (`kv_cache.resize` enlarges it): tokens beyond it
    overwrite others. Returns the cache and the final hidden states (B, T, D) of the new tokens,
    meaningless at padding.
    """
    _check_capacity(lm, tokens_BT.shape[1], cache.capacity)
    return _forward_with_cache(
        lm, cache.layers, cache.lengths_B, cache.capacity, tokens_BT, counts_B
    )


@shaped
def forward_tree(
    lm: InferenceModel, tokens_BT: jax.Array, positions_BT: jax.Array, ends_BT: jax.Array
) -> jax.Array:
    """Runs rows of token trees (model/attention/tree.py) and returns the final hidden states (B, T,
    D), for each node as if its ancestors were the preceding text.

    A row may be longer than the context, but no position in positions_BT may reach n_ctx.
    Activations are sharded as the model's `sharding` says.
    """
    layer_inputs = ({"tree": tree.TokenTree(positions_BT, ends_BT)},) * lm.model.config.n_layers
    return _apply_layers(lm, tokens_BT, positions_BT, layer_inputs)[0]


def _check_capacity(lm, n_new, capacity):
    n_ctx = lm.model.config.n_ctx
    if not n_new <= capacity <= n_ctx:
        raise ValueError(
            f"a KV cache of {capacity} tokens for {n_new} new tokens: the capacity must be {n_new} "
            f"to {n_ctx}, the model's context"
        )


def _forward_with_cache(lm, layer_caches, starts_B, capacity, tokens_BT, counts_B):
    T, dtype = tokens_BT.shape[1], lm.model.execution_policy.kv_cache_dtype
    layer_inputs = [
        {"update": kv_cache.CacheUpdate(layer, starts_B, counts_B, capacity, dtype)}
        for layer in layer_caches
    ]
    x_BTD, outputs = _apply_layers(
        lm, tokens_BT, starts_B[:, None] + jnp.arange(T)[None], layer_inputs
    )
    return kv_cache.KVCache(
        tuple(output["update"] for output in outputs), starts_B + counts_B, capacity
    ), x_BTD


def _apply_layers(lm, tokens_BT, positions_BT, layer_inputs):
    """Returns (final hidden states, each layer's updated "cache" collection)."""
    model, params = lm.model, lm.params
    c, dtype = model.config, model.execution_policy.dtype
    x_BTD = gpt.embed(c, params, tokens_BT, positions_BT, dtype)
    x_BTD, outputs = model.sharding(x_BTD, "BPD"), []
    for i, layer_input in enumerate(layer_inputs):
        variables = {"params": gpt.layer_params(c, params, i), "cache": {"attention": layer_input}}
        x_BTD, updated = cast(
            Any, block(lm, i).apply(variables, x_BTD, None, False, positions_BT, mutable="cache")
        )
        outputs.append(updated["cache"]["attention"])
    return final_norm(lm, x_BTD), outputs


def block(lm: InferenceModel, layer: int) -> layers.Block:
    """The module of layer number `layer` of the model."""
    model = lm.model
    number = layer % len(model.config.attention)
    return layers.Block(
        model.config, number, model.execution_policy.kernel, model.sharding, parent=None
    )


def final_norm(lm: InferenceModel, x_BTD: jax.Array) -> jax.Array:
    """What the model does after its last layer: the norm, unless norms are post, and the factor of
    the logits."""
    c = lm.model.config
    if c.norm != "post":
        norm = layers.norm(c, parent=None)
        x_BTD = cast(jax.Array, norm.apply({"params": lm.params["norm"]}, x_BTD))
    return x_BTD if c.logits_scale == 1 else x_BTD * jnp.asarray(c.logits_scale, x_BTD.dtype)


@shaped
def logits(lm: InferenceModel, x_BTD: jax.Array) -> jax.Array:
    """Returns float32 (B, T, V): the logits of the token that follows each hidden state."""
    c = lm.model.config
    return gpt.logits(x_BTD, gpt.output_table(lm.params), c.n_vocab, softcap=c.logits_softcap)


@shaped
def last_hidden(x_BTD: jax.Array, counts_B: jax.Array) -> jax.Array:
    """Returns (B, 1, D): the hidden state of the last real token of each row."""
    return jnp.take_along_axis(x_BTD, jnp.maximum(counts_B - 1, 0)[:, None, None], axis=1)
