"""The learning rate as a function of tokens seen."""

from typing import assert_never

import jax
import jax.numpy as jnp

from gptjax.config import schema


def lr_at(schedule: schema.Schedule, tokens: int) -> float:
    """Returns `learning_rate` at a number of tokens as a Python float."""
    # One program: each operation by itself would be compiled by itself.
    rate = jax.jit(lambda: learning_rate(schedule, jnp.float32(tokens)))()
    return float(jax.device_get(rate))


def learning_rate(schedule: schema.Schedule, tokens: jax.Array) -> jax.Array:
    """float32 scalar. `tokens`: float32, the tokens seen before this step plus this step's own, so
    the first step's rate is above 0. A run whose rate falls to 0 at its last token (gpt1, gpt2,
    every fine-tuning) has exactly 0 in its last step, which moves nothing; GPT-1's opt.py counts
    the steps before, so that its first one moves nothing instead.

    Cosine is measured from the end of the warm-up to decay_tokens. GPT-3's Appendix B gives "cosine
    decay ... over 260 billion tokens" without its origin; the warm-up is 0.14% of that."""
    # float(): 260e9 is too large for JAX's integers.
    warmup = (
        jnp.minimum(tokens / float(schedule.warmup_tokens), 1.0)
        if schedule.warmup_tokens
        else jnp.float32(1)
    )
    match schedule:
        case schema.Constant(peak_lr=peak):
            return peak * warmup
        case schema.Linear(peak_lr=peak, decay_tokens=end):
            # GPT-1's released fine-tuning code: (x / w if x <= w else 1) * (1 - x).
            return peak * warmup * jnp.clip(1 - tokens / float(end), 0, 1)
        case schema.Cosine(
            peak_lr=peak, warmup_tokens=start, decay_tokens=end, final_fraction=floor
        ):
            x = jnp.clip((tokens - float(start)) / float(end - start), 0, 1)
            return peak * warmup * (floor + (1 - floor) * 0.5 * (1 + jnp.cos(jnp.pi * x)))
        case _:
            assert_never(schedule)
