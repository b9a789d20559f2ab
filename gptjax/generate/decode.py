"""Autoregressive decoding by the whole forward pass: each token costs a pass over the text so far."""

import functools
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.generate import choose
from gptjax.model import gpt

SHORTEST = 32  # lengths are padded to powers of two from here up to the context, so that few programs are compiled


@functools.partial(jax.jit, static_argnums=(0, 4))
def _next(model: gpt.GPT, params: Any, tokens_BT: jax.Array, last_B: jax.Array, sampling: choose.Sampling, key: jax.Array) -> jax.Array:
    """The token after position last_B of each row."""
    x_BTD = cast(jax.Array, model.apply({"params": params}, tokens_BT))
    x_B1D = jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1)
    return choose.choose(gpt.logits(x_B1D, params["token_VD"], model.config.n_vocab)[:, 0], sampling, key)


def continuations(
    model: gpt.GPT,
    params: Any,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
    sampling: choose.Sampling,
    key: jax.Array,
    end_of_text: int | None = None,
) -> list[list[int]]:
    """Up to n_tokens new tokens for each prompt, without the prompt; a row stops after end_of_text, which is left out.

    Prompts may differ in length and must not be empty (ValueError). Text longer than the model's context is read by its last n_ctx tokens,
    as though it began there. The model must have no placement constraints (`rules.NOWHERE`): rows here are few."""
    if not all(prompts):
        raise ValueError("an empty prompt: give at least one token, for example a newline")
    texts, open_rows = [list(p) for p in prompts], set(range(len(prompts)))
    for i in range(n_tokens):
        views = [text[-model.config.n_ctx :] for text in texts]
        longest = max(map(len, views))
        width = min(model.config.n_ctx, max(SHORTEST, 1 << (longest - 1).bit_length()))
        tokens_BT = np.zeros((len(views), width), np.int32)
        for row, view in enumerate(views):
            tokens_BT[row, : len(view)] = view
        last_B = np.array([len(view) - 1 for view in views], np.int32)
        chosen_B = _next(model, params, jax.device_put(tokens_BT), jax.device_put(last_B), sampling, jax.random.fold_in(key, i))
        for row, token in enumerate(jax.device_get(chosen_B).tolist()):
            if row in open_rows and token == end_of_text:
                open_rows.remove(row)
            elif row in open_rows:
                texts[row].append(token)
        if not open_rows:
            break
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]
