"""Ring attention (Liu et al. 2310.01889): each device attends to one part of the keys after
another, which pass around a ring of devices, so that none holds all keys of a row.

The partial softmaxes are merged online, in float32; the backward pass recomputes each weight from
the saved log-sum-exp, with the gradients of keys and values passing around with them. Plain XLA,
on any platform.
"""

import functools
from typing import cast

import jax
import jax.numpy as jnp

from gptjax.config import schema
from gptjax.model.attention import patterns, scores

TILE = 512  # keys whose scores are computed at a time


def attend(
    axis: str,
    n: int,
    pattern: schema.Attention,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    query_segments_BT: jax.Array | None,
    segments_BS: jax.Array | None,
    softmax: scores.Softmax = scores.PLAIN,
) -> jax.Array:
    """reference.attend within jax.shard_map over a mesh axis of n devices.

    Device i has the keys and values number i of n parts of a row. Its queries, and their document
    numbers query_segments_BT, are the first half of part i and the second half of part n - 1 - i,
    so that all devices see as many keys (context_parallel.py)."""
    q_BTNH = q_BTNH * jnp.asarray(q_BTNH.shape[3] ** -0.5, q_BTNH.dtype)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BTNH, k_BSKH, v_BSKH))
    segments = None if segments_BS is None else (query_segments_BT, segments_BS)
    o_BNTH = cast(
        jax.Array, _attend(axis, n, pattern, softmax.softcap, q, k, v, segments, softmax.sinks_N)
    )
    return jnp.swapaxes(o_BNTH, 1, 2).astype(v_BSKH.dtype)


def _parts(axis, n, T):
    """(queries, number of the part that they are of, position of the first) of the two halves."""
    i, half = jax.lax.axis_index(axis), T // 2
    parts = (slice(0, half), i, i * T), (slice(half, T), n - 1 - i, (n - 1 - i) * T + half)
    return [part for part in parts if part[0].stop > part[0].start]


def _pass_on(x, axis, n):
    """What the device before this one holds."""
    return jax.lax.ppermute(x, axis, [(i, (i + 1) % n) for i in range(n)])


