"""Tree attention: each row is a forest of texts in which common prefixes appear once.

The tokens of a row are the nodes of trees in depth-first order. A node's position is its depth, and
the tokens before it are its ancestors; the descendants of node i are the nodes from i up to but
excluding ends[i]. So node q sees node k if k <= q < ends[k] and the pattern allows their positions.
For a single text this is causal attention.
"""

import flax.struct
import jax
import jax.numpy as jnp

from gptjax.config import schema
from gptjax.model.attention import patterns, scores
from gptjax.sharding.shapes import shaped

# Queries are processed in at most MAX_BLOCKS blocks of at least MIN_BLOCK: a block ignores the keys
# after it, and its scores fit the CPU's cache.
MIN_BLOCK = 128
MAX_BLOCKS = 16


class TokenTree(flax.struct.PyTreeNode):
    """A row of token trees, in the flax collection "cache". positions_BT: int32, the depth of each
    node. ends_BT: int32, the index after its last descendant. Padding nodes have no descendants:
    each sees only itself.
    """

    positions_BT: jax.Array
    ends_BT: jax.Array


@shaped
def attend(
    tree: TokenTree,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    pattern: schema.Attention,
    softmax: scores.Softmax = scores.PLAIN,
) -> jax.Array:
    """Attention of each node over its ancestors and itself, as reference.attend computes it.
    Returns (B, T, N, H). Scores and softmax are float32.
    """
    _, T, _, H = q_BTNH.shape
    block, parts = max(MIN_BLOCK, -(-T // MAX_BLOCKS)), []
    q_BTNH = q_BTNH * jnp.asarray(H**-0.5, q_BTNH.dtype)
    nodes_T = jnp.arange(T)
    for start in range(0, T, block):
        end = min(start + block, T)
        ancestor_BTS = (nodes_T[None, None, :end] <= nodes_T[None, start:end, None]) & (
            nodes_T[None, start:end, None] < tree.ends_BT[:, None, :end]
        )
        visible_BNTS = ancestor_BTS[:, None] & patterns.heads_mask(
            pattern, tree.positions_BT[:, start:end], tree.positions_BT[:, :end], q_BTNH.shape[2]
        )
        scores_BNTS = scores.grouped_einsum(
            "BTNH,BSNH->BNTS",
            q_BTNH[:, start:end],
            k_BTKH[:, :end],
            preferred_element_type=jnp.float32,
        )
        weights_BNTS = scores.weights(scores_BNTS, visible_BNTS, softmax)
        values = v_BTKH[:, :end]
        parts.append(
            scores.grouped_einsum("BNTS,BSNH->BTNH", weights_BNTS.astype(values.dtype), values)
        )
    return jnp.concatenate(parts, axis=1)
