"""Attention of long sequences on CPU: tile by tile with an online softmax, so that memory grows with T and not with its square.

Forward as in FlashAttention (Dao et al. 2022, 2205.14135, Algorithm 1); backward computes each tile's weights again from the saved
log-sum-exp. Tiles that a band does not reach, and those of the future, are skipped.
"""

import functools
from typing import cast

import jax
import jax.numpy as jnp

from gptjax.arrays.shapes import shaped
from gptjax.config import schema
from gptjax.model import patterns

TILE = 256  # rows and columns: 512 was slower for bands and no faster for dense attention (LOG.md, 2026-11-22)
UNSEEN = -1e30  # finite, so that a row whose first tiles show nothing stays free of NaN


@shaped
def attend(
    q_BTNH: jax.Array, k_BSNH: jax.Array, v_BSNH: jax.Array, pattern: schema.Attention, segments_BS: jax.Array | None = None
) -> jax.Array:
    """attention.attend for T = S, without dropout. Strided and fixed patterns show keys in every tile, so they cost what dense does."""
    B, T, _, H = q_BTNH.shape
    pad = -T % TILE  # padding keys come after every query, so none sees them
    if segments_BS is None:
        segments_BS = jnp.zeros((B, T), jnp.int32)
    segments_BS = jnp.pad(segments_BS, ((0, 0), (0, pad)))
    q, k, v = (jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, pad), (0, 0))) for x in (q_BTNH, k_BSNH, v_BSNH))
    o_BNTH = cast(jax.Array, _tiled(pattern, q * jnp.asarray(H**-0.5, q.dtype), k, v, segments_BS))
    return jnp.swapaxes(o_BNTH, 1, 2)[:, :T]


def _cut(x, i, axis):
    return jax.lax.dynamic_slice_in_dim(x, i * TILE, TILE, axis)


def _first(pattern, i):
    """The first tile of keys that the queries of tile i see."""
    return jnp.maximum(0, (i * TILE - pattern.window + 1) // TILE) if isinstance(pattern, schema.Banded) else jnp.int32(0)


def _scores(pattern, q_BNTH, k_BNSH, segments_BS, i, j):
    """float32 (B, N, T, S) of tile (i, j), and what of it is seen, (B, 1, T, S)."""
    within = jnp.arange(TILE)
    seen_11TS = patterns.visible(pattern, (i * TILE + within)[:, None], (j * TILE + within)[None])[None, None]
    same_B1TS = _cut(segments_BS, i, 1)[:, None, :, None] == _cut(segments_BS, j, 1)[:, None, None, :]
    scores_BNTS = jnp.einsum("BNTH,BNSH->BNTS", q_BNTH, k_BNSH, preferred_element_type=jnp.float32)
    return scores_BNTS, seen_11TS & same_B1TS


def _einsum(equation, *terms):
    return jnp.einsum(equation, *terms, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled(pattern, q, k, v, segments):
    return _forward(pattern, q, k, v, segments)[0]


def _forward(pattern, q, k, v, segments):
    B, N, T, H = q.shape

    def rows(i):
        q_i = _cut(q, i, 2)

        def tile(j, carry):
            o, top, total = carry
            scores, seen = _scores(pattern, q_i, _cut(k, j, 2), segments, i, j)
            scores = jnp.where(seen, scores, UNSEEN)
            higher = jnp.maximum(top, scores.max(-1))
            weights = jnp.where(seen, jnp.exp(scores - higher[..., None]), 0.0)
            shrink = jnp.exp(top - higher)
            more = _einsum("BNTS,BNSH->BNTH", weights.astype(v.dtype), _cut(v, j, 2))
            return o * shrink[..., None] + more, higher, total * shrink + weights.sum(-1)

        nothing = jnp.zeros((B, N, TILE, H)), jnp.full((B, N, TILE), UNSEEN), jnp.zeros((B, N, TILE))
        o, top, total = jax.lax.fori_loop(_first(pattern, i), i + 1, tile, nothing)
        return (o / total[..., None]).astype(v.dtype), top + jnp.log(total)

    o, norm = jax.lax.map(rows, jnp.arange(T // TILE))
    o, norm = (jnp.moveaxis(x, 0, 2).reshape(B, N, T, *x.shape[4:]) for x in (o, norm))
    return o, (q, k, v, segments, o, norm)


def _backward(pattern, saved, do):
    q, k, v, segments, o, norm = saved
    delta = jnp.sum(do.astype(jnp.float32) * o.astype(jnp.float32), -1)  # FlashAttention's D, Algorithm 4

    def rows(i, carry):
        dq, dk, dv = carry
        q_i, do_i, norm_i, delta_i = (_cut(x, i, 2) for x in (q, do, norm, delta))

        def tile(j, carry):
            dq_i, dk, dv = carry
            k_j, v_j = _cut(k, j, 2), _cut(v, j, 2)
            scores, seen = _scores(pattern, q_i, k_j, segments, i, j)
            weights = jnp.where(seen, jnp.exp(scores - norm_i[..., None]), 0.0)
            dscores = (weights * (_einsum("BNTH,BNSH->BNTS", do_i, v_j) - delta_i[..., None])).astype(q.dtype)

            def added(total, part):
                return jax.lax.dynamic_update_slice_in_dim(total, _cut(total, j, 2) + part, j * TILE, 2)

            dk = added(dk, _einsum("BNTS,BNTH->BNSH", dscores, q_i))
            dv = added(dv, _einsum("BNTS,BNTH->BNSH", weights.astype(v.dtype), do_i))
            return dq_i + _einsum("BNTS,BNSH->BNTH", dscores, k_j), dk, dv

        dq_i, dk, dv = jax.lax.fori_loop(_first(pattern, i), i + 1, tile, (jnp.zeros(q_i.shape), dk, dv))
        return jax.lax.dynamic_update_slice_in_dim(dq, dq_i, i * TILE, 2), dk, dv

    zeros = tuple(jnp.zeros(x.shape) for x in (q, k, v))
    dq, dk, dv = jax.lax.fori_loop(0, q.shape[2] // TILE, rows, zeros)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_tiled.defvjp(_forward, _backward)
