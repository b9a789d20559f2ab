"""The reference attention: the definition that every faster kernel must match."""

import jax
import jax.numpy as jnp

from gptjax.config import schema
from gptjax.model.attention import patterns
from gptjax.sharding.shapes import shaped


@shaped
def weights(
    q_BTNH: jax.Array,
    k_BSNH: jax.Array,
    pattern: schema.Attention,
    segments_BS: jax.Array | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(d_head)) over the keys that `pattern` shows, float32 (B, N, T, S): each
    row sums to 1 and is exactly 0 elsewhere.

    The last query aligns with the last key. Here and in every kernel the factor has q's type: exact
    for d_head 64, in bfloat16 off by 1.1e-4 of itself for 80, 96, 128. segments_BS: document
    numbers; where given, a query sees its own document only. Scores and softmax are float32
    whatever the inputs are."""
    T, S = q_BTNH.shape[1], k_BSNH.shape[1]
    scale = q_BTNH.shape[-1] ** -0.5
    scores_BNTS = jnp.einsum(
        "BTNH,BSNH->BNTS",
        q_BTNH * jnp.asarray(scale, q_BTNH.dtype),
        k_BSNH,
        preferred_element_type=jnp.float32,
    )
    visible_11TS = patterns.mask(pattern, T, S)[None, None]
    if segments_BS is not None:
        visible_11TS = visible_11TS & (
            segments_BS[:, None, S - T :, None] == segments_BS[:, None, None, :]
        )
    # A query always sees itself, so no row is empty and the finite minimum is safe.
    scores_BNTS = jnp.where(visible_11TS, scores_BNTS, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores_BNTS, axis=-1)


@shaped
def attend(
    q_BTNH: jax.Array,
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    pattern: schema.Attention,
    segments_BS: jax.Array | None = None,
    dropout: tuple[jax.Array, float] | None = None,
) -> jax.Array:
    """`weights` times v: (B, T, N, H). dropout: (key, probability), on the attention weights."""
    weights_BNTS = weights(q_BTNH, k_BSNH, pattern, segments_BS)
    if dropout is not None:
        key, rate = dropout
        keep_BNTS = jax.random.bernoulli(key, 1 - rate, weights_BNTS.shape)
        weights_BNTS = jnp.where(keep_BNTS, weights_BNTS / (1 - rate), 0.0)
    return jnp.einsum("BNTS,BSNH->BTNH", weights_BNTS.astype(v_BSNH.dtype), v_BSNH)
