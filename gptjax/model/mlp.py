"""The MLP of a layer, in the form that the config names."""

from collections.abc import Callable
from typing import assert_never

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gptjax.config import schema
from gptjax.config.layer import DenseMLP
from gptjax.model.linear import Linear
from gptjax.model.module import Module
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


def hidden_units(mlp: DenseMLP, form: str, expand: Callable[[str], jax.Array]) -> jax.Array:
    """Returns the hidden units of an MLP. form: of its GELU. expand: the product of the input with
    the weight of that name, "up" or "gate"."""
    match mlp:
        case schema.GELU():
            return gelu(expand("up"), form)
        case schema.SwiGLU():
            return jax.nn.silu(expand("gate")) * expand("up")
        case schema.GeGLU():
            return gelu(expand("gate"), form) * expand("up")
        case schema.ClampedSwiGLU(limit=limit):
            gate, up = expand("gate"), jnp.clip(expand("up"), -limit, limit)
            return gelu(jnp.minimum(gate, limit), "sigmoid") * (up + 1)
        case _:
            assert_never(mlp)


class MLP(Module):
    """Feed-forward layer: d_model -> d_ff -> d_model, of the form of model.mlp."""

    config: schema.Model
    out_std: float
    sharding: rules.Sharding

    @nn.compact
    def __call__(self, x_BTD):
        c = self.config
        sizes = {"D": c.d_model, "F": c.d_ff}

        def project(equation, std, name):
            return Linear(equation, sizes, std, self.sharding, c.biases == "all", name=name)

        def expand(name):
            h_BTF = project("BTD,DF->BTF", c.init.weight, name)(x_BTD)
            return checkpoint_name(self.sharding(h_BTF, "BTF"), "up")

        h_BTF = hidden_units(c.expert, c.gelu, expand)
        return project("BTF,DF->BPD", self.out_std, "down")(h_BTF)
