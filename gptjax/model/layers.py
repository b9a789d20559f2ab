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
from gptjax.model import kv_cache, rotary
from gptjax.model.attention import dispatch, scores, tree
from gptjax.model.experts import Experts
from gptjax.model.linear import Linear
from gptjax.model.mlp import MLP
from gptjax.model.module import Module
from gptjax.sharding import rules


def dropout(module: nn.Module, x: jax.Array, rate: float, train: bool) -> jax.Array:
    """Zeroes elements of `x` with probability `rate` and scales the rest by 1 / (1 - rate). Returns
    `x` itself outside training or at rate 0.
    """
    if not train or rate == 0:
        return x
    keep_mask = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, x.shape)
    return jnp.where(keep_mask, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros((), x.dtype))


class LayerNorm(Module):
    """Layer normalization with biased variance, computed in float32 and returned in the input's
    dtype. The released GPT-1 and GPT-2 code has epsilon 1e-5.
    """

    eps: float = 1e-5
    has_bias: bool = True

    @nn.compact
    def __call__(self, x_BTD):
        gain_D = self.param("gain_D", nn.initializers.ones, x_BTD.shape[-1:])
        x = x_BTD.astype(jnp.float32)
        centered = x - x.mean(-1, keepdims=True)
        variance = jnp.square(centered).mean(-1, keepdims=True)
        y = centered * jax.lax.rsqrt(variance + self.eps) * gain_D[None, None]
        if self.has_bias:
            y = y + self.param("bias_D", nn.initializers.zeros, x_BTD.shape[-1:])[None, None]
        return y.astype(x_BTD.dtype)


class RMSNorm(Module):
    """Root mean square normalization, computed in float32 with its gain and returned in the input's
    dtype. letters: the dimensions that the gain has, the last of the input.

    unit_offset: the gain is 1 + w (Gemma): 1 + w - 1 is not w in bfloat16, so that w is kept.
    """

    eps: float
    unit_offset: bool
    letters: str = "D"

    @nn.compact
    def __call__(self, x):
        start = nn.initializers.zeros if self.unit_offset else nn.initializers.ones
        gain = self.param(f"gain_{self.letters}", start, x.shape[-1:])
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        gain = gain + 1 if self.unit_offset else gain
        return (y * gain.reshape((1,) * (x.ndim - 1) + gain.shape)).astype(x.dtype)


def norm(c: schema.Model, name: str | None = None, **kwargs) -> nn.Module:
    """The norm of a model, unbound if `name` is None (nn.Module's `parent` among kwargs)."""
    match c.norm_type:
        case schema.LayerNorm(eps=eps):
            return LayerNorm(eps, c.biases == "all", name=name, **kwargs)
        case schema.RMSNorm(eps=eps, unit_offset=unit_offset):
            return RMSNorm(eps, unit_offset, name=name, **kwargs)
        case _:
            assert_never(c.norm_type)


class QKVProjection(Module):
    """Queries, keys and values, each (B, T, N, H): three matmuls with slices of one parameter.

    A single matmul would have to be split in three, and a TPU would pad its heads twice.
    """

    sizes: dict[str, int]
    std: float
    sharding: rules.Sharding
    has_bias: bool = True

    @nn.compact
    def __call__(self, x_BTD):
        weight_DQNH = self.param(
            "weight_DQNH", nn.initializers.normal(self.std), [self.sizes[c] for c in "DQNH"]
        )
        if self.has_bias:
            bias_QNH = self.param("bias_QNH", nn.initializers.zeros, [self.sizes[c] for c in "QNH"])
            bias_QNH = bias_QNH.astype(x_BTD.dtype)

        def project(i):
            weight_DNH = weight_DQNH[:, i].astype(x_BTD.dtype)
            y_BTNH = self.sharding.matmul_gathered(
                functools.partial(jnp.einsum, "BTD,DNH->BTNH"), x_BTD, weight_DNH, "DNH"
            )
            return y_BTNH + bias_QNH[i][None, None] if self.has_bias else y_BTNH

        return [project(i) for i in range(3)]


class GroupedQKVProjection(Module):
    """Queries (B, T, N, H), and keys and values (B, T, K, H) of fewer heads."""

    sizes: dict[str, int]
    std: float
    sharding: rules.Sharding
    has_bias: bool

    @nn.compact
    def __call__(self, x_BTD):
        def project(equation, name):
            return Linear(equation, self.sizes, self.std, self.sharding, self.has_bias, name=name)

        return [
            project("BTD,DNH->BTNH", "query")(x_BTD),
            project("BTD,DKH->BTKH", "key")(x_BTD),
            project("BTD,DKH->BTKH", "value")(x_BTD),
        ]


