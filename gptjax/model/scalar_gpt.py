"""A GPT with a scalar head next to its own parameters: a reward model, or a value function."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gptjax.model import gpt, scalar_head


class ScalarGPT(gpt.GPT):
    """The GPT whose `init` also draws a scalar head: parameters["params"][scalar_head.NAME]. It
    computes the same hidden states; `scores` and scalar_head.apply turn them into numbers.

    head_std: standard deviation of the head's initial weights; a reward model has
    `reward_head_std`, a value function 0."""

    head_std: float = 0.0

    @nn.nowrap
    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """As flax.linen.Module.init, with the head."""
        variables: Any = super().init(rngs, *args, **kwargs)
        head = scalar_head.init(jax.random.fold_in(rngs, 1), self.config.d_model, self.head_std)
        return {**variables, "params": {**variables["params"], scalar_head.NAME: head}}


def reward_head_std(d_model: int) -> float:
    """The standard deviation of the initial weights of a reward model's head, 1 / sqrt(d_model + 1)
    (Stiennon et al. 2009.01325, B.1; openai/lm-human-preferences, language/model.py)."""
    return (d_model + 1) ** -0.5


def scores_at(params: Any, x_BTD: jax.Array, last_B: jax.Array) -> jax.Array:
    """Returns the head's number float32 (B,) of the state at index last_B of each row, and of no
    other state. params: with a scalar head."""
    x_B1D = jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1)
    return scalar_head.apply(params[scalar_head.NAME], x_B1D)[:, 0]


def scores(model: gpt.GPT, params: Any, tokens_BT: jax.Array, last_B: jax.Array) -> jax.Array:
    """Returns the score float32 (B,) of each row: the head's number at its input of index last_B.

    tokens_BT: at most n_ctx ids a row. What stands after index last_B, and in other rows, changes
    no bit of a score; another shape (B, T) changes its rounding. Without dropout."""
    x_BTD, _ = model.apply({"params": params}, tokens_BT, mutable="router")
    return scores_at(params, x_BTD, last_B)
