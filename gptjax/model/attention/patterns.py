"""Each attention pattern, defined once, as a predicate on (query position, key position). Every
kernel is tested against this file.
"""

from typing import Any, assert_never

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config import schema


def mask_fn(pattern: schema.Attention, queries, keys, head: Any = 0):
    """Whether a query at position `queries` may see a key at position `keys` (int arrays that
    broadcast). Always causal. head: number of the head, which only BlockSparse depends on.

    Dense: k <= q. Banded: also q - k < window (OpenAI's released `local` mode, self included).
    Strided and Fixed: the two heads of Sparse Transformer (1904.10509, section 4.3) merged into one
    pattern, the second way of its section 4.4. BlockSparse: Phi-3-small's.
    """
    causal = keys <= queries
    match pattern:
        case schema.Dense():
            return causal
        case schema.Banded(window=window):
            return causal & (queries - keys < window)
        case schema.Strided(stride=stride):
            return causal & ((queries - keys < stride) | ((queries - keys) % stride == 0))
        case schema.Fixed(block=block, summary=summary):
            return causal & (
                (keys // block == queries // block) | (keys % block >= block - summary)
            )
        case schema.BlockSparse(block=block, local_blocks=local_blocks, stride=stride):
            is_local = queries // block - keys // block < local_blocks
            return causal & (is_local | ((keys // block + head + 1) % stride == 0))
        case _:
            assert_never(pattern)


def differs_by_head(pattern: schema.Attention) -> bool:
    """Whether heads of a layer with this pattern see different keys."""
    return isinstance(pattern, schema.BlockSparse)


def heads_mask(pattern: schema.Attention, queries_BT, keys_BS, n_heads: int) -> jax.Array:
    """bool (B, N, T, S), N = 1 if all heads see the same keys: whether queries at these positions
    see keys at those."""
    head_N = jnp.arange(n_heads if differs_by_head(pattern) else 1)[None, :, None, None]
    return mask_fn(pattern, queries_BT[:, None, :, None], keys_BS[:, None, None, :], head_N)


def mask(pattern: schema.Attention, n_queries: int, n_keys: int) -> jax.Array:
    """bool (T, S): the mask of T queries aligned with the end of S keys, of head 0. Row t is the
    query at position n_keys - n_queries + t.
    """
    queries = jnp.arange(n_queries)[:, None] + (n_keys - n_queries)
    return mask_fn(pattern, queries, jnp.arange(n_keys)[None, :])


def picture(pattern: schema.Attention, n: int) -> str:
    """The pattern as `n` lines of `n` characters: one line per query, "#" for each key that it
    sees.
    """
    rows = mask_fn(pattern, np.arange(n)[:, None], np.arange(n)[None, :])
    return "\n".join("".join("#" if is_visible else "." for is_visible in row) for row in rows)
