"""The linear layer: an einsum with a sharded weight, and a bias."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers

from gptjax.model.module import Module
from gptjax.sharding import rules

# Of `contract`. One row is not transposed for; small weights gain nothing from more rows.
FEW_ROWS = range(2, 129)


def contract(
    x: jax.Array, weight: jax.Array, x_dims: Sequence[int], weight_dims: Sequence[int], dtype: Any
) -> jax.Array:
    """Returns the product of x with a weight in `dtype`, summed over these dimensions of each: the
    free ones of x come first.

    Few rows, as in decoding, times a weight whose last dimensions are summed: XLA's library for CPU
    transposes the whole weight for each product, so there the weight is the left factor, and the
    product is transposed. 8 rows of 3,072 numbers become 768 in a quarter of the time, 2 rows of
    768 the logits of 50,304 tokens in a quarter as well (jaxlib 0.10.2, 2 cores)."""

    def dot(a: jax.Array, b: jax.Array, pairs: Any) -> jax.Array:
        return jax.lax.dot_general(a, b, (pairs, ((), ())), preferred_element_type=dtype)

    def multiply(x: jax.Array, weight: jax.Array) -> jax.Array:
        return dot(x, weight, (x_dims, weight_dims))

    def multiply_few_rows(x: jax.Array, weight: jax.Array) -> jax.Array:
        # Without the barrier XLA would undo the transposition.
        y = jax.lax.optimization_barrier(dot(weight, x, (weight_dims, x_dims)))
        free = range(n_free)
        return jnp.moveaxis(y, free, [i - n_free for i in free])

    n_free = weight.ndim - len(weight_dims)
    n_rows = x.size // math.prod(weight.shape[i] for i in weight_dims)
    if n_rows not in FEW_ROWS or sorted(weight_dims) != list(range(n_free, weight.ndim)):
        return multiply(x, weight)
    return jax.lax.platform_dependent(x, weight, cpu=multiply_few_rows, default=multiply)


class Linear(Module):
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
    has_bias: bool = True

    @nn.compact
    def __call__(self, x):
        terms, out = self.equation.split("->")
        inputs, dims = terms.split(",")
        free_dims = "".join(c for c in out.replace("P", "T") if c not in inputs)
        weight = self.param(
            f"weight_{dims}", initializers.normal(self.std), [self.sizes[c] for c in dims]
        )
        if self.has_bias:
            bias = self.param(
                f"bias_{free_dims}", initializers.zeros, [self.sizes[c] for c in free_dims]
            )
        # Not einsum, which contracts N and H in alphabetical order, so that XLA on CPU transposes
        # the weight first.
        contract_dims = [c for c in dims if c in inputs]
        x_dims, weight_dims = (
            [letters.index(c) for c in contract_dims] for letters in (inputs, dims)
        )
        y = self.sharding.matmul_gathered(
            lambda x, w: contract(x, w, x_dims, weight_dims, x.dtype),
            x,
            weight.astype(x.dtype),
            dims,
        )
        if "P" in out:
            # Before the bias is added, so that the unsharded sum never exists and the gradient of
            # the bias is one over sequence shards. The product's gradient is gathered once, for
            # both matmuls that need it.
            y = self.sharding(self.sharding.shard_gradient(y, "BTD"), "BPD")
        if not self.has_bias:
            return y
        return y + bias.astype(x.dtype).reshape((1,) * (y.ndim - bias.ndim) + bias.shape)
