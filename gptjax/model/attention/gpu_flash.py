"""Block-sparse flash attention for NVIDIA GPUs, in Pallas (Triton), for the cases that cuDNN lacks.

Scores stay on chip, and tiles of queries and keys that the pattern empties are skipped. Forward and
backward passes follow FlashAttention-2 (Dao 2023, 2307.08691). The tiles to visit are a table
computed from patterns.mask_fn. Tiles are small where that empties more of them, like those of
OpenAI's released sparse_attention (8 to 64).
"""

import dataclasses
import functools
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from gptjax.config import schema
from gptjax.model.attention import patterns, scores
from gptjax.sharding.shapes import shaped

TILE_SIZES = (64, 32)  # queries and keys of a tile
MASK_VALUE = -1e30  # finite, so that a row whose first tiles are masked stays free of NaN


@dataclasses.dataclass(frozen=True)
class KernelPlan:
    """What the three kernels are specialized for. T and S: queries and keys, multiples of `tile`.
    offset: the position of the first query.
    """

    pattern: schema.Attention
    T: int
    S: int
    offset: int
    tile: int
    interpret: bool


def unsupported_reason(pattern: schema.Attention, is_plain: bool, is_grouped: bool) -> str:
    """Why this kernel cannot compute a case, or "". is_plain: neither softcap nor sinks.
    is_grouped: several query heads share keys and values."""
    if not is_plain:
        return "the flash kernel has neither softcap nor sinks"
    if is_grouped:
        return "the flash kernel has no shared key heads"
    if patterns.differs_by_head(pattern):
        return "the flash kernel shows all heads the same keys"
    return ""


@shaped
def attend(
    q_BTNH: jax.Array,
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    pattern: schema.Attention,
    segments_BS: jax.Array | None = None,
    dropout: None = None,
    softmax: scores.Softmax = scores.PLAIN,
    interpret: bool = False,
) -> jax.Array:
    """reference.attend without dropout, on the arrays of one device, where `unsupported_reason`
    returns "". interpret: run on CPU, slowly,
    for tests.
    """
    assert dropout is None and softmax.is_plain
    T, S = q_BTNH.shape[1], k_BSNH.shape[1]
    # A tile of 32 is taken to cost half as much as one of 64, not a quarter: chosen where fewer
    # than twice as many are visited.
    plans = [
        KernelPlan(pattern, T + -T % tile, S + -S % tile, S - T, tile, interpret)
        for tile in TILE_SIZES
    ]
    plan = min(plans, key=lambda plan: plan.tile * tile_mask(plan).sum())
    q_BTNH = q_BTNH * jnp.asarray(q_BTNH.shape[-1] ** -0.5, q_BTNH.dtype)
    queries_BT, keys_BS = (
        (None, None) if segments_BS is None else (segments_BS[:, S - T :], segments_BS)
    )
    # Padding keys come last, where causality hides them.
    q, k, v, queries, keys = (
        _pad_to_tile(x, plan.tile) for x in (q_BTNH, k_BSNH, v_BSNH, queries_BT, keys_BS)
    )
    return cast(jax.Array, _flash(plan, q, k, v, queries, keys))[:, :T]


def _pad_to_tile(x, tile):
    """Pads axis 1 with zeros to a multiple of `tile`; None stays None."""
    return (
        None
        if x is None
        else jnp.pad(x, [(0, 0), (0, -x.shape[1] % tile), *[(0, 0)] * (x.ndim - 2)])
    )


@functools.lru_cache(maxsize=64)
def tile_mask(plan: KernelPlan) -> np.ndarray:
    """bool (query tiles, key tiles): whether the pattern shows any key in the tile."""
    keys, offsets = (
        np.arange(plan.S, dtype=np.int32)[None],
        np.arange(plan.tile, dtype=np.int32)[:, None],
    )
    rows = (
        patterns.mask_fn(plan.pattern, first + offsets + plan.offset, keys)
        for first in range(0, plan.T, plan.tile)
    )
    return np.stack([row.reshape(plan.tile, -1, plan.tile).any((0, 2)) for row in rows])


