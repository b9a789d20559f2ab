"""KV cache: keys and values of the tokens so far, by layer, so that each new token costs one query.

A layer has S slots, and position p is stored in slot p % S. Banded attention over W keys has a ring
buffer of W slots (memory O(W)); other patterns have one slot per position. (Strided attention comes
back to every residue, so nothing can be dropped; Fixed attention could drop all but the current
block and the summaries, but does not, for simplicity.) Rows may have different lengths: each starts
at slot 0 with its own positions, so there is no left padding.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gptjax.config import count, schema
from gptjax.model.attention import dispatch, patterns, scores
from gptjax.sharding import rules
from gptjax.sharding.shapes import shaped

TILE = 1024  # keys whose scores are computed at a time, where they are not all at once
MAX_SCORES_BYTES = 1 << 22  # scores that are computed at once

# Keys or values as they are stored, and their scale for each token and head (its last dimension is
# 1), or None.
Stored = tuple[jax.Array, jax.Array | None]


class LayerCache(flax.struct.PyTreeNode):
    """Keys and values of one layer, with heads before slots, as the attention matmuls read them.
    int8 ones have a float32 scale for each token and head.
    """

    k_BKHS: jax.Array
    v_BKSH: jax.Array
    k_scale_BK1S: jax.Array | None = None
    v_scale_BKS1: jax.Array | None = None

    @property
    def keys(self) -> Stored:
        return self.k_BKHS, self.k_scale_BK1S

    @property
    def values(self) -> Stored:
        return self.v_BKSH, self.v_scale_BKS1

    @classmethod
    def of(cls, keys: Stored, values: Stored) -> "LayerCache":
        """The layer with these keys and values."""
        return cls(keys[0], values[0], keys[1], values[1])


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
    dtype: of the stored keys and values; None: that of the new ones.
    """

    layer: LayerCache | None
    starts_B: jax.Array
    counts_B: jax.Array
    capacity: int = flax.struct.field(pytree_node=False)
    dtype: Any = flax.struct.field(pytree_node=False, default=None)


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
    dtype = update.dtype or k_BTKH.dtype
    if update.layer is None:
        new_k, new_v = _encode(k_BTKH, dtype), _encode(v_BTKH, dtype)
        o_BTNH = dispatch.attend(kernel, sharding, q_BTNH, k_BTKH, v_BTKH, pattern, softmax=softmax)

        def fill(x_BTNH):
            return _fill_slots(x_BTNH, update.counts_B, count.cache_slots(pattern, update.capacity))

        keys = jax.tree.map(lambda x: fill(x).swapaxes(2, 3), new_k)
        return o_BTNH, LayerCache.of(keys, jax.tree.map(fill, new_v))

    def attend_shard(layer, starts_B, counts_B, q_BTNH, k_BTKH, v_BTKH, softmax):
        new = _encode(k_BTKH, dtype), _encode(v_BTKH, dtype)
        shard = update.replace(layer=layer, starts_B=starts_B, counts_B=counts_B)
        return _attend_to_cache(shard, q_BTNH, *new, pattern, softmax)

    # Each device its own rows and heads: in the writes XLA would not find that they are.
    rows, heads = sharding.spec("B", q_BTNH.shape[:1]), sharding.spec("N", q_BTNH.shape[2:3])
    new, stored = (
        sharding.spec("BTNH", q_BTNH.shape),
        sharding.spec("BNSH", q_BTNH.shape[:1] + k_BTKH.shape[2:3] + (1, 1)),
    )
    return sharding.shard_map(
        attend_shard, (stored, rows, rows, new, new, new, heads), (new, stored)
    )(update.layer, update.starts_B, update.counts_B, q_BTNH, k_BTKH, v_BTKH, softmax)


def _attend_to_cache(update, q_BTNH, new_k, new_v, pattern, softmax):
    """`attend` after the prefill, on the rows and heads of one device. new_k, new_v: as stored."""
    T = q_BTNH.shape[1]
    S = update.layer.k_BKHS.shape[3]
    new_BT = update.starts_B[:, None] + jnp.arange(T)[None]
    # Padding tokens get no slot. If there are more tokens than slots, only the last S are written,
    # because the order of writes in a scatter is undefined.
    valid_BT = (jnp.arange(T)[None] < update.counts_B[:, None]) & (
        jnp.arange(T)[None] >= update.counts_B[:, None] - S
    )
    slots_BT = jnp.where(valid_BT, new_BT % S, S)
    # Written before the read: in the other order XLA copies the whole cache.
    write_k, write_v = (functools.partial(_write_slots, slots_BT=slots_BT, dim=d) for d in (3, 2))
    layer = LayerCache.of(
        jax.tree.map(write_k, update.layer.keys, new_k),
        jax.tree.map(write_v, update.layer.values, new_v),
    )
    keys, values = layer.keys, layer.values
    keys_BS = slot_positions(update.starts_B + update.counts_B, S)
    # In a ring buffer the last new tokens replace keys that the first new tokens still see.
    if T > 1 and S < update.capacity:
        keys, values = (
            jax.tree.map(
                lambda x, new: jnp.concatenate([x, new.transpose(0, 2, 3, 1)], axis=3),
                update.layer.keys,
                new_k,
            ),
            jax.tree.map(
                lambda x, new: jnp.concatenate([x, new.swapaxes(1, 2)], axis=2),
                update.layer.values,
                new_v,
            ),
        )
        keys_BS = jnp.concatenate([slot_positions(update.starts_B, S), new_BT], axis=1)
    return _attend_slots(q_BTNH, keys, values, new_BT, keys_BS, pattern, softmax), layer


