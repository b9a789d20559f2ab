"""KV cache: keys and values of the tokens so far, by layer, so that each new token costs one query.

A layer has S slots, and position p is stored in slot p % S. Banded attention over W keys has a ring
buffer of W slots (memory O(W)); other patterns have one slot per position. (Strided attention comes
back to every residue, so nothing can be dropped; Fixed attention could drop all but the current
block and the summaries, but does not, for simplicity.) Rows may have different lengths: each starts
at slot 0 with its own positions, so there is no left padding.
"""

from typing import assert_never

import flax.struct
import jax
import jax.numpy as jnp

from gptjax.config import schema
from gptjax.model.attention import dispatch, patterns, scores
from gptjax.sharding import rules
from gptjax.sharding.shapes import shaped


class LayerCache(flax.struct.PyTreeNode):
    """Keys and values of one layer, with heads before slots, as the attention matmuls read them."""

    k_BKHS: jax.Array
    v_BKSH: jax.Array


class KVCache(flax.struct.PyTreeNode):
    """The cache of a batch. layers: one LayerCache per layer. lengths_B: int32, tokens cached in
    each row. capacity: the most tokens that a row can hold.
    """

    layers: tuple[LayerCache, ...]
    lengths_B: jax.Array
    capacity: int = flax.struct.field(pytree_node=False)


class CacheUpdate(flax.struct.PyTreeNode):
    """Input of one layer to a cached forward pass, in the flax collection "cache".

    layer: keys and values so far, None at prefill. starts_B: tokens already cached in each row.
    counts_B: how many of the T new tokens are real (the rest is padding). capacity: see KVCache.
    """

    layer: LayerCache | None
    starts_B: jax.Array
    counts_B: jax.Array
    capacity: int = flax.struct.field(pytree_node=False)


def n_slots(pattern: schema.Attention, capacity: int) -> int:
    """Number of cache slots of a layer with this pattern, for up to `capacity` tokens."""
    match pattern:
        case schema.Banded(window=window):
            return min(window, capacity)
        case schema.Dense() | schema.Strided() | schema.Fixed() | schema.BlockSparse():
            return capacity
        case _:
            assert_never(pattern)


def slot_positions(lengths_B: jax.Array, n_slots: int) -> jax.Array:
    """int32 (B, S): the newest position that each slot holds in a text of length lengths_B[b];
    negative for an unused slot.
    """
    newest_B1 = lengths_B[:, None] - 1
    return newest_B1 - (newest_B1 - jnp.arange(n_slots)[None]) % n_slots


@shaped
def attend(
    update: CacheUpdate,
    kernel: str,
    sharding: rules.Sharding,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    pattern: schema.Attention,
    softmax: scores.Softmax = scores.PLAIN,
) -> tuple[jax.Array, LayerCache]:
    """Attention of T new tokens per row over the cached and the new keys, as dispatch.attend
    computes it. Returns the output (B, T, N, H) and the updated layer.
    """
    if update.layer is None:
        o_BTNH = dispatch.attend(kernel, sharding, q_BTNH, k_BTKH, v_BTKH, pattern, softmax=softmax)
        new_slots = n_slots(pattern, update.capacity)
        return o_BTNH, LayerCache(
            _fill_slots(k_BTKH, update.counts_B, new_slots).swapaxes(2, 3),
            _fill_slots(v_BTKH, update.counts_B, new_slots),
        )
    T, S, H = q_BTNH.shape[1], update.layer.k_BKHS.shape[3], q_BTNH.shape[3]
    new_BT = update.starts_B[:, None] + jnp.arange(T)[None]
    # Padding tokens get no slot. If there are more tokens than slots, only the last S are written,
    # because the order of writes in a scatter is undefined.
    valid_BT = (jnp.arange(T)[None] < update.counts_B[:, None]) & (
        jnp.arange(T)[None] >= update.counts_B[:, None] - S
    )
    slots_BT = jnp.where(valid_BT, new_BT % S, S)
    # Written before the read: in the other order XLA copies the whole cache.
    layer = LayerCache(
        _write_slots(update.layer.k_BKHS, k_BTKH, slots_BT, 3),
        _write_slots(update.layer.v_BKSH, v_BTKH, slots_BT, 2),
    )
    visible_cache, keys_BS = layer, slot_positions(update.starts_B + update.counts_B, S)
    # In a ring buffer the last new tokens replace keys that the first new tokens still see.
    if T > 1 and S < update.capacity:
        k_BKHS = jnp.concatenate([update.layer.k_BKHS, k_BTKH.transpose(0, 2, 3, 1)], axis=3)
        v_BKSH = jnp.concatenate([update.layer.v_BKSH, v_BTKH.swapaxes(1, 2)], axis=2)
        visible_cache, keys_BS = (
            LayerCache(k_BKHS, v_BKSH),
            jnp.concatenate([slot_positions(update.starts_B, S), new_BT], axis=1),
        )
    visible_BNTS = (keys_BS >= 0)[:, None, None] & patterns.heads_mask(
        pattern, new_BT, keys_BS, q_BTNH.shape[2]
    )
    q_BTNH = q_BTNH * jnp.asarray(H**-0.5, q_BTNH.dtype)
    scores_BNTS = scores.grouped_einsum(
        "BTNH,BNHS->BNTS", q_BTNH, visible_cache.k_BKHS, preferred_element_type=jnp.float32
    )
    weights_BNTS = scores.weights(scores_BNTS, visible_BNTS, softmax)
    return scores.grouped_einsum(
        "BNTS,BNSH->BTNH", weights_BNTS.astype(v_BTKH.dtype), visible_cache.v_BKSH
    ), layer


