"""Samples a token for each row of logits by the row's own settings, which are arrays, so that no
client's choice compiles a program.
"""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gptjax.generate import sampling
from gptjax.server.generation import MAX_LOGPROBS, RowSampling

MAX_BIASES = 300  # of a row, as OpenAI's API takes
WORD = 2**32  # a seed is two of them


class RowParams(flax.struct.PyTreeNode):
    """`RowSampling` of B rows. Off: top_k 0, top_p 1, min_p 0, penalties 0, repetition 1, bias 0.
    A bias of no token has the id n_vocab, or more."""

    temperature_B: jax.Array
    top_k_B: jax.Array
    top_p_B: jax.Array
    min_p_B: jax.Array
    presence_B: jax.Array
    frequency_B: jax.Array
    repetition_B: jax.Array
    bias_ids_BL: jax.Array
    bias_BL: jax.Array
    seed_B2: jax.Array


class Texts(flax.struct.PyTreeNode):
    """What penalties and random numbers depend on. prompts_BV: whether a token is in the prompt.
    counts_BV: how often it was generated. n_B: how many tokens were generated."""

    prompts_BV: jax.Array
    counts_BV: jax.Array
    n_B: jax.Array


class Scores(flax.struct.PyTreeNode):
    """Log-probabilities of the model: of the tokens (B,), and of the MAX_LOGPROBS likeliest, with
    their ids (B, K), likeliest first."""

    token_B: jax.Array
    ids_BK: jax.Array
    logprobs_BK: jax.Array