def _attend_slots(q_BTNH, keys, values, queries_BT, keys_BS, pattern, softmax):
    """Attention over stored keys and values: at once, or tile by tile if the scores would be large
    or the keys must be converted."""
    (B, T, N, H), S, dtype = q_BTNH.shape, keys_BS.shape[1], q_BTNH.dtype
    q_BTNH = q_BTNH * jnp.asarray(H**-0.5, q_BTNH.dtype)

    def scores_and_mask(k_BKHS, keys_BS):
        scores_BNTS = scores.grouped_einsum(
            "BTNH,BNHS->BNTS", q_BTNH, k_BKHS, preferred_element_type=jnp.float32
        )
        is_used = (keys_BS >= 0)[:, None, None]
        return scores_BNTS, is_used & patterns.heads_mask(pattern, queries_BT, keys_BS, N)

    is_small = T == 1 or 4 * B * N * T * S <= MAX_SCORES_BYTES
    if S <= TILE or keys[0].dtype == dtype and is_small:
        scores_BNTS, visible_BNTS = scores_and_mask(_decode(keys, dtype), keys_BS)
        weights_BNTS = scores.weights(scores_BNTS, visible_BNTS, softmax)
        return scores.grouped_einsum(
            "BNTS,BNSH->BTNH", weights_BNTS.astype(dtype), _decode(values, dtype)
        )

    def add_tile(j, partial):
        first = jnp.minimum(j * TILE, S - TILE)  # the last tile overlaps the one before it

        def tile(x, axis):
            return jax.lax.dynamic_slice_in_dim(x, first, TILE, axis)

        is_new = first + jnp.arange(TILE) >= j * TILE
        tile_BS = jnp.where(is_new[None], tile(keys_BS, 1), -1)
        k_BKHS, v_BKSH = (
            _decode(jax.tree.map(lambda x: tile(x, axis), stored), dtype)  # noqa: B023
            for stored, axis in ((keys, 3), (values, 2))
        )
        scores_BNTS, visible_BNTS = scores_and_mask(k_BKHS, tile_BS)
        scores_BNTS = scores.cap(scores_BNTS, softmax.softcap)
        return partial.add(jnp.where(visible_BNTS, scores_BNTS, scores.MASK_VALUE), v_BKSH)

    n_used = jnp.max(jnp.where(keys_BS >= 0, jnp.arange(S)[None] + 1, 0))
    start = scores.OnlineSoftmax.start((B, N, T, H), softmax.sinks_N)
    partial = jax.lax.fori_loop(0, -(-n_used // TILE), add_tile, start)
    return partial.output_BNTH.swapaxes(1, 2).astype(dtype)


def _encode(x_BTKH, dtype) -> Stored:
    """Keys or values as they are stored."""
    if dtype != jnp.int8:
        return x_BTKH.astype(dtype), None
    x = x_BTKH.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x).max(-1, keepdims=True), 1e-30) / 127
    return jnp.round(x / scale).astype(jnp.int8), scale


def _decode(stored: Stored, dtype):
    """Inverse of `_encode`, up to the rounding."""
    x, scale = stored
    return x.astype(dtype) if scale is None else (x.astype(jnp.float32) * scale).astype(dtype)


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


def empty(config: schema.Model, n_rows: int, capacity: int, dtype: Any) -> KVCache:
    """A cache of n_rows empty texts, with keys and values stored as `dtype`."""

    def layer(pattern):
        shape = n_rows, config.n_kv_heads, count.cache_slots(pattern, capacity)
        keys, values = (
            (jnp.zeros(sizes, dtype), jnp.zeros(scales) if dtype == jnp.int8 else None)
            for sizes, scales in (
                ((*shape[:2], config.d_head, shape[2]), (*shape[:2], 1, shape[2])),
                ((*shape, config.d_head), (*shape, 1)),
            )
        )
        return LayerCache.of(keys, values)

    patterns = [config.attention[i % len(config.attention)] for i in range(config.n_layers)]
    return KVCache(tuple(map(layer, patterns)), jnp.zeros(n_rows, jnp.int32), capacity)


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
        n_new = count.cache_slots(pattern, capacity) - count.cache_slots(pattern, cache.capacity)
        rest, none = (0, n_new), (0, 0)
        return LayerCache.of(
            jax.tree.map(lambda x: jnp.pad(x, (none, none, none, rest)), layer.keys),
            jax.tree.map(lambda x: jnp.pad(x, (none, none, rest, none)), layer.values),
        )

    layers = tuple(
        pad_layer(layer, attention[i % len(attention)]) for i, layer in enumerate(cache.layers)
    )
    return KVCache(layers, cache.lengths_B, capacity)


def truncate(
    cache: KVCache, attention: tuple[schema.Attention, ...], n_cached: int, n: int
) -> KVCache | None:
    """Returns the cache of the first n of the n_cached tokens that each row holds; None if a ring
    buffer has overwritten keys that the next token would see. attention: the model's patterns.
    """
    n_slots = min(count.cache_slots(pattern, cache.capacity) for pattern in attention)
    if n < n_cached > n_slots:
        return None
    return cache.replace(lengths_B=jnp.full_like(cache.lengths_B, n))
