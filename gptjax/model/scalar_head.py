"""The scalar head: one number for each state of a GPT. A reward model and a value function are a
GPT with one (InstructGPT, 2203.02155, section 3.5, where it replaces the unembedding)."""

import jax
import jax.numpy as jnp

from gptjax.sharding.shapes import shaped

NAME = "scalar_head"  # of its parameters, next to those of the GPT


def init(key: jax.Array, d_model: int, std: float) -> dict[str, jax.Array]:
    """Returns the parameters: weights drawn with a standard deviation of `std`, a bias of 0 and a
    gain of 1.

    OpenAI's 2019 code (openai/lm-human-preferences, language/model.py) has std 1 / sqrt(d_model +
    1) for a reward model and 0 for a value function."""
    weight_D = std * jax.random.normal(key, (d_model,), jnp.float32)
    return {"weight_D": weight_D, "bias": jnp.float32(0), "gain": jnp.float32(1)}


@shaped
def apply(head: dict[str, jax.Array], x_BTD) -> jax.Array:
    """Returns gain * (states . weights) + bias of every state, float32 (B, T)."""
    y_BT = jnp.einsum("BTD,D->BT", x_BTD.astype(jnp.float32), head["weight_D"])
    return head["gain"] * y_BT + head["bias"]