def _loop_over_tiles(T, fn, carry):
    """carry = fn(slice_tile, offsets, is_new, carry) for each tile of T keys. slice_tile(x, axis):
    its part of x; offsets: of its keys within the part; is_new: which were in no tile before."""
    tile = min(TILE, T)

    def step(t, carry):
        first = jnp.minimum(t * tile, T - tile)  # the last tile overlaps the one before it
        offsets = first + jnp.arange(tile)

        def slice_tile(x, axis):
            return jax.lax.dynamic_slice_in_dim(x, first, tile, axis)

        return fn(slice_tile, offsets, offsets >= t * tile, carry)

    return jax.lax.fori_loop(0, -(-T // tile), step, carry)


def _scores(pattern, softcap, q, k, queries_T, keys_S, is_new_S, same_BTS):
    """(scores of a tile, masked; not masked), float32 (B, N, T, S). same_BTS: whether query and key
    are of one document, or None."""
    capped = scores.cap(
        scores.grouped_einsum("BNTH,BNSH->BNTS", q, k, preferred_element_type=jnp.float32), softcap
    )
    visible = patterns.heads_mask(pattern, queries_T[None], keys_S[None], q.shape[1])
    visible = visible & is_new_S[None, None, None]
    if same_BTS is not None:
        visible = visible & same_BTS[:, None]
    return jnp.where(visible, capped, scores.MASK_VALUE), capped


def _same_document(segments, queries, slice_tile):
    """bool (B, T, S) of queries and a tile of keys; None without documents. segments: (of the
    queries, of the keys), or None."""
    if segments is None:
        return None
    return segments[0][:, queries, None] == slice_tile(segments[1], 1)[:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _attend(axis, n, pattern, softcap, q, k, v, segments, sinks):
    return _forward(axis, n, pattern, softcap, q, k, v, segments, sinks)[0]


def _forward(axis, n, pattern, softcap, q, k, v, segments, sinks):
    B, N, T, H = q.shape
    i, parts = jax.lax.axis_index(axis), _parts(axis, n, T)

    def see(hop, partials, k, v, key_segments):
        """The softmaxes of all queries with the keys that arrived with this hop."""
        j = (i - hop) % n
        documents = None if segments is None else (segments[0], key_segments)

        def add(queries, start, partial):
            queries_T = start + jnp.arange(queries.stop - queries.start)

            def tile(slice_tile, offsets, is_new, partial):
                same = _same_document(documents, queries, slice_tile)
                masked, _ = _scores(
                    pattern,
                    softcap,
                    q[:, :, queries],
                    slice_tile(k, 2),
                    queries_T,
                    j * T + offsets,
                    is_new,
                    same,
                )
                return partial.add(masked, slice_tile(v, 2))

            return _loop_over_tiles(T, tile, partial)

        return [
            jax.lax.cond(
                j <= part, functools.partial(add, queries, start), lambda partial: partial, partial
            )
            for (queries, part, start), partial in zip(parts, partials, strict=True)
        ]

    def step(hop, carry):
        partials, arrived = carry
        k, v, key_segments = _pass_on(arrived, axis, n)  # while these are being seen
        return see(hop, partials, *arrived), (k, v, key_segments)

    partials = [
        scores.OnlineSoftmax.start((B, N, queries.stop - queries.start, H), sinks)
        for queries, _, _ in parts
    ]
    own = k, v, None if segments is None else segments[1]
    partials, last = jax.lax.fori_loop(0, n - 1, step, (partials, own))
    partials = see(n - 1, partials, *last)
    o = jnp.concatenate([partial.output_BNTH for partial in partials], axis=2)
    lse = jnp.concatenate([partial.lse_BNT for partial in partials], axis=2)
    return o, (q, k, v, segments, sinks, o, lse)


def _backward(axis, n, pattern, softcap, residuals, do):
    q, k, v, segments, sinks, o, lse = residuals
    T, K = q.shape[2], k.shape[1]
    i, parts = jax.lax.axis_index(axis), _parts(axis, n, T)
    delta = jnp.sum(do * o, -1)
    q_f32 = q.astype(jnp.float32)

    def see(hop, dq, arrived, dk, dv):
        """The gradients with those of the keys that arrived with this hop."""
        (k, v, key_segments), j = arrived, (i - hop) % n
        documents = None if segments is None else (segments[0], key_segments)

        def add(queries, start, gradients):
            queries_T = start + jnp.arange(queries.stop - queries.start)
            q_i, do_i, lse_i, delta_i = (x[:, :, queries] for x in (q_f32, do, lse, delta))

            def tile(slice_tile, offsets, is_new, gradients):
                dq, dk, dv = gradients
                same = _same_document(documents, queries, slice_tile)
                k_j, v_j = slice_tile(k, 2), slice_tile(v, 2).astype(jnp.float32)
                masked, capped = _scores(
                    pattern,
                    softcap,
                    q[:, :, queries],
                    k_j,
                    queries_T,
                    j * T + offsets,
                    is_new,
                    same,
                )
                weights = jnp.exp(masked - lse_i[..., None])
                dweights = scores.grouped_einsum("BNTH,BNSH->BNTS", do_i, v_j)
                dscores = weights * (dweights - delta_i[..., None])
                if softcap is not None:
                    dscores = dscores * (1 - jnp.square(capped / softcap))
                dq_j = scores.grouped_einsum("BNTS,BNSH->BNTH", dscores, k_j.astype(jnp.float32))
                dk_j = scores.group_sum_einsum("BNTS,BNTH->BNSH", dscores, q_i, K)
                dv_j = scores.group_sum_einsum("BNTS,BNTH->BNSH", weights, do_i, K)
                where = slice(None), slice(None), offsets
                dq = dq.at[:, :, queries].add(dq_j)
                return dq, dk.at[where].add(dk_j), dv.at[where].add(dv_j)

            return _loop_over_tiles(T, tile, gradients)

        gradients = dq, dk, dv
        for queries, part, start in parts:
            gradients = jax.lax.cond(
                j <= part, functools.partial(add, queries, start), lambda x: x, gradients
            )
        return gradients

    def step(hop, carry):
        dq, keys, dk, dv = carry
        passed_on = _pass_on(keys, axis, n)
        dq, dk, dv = see(hop, dq, keys, dk, dv)
        return dq, passed_on, *_pass_on((dk, dv), axis, n)

    own = k, v, None if segments is None else segments[1]
    zeros = jnp.zeros(k.shape, jnp.float32)
    start = jnp.zeros(q.shape, jnp.float32), own, zeros, zeros
    dq, last, dk, dv = jax.lax.fori_loop(0, n - 1, step, start)
    dq, dk, dv = see(n - 1, dq, last, dk, dv)
    dk, dv = _pass_on((dk, dv), axis, n)  # home
    dsinks = None
    if sinks is not None:
        dsinks = -jnp.sum(jnp.exp(sinks[None, :, None] - lse) * delta, axis=(0, 2))
    dq, dk, dv = (dx.astype(x.dtype) for dx, x in ((dq, q), (dk, k), (dv, v)))
    return dq, dk, dv, None, dsinks


_attend.defvjp(_forward, _backward)
