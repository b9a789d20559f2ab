"""What a model computes on the way to its logits: hidden states, and the attention weights of a
layer.

These are pure functions of an InferenceModel, to be jitted by who uses them. No KV cache is
involved: a layer is applied as in training, by the kernel of the model's execution policy."""

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from gptjax.config import schema
from gptjax.model import layers
from gptjax.model.attention import reference
from gptjax.model.inference import InferenceModel
from gptjax.sharding.shapes import shaped


@shaped
def hidden_states(lm: InferenceModel, tokens_BT: jax.Array) -> tuple[jax.Array, ...]:
    """n_layers + 1 arrays (B, T, D), in the order of transformers' `output_hidden_states`: [0] the
    embeddings, [i] what layer i (from 1) leaves. The last one has passed the final layer norm, if
    the model has one: times the token table it is the logits."""
    states = [
        jnp.take(lm.params["token_VD"], tokens_BT, axis=0)
        + lm.params["position_TD"][None, : tokens_BT.shape[1]]
    ]
    for layer in range(lm.model.config.n_layers):
        block, params, _ = _block(lm, layer)
        states.append(cast(jax.Array, block.apply({"params": params}, states[-1], None, False)))
    if lm.model.config.norm == "pre":
        norm = layers.LayerNorm(parent=None)
        states[-1] = cast(jax.Array, norm.apply({"params": lm.params["norm"]}, states[-1]))
    return tuple(states)


@shaped
def attention_weights(lm: InferenceModel, x_BTD: jax.Array, layer: int) -> jax.Array:
    """float32 (B, N, T, S): how much each head of layer `layer` (from 0), whose input is x_BTD,
    weighs key s for query t, by the reference implementation on the layer's own queries and keys.
    0 outside the layer's pattern."""
    q_BTNH, k_BTNH, _ = qkv(lm, x_BTD, layer)
    return reference.weights(q_BTNH, k_BTNH, _block(lm, layer)[2])


@shaped
def qkv(lm: InferenceModel, x_BTD: jax.Array, layer: int) -> list[jax.Array]:
    """Queries, keys and values (B, T, N, H) of layer `layer`, whose input is x_BTD."""
    block, params, _ = _block(lm, layer)
    _, captured = cast(
        Any,
        block.apply(
            {"params": params},
            x_BTD,
            None,
            False,
            capture_intermediates=_is_qkv,
            mutable=["intermediates"],
        ),
    )
    return captured["intermediates"]["attention"]["qkv"]["__call__"][0]


def _is_qkv(module: nn.Module, method: str) -> bool:
    return isinstance(module, layers.QKVProjection) and method == "__call__"


def _block(lm: InferenceModel, layer: int) -> tuple[layers.Block, Any, schema.Attention]:
    """A layer's module, parameters and pattern."""
    model = lm.model
    period, i = divmod(layer, len(model.config.attention))
    pattern = model.config.attention[i]
    block = layers.Block(
        model.config, pattern, model.execution_policy.kernel, model.sharding, parent=None
    )
    return block, lm.params["periods"][period][f"block_{i}"], pattern