class Attention(Module):
    """Multi-head attention: query, key and value projections, rotary positions if the layer has
    them, the pattern's attention, output projection.

    positions_BT: int32, positions of the tokens, its first dimension may be 1; None: 0 to T - 1.
    """

    config: schema.Model
    layer: int  # number within a period, which decides pattern and positions
    kernel: str  # a key of model/attention/dispatch.KERNELS
    out_std: float
    sharding: rules.Sharding

    @nn.compact
    def __call__(self, x_BTD, segments_BT, train, positions_BT=None):
        c = self.config
        pattern = c.attention[self.layer]
        sizes = {"D": c.d_model, "Q": 3, "N": c.n_heads, "K": c.n_kv_heads, "H": c.d_head}
        projection = QKVProjection if c.n_kv_heads == c.n_heads else GroupedQKVProjection
        qkv = projection(sizes, c.init.weight, self.sharding, c.biases != "none", name="qkv")(x_BTD)
        if c.heads.qk_norm:
            kind = c.norm_type
            unit_offset = isinstance(kind, schema.RMSNorm) and kind.unit_offset
            names = "norm_q", "norm_k"
            norms = [RMSNorm(kind.eps, unit_offset, "H", name=name) for name in names]
            qkv[:2] = norms[0](qkv[0]), norms[1](qkv[1])
        position = c.position(self.layer)
        if isinstance(position, schema.Rotary):
            if positions_BT is None:
                positions_BT = jnp.arange(x_BTD.shape[1])[None]
            qkv[:2] = [rotary.rotate(y, positions_BT, position, c.n_ctx) for y in qkv[:2]]
        if c.heads.query_scalar is not None:  # every kernel divides by sqrt(d_head)
            qkv[0] = qkv[0] * jnp.asarray((c.d_head / c.heads.query_scalar) ** 0.5, qkv[0].dtype)
        # "qkv" is one of REMAT_NAMES in config/compute.py.
        q_BTNH, k_BTNH, v_BTNH = (
            checkpoint_name(self.sharding(self.sharding.repeat_heads(y), "BTNH"), "qkv")
            for y in qkv
        )
        dropout = (
            (self.make_rng("dropout"), c.dropout.attention)
            if train and c.dropout.attention
            else None
        )
        sinks = nn.initializers.normal(c.init.weight)
        softmax = scores.Softmax(
            c.heads.softcap, self.param("sink_N", sinks, (c.n_heads,)) if c.heads.sinks else None
        )
        self.sow("intermediates", "softmax_inputs", (q_BTNH, k_BTNH, softmax))
        if self.has_variable("cache", "update"):  # both set by model/inference.py
            update = self.get_variable("cache", "update")
            o_BTNH, layer = kv_cache.attend(
                update, self.kernel, self.sharding, q_BTNH, k_BTNH, v_BTNH, pattern, softmax
            )
            self.put_variable("cache", "update", layer)
        elif self.has_variable("cache", "tree"):
            o_BTNH = tree.attend(
                self.get_variable("cache", "tree"), q_BTNH, k_BTNH, v_BTNH, pattern, softmax
            )
        else:
            o_BTNH = dispatch.attend(
                self.kernel,
                self.sharding,
                q_BTNH,
                k_BTNH,
                v_BTNH,
                pattern,
                segments_BT,
                dropout,
                softmax,
            )
        return Linear(
            "BTNH,DNH->BPD", sizes, self.out_std, self.sharding, c.biases == "all", name="out"
        )(self.sharding(o_BTNH, "BTNH"))


class Block(Module):
    """One Transformer layer. pre: x + f(norm(x)) (GPT-2, GPT-3). post: norm(x + f(x)) (GPT-1,
    Figure 1). both: x + norm(f(norm(x))) (Gemma 2).
    """

    config: schema.Model
    layer: int  # number within a period
    kernel: str
    sharding: rules.Sharding

    @nn.compact
    def __call__(self, x_BTD, segments_BT, train, positions_BT=None):
        c = self.config
        # GPT-2 section 2.3 scales the weights of residual layers by 1/sqrt(N), N the number of
        # residual layers: two per block, which is Sparse Transformer's 1/sqrt(2N).
        out_std = (
            c.init.weight / (2 * c.n_layers) ** 0.5
            if c.init.residual == "depth_scaled"
            else c.init.weight
        )
        attention = Attention(c, self.layer, self.kernel, out_std, self.sharding, name="attention")
        if isinstance(c.mlp, schema.Experts):
            mlp = functools.partial(Experts(c, out_std, self.sharding, name="mlp"), train=train)
        else:
            mlp = MLP(c, out_std, self.sharding, name="mlp")
        norm_1, norm_2 = norm(c, "norm_1"), norm(c, "norm_2")

        def residual(x, branch):
            return self.sharding(x + dropout(self, branch, c.dropout.residual, train), "BPD")

        def apply_norm(norm, x):
            """The norm of each sequence shard, gathered along the sequence."""
            return self.sharding(self.sharding(norm(x), "BPD"), "BTD")

        match c.norm:
            case "pre" | "both":
                end_1, end_2 = (
                    (norm(c, "norm_1_out"), norm(c, "norm_2_out"))
                    if c.norm == "both"
                    else (lambda y: y, lambda y: y)
                )
                branch = attention(apply_norm(norm_1, x_BTD), segments_BT, train, positions_BT)
                x_BTD = checkpoint_name(residual(x_BTD, end_1(branch)), "mid")
                return residual(x_BTD, end_2(mlp(apply_norm(norm_2, x_BTD))))
            case "post":
                branch = attention(self.sharding(x_BTD, "BTD"), segments_BT, train, positions_BT)
                sum_BTD = checkpoint_name(residual(x_BTD, branch), "mid")
                x_BTD = self.sharding(norm_1(sum_BTD), "BPD")
                return self.sharding(
                    norm_2(residual(x_BTD, mlp(self.sharding(x_BTD, "BTD")))), "BPD"
                )
            case _:
                assert_never(c.norm)
