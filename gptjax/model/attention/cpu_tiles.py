"""Attention of long sequences on CPU: tile by tile with an online softmax, so that memory grows
with T instead of T^2.

The forward pass is FlashAttention's (Dao et al. 2022, 2205.14135, Algorithm 1); the backward pass
recomputes each tile's weights from the saved log-sum-exp. Tiles in the future or outside a band are
skipped.
"""

import functools
from typing import cast

import jax
import jax.numpy as jnp

from gptjax.config import schema
from gptjax.model.attention import patterns, scores
from gptjax.sharding.shapes import shaped

TILE = 256  # queries and keys; 128 was slower, 512 slower for bands (docs/log.md, 2026-11-22)


@shaped
def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    pattern: schema.Attention,
    segments_BS: jax.Array | None = None,
    softmax: scores.Softmax = scores.PLAIN,
) -> jax.Array:
    """reference.attend for T = S without dropout, in float32, since bfloat16 is slower on CPU.
    Strided and fixed patterns show keys in every tile, so they cost as much as dense.
    """
    T, H = q_BTNH.shape[1], q_BTNH.shape[3]
    pad = -T % TILE  # padding keys come after every query, so none is seen
    if segments_BS is not None:
        segments_BS = jnp.pad(segments_BS, ((0, 0), (0, pad)))
    q, k, v = (
        jnp.swapaxes(jnp.pad(x.astype(jnp.float32), ((0, 0), (0, pad), (0, 0), (0, 0))), 1, 2)
        for x in (q_BTNH, k_BSKH, v_BSKH)
    )
    o_BNTH = cast(
        jax.Array,
        _attend_tiles(pattern, softmax.softcap, q * H**-0.5, k, v, segments_BS, softmax.sinks_N),
    )
    return jnp.swapaxes(o_BNTH, 1, 2)[:, :T].astype(q_BTNH.dtype)


def _slice_tile(x, i, axis=2):
    return jax.lax.dynamic_slice_in_dim(x, i * TILE, TILE, axis)


def _loop_over_keys(pattern, i, tile, carry):
    """Computes carry = tile(j, carry, tile_pattern) for every tile j of keys that some query of
    tile i sees. tile_pattern: the pattern, or None where all of the tile is visible.
    """
    first = (
        jnp.maximum(0, (i * TILE - pattern.window + 1) // TILE)
        if isinstance(pattern, schema.Banded)
        else jnp.int32(0)
    )
    if isinstance(pattern, schema.Dense):
        carry = jax.lax.fori_loop(first, i, lambda j, carry: tile(j, carry, None), carry)
        first = i
    return jax.lax.fori_loop(first, i + 1, lambda j, carry: tile(j, carry, pattern), carry)


def _scores(tile_pattern, softcap, q_BNTH, k_BKSH, segments_BS, i, j):
    """Returns (scores (B, N, T, S) of tile (i, j), with MASK_VALUE where masked, and without)."""
    capped_BNTS = scores.cap(scores.grouped_einsum("BNTH,BNSH->BNTS", q_BNTH, k_BKSH), softcap)
    offsets, scores_BNTS = jnp.arange(TILE), capped_BNTS
    if tile_pattern is not None:
        queries, keys = (i * TILE + offsets)[None], (j * TILE + offsets)[None]
        visible_1NTS = patterns.heads_mask(tile_pattern, queries, keys, q_BNTH.shape[1])
        scores_BNTS = jnp.where(visible_1NTS, scores_BNTS, scores.MASK_VALUE)
    if segments_BS is not None:
        same_BTS = (
            _slice_tile(segments_BS, i, 1)[:, :, None] == _slice_tile(segments_BS, j, 1)[:, None]
        )
        scores_BNTS = jnp.where(same_BTS[:, None], scores_BNTS, scores.MASK_VALUE)
    return scores_BNTS, capped_BNTS


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend_tiles(pattern, softcap, q, k, v, segments, sinks):
    return _forward(pattern, softcap, q, k, v, segments, sinks)[0]


def _forward(pattern, softcap, q, k, v, segments, sinks):
    B, N, T, H = q.shape

    def rows(i):
        q_i = _slice_tile(q, i)

        def tile(j, partial, tile_pattern):
            tile_scores, _ = _scores(tile_pattern, softcap, q_i, _slice_tile(k, j), segments, i, j)
            return partial.add(tile_scores, _slice_tile(v, j))

        start = scores.OnlineSoftmax.start((B, N, TILE, H), sinks)
        partial = _loop_over_keys(pattern, i, tile, start)
        return partial.output_BNTH, partial.lse_BNT

    o, lse = jax.lax.map(rows, jnp.arange(T // TILE))
    o, lse = (jnp.moveaxis(x, 0, 2).reshape(B, N, T, *x.shape[4:]) for x in (o, lse))
    return o, (q, k, v, segments, sinks, o, lse)


def _backward(pattern, softcap, residuals, do):
    q, k, v, segments, sinks, o, lse = residuals
    B, K, T, H = k.shape
    delta = jnp.sum(do * o, -1)  # FlashAttention's D, Algorithm 4
    # The gradients of keys and values have H before T: XLA on CPU computes "HT,TS->HS" directly,
    # but for "TS,TH->SH" it would transpose every tile of weights first.
    q_H, do_H = (jnp.swapaxes(x, 2, 3) for x in (q, do))

    def rows(i, carry):
        dq, dk_H, dv_H = carry
        q_i, do_i, lse_i, delta_i = (_slice_tile(x, i) for x in (q, do, lse, delta))
        q_Hi, do_Hi = _slice_tile(q_H, i, 3), _slice_tile(do_H, i, 3)

        def tile(j, carry, tile_pattern):
            dq_i, dk_H, dv_H = carry
            k_j, v_j = _slice_tile(k, j), _slice_tile(v, j)
            tile_scores, capped = _scores(tile_pattern, softcap, q_i, k_j, segments, i, j)
            weights = jnp.exp(tile_scores - lse_i[..., None])
            dweights = scores.grouped_einsum("BNTH,BNSH->BNTS", do_i, v_j)
            dscores = weights * (dweights - delta_i[..., None])
            if softcap is not None:
                dscores = dscores * (1 - jnp.square(capped / softcap))
            dk_j = scores.group_sum_einsum("BNHT,BNTS->BNHS", q_Hi, dscores, K)
            dv_j = scores.group_sum_einsum("BNHT,BNTS->BNHS", do_Hi, weights, K)
            dq_j = scores.grouped_einsum("BNTS,BNSH->BNTH", dscores, k_j)
            return dq_i + dq_j, dk_H.at[j].add(dk_j), dv_H.at[j].add(dv_j)

        dq_i, dk_H, dv_H = _loop_over_keys(pattern, i, tile, (jnp.zeros(q_i.shape), dk_H, dv_H))
        return jax.lax.dynamic_update_slice_in_dim(dq, dq_i, i * TILE, 2), dk_H, dv_H

    tiles = jnp.zeros((T // TILE, B, K, H, TILE))
    dq, dk_H, dv_H = jax.lax.fori_loop(0, T // TILE, rows, (jnp.zeros(q.shape), tiles, tiles))
    dk, dv = (jnp.transpose(x, (1, 2, 0, 4, 3)).reshape(B, K, T, H) for x in (dk_H, dv_H))
    dsinks = None
    if sinks is not None:
        dsinks = -jnp.sum(jnp.exp(sinks[None, :, None] - lse) * delta, axis=(0, 2))
    return dq, dk, dv, None, dsinks


_attend_tiles.defvjp(_forward, _backward)
