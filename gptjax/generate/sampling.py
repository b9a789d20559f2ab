"""From logits to a token: greedily, or by sampling with temperature, top-k and top-p."""

from typing import Annotated

import jax
import jax.numpy as jnp

from gptjax.config.record import Bounds, record
from gptjax.sharding.shapes import shaped

NONE = -1  # in place of a token, where a row's logits give no probabilities
MIN_TEMPERATURE, MAX_TEMPERATURE = (
    2.0**-120,
    2.0**120,
)  # temperatures that a float32 holds, and their inverses, by which a compiler may multiply


@record
class SamplingParams:
    """temperature 0 is greedy; any other means what it says, however near to 0 or large.

    top_k: only the k likeliest tokens; top_p: only the likeliest whose probabilities reach p (the
    one that crosses p included), taken after temperature and top_k. Raises ValueError for values
    that leave no token."""

    temperature: Annotated[float, Bounds(0, 1e300)] = 1.0
    top_k: Annotated[int, Bounds(1, 2**63 - 1)] | None = None
    top_p: Annotated[float, Bounds(0, 1, above=True)] | None = None


@shaped
def filter_logits(logits_BV: jax.Array, params: SamplingParams) -> jax.Array:
    """Logits after temperature, minus infinity where top-k or top-p rules a token out. Ties at the
    k-th place are all kept.
    Needs a temperature above 0."""
    logits_BV = apply_temperature(logits_BV, params.temperature)
    if params.top_k is not None and params.top_k < logits_BV.shape[-1]:
        logits_BV = apply_top_k(logits_BV, params.top_k)
    return logits_BV if params.top_p is None else apply_top_p(logits_BV, params.top_p)


@shaped
def apply_temperature(logits_BV: jax.Array, temperature: float) -> jax.Array:
    """Logits divided by a temperature above 0, the likeliest token of each row at 0."""
    # At 0 no temperature moves it; the others go as far down as a float32 does.
    logits_BV = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
    return logits_BV / min(max(temperature, MIN_TEMPERATURE), MAX_TEMPERATURE)


@shaped
def apply_top_k(logits_BV: jax.Array, k: int) -> jax.Array:
    """Minus infinity for all but the k likeliest tokens of each row."""
    smallest_B1 = jax.lax.top_k(logits_BV, k)[0][:, -1:]
    return jnp.where(logits_BV < smallest_B1, -jnp.inf, logits_BV)


@shaped
def apply_top_p(logits_BV: jax.Array, p: float) -> jax.Array:
    """Minus infinity for all but the likeliest tokens of each row whose probabilities reach p:
    nucleus sampling (1904.09751)."""
    order_BV = jnp.argsort(-logits_BV, axis=-1)
    sorted_BV = jax.nn.softmax(jnp.take_along_axis(logits_BV, order_BV, axis=-1), axis=-1)
    likelier_BV = jnp.cumsum(sorted_BV, axis=-1) - sorted_BV  # the mass before each token
    out_BV = jnp.take_along_axis(likelier_BV >= p, jnp.argsort(order_BV, axis=-1), axis=-1)
    return jnp.where(out_BV, -jnp.inf, logits_BV)


@shaped
def sample(logits_BV: jax.Array, params: SamplingParams, key: jax.Array) -> jax.Array:
    """int32 (B,): a token for each row; NONE where its logits are NaN or infinite."""
    if params.temperature == 0:
        token_B = jnp.argmax(logits_BV, axis=-1)
    else:
        token_B = jax.random.categorical(key, filter_logits(logits_BV, params), axis=-1)
    return jnp.where(jnp.isfinite(jnp.max(logits_BV, axis=-1)), token_B.astype(jnp.int32), NONE)
