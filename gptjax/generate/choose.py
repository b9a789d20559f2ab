"""From logits to a token: greedily, or by sampling with temperature, top-k and top-p."""

import jax
import jax.numpy as jnp

from gptjax.arrays.shapes import shaped
from gptjax.config.record import record

LEAST, MOST = 2.0**-126, 2.0**127  # temperatures that a float32 holds without loss


@record
class Sampling:
    """temperature 0 is greedy; any other means what it says, however near to 0 or large.

    top_k: only the k likeliest tokens; top_p: only the likeliest whose probabilities reach p (the one that crosses p included), taken after
    temperature and top_k. Raises ValueError for values that leave no token."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: give 0 (greedy) or a number above 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: give at least 1, or leave it out")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: give a probability above 0 and up to 1, or leave it out")


@shaped
def kept(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits after temperature, minus infinity where top-k or top-p rules a token out. Ties at the k-th place are all kept.
    Needs a temperature above 0."""
    # The likeliest tokens are at 0, where no temperature moves them; the others go as far down as a float32 does.
    logits_BV = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
    logits_BV = logits_BV / min(max(sampling.temperature, LEAST), MOST)
    if sampling.top_k is not None and sampling.top_k < logits_BV.shape[-1]:
        smallest_B1 = jax.lax.top_k(logits_BV, sampling.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < smallest_B1, -jnp.inf, logits_BV)
    if sampling.top_p is not None:
        order_BV = jnp.argsort(-logits_BV, axis=-1)
        sorted_BV = jax.nn.softmax(jnp.take_along_axis(logits_BV, order_BV, axis=-1), axis=-1)
        likelier_BV = jnp.cumsum(sorted_BV, axis=-1) - sorted_BV  # the mass before each token
        out_BV = jnp.take_along_axis(likelier_BV >= sampling.top_p, jnp.argsort(order_BV, axis=-1), axis=-1)
        logits_BV = jnp.where(out_BV, -jnp.inf, logits_BV)
    return logits_BV


@shaped
def choose(logits_BV: jax.Array, sampling: Sampling, key: jax.Array) -> jax.Array:
    """int32 (B,): a token for each row."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, kept(logits_BV, sampling), axis=-1).astype(jnp.int32)
