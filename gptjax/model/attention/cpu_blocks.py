"""Attention by blocks of queries, for CPU: the reference without most of the masked keys."""

import jax
import jax.numpy as jnp

from gptjax.config import schema
from gptjax.model.attention import cpu_tiles, reference, scores
from gptjax.sharding.shapes import shaped

# Above this many tokens cpu_tiles is faster, with a fraction of the memory (dense at 4,096: 1/17).
MAX_BLOCKS_TOKENS = 512
# At most MAX_BLOCKS blocks of at least MIN_BLOCK queries: each is compiled separately.
MIN_BLOCK = 128
MAX_BLOCKS = 16


def uses_tiles(n_queries: int, n_keys: int, has_dropout: bool) -> bool:
    """Whether cpu_tiles.py computes attention of this size: long sequences without dropout and with
    as many queries as keys.
    """
    return n_queries > MAX_BLOCKS_TOKENS and n_queries == n_keys and not has_dropout


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
    """reference.attend on one block of queries after another, each with only the keys between the
    first and the last that it sees.

    That is about half the work for causal attention and, in blocks as long as the band, W / T of it
    for a band of W keys. If `uses_tiles`, cpu_tiles.py computes it instead. Dropout masks are drawn
    differently from the reference's.
    """
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    if uses_tiles(T, S, dropout is not None):
        return cpu_tiles.attend(q_BTNH, k_BSKH, v_BSKH, pattern, segments_BS, softmax)
    block = max(
        MIN_BLOCK,
        -(-T // MAX_BLOCKS),
        pattern.window if isinstance(pattern, schema.Banded) else -(-T // 8),
    )
    parts = []
    for number, start in enumerate(range(0, T, block)):
        end = min(start + block, T)
        last = S - T + end
        # Only a band may drop keys on the left: its mask depends on distances alone, other
        # patterns' on absolute positions.
        first = (
            max(0, S - T + start - pattern.window + 1) if isinstance(pattern, schema.Banded) else 0
        )
        parts.append(
            reference.attend(
                q_BTNH[:, start:end],
                k_BSKH[:, first:last],
                v_BSKH[:, first:last],
                pattern,
                None if segments_BS is None else segments_BS[:, first:last],
                None if dropout is None else (jax.random.fold_in(dropout[0], number), dropout[1]),
                softmax,
            )
        )
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
