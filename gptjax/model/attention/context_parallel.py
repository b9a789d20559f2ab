"""Context parallelism: attention on sequences that are sharded over devices.

Each device holds its part of the queries, keys and values and fetches the keys that it lacks. A
banded layer fetches only its halo: the window's keys before the device's first query.

Other patterns see keys from the start of the row. Either all keys and values are gathered, as in
Llama 3 (2407.21783, section 3.3.2): one exchange that works with any kernel and merges no partial
softmaxes, at the memory of one layer's keys and values of a row. Or they pass around a ring
(ring.py): no device holds more than two parts of them, but attention is plain XLA.
`choose_exchange` says which.

Causal work grows along the row, so the device with its end would keep the others waiting. Device i
of n therefore swaps the second half of its queries with device n - 1 - i, after which all see the
same number of keys. Hidden states stay in order, which the halo needs: only these queries and their
outputs move, 1 / (2 (n - 1)) of what is gathered.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gptjax.config import schema
from gptjax.model.attention import ring, scores
from gptjax.runtime.units import human_bytes
from gptjax.sharding import chips, rules

# The share of a device's memory that the gathered keys of a layer may take.
MAX_GATHERED_SHARE = 0.25


def choose_exchange(
    config: schema.Config, mesh: jax.sharding.Mesh, element_bytes: int
) -> tuple[str, str]:
    """Returns (how the devices along mesh.context exchange keys, why): compute.context_exchange or,
    if that is auto, gathering unless it takes too much of a device's memory.

    Gathered are the keys and values of a row, in the type of computation, and also, in the
    backward pass, their float32 gradients: 2 n_ctx n_kv_heads d_head (element_bytes + 4) / tensor.
    Forward, both send all parts but the own one; backward, gathering sends them again and reduces
    the gradients, and the ring passes float32 gradients along. So the faster kernels that gathering
    can use decide for it, and memory against it. Attention dropout needs gathering.
    """
    model = config.model
    heads = max(1, model.n_kv_heads // mesh.shape["tensor"])
    needed = 2 * model.n_ctx * heads * model.d_head * (element_bytes + 4)
    reason = f"gathering takes {human_bytes(needed)} a layer and row"
    chip = chips.from_device(mesh.devices.flat[0])
    if chip is not None:
        reason += f", {needed / chip.hbm_bytes:.1%} of {human_bytes(chip.hbm_bytes)}"
    choice = config.compute.context_exchange
    if model.dropout.attention:
        return "gather", "attention dropout needs it"
    if choice != "auto":
        reason = f"as set; {reason}"
    elif chip is None or needed <= MAX_GATHERED_SHARE * chip.hbm_bytes:
        choice = "gather"
    else:
        choice = "ring"
    if choice == "ring":
        reason += "; layers that see the whole row are computed there, in plain XLA"
    return choice, reason


def attend(
    kernel: Callable,
    sharding: rules.Sharding,
    q_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNH: jax.Array,
    pattern: schema.Attention,
    segments_BT: jax.Array | None = None,
    dropout: tuple[jax.Array, float] | None = None,
    softmax: scores.Softmax = scores.PLAIN,
) -> jax.Array:
    """reference.attend where `sharding` shards T over a mesh axis.

    kernel: has the reference's signature, runs on one device's arrays, and must accept fewer
    queries than keys. Dropout masks are drawn differently from the reference's. Raises ValueError
    if T is not a multiple of the number of devices along its axis.
    """
    (axis,) = sharding.axes("T")
    n, T = sharding.n_shards("T"), q_BTNH.shape[1]
    key, rate = dropout if dropout is not None else (None, 0.0)

    def attend_shard(q_BTNH, k_BTNH, v_BTNH, segments_BT, key, softmax):
        if key is not None:  # different dropout on each device
            key = jax.random.fold_in(
                key, jax.lax.axis_index((*sharding.axes("B"), axis, *sharding.axes("N")))
            )
        # A halo that reaches from the last shard to the first is as large as an all-gather.
        fits_halo = isinstance(pattern, schema.Banded) and pattern.window <= T - T // n
        if sharding.context_exchange == "ring" and key is None and not fits_halo:
            return _attend_around_ring(
                axis, n, pattern, q_BTNH, k_BTNH, v_BTNH, segments_BT, softmax
            )
        return (_attend_with_halo if fits_halo else _attend_all_gather)(
            kernel, axis, n, pattern, rate, q_BTNH, k_BTNH, v_BTNH, segments_BT, key, softmax
        )

    heads, row = sharding.spec("BTNH", q_BTNH.shape), sharding.spec("BT", q_BTNH.shape[:2])
    in_specs = (heads, heads, heads, row, PartitionSpec(), sharding.spec("N", q_BTNH.shape[2:3]))
    return sharding.shard_map(attend_shard, in_specs, heads)(
        q_BTNH, k_BTNH, v_BTNH, segments_BT, key, softmax
    )


def _attend_with_halo(
    kernel, axis, n, pattern, rate, q_BTNH, k_BTNH, v_BTNH, segments_BT, key, softmax
):
    T, reach = q_BTNH.shape[1], pattern.window - 1

    def with_halo(x):
        """Prepends the last `reach` keys of the preceding shards; zeros before the row's
        start."""
        parts = [x]
        for hop, n_fetched in enumerate(range(0, reach, T), 1):
            parts.insert(
                0,
                jax.lax.ppermute(
                    x[:, -min(T, reach - n_fetched) :], axis, [(i, i + hop) for i in range(n - hop)]
                ),
            )
        return jnp.concatenate(parts, axis=1)

    dropout = None if key is None else (key, rate)
    if not reach:
        return kernel(q_BTNH, k_BTNH, v_BTNH, pattern, segments_BT, dropout, softmax)
    exists_1S = (jax.lax.axis_index(axis) * T + jnp.arange(-reach, T) >= 0)[None]
    segments_BS = jnp.where(
        exists_1S,
        jnp.zeros((q_BTNH.shape[0], 1), jnp.int32)
        if segments_BT is None
        else with_halo(segments_BT),
        -1,
    )
    k_BSNH, v_BSNH = with_halo(k_BTNH), with_halo(v_BTNH)
    return kernel(q_BTNH, k_BSNH, v_BSNH, pattern, segments_BS, dropout, softmax)


def _swap_halves(x, axis, n):
    """Exchanges the second half of device i's positions with that of device n - 1 - i."""
    half = x.shape[1] // 2
    other = jax.lax.ppermute(x[:, half:], axis, [(i, n - 1 - i) for i in range(n)])
    return jnp.concatenate([x[:, :half], other], axis=1)


