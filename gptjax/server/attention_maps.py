"""Attention weights of a conversation's last tokens: what the chat page draws."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.generate import decode
from gptjax.model import activations, gpt, inference

MAX_TOKENS = 256  # of a map: 65,536 weights


@dataclasses.dataclass(frozen=True)
class AttentionMap:
    """What tokens look at. first: position of its first token. weights_TS: float32, of key s for
    query t, both from `first` on; exactly 0 where t does not see s. earlier_T: float32, the sum of
    t's weights on tokens before `first`. With attention sinks a row sums to less than 1.
    """

    first: int
    weights_TS: np.ndarray
    earlier_T: np.ndarray


@dataclasses.dataclass(frozen=True)
class AttentionMaps:
    """The maps of a model. compute: (ids, at least one and at most the context; layer, from 0;
    head, from 0, or None for the mean of all) -> the map of the last MAX_TOKENS, after one forward
    pass over all of them."""

    n_layers: int
    n_heads: int
    compute: Callable[[Sequence[int], int, int | None], AttentionMap]


def make_maps(lm: inference.InferenceModel) -> AttentionMaps:
    """Returns the maps of a model. Lengths are rounded up to few, each compiled once, for all
    layers and heads."""
    c = lm.model.config

    def compute(ids: Sequence[int], layer: int, head: int | None) -> AttentionMap:
        tokens_BT, _ = decode.pad([ids], c.n_ctx)
        n_queries = min(MAX_TOKENS, tokens_BT.shape[1])
        first = max(len(ids) - n_queries, 0)
        head_weights_N = np.full(c.n_heads, 1 / c.n_heads, np.float32)
        if head is not None:
            head_weights_N = np.eye(c.n_heads, dtype=np.float32)[head]
        numbers = np.int32(first), np.int32(layer)
        found = _last_rows(lm, tokens_BT, *numbers, head_weights_N, n_queries)
        weights_TS, earlier_T = jax.device_get(found)
        n = len(ids) - first  # the rest is padding
        return AttentionMap(first, weights_TS[:n, :n], earlier_T[:n])

    return AttentionMaps(c.n_layers, c.n_heads, compute)


@functools.partial(jax.jit, static_argnames="n_queries")
def _last_rows(lm, tokens_BT, first, layer, head_weights_N, n_queries):
    """(T, T), (T,) of n_queries tokens from `first` on: AttentionMap's weights_TS and earlier_T.
    head_weights_N: float32, with which the heads are added."""

    def rows(x_BTD, number):
        weights_BNTS = activations.attention_weights(lm, x_BTD, number, (first, n_queries))
        return (weights_BNTS[0] * head_weights_N[:, None, None]).sum(0)

    c, T = lm.model.config, tokens_BT.shape[1]
    x_BTD = gpt.embed(c, lm.params, tokens_BT, None, lm.model.execution_policy.dtype)
    weights_TS = jnp.zeros((n_queries, T))
    for number in range(c.n_layers):
        of_this = functools.partial(rows, number=number)
        weights_TS = jax.lax.cond(layer == number, of_this, lambda _, w=weights_TS: w, x_BTD)
        x_BTD = activations.apply_block(lm, x_BTD, number)
    is_earlier_1S = (jnp.arange(T) < first)[None]
    earlier_T = jnp.where(is_earlier_1S, weights_TS, 0.0).sum(-1)
    return jax.lax.dynamic_slice_in_dim(weights_TS, first, n_queries, axis=1), earlier_T
