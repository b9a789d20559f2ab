"""The layers of the Transformer, as thin Linen modules over self.param and einsum.

Parameters are float32 and named by role and dimension letters (`weight_DF`, `bias_F`, `gain_D`):
the letters determine the sharding, the role whether weight decay applies. nn.DenseGeneral is not
used: it fails under a mesh with several named dimensions.
"""

import functools
from typing import assert_never

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gptjax.config import schema
from gptjax.model import kv_cache
from gptjax.model.attention import dispatch, tree
from gptjax.sharding import rules


def gelu(x: jax.Array, form: str) -> jax.Array:
    """The GELU, in the given form: "tanh", the approximation in the released GPT-1 and GPT-2 code;
    "erf", exact; "sigmoid", x * sigmoid(1.702 x), as in Sparse Transformer.
    """
    match form:
        case "tanh":
            return jax.nn.gelu(x, approximate=True)
        case "erf":
            return jax.nn.gelu(x, approximate=False)
        case "sigmoid":
            return x * jax.nn.sigmoid(1.702 * x)
        case _:
            raise AssertionError(form)


def dropout(module: nn.Module, x: jax.Array, rate: float, train: bool) -> jax.Array:
    """Zeroes elements of `x` with probability `rate` and scales the rest by 1 / (1 - rate). Returns
    `x` itself outside training or at rate 0.
    """
    if not train or rate == 0:
        return x
    keep_mask = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, x.shape)
    return jnp.where(keep_mask, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros((), x.dtype))


class LayerNorm(nn.Module):
    """Layer normalization with biased variance and epsilon 1e-5 (released GPT-1 and GPT-2 code),
    computed in float32 and returned in the input's dtype.
    """

    @nn.compact
    def __call__(self, x_BTD):
        gain_D = self.param("gain_D", nn.initializers.ones, x_BTD.shape[-1:])
        bias_D = self.param("bias_D", nn.initializers.zeros, x_BTD.shape[-1:])
        x = x_BTD.astype(jnp.float32)
        centered = x - x.mean(-1, keepdims=True)
        variance = jnp.square(centered).mean(-1, keepdims=True)
        return (
            centered * jax.lax.rsqrt(variance + 1e-5) * gain_D[None, None] + bias_D[None, None]
        ).astype(x_BTD.dtype)


class Linear(nn.Module):
    """Einsum of the input with `weight_<dims>`, plus a bias over the output dimensions that the
    input lacks, in the input's dtype.

    equation: for instance "BTD,DF->BTF", or "BTF,DF->BPD" where the contracted dimension is sharded
    over the tensor axis and the sum is reduce-scattered along the sequence. sizes: the size of each
    letter of the weight. D comes first in every weight because fsdp shards it: the TPU compiler
    reduce-scatters a gradient along its first dimension, but leaves it whole when the last one is
    sharded.
    """

    equation: str
    sizes: dict[str, int]
    std: float
    sharding: rules.Sharding

    @nn.compact
    def __call__(self, x):
        terms, out = self.equation.split("->")
        inputs, dims = terms.split(",")
        free_dims = "".join(c for c in out.replace("P", "T") if c not in inputs)
        weight = self.param(
            f"weight_{dims}", nn.initializers.normal(self.std), [self.sizes[c] for c in dims]
        )
        bias = self.param(
            f"bias_{free_dims}", nn.initializers.zeros, [self.sizes[c] for c in free_dims]
        )
        # Not einsum, which contracts N and H in alphabetical order, so that XLA on CPU transposes
        # the weight first.
        contract_dims = [c for c in dims if c in inputs]
        pairs = [inputs.index(c) for c in contract_dims], [dims.index(c) for c in contract_dims]
        y = self.sharding.matmul_gathered(
            lambda x, w: jax.lax.dot_general(x, w, (pairs, ((), ()))),
            x,
            weight.astype(x.dtype),
            dims,
        )
        if "P" in out:
            # Before the bias is added, so that the unsharded sum never exists and the gradient of
            # the bias is one over sequence shards. The product's gradient is gathered once, for
            # both matmuls that need it.
            y = self.sharding(self.sharding.shard_gradient(y, "BTD"), "BPD")
        return y + bias.astype(x.dtype).reshape((1,) * (y.ndim - bias.ndim) + bias.shape)


class QKVProjection(nn.Module):
    """Queries, keys and values, each (B, T, N, H): three matmuls with slices of one parameter.

    A single matmul would have to be split in three, and a TPU would pad its heads twice.
    """

    sizes: dict[str, int]
    std: float
    sharding: rules.Sharding

    @nn.compact
    def __call__(self, x_BTD):
        weight_DQNH = self.param(
            "weight_DQNH", nn.initializers.normal(self.std), [self.sizes[c] for c in "DQNH"]
        )
        bias_QNH = self.param("bias_QNH", nn.initializers.zeros, [self.sizes[c] for c in "QNH"])
        bias_QNH = bias_QNH.astype(x_BTD.dtype)

        def project(i):
            weight_DNH = weight_DQNH[:, i].astype(x_BTD.dtype)
            return self.sharding.matmul_gathered(
                functools.partial(jnp.einsum, "BTD,DNH->BTNH"), x_BTD, weight_DNH, "DNH"
            )

        return [project(i) + bias_QNH[i][None, None] for i in range(3)]


