"""Samples a token from logits: greedily, or with temperature, top-k and top-p."""

from typing import Annotated

import jax
import jax.numpy as jnp

from gptjax.config.record import Bounds, record
from gptjax.sharding.shapes import shaped

NONE = -1  # in place of a token if a row's logits are NaN or infinite
# Temperatures that float32 can represent, as well as their inverses, by which a compiler may
# multiply instead.
MIN_TEMPERATURE, MAX_TEMPERATURE = 2.0**-120, 2.0**120
BLOCK = 128  # tokens; `draw`


@record
class SamplingParams:
    """How to sample. Raises ValueError for values that leave no token.

    temperature: 0 is greedy; any other value is applied exactly, however small or large. top_k:
    only the k most likely tokens. top_p: only the most likely tokens whose cumulative probability
    reaches p, including the one that crosses it; applied after temperature and top_k.
    """

    temperature: Annotated[float, Bounds(0, 1e300)] = 1.0
    top_k: Annotated[int, Bounds(1, 2**63 - 1)] | None = None
    top_p: Annotated[float, Bounds(0, 1, above=True)] | None = None


@shaped
def filter_logits(logits_BV: jax.Array, params: SamplingParams) -> jax.Array:
    """Logits after temperature (above 0), with minus infinity for tokens excluded by top-k or
    top-p. Ties at the k-th place are all kept.
    """
    logits_BV = apply_temperature(logits_BV, params.temperature)
    if params.top_k is not None and params.top_k < logits_BV.shape[-1]:
        logits_BV = apply_top_k(logits_BV, params.top_k)
    return logits_BV if params.top_p is None else apply_top_p(logits_BV, params.top_p)


@shaped
def apply_temperature(logits_BV: jax.Array, temperature: float) -> jax.Array:
    """Returns the logits divided by a temperature above 0, shifted so that the maximum of each row
    is 0.
    """
    # No temperature moves a logit of 0; the others may go down to the lowest float32.
    logits_BV = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
    return logits_BV / min(max(temperature, MIN_TEMPERATURE), MAX_TEMPERATURE)


@shaped
def apply_top_k(logits_BV: jax.Array, k: int) -> jax.Array:
    """Returns the logits with minus infinity for all but the k most likely tokens of each row."""
    smallest_B1 = jax.lax.top_k(logits_BV, k)[0][:, -1:]
    return jnp.where(logits_BV < smallest_B1, -jnp.inf, logits_BV)


@shaped
def apply_top_p(logits_BV: jax.Array, p: float) -> jax.Array:
    """Returns the logits with minus infinity for all but the most likely tokens of each row whose
    cumulative probability reaches p: nucleus sampling (1904.09751).
    """
    order_BV = jnp.argsort(-logits_BV, axis=-1)
    sorted_BV = jax.nn.softmax(jnp.take_along_axis(logits_BV, order_BV, axis=-1), axis=-1)
    likelier_BV = jnp.cumsum(sorted_BV, axis=-1) - sorted_BV  # the mass before each token
    out_BV = jnp.take_along_axis(likelier_BV >= p, jnp.argsort(order_BV, axis=-1), axis=-1)
    return jnp.where(out_BV, -jnp.inf, logits_BV)


@shaped
def sample(logits_BV: jax.Array, params: SamplingParams, key: jax.Array) -> jax.Array:
    """Returns a token for each row, int32 (B,); NONE for a row with NaN or infinite logits."""
    if params.temperature == 0:
        token_B = jnp.argmax(logits_BV, axis=-1)
    else:
        uniforms_BU = jax.random.uniform(key, (logits_BV.shape[0], 2))
        token_B = draw(filter_logits(logits_BV, params), uniforms_BU)
    return jnp.where(jnp.isfinite(jnp.max(logits_BV, axis=-1)), token_B.astype(jnp.int32), NONE)


def draw(logits_BV: jax.Array, uniforms_BU: jax.Array) -> jax.Array:
    """Returns a token for each row, int32 (B,), by the softmax of its logits. uniforms_BU: two
    random numbers in [0, 1) for each row.

    The cumulative distribution is inverted: that of blocks of tokens, then that of the tokens of
    the block. So a row takes two random numbers where the Gumbel maximum (jax.random.categorical)
    takes V and their logarithms, which on CPU is longer than the rest of a small model's step. A
    token of less than 2**-23 of its block's probability is drawn with that resolution."""
    n_rows, n_vocab = logits_BV.shape
    p_BV = jnp.exp(logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True))
    p_BNK = jnp.pad(p_BV, ((0, 0), (0, -n_vocab % BLOCK))).reshape(n_rows, -1, BLOCK)
    block_B = _invert(p_BNK.sum(axis=-1), uniforms_BU[:, 0])
    p_BK = jnp.take_along_axis(p_BNK, block_B[:, None, None], axis=1)[:, 0]
    return block_B * BLOCK + _invert(p_BK, uniforms_BU[:, 1])


def _invert(p_BN: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """Returns for each row an index (B,) with a probability in proportion to p."""
    # A cumulative sum that XLA divides differently for each element is not quite monotone: without
    # the comparison with 0 it could choose what top-k leaves out.
    cumulative_BN = jnp.where(p_BN > 0, jnp.cumsum(p_BN, axis=-1), 0)
    target_B1 = (uniform_B * jnp.max(cumulative_BN, axis=-1))[:, None]
    return jnp.argmax(cumulative_BN > target_B1, axis=-1).astype(jnp.int32)
