"""Attention on texts that share their beginnings: a row is a forest, each shared beginning is in it
once.

The tokens of a row are the nodes of trees in depth-first order. A node's position is its depth, its
tokens-before are its ancestors; the descendants of node i are the nodes from i to before ends[i].
So node q sees node k where k <= q < ends[k], as far as the pattern shows their positions. Of a
single text that is causal attention."""

import flax.struct
import jax
import jax.numpy as jnp

from gptjax.config import schema
from gptjax.model.attention import patterns
from gptjax.sharding.shapes import shaped

MIN_BLOCK, MAX_BLOCKS = (
    128,
    16,
    # queries of a block, and blocks: a block of queries sees no key after its own, and its scores
    # fit a cache
)


class TokenTree(flax.struct.PyTreeNode):
    """What Attention finds in the collection "cache" when it reads a forest: int32, the depth of
    each node and where its descendants end. Padding is nodes without descendants: each sees
    itself."""

    positions_BT: jax.Array
    ends_BT: jax.Array


@shaped
def attend(
    tree: TokenTree,
    q_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNH: jax.Array,
    pattern: schema.Attention,
) -> jax.Array:
    """reference.attend, of each node over its ancestors and itself. Returns (B, T, N, H). Scores
    and softmax are float32."""
    _, T, _, H = q_BTNH.shape
    block, parts = max(MIN_BLOCK, -(-T // MAX_BLOCKS)), []
    q_BTNH = q_BTNH * jnp.asarray(H**-0.5, q_BTNH.dtype)
    nodes_T = jnp.arange(T)
    for start in range(0, T, block):
        end = min(start + block, T)
        ancestor_BTS = (nodes_T[None, None, :end] <= nodes_T[None, start:end, None]) & (
            nodes_T[None, start:end, None] < tree.ends_BT[:, None, :end]
        )
        positions = tree.positions_BT[:, start:end, None], tree.positions_BT[:, None, :end]
        visible_BTS = ancestor_BTS & patterns.mask_fn(pattern, *positions)
        scores_BNTS = jnp.einsum(
            "BTNH,BSNH->BNTS",
            q_BTNH[:, start:end],
            k_BTNH[:, :end],
            preferred_element_type=jnp.float32,
        )
        weights_BNTS = jax.nn.softmax(
            jnp.where(visible_BTS[:, None], scores_BNTS, jnp.finfo(jnp.float32).min), axis=-1
        )
        parts.append(
            jnp.einsum("BNTS,BSNH->BTNH", weights_BNTS.astype(v_BTNH.dtype), v_BTNH[:, :end])
        )
    return jnp.concatenate(parts, axis=1)
