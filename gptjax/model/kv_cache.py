"""What attention remembers of the tokens read so far: keys and values of each layer, so that a new
token costs one query.

A layer has S slots, and slot p % S holds position p: for a band of W keys a ring of W slots (memory
O(W)), for the others one a position. Strided attention sees every residue again, so it can drop
nothing; Fixed could drop all but its own block and the summaries, and does not, for simplicity.
Rows are of different lengths: each begins in slot 0 and has its own positions, so no row is padded
on the left.
"""

from typing import assert_never

import flax.struct
import jax
import jax.numpy as jnp

from gptjax.config import schema
from gptjax.model.attention import dispatch, patterns
from gptjax.sharding import rules
from gptjax.sharding.shapes import shaped


class LayerCache(flax.struct.PyTreeNode):
    """Keys and values of one layer: heads before slots, as the products of attention want them."""

    k_BNHS: jax.Array
    v_BNSH: jax.Array


class KVCache(flax.struct.PyTreeNode):
    """Of a batch of texts: a LayerCache a layer, and int32 (B,) how many tokens of each row were
    read, at most `capacity`."""

    layers: tuple[LayerCache, ...]
    lengths_B: jax.Array
    capacity: int = flax.struct.field(pytree_node=False)


class CacheUpdate(flax.struct.PyTreeNode):
    """What Attention finds in the collection "cache" when it is to remember: its LayerCache so far,
    or None before the first token; how many tokens each row read before; how many of the new
    ones are the row's own, the rest being padding; and the cache's capacity."""

    layer: LayerCache | None
    starts_B: jax.Array
    counts_B: jax.Array
    capacity: int = flax.struct.field(pytree_node=False)


def n_slots(pattern: schema.Attention, capacity: int) -> int:
    """Slots of a layer of that pattern, for texts of up to `capacity` tokens."""
    match pattern:
        case schema.Banded(window=window):
            return min(window, capacity)
        case schema.Dense() | schema.Strided() | schema.Fixed():
            return capacity
        case _:
            assert_never(pattern)


def slot_positions(lengths_B: jax.Array, n_slots: int) -> jax.Array:
    """int32 (B, S): the newest position of a text of that length that falls into each slot;
    negative where none does."""
    newest_B1 = lengths_B[:, None] - 1
    return newest_B1 - (newest_B1 - jnp.arange(n_slots)[None]) % n_slots


@shaped
def attend(
    update: CacheUpdate,
    kernel: str,
    sharding: rules.Sharding,
    q_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNH: jax.Array,
    pattern: schema.Attention,
) -> tuple[jax.Array, LayerCache]:
    """dispatch.attend for T new tokens of each row after those that the update's layer holds;
    also the layer with the new ones."""
    if update.layer is None:
        o_BTNH = dispatch.attend(kernel, sharding, q_BTNH, k_BTNH, v_BTNH, pattern)
        new_slots = n_slots(pattern, update.capacity)
        return o_BTNH, LayerCache(
            _fill_slots(k_BTNH, update.counts_B, new_slots).swapaxes(2, 3),
            _fill_slots(v_BTNH, update.counts_B, new_slots),
        )
    T, S, H = q_BTNH.shape[1], update.layer.k_BNHS.shape[3], q_BTNH.shape[3]
    new_BT = update.starts_B[:, None] + jnp.arange(T)[None]
    # A padding token has no slot, and of more tokens than slots only the last are written: a
    # scatter's order is not defined.
    valid_BT = (jnp.arange(T)[None] < update.counts_B[:, None]) & (
        jnp.arange(T)[None] >= update.counts_B[:, None] - S
    )
    slots_BT = jnp.where(valid_BT, new_BT % S, S)
    # Written before it is read: in the other order XLA copies the whole cache.
    layer = LayerCache(
        _write_slots(update.layer.k_BNHS, k_BTNH, slots_BT, 3),
        _write_slots(update.layer.v_BNSH, v_BTNH, slots_BT, 2),
    )
    visible_cache, keys_BS = layer, slot_positions(update.starts_B + update.counts_B, S)
    if (
        T > 1 and S < update.capacity
    ):  # in a ring the last new tokens take the places of keys that the first still see
        k_BNHS = jnp.concatenate([update.layer.k_BNHS, k_BTNH.transpose(0, 2, 3, 1)], axis=3)
        v_BNSH = jnp.concatenate([update.layer.v_BNSH, v_BTNH.swapaxes(1, 2)], axis=2)
        visible_cache, keys_BS = (
            LayerCache(k_BNHS, v_BNSH),
            jnp.concatenate([slot_positions(update.starts_B, S), new_BT], axis=1),
        )
    visible_BTS = (keys_BS >= 0)[:, None] & patterns.mask_fn(
        pattern, new_BT[:, :, None], keys_BS[:, None]
    )
    q_BTNH = q_BTNH * jnp.asarray(H**-0.5, q_BTNH.dtype)
    scores_BNTS = jnp.einsum(
        "BTNH,BNHS->BNTS", q_BTNH, visible_cache.k_BNHS, preferred_element_type=jnp.float32
    )
    weights_BNTS = jax.nn.softmax(
        jnp.where(visible_BTS[:, None], scores_BNTS, jnp.finfo(jnp.float32).min), axis=-1
    )
    return jnp.einsum(
        "BNTS,BNSH->BTNH", weights_BNTS.astype(v_BTNH.dtype), visible_cache.v_BNSH
    ), layer


def _fill_slots(x_BTNH, counts_B, n_slots):
    """(B, N, S, H): the tokens of a text's beginning in their slots; what lies in the others is
    not seen."""
    x_BNTH, T = jnp.swapaxes(x_BTNH, 1, 2), x_BTNH.shape[1]
    if T <= n_slots:
        return jnp.pad(x_BNTH, ((0, 0), (0, 0), (0, n_slots - T), (0, 0)))
    return jnp.take_along_axis(
        x_BNTH, jnp.maximum(slot_positions(counts_B, n_slots), 0)[:, None, :, None], axis=2
    )


def _write_slots(x, new_BTNH, slots_BT, dim):
    """`x`, whose slots are its dimension `dim`, with the new tokens in theirs."""
    B, T, N, H = new_BTNH.shape
    # Row and head as one dimension: else XLA drops a batch of 1 by a copy of x before and after.
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
    """The cache of rows_B[0], rows_B[1] ... of this one: reordered, repeated, or fewer."""
    return jax.tree.map(lambda x: jnp.take(x, rows_B, axis=0), cache)


def resize(cache: KVCache, attention: tuple[schema.Attention, ...], capacity: int) -> KVCache:
    """The cache with room for texts of up to `capacity` tokens, at least as many as before.
    attention: the model's patterns."""
    assert capacity >= cache.capacity

    def pad_layer(layer, pattern):
        n_new = n_slots(pattern, capacity) - n_slots(
            pattern, cache.capacity
        )  # a ring that may have wrapped has its full size already
        rest, none = (0, n_new), (0, 0)
        return LayerCache(
            jnp.pad(layer.k_BNHS, (none, none, none, rest)),
            jnp.pad(layer.v_BNSH, (none, none, rest, none)),
        )

    layers = tuple(
        pad_layer(layer, attention[i % len(attention)]) for i, layer in enumerate(cache.layers)
    )
    return KVCache(layers, cache.lengths_B, capacity)
