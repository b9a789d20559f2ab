"""Mixture of experts: the router of a layer, and MLPs that each compute the tokens that chose them.

Over the tensor axis the devices have different experts, where they would else have different hidden
units: each computes its experts for all tokens, and the sum leaves along the sequence, as that of a
dense MLP does.
"""

import functools
import math
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers
from jax.ad_checkpoint import checkpoint_name

from gptjax.config import schema
from gptjax.model.grouped_matmul import grouped_matmul
from gptjax.model.linear import Linear
from gptjax.model.mlp import hidden_units
from gptjax.model.module import Module
from gptjax.sharding import rules
from gptjax.sharding.shapes import shaped


@shaped
def choose(c: schema.Experts, scores_BTX: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (float32 (B, T, C), int32 (B, T, C)): the weights and the numbers of the top_k
    experts of each token, in falling order. Of equal scores the first is chosen."""
    top_BTC, experts_BTC = jax.lax.top_k(scores_BTX, c.top_k)
    if c.weights == "chosen":
        return jax.nn.softmax(top_BTC), experts_BTC
    return jnp.exp(top_BTC - jax.nn.logsumexp(scores_BTX, axis=-1, keepdims=True)), experts_BTC


@shaped
def statistics(
    c: schema.Experts, scores_BTX: jax.Array, experts_BTC: jax.Array
) -> dict[str, jax.Array]:
    """What a router's choices are measured by: router_balance and router_z, the losses of
    `schema.Experts` without their factors; router_max_load, the tokens of the expert that is chosen
    most, as a multiple of the mean."""
    chosen_BTX = jax.nn.one_hot(experts_BTC, c.n_experts).sum(2)
    load_X = chosen_BTX.mean((0, 1)) * (c.n_experts / c.top_k)
    return {
        "router_balance": jnp.sum(load_X * jax.nn.softmax(scores_BTX).mean((0, 1))),
        "router_z": jnp.square(jax.nn.logsumexp(scores_BTX, axis=-1)).mean(),
        "router_max_load": load_X.max(),
    }


def statistics_names(mlp: schema.MLP) -> list[str]:
    """Names of what the routers of a model are measured by in training; none without experts."""
    if not isinstance(mlp, schema.Experts):
        return []
    names = ["router_balance", "router_z", "router_max_load"]
    return names if mlp.capacity is None else [*names, "router_dropped"]


def mean_statistics(layers: Any) -> dict[str, jax.Array]:
    """The statistics of all layers, whose leaves may be stacked: means, and the largest load."""
    values: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(layers):
        name = next(key.key for key in reversed(path) if hasattr(key, "key"))
        values.setdefault(name, []).append(leaf.ravel())
    joined = {name: jnp.concatenate(leaves) for name, leaves in values.items()}
    return {
        name: jnp.max(x) if name == "router_max_load" else jnp.mean(x) for name, x in joined.items()
    }


def loss(mlp: schema.MLP, stats: dict[str, jax.Array]) -> jax.Array | float:
    """What the routers add to the training loss. stats: `mean_statistics`."""
    if not isinstance(mlp, schema.Experts):
        return 0.0
    return mlp.balance_loss * stats["router_balance"] + mlp.z_loss * stats["router_z"]


@shaped
def places_in_rows(experts_BTC: jax.Array, n_experts: int) -> jax.Array:
    """int32 (B, T, C): how many earlier choices of the row are of the same expert."""
    B, T, C = experts_BTC.shape
    chosen_BRX = jax.nn.one_hot(experts_BTC.reshape(B, T * C), n_experts, dtype=jnp.int32)
    before_BRX = jnp.cumsum(chosen_BRX, axis=1) - chosen_BRX
    return jnp.sum(before_BRX * chosen_BRX, axis=2).reshape(B, T, C)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def permute(x: jax.Array, order_R: jax.Array, inverse_R: jax.Array, n_copies: int) -> jax.Array:
    """Returns x[order_R // n_copies], (R, D): the rows of x, each as often, in an order. inverse_R:
    the inverse of that permutation, by which the gradient is gathered; JAX's own would be a
    scatter, of which TPUs are slow."""
    return x[order_R // n_copies]


permute.defvjp(
    lambda x, order_R, inverse_R, n_copies: (permute(x, order_R, inverse_R, n_copies), inverse_R),
    lambda n_copies, inverse_R, g_RD: (
        g_RD[inverse_R].reshape(-1, n_copies, g_RD.shape[1]).sum(1),
        None,
        None,
    ),
)


WEIGHT_DIMS = {"gate": "EDG", "up": "EDG", "down": "EGD"}


class ExpertWeights(Module):
    """A weight for each expert and, if has_bias, a bias, else None."""

    dims: str
    sizes: dict[str, int]
    std: float
    has_bias: bool

    @nn.compact
    def __call__(self):
        shape = [self.sizes[c] for c in self.dims]
        weight = self.param(f"weight_{self.dims}", initializers.normal(self.std), shape)
        if not self.has_bias:
            return weight, None
        dims = self.dims[0] + self.dims[2]
        zeros = initializers.zeros
        return weight, self.param(f"bias_{dims}", zeros, [self.sizes[c] for c in dims])


class Experts(Module):
    """The experts of a layer and their router, in place of its MLP. It sows `statistics`, and with
    a capacity router_dropped, the share of choices beyond it, in the collection "router".

    Scores, softmax and losses are float32. Which tokens an expert with a capacity takes depends on
    no later token and on no other row.
    """

    config: schema.Model
    out_std: float
    sharding: rules.Sharding

    @nn.compact
    def __call__(self, x_BTD, train):
        m, c = self.config, self.config.mlp
        assert isinstance(c, schema.Experts)
        has_bias, std = m.biases == "all", m.init.weight
        sizes = {"D": m.d_model, "X": c.n_experts, "E": c.n_experts, "G": m.d_ff}
        router = Linear("BTD,DX->BTX", sizes, std, self.sharding, has_bias, name="router")
        scores_BTX = router(x_BTD.astype(jnp.float32))
        weights_BTC, experts_BTC = choose(c, scores_BTX)
        stats, limit = statistics(c, scores_BTX, experts_BTC), None
        if train and c.capacity is not None:
            limit = math.ceil(c.capacity * c.top_k * x_BTD.shape[1] / c.n_experts)
            places_BTC = places_in_rows(experts_BTC, c.n_experts)
            has_place_BTC = places_BTC < limit
            stats["router_dropped"] = 1 - has_place_BTC.astype(jnp.float32).mean()
            none = c.n_experts * limit
            experts_BTC = jnp.where(has_place_BTC, experts_BTC * limit + places_BTC, none)
        self.sow("router", "layer", stats)
        first = ("up",) if isinstance(c.expert, schema.GELU) else ("gate", "up")
        params = {name: ExpertWeights("EDG", sizes, std, has_bias, name=name)() for name in first}
        params["down"] = ExpertWeights("EGD", sizes, self.out_std, has_bias, name="down")()
        params = jax.tree.map(lambda x: jnp.asarray(x, x_BTD.dtype), params)
        compute = functools.partial(apply_experts, m, limit, self.sharding)
        in_specs = (
            self.sharding.spec("BTD", x_BTD.shape),
            self.sharding.spec("BTC", experts_BTC.shape),
            self.sharding.spec("BTC", experts_BTC.shape),
            {name: self._specs(WEIGHT_DIMS[name], *pair) for name, pair in params.items()},
        )
        out = self.sharding.spec("BPD", x_BTD.shape)
        return self.sharding.shard_map(compute, in_specs, out)(
            x_BTD, weights_BTC.astype(x_BTD.dtype), experts_BTC, params
        )

    def _specs(self, dims, weight, bias):
        """Of a weight as it lies in the state, so that `apply_experts` gathers it and its gradient
        is scattered as it is summed, and of its bias, whole but for E."""
        of_bias = None if bias is None else self.sharding.spec("E1", bias.shape)
        return self.sharding.spec(dims, weight.shape, self.sharding.rules.params), of_bias


def apply_experts(
    m: schema.Model,
    limit: int | None,
    sharding: rules.Sharding,
    x_BTD: jax.Array,
    weights_BTC: jax.Array,
    slots_BTC: jax.Array,
    params: dict[str, tuple[jax.Array, jax.Array | None]],
) -> jax.Array:
    """Returns (B, T, D), the weighted sum of the chosen experts' outputs; on a mesh, within
    shard_map, this device's part of the sequence of it.

    limit: the most tokens of a row that any expert takes; None: each has as many as chose it.
    slots_BTC: the number of the chosen expert or, with a limit, expert * limit + place, beyond the
    last one where there is no place. params: by name, this device's shard of a weight and the bias
    of its experts.
    """
    (B, T, D), C = x_BTD.shape, slots_BTC.shape[2]
    params = {
        name: (sharding.gather_param(weight, WEIGHT_DIMS[name], "D"), bias)
        for name, (weight, bias) in params.items()
    }
    n_experts = params["down"][0].shape[0]
    n_slots = n_experts * (limit or 1)
    axes = sharding.axes("E")
    slots_BTC = slots_BTC - (jax.lax.axis_index(axes) * n_slots if axes else 0)
    is_here_BTC = (slots_BTC >= 0) & (slots_BTC < n_slots)
    slots_BTC = jnp.where(is_here_BTC, slots_BTC, n_slots)
    if limit is None:
        rows = _SortedRows(slots_BTC, n_experts)
    else:
        rows = _PlacedRows(slots_BTC, n_experts, limit)
    x_RD = rows.collect(x_BTD)

    def expand(name):
        return checkpoint_name(rows.multiply(x_RD, *params[name]), "up")

    y_RD = rows.multiply(hidden_units(m.expert, m.gelu, expand), *params["down"])
    y_BTD = jnp.einsum(
        "BTCD,BTC->BTD", rows.restore(y_RD, (B, T, C, D)), jnp.where(is_here_BTC, weights_BTC, 0)
    )
    return jax.lax.psum_scatter(y_BTD, axes, scatter_dimension=1, tiled=True) if axes else y_BTD


class _SortedRows:
    """Choices as rows that are sorted by expert; those of other devices' experts last, as expert
    number n_experts."""

    def __init__(self, experts_BTC: jax.Array, n_experts: int):
        self._n_choices = experts_BTC.shape[2]
        experts_R = experts_BTC.ravel()
        self._order_R = jnp.argsort(experts_R, stable=True)
        self._places_R = jnp.argsort(self._order_R)
        self._is_of_RE = experts_R[self._order_R][:, None] == jnp.arange(n_experts)[None]
        self._sizes_E = jnp.sum(self._is_of_RE, axis=0)

    def collect(self, x_BTD: jax.Array) -> jax.Array:
        """The row of each choice, by expert."""
        x = x_BTD.reshape(-1, x_BTD.shape[2])
        return permute(x, self._order_R, self._places_R, self._n_choices)

    def multiply(
        self, x_RD: jax.Array, weight_EDG: jax.Array, bias_EG: jax.Array | None
    ) -> jax.Array:
        """Rows times the weight of their expert, plus its bias."""
        y_RG = grouped_matmul(x_RD, weight_EDG, self._sizes_E)
        # Not bias_EG[expert], whose gradient would be a scatter of all rows.
        return y_RG if bias_EG is None else y_RG + self._is_of_RE.astype(x_RD.dtype) @ bias_EG

    def restore(self, y_RD: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The rows by choice, (B, T, C, D)."""
        rows_RD = permute(y_RD, self._places_R, self._order_R, 1)
        return cast(jax.Array, rows_RD).reshape(shape)


class _PlacedRows:
    """As _SortedRows with a limit: choices as rows in the places of their experts, `limit` for each
    row of the batch; (expert, row, place) in this order, zero where a place is empty."""

    def __init__(self, slots_BTC: jax.Array, n_experts: int, limit: int):
        B = slots_BTC.shape[0]
        self._shape, self._n_choices = (n_experts, B * limit), slots_BTC.shape[2]
        expert_BTC, place_BTC = jnp.divmod(slots_BTC, limit)
        # Beyond the last place where the expert is not one of this device's.
        self._places_R = (
            (expert_BTC * B + jnp.arange(B)[:, None, None]) * limit + place_BTC
        ).ravel()

    def collect(self, x_BTD: jax.Array) -> jax.Array:
        D = x_BTD.shape[2]
        zeros = jnp.zeros((math.prod(self._shape), D), x_BTD.dtype)
        x_RD = jnp.repeat(x_BTD.reshape(-1, D), self._n_choices, axis=0)
        return zeros.at[self._places_R].set(x_RD, mode="drop")

    def multiply(
        self, x_RD: jax.Array, weight_EDG: jax.Array, bias_EG: jax.Array | None
    ) -> jax.Array:
        y_ERG = jnp.matmul(x_RD.reshape(*self._shape, -1), weight_EDG)
        y_ERG = y_ERG if bias_EG is None else y_ERG + bias_EG[:, None]
        return y_ERG.reshape(x_RD.shape[0], -1)

    def restore(self, y_RD: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jnp.take(y_RD, self._places_R, axis=0, mode="fill", fill_value=0).reshape(shape)
