"""Token embedding lookup in a table that may be sharded over both of its dimensions."""

import functools

import jax
import jax.numpy as jnp

from gptjax.sharding import rules
from gptjax.sharding.shapes import shaped


@shaped
def embed(
    token_VD: jax.Array, tokens_BT: jax.Array, dtype, sharding: rules.Sharding = rules.UNSHARDED
) -> jax.Array:
    """Looks up the embedding of each token: (B, T, D) in `dtype`, sharded as "BPD".

    The table is gathered along D, in `dtype`. Along V it stays sharded: each device looks up the
    tokens whose rows it holds, and the results are summed over devices. Differentiable in token_VD;
    the gradient is summed in float32, because that of a frequent token is a sum of thousands of
    terms.
    """
    return _embed(token_VD.shape, jnp.dtype(dtype), sharding, token_VD, tokens_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _embed(shape, dtype, sharding, token_VD, tokens_BT):
    axes = sharding.axes("V")

    def embed_shard(token_VD, tokens_BT):
        if not axes:
            return jnp.take(token_VD, tokens_BT, axis=0)
        x_BTD = token_VD.at[_local_ids(axes, token_VD.shape[0], tokens_BT)].get(
            mode="fill", fill_value=0
        )
        return jax.lax.psum_scatter(x_BTD, axes, scatter_dimension=1, tiled=True)

    in_specs = sharding.spec("V1", shape), sharding.spec("BT", tokens_BT.shape)
    return sharding.shard_map(
        embed_shard, in_specs, sharding.spec("BPD", (*tokens_BT.shape, shape[1]))
    )(token_VD.astype(dtype), tokens_BT)


def _embed_fwd(shape, dtype, sharding, token_VD, tokens_BT):
    return _embed(shape, dtype, sharding, token_VD, tokens_BT), tokens_BT


def _embed_bwd(shape, dtype, sharding, tokens_BT, dx_BTD):
    axes = sharding.axes("V")

    def embed_shard(tokens_BT, dx_BTD):
        n_rows, ids_BT = shape[0] // sharding.n_shards("V"), tokens_BT
        if axes:
            dx_BTD = jax.lax.all_gather(dx_BTD, axes, axis=1, tiled=True)
            ids_BT = _local_ids(axes, n_rows, tokens_BT)
        partial_VD = (
            jnp.zeros((n_rows, shape[1])).at[ids_BT].add(dx_BTD.astype(jnp.float32), mode="drop")
        )
        return sharding.reduce_scatter_grad(partial_VD, "VD")

    in_specs = sharding.spec("BT", tokens_BT.shape), sharding.spec("BPD", dx_BTD.shape)
    return sharding.shard_map(
        embed_shard, in_specs, sharding.spec("VD", shape, sharding.rules.params)
    )(tokens_BT, dx_BTD), None


_embed.defvjp(_embed_fwd, _embed_bwd)


def _local_ids(axes, n_rows, tokens_BT):
    """Row of each token in this device's shard of the table; n_rows, one past the end, for tokens
    of other shards.
    """
    ids_BT = tokens_BT - jax.lax.axis_index(axes) * n_rows
    return jnp.where((ids_BT >= 0) & (ids_BT < n_rows), ids_BT, n_rows)


@shaped
def resize_positions(position_TD: jax.Array, n_ctx: int, rule: str) -> jax.Array:
    """A table of n_ctx learned positions (n_ctx, D) from one of fewer, by a rule of
    Init.longer_positions, or of more: its first rows."""
    n = position_TD.shape[0]
    if n_ctx <= n:
        return position_TD[:n_ctx]
    match rule:
        case "repeat":
            return position_TD[jnp.arange(n_ctx) % n]
        case "interpolate":
            # In whole numbers, so that multiples of the factor are rows themselves.
            low_T, rest_T = jnp.divmod(jnp.arange(n_ctx) * n, n_ctx)
            high_T = jnp.minimum(low_T + 1, n - 1)
            weight_T1 = (rest_T / n_ctx).astype(position_TD.dtype)[:, None]
            return (1 - weight_T1) * position_TD[low_T] + weight_T1 * position_TD[high_T]
        case _:
            raise AssertionError(rule)
