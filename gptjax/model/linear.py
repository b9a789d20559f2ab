"""The linear layer: an einsum with a sharded weight, and a bias."""

import flax.linen as nn
import jax
from flax.linen import initializers

from gptjax.model.module import Module
from gptjax.sharding import rules


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
        if not self.has_bias:
            return y
        return y + bias.astype(x.dtype).reshape((1,) * (y.ndim - bias.ndim) + bias.shape)
