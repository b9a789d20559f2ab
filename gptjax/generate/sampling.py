"""Samples a token from logits: greedily, or with temperature, top-k and top-p."""

import functools
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

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


def random_key(seed: int, *indices: int) -> jax.Array:
    """Returns the random key of a seed, with each index folded in, one after the other."""
    with jax.transfer_guard_host_to_device("allow"):  # intended: two words
        return fold_in(jax.random.key(seed), *indices)


def fold_in(key: jax.Array, *indices: int) -> jax.Array:
    """Returns `key` with each index folded in, one after the other."""
    with jax.transfer_guard_host_to_device("allow"):  # intended: a word
        return functools.reduce(jax.random.fold_in, indices, key)


@shaped
def filter_logits(logits_BV: jax.Array, params: SamplingParams) -> jax.Array:
    """Logits after temperature (above 0), with minus infinity for tokens excluded by top-k or
    top-p. Tokens that are equally likely at the threshold are all kept.
    """
    temperature = min(max(params.temperature, MIN_TEMPERATURE), MAX_TEMPERATURE)
    logits_BV = apply_temperature(logits_BV, temperature)
    if params.top_k is not None and params.top_k < logits_BV.shape[-1]:
        logits_BV = apply_top_k(logits_BV, params.top_k)
    if params.top_p is None or params.top_p == 1:  # of which rounding would lose the rarest tokens
        return logits_BV
    return apply_top_p(logits_BV, params.top_p)


@shaped
def apply_temperature(logits_BV: jax.Array, temperature: float | jax.Array) -> jax.Array:
    """Returns the logits divided by a temperature (MIN_TEMPERATURE to MAX_TEMPERATURE), or by one
    for each row, shifted so that the maximum of each row is 0.
    """
    # No temperature moves a logit of 0; the others may go down to the lowest float32.
    logits_BV = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
    return logits_BV / _column(temperature)


@shaped
def apply_top_k(logits_BV: jax.Array, k: int | jax.Array) -> jax.Array:
    """Returns the logits with minus infinity for all but the k most likely tokens of each row. k: a
    number, or one for each row."""
    return _keep_likeliest(logits_BV, jnp.ones_like(logits_BV), k)


@shaped
def apply_top_p(logits_BV: jax.Array, p: float | jax.Array) -> jax.Array:
    """Returns the logits with minus infinity for all but the most likely tokens of each row whose
    cumulative probability reaches p: nucleus sampling (1904.09751). p: a number, or one for each
    row."""
    return _keep_likeliest(logits_BV, jax.nn.softmax(logits_BV, axis=-1), p)


def _keep_likeliest(
    logits_BV: jax.Array, weights_BV: jax.Array, least: float | jax.Array
) -> jax.Array:
    """Returns the largest logits of each row whose weights together reach `least`, and minus
    infinity for the others. Those that are equal at the threshold are all kept.

    The threshold is found by bisection over the bits of float32, which are ordered as values from 0
    on are: 31 sums over the vocabulary, which on CPU take less than sorting it."""
    below_BV = jnp.max(logits_BV, axis=-1, keepdims=True) - logits_BV
    least_B1 = _column(least)

    def value(bits_B):
        return jax.lax.bitcast_convert_type(bits_B, jnp.float32)[:, None]

    def halve(_, bounds):
        low_B, high_B = bounds  # the threshold is above low, and at most high
        middle_B = low_B + (high_B - low_B) // 2
        sum_B1 = jnp.where(below_BV <= value(middle_B), weights_BV, 0).sum(-1, keepdims=True)
        is_reached_B = (sum_B1 >= least_B1)[:, 0]
        return jnp.where(is_reached_B, low_B, middle_B), jnp.where(is_reached_B, middle_B, high_B)

    infinity, n_rows = np.float32(np.inf).view(np.int32), logits_BV.shape[0]
    bounds = jnp.full(n_rows, -1, jnp.int32), jnp.full(n_rows, infinity, jnp.int32)
    threshold_B = jax.lax.fori_loop(0, 31, halve, bounds)[1]
    return jnp.where(below_BV <= value(threshold_B), logits_BV, -jnp.inf)


def _column(values: float | jax.Array) -> jax.Array:
    """float32 (1, 1) of a number, (B, 1) of one for each row."""
    return jnp.asarray(values, jnp.float32).reshape(-1, 1)


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