def _attend_around_ring(axis, n, pattern, q_BTNH, k_BTNH, v_BTNH, segments_BT, softmax):
    """Attention over keys that pass around, with queries swapped to balance the work."""
    queries = None if segments_BT is None else _swap_halves(segments_BT, axis, n)
    swapped = _swap_halves(q_BTNH, axis, n)
    o_BTNH = ring.attend(axis, n, pattern, swapped, k_BTNH, v_BTNH, queries, segments_BT, softmax)
    return _swap_halves(o_BTNH, axis, n)


def _attend_all_gather(kernel, axis, n, pattern, rate, *arrays):
    """Attention over all-gathered keys, with queries swapped to balance the work.

    arrays: q, k, v (B, T, N, H), segments (B, T) or None, key or None, softmax. The backward pass
    gathers again, so that no gathered array is saved.
    """
    T = arrays[0].shape[1]
    half = T // 2

    def all_gather(x):
        return jax.lax.all_gather(x, axis, axis=1, tiled=True)

    swap_halves = functools.partial(_swap_halves, axis=axis, n=n)

    def attend_share(i, q_BTNH, k_BSNH, v_BSNH, segments_BS, key, softmax):
        """Attention of device i's queries: its own first half, the second half of n - 1 - i."""
        parts = []
        for number, (queries, end) in enumerate(
            ((q_BTNH[:, :half], i * T + half), (q_BTNH[:, half:], (n - i) * T))
        ):
            if not queries.size:
                continue
            segments = None if segments_BS is None else segments_BS[:, :end]
            dropout = None if key is None else (jax.random.fold_in(key, number), rate)
            parts.append(
                kernel(
                    queries, k_BSNH[:, :end], v_BSNH[:, :end], pattern, segments, dropout, softmax
                )
            )
        return jnp.concatenate(parts, axis=1)

    def exchange(q, k, v, segments, key, softmax):
        return (
            swap_halves(q),
            all_gather(k),
            all_gather(v),
            None if segments is None else all_gather(segments),
            key,
            softmax,
        )

    def switch_by_device(fn, *operands):
        """fn(i, *operands) on device i: a branch per device, each of which reads only the keys
        that it needs."""
        return jax.lax.switch(
            jax.lax.axis_index(axis), [functools.partial(fn, i) for i in range(n)], *operands
        )

    @jax.custom_vjp
    def attend(*arrays):
        return swap_halves(switch_by_device(attend_share, *exchange(*arrays)))

    def forward(*arrays):
        return attend(*arrays), arrays

    def backward(arrays, g):
        def pull(i, g, q, k, v, segments, key, softmax):
            def attend_arrays(q, k, v, softmax):
                return attend_share(i, q, k, v, segments, key, softmax)

            return jax.vjp(attend_arrays, q, k, v, softmax)[1](g)

        dq, dk, dv, dsoftmax = switch_by_device(pull, swap_halves(g), *exchange(*arrays))
        dk, dv = (jax.lax.psum_scatter(x, axis, scatter_dimension=1, tiled=True) for x in (dk, dv))
        return swap_halves(dq), dk, dv, None, None, dsoftmax

    attend.defvjp(forward, backward)
    return attend(*arrays)