def row_params(rows: Sequence[RowSampling], n_vocab: int) -> RowParams:
    """Returns the settings of rows as arrays of numpy."""
    n_biases = [len(row.logit_bias) for row in rows]
    assert max(n_biases, default=0) <= MAX_BIASES
    ids_BL = np.full((len(rows), MAX_BIASES), n_vocab, np.int32)
    bias_BL = np.zeros((len(rows), MAX_BIASES), np.float32)
    for b, (row, n) in enumerate(zip(rows, n_biases, strict=True)):
        ids_BL[b, :n] = list(row.logit_bias)
        bias_BL[b, :n] = list(row.logit_bias.values())

    def column(name: str, dtype: type = np.float32) -> np.ndarray:
        return np.array([getattr(row, name) for row in rows], dtype)

    seeds_B2 = [[row.seed // WORD % WORD, row.seed % WORD] for row in rows]
    fields: dict[str, Any] = {
        "temperature_B": column("temperature"),
        "top_k_B": np.minimum(column("top_k", np.int64), n_vocab).astype(np.int32),
        "top_p_B": column("top_p"),
        "min_p_B": column("min_p"),
        "presence_B": column("presence_penalty"),
        "frequency_B": column("frequency_penalty"),
        "repetition_B": column("repetition_penalty"),
        "bias_ids_BL": ids_BL,
        "bias_BL": bias_BL,
        "seed_B2": np.array(seeds_B2, np.uint32).reshape(-1, 2),
    }
    return RowParams(**fields)


def sample(
    logits_BV: jax.Array, params: RowParams, texts: Texts, allowed_BV: jax.Array | None = None
) -> jax.Array:
    """Returns a token for each row, int32 (B,); sampling.NONE for a row with NaN or infinite
    logits. allowed_BV: the tokens that a grammar allows; None: all.

    In order: logit bias, repetition, presence and frequency penalties, the grammar, temperature,
    min_p, top_k, top_p. Each row depends on its own logits, settings and text alone.
    """
    is_finite_B = jnp.isfinite(jnp.max(logits_BV, axis=-1))
    logits_BV = _adjust(logits_BV, params, texts)
    if allowed_BV is not None:
        logits_BV = jnp.where(allowed_BV, logits_BV, -jnp.inf)
    greedy_B = jnp.argmax(logits_BV, axis=-1)

    def draw():
        keys_B = jax.vmap(jax.random.fold_in)(
            jax.random.wrap_key_data(params.seed_B2, impl="threefry2x32"), texts.n_B
        )
        uniforms_BU = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys_B)
        return sampling.draw(_filter(logits_BV, params), uniforms_BU)

    is_greedy_B = params.temperature_B == 0
    token_B = jax.lax.cond(is_greedy_B.all(), lambda: greedy_B.astype(jnp.int32), draw)
    return jnp.where(is_finite_B, jnp.where(is_greedy_B, greedy_B, token_B), sampling.NONE).astype(
        jnp.int32
    )


def _adjust(logits_BV: jax.Array, params: RowParams, texts: Texts) -> jax.Array:
    """Logits with biases and penalties."""

    def add_biases(logits_BV):
        rows_B1 = jnp.arange(logits_BV.shape[0])[:, None]
        return logits_BV.at[rows_B1, params.bias_ids_BL].add(params.bias_BL, mode="drop")

    def add_penalties(logits_BV):
        is_new_BV = texts.counts_BV > 0
        factor_B1 = params.repetition_B[:, None]
        repeated_BV = jnp.where(logits_BV > 0, logits_BV / factor_B1, logits_BV * factor_B1)
        logits_BV = jnp.where(is_new_BV | texts.prompts_BV, repeated_BV, logits_BV)
        return (
            logits_BV
            - params.presence_B[:, None] * is_new_BV.astype(jnp.float32)
            - params.frequency_B[:, None] * texts.counts_BV.astype(jnp.float32)
        )

    has_penalties = (
        (params.presence_B != 0) | (params.frequency_B != 0) | (params.repetition_B != 1)
    ).any()
    logits_BV = jax.lax.cond((params.bias_BL != 0).any(), add_biases, lambda y: y, logits_BV)
    return jax.lax.cond(has_penalties, add_penalties, lambda y: y, logits_BV)


def _filter(logits_BV: jax.Array, params: RowParams) -> jax.Array:
    """Logits after temperature, min_p, top_k and top_p: minus infinity for what they exclude."""
    temperature_B = jnp.maximum(params.temperature_B, sampling.MIN_TEMPERATURE)
    logits_BV = sampling.apply_temperature(logits_BV, temperature_B)  # the maximum is 0
    logits_BV = jnp.where(logits_BV >= jnp.log(params.min_p_B)[:, None], logits_BV, -jnp.inf)

    def apply_top_k(logits_BV):
        k_B = jnp.where(params.top_k_B > 0, params.top_k_B, logits_BV.shape[-1])
        return sampling.apply_top_k(logits_BV, k_B)

    def apply_top_p(logits_BV):
        filtered_BV = sampling.apply_top_p(logits_BV, params.top_p_B)
        return jnp.where(params.top_p_B[:, None] < 1, filtered_BV, logits_BV)

    logits_BV = jax.lax.cond((params.top_k_B > 0).any(), apply_top_k, lambda y: y, logits_BV)
    return jax.lax.cond((params.top_p_B < 1).any(), apply_top_p, lambda y: y, logits_BV)


def score(logits_BV: jax.Array, token_B: jax.Array) -> Scores:
    """Returns the log-probabilities of tokens, and of the likeliest, by the logits as they are."""
    total_B = jax.nn.logsumexp(logits_BV, axis=-1)
    own_B = jnp.take_along_axis(logits_BV, jnp.maximum(token_B, 0)[:, None], axis=-1)[:, 0]
    best_BK, ids_BK = jax.lax.top_k(logits_BV, MAX_LOGPROBS)
    return Scores(own_B - total_B, ids_BK.astype(jnp.int32), best_BK - total_B[:, None])


def no_scores(n_rows: int) -> Scores:
    """Scores of nothing, in the shape of `score`'s."""
    shape = n_rows, MAX_LOGPROBS
    return Scores(jnp.zeros(n_rows), jnp.zeros(shape, jnp.int32), jnp.zeros(shape))
