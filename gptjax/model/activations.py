"""What a model computes on the way to its logits: hidden states, and the attention weights of a
layer.

These are pure functions of an InferenceModel, to be jitted by who uses them. No KV cache is
involved: a layer is applied as in training, by the kernel of the model's execution policy."""

from typing import Any

import jax

from gptjax.model import gpt, inference
from gptjax.model.attention import reference
from gptjax.model.inference import InferenceModel
from gptjax.sharding.shapes import shaped


@shaped
def hidden_states(lm: InferenceModel, tokens_BT: jax.Array) -> tuple[jax.Array, ...]:
    """n_layers + 1 arrays (B, T, D), in the order of transformers' `output_hidden_states`: [0] the
    embeddings, [i] what layer i (from 1) leaves. The last one has passed the final layer norm, if
    the model has one: times the token table it is the logits."""
    states = [
        gpt.embed(lm.model.config, lm.params, tokens_BT, None, lm.model.execution_policy.dtype)
    ]
    for layer in range(lm.model.config.n_layers):
        states.append(apply_block(lm, states[-1], layer))
    states[-1] = inference.final_norm(lm, states[-1])
    return tuple(states)


@shaped
def attention_weights(
    lm: InferenceModel, x_BTD: jax.Array, layer: int, queries: tuple[jax.Array, int] | None = None
) -> jax.Array:
    """float32 (B, N, T, S): how much each head of layer `layer` (from 0), whose input is x_BTD,
    weighs key s for query t, by the reference implementation on the layer's own queries and keys.
    0 outside the layer's pattern; with sinks a row sums to less than 1. queries: the first
    one, and how many; None: all."""
    _, captured = apply_block(lm, x_BTD, layer, ["intermediates"])
    ((q_BTNH, k_BTNH, softmax),) = captured["intermediates"]["attention"]["softmax_inputs"]
    pattern = lm.model.config.attention[layer % len(lm.model.config.attention)]
    first = None
    if queries is not None:
        first, q_BTNH = queries[0], jax.lax.dynamic_slice_in_dim(q_BTNH, *queries, axis=1)
    return reference.weights(q_BTNH, k_BTNH, pattern, None, softmax, first)


def apply_block(lm: InferenceModel, x_BTD: jax.Array, layer: int, mutable: Any = False) -> Any:
    """Applies layer `layer` (from 0) to x_BTD, its input. mutable: flax collections to return."""
    params = gpt.layer_params(lm.model.config, lm.params, layer)
    return inference.block(lm, layer).apply({"params": params}, x_BTD, None, False, mutable=mutable)
