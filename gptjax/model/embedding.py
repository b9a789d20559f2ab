"""Tokens to rows of the token table, where each device may have some of the table's rows and some of its columns."""

import functools

import jax
import jax.numpy as jnp

from gptjax.sharding import rules
from gptjax.sharding.shapes import shaped


@shaped
def rows(token_VD: jax.Array, tokens_BT: jax.Array, dtype, place: rules.Placement = rules.NOWHERE) -> jax.Array:
    """The table's rows of these tokens, (B, T, D) of type `dtype`, placed as BPD. Differentiable in token_VD; the gradient is summed in
    float32, since a frequent word's is a sum of thousands.

    The table is gathered along D, in `dtype`. Along V it stays cut: a device looks up the tokens that it has, and the devices add up."""
    return _rows(token_VD.shape, jnp.dtype(dtype), place, token_VD, tokens_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _rows(shape, dtype, place, token_VD, tokens_BT):
    cut = place.axes("V")

    def local(token_VD, tokens_BT):
        if not cut:
            return jnp.take(token_VD, tokens_BT, axis=0)
        x_BTD = token_VD.at[_own(cut, token_VD.shape[0], tokens_BT)].get(mode="fill", fill_value=0)
        return jax.lax.psum_scatter(x_BTD, cut, scatter_dimension=1, tiled=True)

    ins = place.spec("V1", shape), place.spec("BT", tokens_BT.shape)
    return place.mapped(local, ins, place.spec("BPD", (*tokens_BT.shape, shape[1])))(token_VD.astype(dtype), tokens_BT)


def _rows_fwd(shape, dtype, place, token_VD, tokens_BT):
    return _rows(shape, dtype, place, token_VD, tokens_BT), tokens_BT


def _rows_bwd(shape, dtype, place, tokens_BT, dx_BTD):
    cut = place.axes("V")

    def local(tokens_BT, dx_BTD):
        n_rows, ids_BT = shape[0] // place.parts("V"), tokens_BT
        if cut:
            dx_BTD = jax.lax.all_gather(dx_BTD, cut, axis=1, tiled=True)
            ids_BT = _own(cut, n_rows, tokens_BT)
        partial_VD = jnp.zeros((n_rows, shape[1])).at[ids_BT].add(dx_BTD.astype(jnp.float32), mode="drop")
        return place.reduced(partial_VD, "VD")

    ins = place.spec("BT", tokens_BT.shape), place.spec("BPD", dx_BTD.shape)
    return place.mapped(local, ins, place.spec("VD", shape, place.rules.params))(tokens_BT, dx_BTD), None


_rows.defvjp(_rows_fwd, _rows_bwd)


def _own(cut, n_rows, tokens_BT):
    """Where in its part of the table a device has these tokens; n_rows, one past the end, where it has not."""
    ids_BT = tokens_BT - jax.lax.axis_index(cut) * n_rows
    return jnp.where((ids_BT >= 0) & (ids_BT < n_rows), ids_BT, n_rows)
