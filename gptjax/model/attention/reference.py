"""The reference attention: the definition that every faster kernel must match."""

import jax
import jax.numpy as jnp

from gptjax.config import schema
from gptjax.model.attention import patterns, scores
from gptjax.sharding.shapes import shaped


@shaped
def weights(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    pattern: schema.Attention,
    segments_BS: jax.Array | None = None,
    softmax: scores.Softmax = scores.PLAIN,
    first: int | jax.Array | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(d_head)) over the keys that `pattern` shows, float32 (B, N, T, S): each
    row sums to 1 (less with sinks) and is exactly 0 elsewhere. Fewer heads of k than of q serve
    groups of consecutive heads.

    first: the key that the first query aligns with; None: the last query aligns with the last key,
    as in every kernel. Here and in every kernel the factor has q's type: exact for d_head 64, in
    bfloat16 off by 1.1e-4 of itself for 80, 96, 128. segments_BS: document numbers; where given, a
    query sees its own document only. Scores and softmax are float32 whatever the inputs are."""
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    first = S - T if first is None else first
    scale = q_BTNH.shape[-1] ** -0.5
    scores_BNTS = scores.grouped_einsum(
        "BTNH,BSNH->BNTS",
        q_BTNH * jnp.asarray(scale, q_BTNH.dtype),
        k_BSKH,
        preferred_element_type=jnp.float32,
    )
    queries, keys = first + jnp.arange(T)[None], jnp.arange(S)[None]
    visible_1NTS = patterns.heads_mask(pattern, queries, keys, q_BTNH.shape[2])
    if segments_BS is not None:
        own_BT = jax.lax.dynamic_slice_in_dim(segments_BS, first, T, axis=1)
        visible_1NTS &= own_BT[:, None, :, None] == segments_BS[:, None, None, :]
    return scores.weights(scores_BNTS, visible_1NTS, softmax)


@shaped
def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    pattern: schema.Attention,
    segments_BS: jax.Array | None = None,
    dropout: tuple[jax.Array, float] | None = None,
    softmax: scores.Softmax = scores.PLAIN,
) -> jax.Array:
    """`weights` times v: (B, T, N, H). dropout: (key, probability), on the attention weights."""
    weights_BNTS = weights(q_BTNH, k_BSKH, pattern, segments_BS, softmax)
    if dropout is not None:
        key, rate = dropout
        keep_BNTS = jax.random.bernoulli(key, 1 - rate, weights_BNTS.shape)
        weights_BNTS = jnp.where(keep_BNTS, weights_BNTS / (1 - rate), 0.0)
    return scores.grouped_einsum("BNTS,BSNH->BTNH", weights_BNTS.astype(v_BSKH.dtype), v_BSKH)
