"""Scores and softmax, as every implementation in plain XLA computes them: heads that share keys and
values, softcap, sinks."""

import flax.struct
import jax
import jax.numpy as jnp

# Scores of keys that a query does not see. Finite: no row is empty, as a query sees itself.
MASK_VALUE = jnp.finfo(jnp.float32).min


class Softmax(flax.struct.PyTreeNode):
    """What changes the softmax of a layer. softcap: c of c tanh(s / c), applied to scores; sinks_N:
    float32, a score per head that takes part in the softmax and has no value; None: without.
    """

    softcap: float | None = flax.struct.field(pytree_node=False, default=None)
    sinks_N: jax.Array | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is the softmax itself."""
        return self.softcap is None and self.sinks_N is None


PLAIN = Softmax()


def grouped_einsum(equation: str, x: jax.Array, y: jax.Array, **kwargs) -> jax.Array:
    """jnp.einsum of x, with N heads, and y, with as many or with fewer key and value heads, each of
    which serves a group of consecutive heads of x. The result has N heads.

    Keys and values are not repeated in memory: the heads of x are split in two dimensions.
    """
    inputs, out = equation.split("->")
    x_dims, y_dims = inputs.split(",")
    n, n_kv = x.shape[x_dims.index("N")], y.shape[y_dims.index("N")]
    if n == n_kv:
        return jnp.einsum(equation, x, y, **kwargs)
    grouped = f"{x_dims.replace('N', 'NG')},{y_dims}->{out.replace('N', 'NG')}"
    result = jnp.einsum(grouped, split_heads(x, x_dims.index("N"), n_kv), y, **kwargs)
    where = out.index("N")
    return result.reshape(*result.shape[:where], n, *result.shape[where + 2 :])


def group_sum_einsum(equation: str, x: jax.Array, y: jax.Array, n_kv: int) -> jax.Array:
    """jnp.einsum of x and y, both with N heads, summed over the heads of each of n_kv groups: the
    gradient of keys and values."""
    inputs, out = equation.split("->")
    x_dims, y_dims = inputs.split(",")
    if x.shape[x_dims.index("N")] == n_kv:
        return jnp.einsum(equation, x, y)
    x, y = (split_heads(array, dims.index("N"), n_kv) for array, dims in ((x, x_dims), (y, y_dims)))
    return jnp.einsum(f"{inputs.replace('N', 'NG')}->{out}", x, y)


def split_heads(x: jax.Array, dim: int, n_kv: int) -> jax.Array:
    """Splits the heads in dimension `dim` into (n_kv, heads of a group)."""
    return x.reshape(*x.shape[:dim], n_kv, x.shape[dim] // n_kv, *x.shape[dim + 1 :])


def cap(scores: jax.Array, softcap: float | None) -> jax.Array:
    """softcap * tanh(scores / softcap), or the scores."""
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def weights(scores_BNTS: jax.Array, visible: jax.Array, softmax: Softmax) -> jax.Array:
    """Softmax over the visible keys, float32 (B, N, T, S); with sinks a row sums to less than 1.
    visible: bool, broadcasts to the scores."""
    scores_BNTS = jnp.where(visible, cap(scores_BNTS, softmax.softcap), MASK_VALUE)
    if softmax.sinks_N is None:
        return jax.nn.softmax(scores_BNTS, axis=-1)
    sinks_1N11 = softmax.sinks_N.astype(jnp.float32)[None, :, None, None]
    maximum_BNT1 = jnp.maximum(scores_BNTS.max(-1, keepdims=True), sinks_1N11)
    exp_BNTS = jnp.exp(scores_BNTS - jax.lax.stop_gradient(maximum_BNT1))
    sink_BNT1 = jnp.exp(sinks_1N11 - jax.lax.stop_gradient(maximum_BNT1))
    return exp_BNTS / (exp_BNTS.sum(-1, keepdims=True) + sink_BNT1)


class OnlineSoftmax(flax.struct.PyTreeNode):
    """Attention over the keys so far, tile of keys by tile (FlashAttention, Dao et al. 2205.14135,
    Algorithm 1): o_BNTH, the sum of values by weights exp(score - max_BNT), and sum_BNT, the sum of
    these weights; all float32.

    A query that has seen no key yet averages masked ones, with weights that its first key rescales
    to 0.
    """

    o_BNTH: jax.Array
    max_BNT: jax.Array
    sum_BNT: jax.Array

    @classmethod
    def start(cls, shape: tuple[int, int, int, int], sinks_N: jax.Array | None) -> "OnlineSoftmax":
        """Before any key. shape: (B, N, T, H). A row begins with its sink, whose value is 0."""
        o_BNTH = jnp.zeros(shape)
        if sinks_N is None:
            return cls(o_BNTH, jnp.full(shape[:3], MASK_VALUE), jnp.zeros(shape[:3]))
        max_BNT = jnp.broadcast_to(sinks_N.astype(jnp.float32)[None, :, None], shape[:3])
        return cls(o_BNTH, max_BNT, jnp.ones(shape[:3]))

    def add(self, scores_BNTS: jax.Array, v_BKSH: jax.Array) -> "OnlineSoftmax":
        """With more keys. scores_BNTS: float32, capped, MASK_VALUE where masked."""
        max_BNT = jnp.maximum(self.max_BNT, scores_BNTS.max(-1))
        weights_BNTS = jnp.exp(scores_BNTS - max_BNT[..., None])
        rescale_BNT = jnp.exp(self.max_BNT - max_BNT)
        more_BNTH = grouped_einsum(
            "BNTS,BNSH->BNTH",
            weights_BNTS.astype(v_BKSH.dtype),
            v_BKSH,
            preferred_element_type=jnp.float32,
        )
        return OnlineSoftmax(
            self.o_BNTH * rescale_BNT[..., None] + more_BNTH,
            max_BNT,
            self.sum_BNT * rescale_BNT + weights_BNTS.sum(-1),
        )

    @property
    def output_BNTH(self) -> jax.Array:
        """The attention output, float32."""
        return self.o_BNTH / self.sum_BNT[..., None]

    @property
    def lse_BNT(self) -> jax.Array:
        """Logarithm of the sum of exponentiated scores, sink included."""
        return self.max_BNT + jnp.log(self.sum_BNT)