def _fill_slots(x_BTNH, counts_B, n_slots):
    """(B, N, S, H): the tokens of a prefill in their slots; the contents of unused slots are never
    seen.
    """
    x_BNTH, T = jnp.swapaxes(x_BTNH, 1, 2), x_BTNH.shape[1]
    if T <= n_slots:
        return jnp.pad(x_BNTH, ((0, 0), (0, 0), (0, n_slots - T), (0, 0)))
    return jnp.take_along_axis(
        x_BNTH, jnp.maximum(slot_positions(counts_B, n_slots), 0)[:, None, :, None], axis=2
    )


def _write_slots(x, new_BTNH, slots_BT, dim):
    """Returns `x`, whose dimension `dim` is slots, with the new tokens written to slots_BT."""
    B, T, N, H = new_BTNH.shape
    # Rows and heads as one dimension: otherwise XLA removes a batch dimension of 1 by copying x
    # before and after.
    flat, rows_R1, slots_RT = (
        x.reshape(B * N, *x.shape[2:]),
        jnp.arange(B * N)[:, None],
        jnp.repeat(slots_BT, N, axis=0),
    )
    where = (rows_R1, slots_RT) if dim == 2 else (rows_R1, slice(None), slots_RT)
    return (
        flat.at[where]
        .set(new_BTNH.swapaxes(1, 2).reshape(B * N, T, H), mode="drop")
        .reshape(x.shape)
    )


def take_rows(cache: KVCache, rows_B: jax.Array) -> KVCache:
    """Returns the cache with rows rows_B[0], rows_B[1], ... of this one: reordered, repeated or
    dropped.
    """
    return jax.tree.map(lambda x: jnp.take(x, rows_B, axis=0), cache)


def resize(cache: KVCache, attention: tuple[schema.Attention, ...], capacity: int) -> KVCache:
    """Returns the cache with capacity for `capacity` tokens per row, at least the present capacity.
    attention: the model's patterns.
    """
    assert capacity >= cache.capacity

    def pad_layer(layer, pattern):
        # A ring buffer that may have wrapped around has its full size already.
        n_new = n_slots(pattern, capacity) - n_slots(pattern, cache.capacity)
        rest, none = (0, n_new), (0, 0)
        return LayerCache(
            jnp.pad(layer.k_BKHS, (none, none, none, rest)),
            jnp.pad(layer.v_BKSH, (none, none, rest, none)),
        )

    layers = tuple(
        pad_layer(layer, attention[i % len(attention)]) for i, layer in enumerate(cache.layers)
    )
    return KVCache(layers, cache.lengths_B, capacity)