def _visit_table(visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the visited columns of each row, padded to the longest row, and their number."""
    counts = visible.sum(1).astype(np.int32)
    return np.argsort(~visible, axis=1, kind="stable")[:, : counts.max()].astype(np.int32), counts


# --- kernels: one program per tile of queries (forward, dq) or of keys (dkv), row and head --------


def _load(ref, rows, d_head):
    """Loads (tile, H), with zeros beyond d_head: the kernel's H is a power of two."""
    return triton.load(ref.at[rows, :], mask=(jnp.arange(ref.shape[-1]) < d_head)[None], other=0.0)


def _store(ref, x, d_head):
    triton.store(ref, x.astype(ref.dtype), mask=(jnp.arange(ref.shape[-1]) < d_head)[None])


def _dot(a, b):
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _tile_visibility(plan, i, j, queries_ref, keys_ref):
    """bool (T, S): the mask of tile (i, j)."""
    offsets = jnp.arange(plan.tile)
    visible = patterns.mask_fn(
        plan.pattern,
        (plan.offset + i * plan.tile + offsets)[:, None],
        (j * plan.tile + offsets)[None],
    )
    if queries_ref is None:
        return visible
    i, j = (pl.ds(n * plan.tile, plan.tile) for n in (i, j))
    return visible & (queries_ref[i][:, None] == keys_ref[j][None])


def _forward_kernel(
    table_ref,
    counts_ref,
    q_ref,
    k_ref,
    v_ref,
    queries_ref,
    keys_ref,
    o_ref,
    lse_ref,
    *,
    plan,
    d_head,
):
    i = pl.program_id(0)
    q = _load(q_ref, pl.ds(i * plan.tile, plan.tile), d_head)

    def tile(step, carry):
        o, row_max, row_sum = carry
        j = table_ref[i, step]
        tile_rows = pl.ds(j * plan.tile, plan.tile)
        scores = jnp.where(
            _tile_visibility(plan, i, j, queries_ref, keys_ref),
            _dot(q, _load(k_ref, tile_rows, d_head).T),
            MASK_VALUE,
        )
        new_max = jnp.maximum(row_max, scores.max(1))
        weights, rescale = jnp.exp(scores - new_max[:, None]), jnp.exp(row_max - new_max)
        increment = _dot(weights.astype(v_ref.dtype), _load(v_ref, tile_rows, d_head))
        return o * rescale[:, None] + increment, new_max, row_sum * rescale + weights.sum(1)

    init = jnp.zeros(q.shape, jnp.float32), jnp.full(plan.tile, MASK_VALUE), jnp.zeros(plan.tile)
    o, row_max, row_sum = jax.lax.fori_loop(0, counts_ref[i], tile, init)
    _store(o_ref, o / row_sum[:, None], d_head)
    lse_ref[...] = row_max + jnp.log(row_sum)


def _dq_kernel(
    table_ref,
    counts_ref,
    q_ref,
    k_ref,
    v_ref,
    queries_ref,
    keys_ref,
    do_ref,
    lse_ref,
    delta_ref,
    dq_ref,
    *,
    plan,
    d_head,
):
    i = pl.program_id(0)
    own_rows = pl.ds(i * plan.tile, plan.tile)
    q, do, lse, delta = (
        _load(q_ref, own_rows, d_head),
        _load(do_ref, own_rows, d_head),
        lse_ref[own_rows],
        delta_ref[own_rows],
    )

    def tile(step, dq):
        j = table_ref[i, step]
        tile_rows = pl.ds(j * plan.tile, plan.tile)
        k, v = _load(k_ref, tile_rows, d_head), _load(v_ref, tile_rows, d_head)
        weights = jnp.exp(
            jnp.where(_tile_visibility(plan, i, j, queries_ref, keys_ref), _dot(q, k.T), MASK_VALUE)
            - lse[:, None]
        )
        dscores = weights * (_dot(do, v.T) - delta[:, None])
        return dq + _dot(dscores.astype(k.dtype), k)

    _store(
        dq_ref, jax.lax.fori_loop(0, counts_ref[i], tile, jnp.zeros(q.shape, jnp.float32)), d_head
    )


def _dkv_kernel(
    table_ref,
    counts_ref,
    q_ref,
    k_ref,
    v_ref,
    queries_ref,
    keys_ref,
    do_ref,
    lse_ref,
    delta_ref,
    dk_ref,
    dv_ref,
    *,
    plan,
    d_head,
):
    j = pl.program_id(0)
    own_rows = pl.ds(j * plan.tile, plan.tile)
    k, v = _load(k_ref, own_rows, d_head), _load(v_ref, own_rows, d_head)

    def tile(step, carry):
        dk, dv = carry
        i = table_ref[j, step]
        tile_rows = pl.ds(i * plan.tile, plan.tile)
        q, do = _load(q_ref, tile_rows, d_head), _load(do_ref, tile_rows, d_head)
        weights = jnp.exp(
            jnp.where(_tile_visibility(plan, i, j, queries_ref, keys_ref), _dot(q, k.T), MASK_VALUE)
            - lse_ref[tile_rows][:, None]
        )
        dscores = weights * (_dot(do, v.T) - delta_ref[tile_rows][:, None])
        return dk + _dot(dscores.astype(q.dtype).T, q), dv + _dot(weights.astype(do.dtype).T, do)

    init = jnp.zeros(k.shape, jnp.float32), jnp.zeros(k.shape, jnp.float32)
    dk, dv = jax.lax.fori_loop(0, counts_ref[j], tile, init)
    _store(dk_ref, dk, d_head)
    _store(dv_ref, dv, d_head)


# --- kernel calls ---------------------------------------------------------------------------------


def _call_kernel(kernel, plan, visible, operands, outputs, name):
    """Calls the kernel for each row of `visible` with the table of visited tiles and whole
    `operands`; `outputs` are written tile by tile.
    """
    B, _, N, H = operands[0].shape
    padded_d_head = pl.next_power_of_2(H)
    table = _visit_table(visible)

    def spec(x):
        """One row and head of an array: (B, T, N, H), (B, N, T) or (B, T)."""
        match x.ndim:
            case 4:
                return pl.BlockSpec(
                    (None, x.shape[1], None, padded_d_head), lambda i, b, n: (b, 0, n, 0)
                )
            case 3:
                return pl.BlockSpec((None, None, x.shape[2]), lambda i, b, n: (b, n, 0))
            case _:
                return pl.BlockSpec((None, x.shape[1]), lambda i, b, n: (b, 0))

    def tile_spec(x):
        if x.ndim == 4:
            return pl.BlockSpec(
                (None, plan.tile, None, padded_d_head), lambda i, b, n: (b, i, n, 0)
            )
        return pl.BlockSpec((None, None, plan.tile), lambda i, b, n: (b, n, i))

    return pl.pallas_call(
        functools.partial(kernel, plan=plan, d_head=H),
        grid=(len(visible), B, N),
        in_specs=[pl.BlockSpec(x.shape, lambda i, b, n, rank=x.ndim: (0,) * rank) for x in table]
        + [None if x is None else spec(x) for x in operands],
        out_specs=jax.tree.map(tile_spec, outputs),
        out_shape=outputs,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=plan.interpret,
        name=f"flash_{name}",
    )(*table, *operands)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(plan, q, k, v, queries, keys):
    return _forward(plan, q, k, v, queries, keys)[0]


def _forward(plan, q, k, v, queries, keys):
    B, T, N, _ = q.shape
    outputs = jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((B, N, T), jnp.float32)
    o, lse = _call_kernel(
        _forward_kernel, plan, tile_mask(plan), (q, k, v, queries, keys), outputs, "forward"
    )
    # Of config/compute.py's REMAT_NAMES: if saved, the backward pass does not run this kernel.
    o, lse = checkpoint_name(o, "attention"), checkpoint_name(lse, "attention")
    return o, (q, k, v, queries, keys, o, lse)


def _backward(plan, residuals, do):
    q, k, v, queries, keys, o, lse = residuals
    delta = jnp.einsum("BTNH,BTNH->BNT", do, o, preferred_element_type=jnp.float32)
    operands, visible = (q, k, v, queries, keys, do, lse, delta), tile_mask(plan)
    out_shapes = jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct(k.shape, k.dtype)
    dq = _call_kernel(_dq_kernel, plan, visible, operands, out_shapes[0], "dq")
    dk, dv = _call_kernel(
        _dkv_kernel, plan, visible.T, operands, (out_shapes[1], out_shapes[1]), "dkv"
    )
    return dq, dk, dv, None, None


_flash.defvjp(_forward, _backward)