class Attention(nn.Module):
    """Multi-head attention: query, key and value projections, the pattern's attention, output
    projection; biases everywhere.
    """

    config: schema.Model
    pattern: schema.Attention
    kernel: str  # a key of model/attention/dispatch.KERNELS
    out_std: float
    sharding: rules.Sharding

    @nn.compact
    def __call__(self, x_BTD, segments_BT, train):
        c = self.config
        sizes = {"D": c.d_model, "Q": 3, "N": c.n_heads, "H": c.d_head}
        qkv = QKVProjection(sizes, c.init.weight, self.sharding, name="qkv")(x_BTD)
        # "qkv" is one of REMAT_NAMES in config/compute.py.
        q_BTNH, k_BTNH, v_BTNH = (
            checkpoint_name(self.sharding(y_BTNH, "BTNH"), "qkv") for y_BTNH in qkv
        )
        dropout = (
            (self.make_rng("dropout"), c.dropout.attention)
            if train and c.dropout.attention
            else None
        )
        if self.has_variable("cache", "update"):  # both set by model/inference.py
            update = self.get_variable("cache", "update")
            o_BTNH, layer = kv_cache.attend(
                update, self.kernel, self.sharding, q_BTNH, k_BTNH, v_BTNH, self.pattern
            )
            self.put_variable("cache", "update", layer)
        elif self.has_variable("cache", "tree"):
            o_BTNH = tree.attend(
                self.get_variable("cache", "tree"), q_BTNH, k_BTNH, v_BTNH, self.pattern
            )
        else:
            o_BTNH = dispatch.attend(
                self.kernel,
                self.sharding,
                q_BTNH,
                k_BTNH,
                v_BTNH,
                self.pattern,
                segments_BT,
                dropout,
            )
        return Linear("BTNH,DNH->BPD", sizes, self.out_std, self.sharding, name="out")(
            self.sharding(o_BTNH, "BTNH")
        )


class MLP(nn.Module):
    """Feed-forward layer: d_model -> d_ff -> d_model with a GELU between."""

    config: schema.Model
    out_std: float
    sharding: rules.Sharding

    @nn.compact
    def __call__(self, x_BTD):
        c = self.config
        sizes = {"D": c.d_model, "F": c.d_ff}
        h_BTF = Linear("BTD,DF->BTF", sizes, c.init.weight, self.sharding, name="up")(x_BTD)
        h_BTF = gelu(checkpoint_name(self.sharding(h_BTF, "BTF"), "up"), c.gelu)
        return Linear("BTF,DF->BPD", sizes, self.out_std, self.sharding, name="down")(h_BTF)


class Block(nn.Module):
    """One Transformer layer. pre: x + f(norm(x)) (GPT-2, GPT-3). post: norm(x + f(x)) (GPT-1,
    Figure 1).
    """

    config: schema.Model
    pattern: schema.Attention
    kernel: str
    sharding: rules.Sharding

    @nn.compact
    def __call__(self, x_BTD, segments_BT, train):
        c = self.config
        # GPT-2 section 2.3 scales the weights of residual layers by 1/sqrt(N), N the number of
        # residual layers: two per block, which is Sparse Transformer's 1/sqrt(2N).
        out_std = (
            c.init.weight / (2 * c.n_layers) ** 0.5
            if c.init.residual == "depth_scaled"
            else c.init.weight
        )
        attention = Attention(
            c, self.pattern, self.kernel, out_std, self.sharding, name="attention"
        )
        mlp = MLP(c, out_std, self.sharding, name="mlp")
        norm_1, norm_2 = LayerNorm(name="norm_1"), LayerNorm(name="norm_2")

        def residual(x, branch):
            return self.sharding(x + dropout(self, branch, c.dropout.residual, train), "BPD")

        def apply_norm(norm, x):
            """The norm of each sequence shard, gathered along the sequence."""
            return self.sharding(self.sharding(norm(x), "BPD"), "BTD")

        match c.norm:
            case "pre":
                x_BTD = checkpoint_name(
                    residual(x_BTD, attention(apply_norm(norm_1, x_BTD), segments_BT, train)), "mid"
                )
                return residual(x_BTD, mlp(apply_norm(norm_2, x_BTD)))
            case "post":
                sum_BTD = checkpoint_name(
                    residual(x_BTD, attention(self.sharding(x_BTD, "BTD"), segments_BT, train)),
                    "mid",
                )
                x_BTD = self.sharding(norm_1(sum_BTD), "BPD")
                return self.sharding(
                    norm_2(residual(x_BTD, mlp(self.sharding(x_BTD, "BTD")))), "BPD"
                )
            case _:
                assert_never(c.norm)
