"""Rollouts: answers that the policy samples, a pure function of (parameters, prompts, keys). No
rollout is ever saved: a run that goes on samples the same again."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gptjax.config import rlhf
from gptjax.generate import sampling
from gptjax.model import gpt, inference, kv_cache

EVAL_STEP = 2**31 - 1  # in place of a step's number: every evaluation draws with the same keys


class Rollout(flax.struct.PyTreeNode):
    """Prompts and answers.

    tokens_BT: each prompt and its answer, then zeros; T is task.row_tokens. first_B, n_B: index of
    the first token of the answer, and its number of tokens, of which the last may be the token that
    stopped it. log_probs_BS: the sampler's log p of the tokens of the answer (nats), S is
    task.answer_tokens. is_finite: whether all logits were."""

    tokens_BT: jax.Array
    first_B: jax.Array
    n_B: jax.Array
    log_probs_BS: jax.Array
    is_finite: jax.Array

    @property
    def mask_BT(self) -> jax.Array:
        """float32 (B, T), 1 at the predictions of the tokens of the answer: each a place before."""
        t_1T = jnp.arange(self.tokens_BT.shape[1])[None] + 1
        first_B1, n_B1 = self.first_B[:, None], self.n_B[:, None]
        return ((t_1T >= first_B1) & (t_1T < first_B1 + n_B1)).astype(jnp.float32)


def row_keys(seed: int, step: Any, first: Any, n_rows: int) -> jax.Array:
    """Returns a key for each of n_rows rows, of which the first is row number `first` of the batch
    of `step`: the answer to a row does not depend on how a batch is divided."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 0x524C), step)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(n_rows))


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Samples answers with a KV cache. stop: id of the token that ends an answer, or None."""

    task: rlhf.Rlhf
    model: gpt.GPT
    stop: int | None

    def __call__(self, params, prompts_BT, lengths_B, keys_B) -> Rollout:
        """Returns the rollout of prompts (B, task.prompt_tokens), of which the first lengths_B
        tokens count."""
        lm = inference.prepare(self.model, params, self.model.sharding.of_rows())
        n_new = self.task.answer_tokens
        cache, x_BTD = inference.prefill(lm, prompts_BT, lengths_B, self.task.row_tokens)
        token_B, log_prob_B, is_finite = self._sample(
            lm, inference.last_hidden(x_BTD, lengths_B), keys_B, jnp.int32(0)
        )
        zeros_BS = jnp.zeros((len(lengths_B), n_new), jnp.int32)
        tokens_BS = zeros_BS.at[:, 0].set(token_B)
        log_probs_BS = zeros_BS.astype(jnp.float32).at[:, 0].set(log_prob_B)
        state = _State(
            jnp.int32(1), cache, token_B, self._goes_on(token_B), tokens_BS, log_probs_BS, is_finite
        )

        def step(s: _State) -> _State:
            cache, x_BTD = inference.decode_step(
                lm, s.cache, s.token_B[:, None], s.active_B.astype(jnp.int32)
            )
            token_B, log_prob_B, is_finite = self._sample(lm, x_BTD, keys_B, s.i)
            return _State(
                s.i + 1,
                cache,
                token_B,
                s.active_B & self._goes_on(token_B),
                s.tokens_BS.at[:, s.i].set(jnp.where(s.active_B, token_B, 0)),
                s.log_probs_BS.at[:, s.i].set(jnp.where(s.active_B, log_prob_B, 0)),
                s.is_finite & jnp.all(is_finite | ~s.active_B),
            )

        state = jax.lax.while_loop(lambda s: (s.i < n_new) & s.active_B.any(), step, state)
        n_B = self._lengths(state.tokens_BS)
        t_1T = jnp.arange(self.task.row_tokens)[None]
        first_B1 = lengths_B[:, None]
        answers_BT = jnp.take_along_axis(
            state.tokens_BS, jnp.clip(t_1T - first_B1, 0, n_new - 1), axis=1
        )
        is_answer_BT = (t_1T >= first_B1) & (t_1T < first_B1 + n_B[:, None])
        padded_BT = jnp.pad(prompts_BT, ((0, 0), (0, n_new)))
        tokens_BT = jnp.where(t_1T < first_B1, padded_BT, jnp.where(is_answer_BT, answers_BT, 0))
        return Rollout(tokens_BT, lengths_B, n_B, state.log_probs_BS, jnp.all(state.is_finite))

    def _sample(self, lm, x_B1D, keys_B, i):
        """(tokens (B,), their log p (B,), whether the logits of each row are finite (B,))."""
        y_BV = inference.logits(lm, x_B1D)[:, 0] / self.task.temperature
        uniforms_BU = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, i), (2,)))(
            keys_B
        )
        token_B = sampling.draw(y_BV, uniforms_BU)
        y_B = jnp.take_along_axis(y_BV, token_B[:, None], axis=1)[:, 0]
        log_prob_B = y_B - jax.nn.logsumexp(y_BV, axis=1)
        return token_B, log_prob_B, jnp.isfinite(log_prob_B)

    def _goes_on(self, token_B):
        return jnp.ones_like(token_B, bool) if self.stop is None else token_B != self.stop

    def _lengths(self, tokens_BS):
        """The number of tokens of each answer, its stop included."""
        n = tokens_BS.shape[1]
        if self.stop is None:
            return jnp.full(tokens_BS.shape[0], n, jnp.int32)
        is_stop_BS = tokens_BS == self.stop
        first_B = jnp.argmax(is_stop_BS, axis=1).astype(jnp.int32) + 1
        return jnp.where(is_stop_BS.any(axis=1), first_B, n)


class _State(flax.struct.PyTreeNode):
    """Of the loop over the tokens of an answer; i have been sampled."""

    i: jax.Array
    cache: kv_cache.KVCache
    token_B: jax.Array
    active_B: jax.Array
    tokens_BS: jax.Array
    log_probs_BS: jax.Array
    is_finite: jax.Array


def scored_length(
    ending: rlhf.StopToken | rlhf.CutAt, rollout: Rollout, end_token: int | None
) -> tuple[jax.Array, jax.Array]:
    """Returns (the number of tokens of each answer that are scored (B,), whether it ends (B,)).
    end_token: the stop token, which counts, or that of CutAt."""
    n_B, T = rollout.n_B, rollout.tokens_BT.shape[1]
    after = ending.after if isinstance(ending, rlhf.CutAt) else 0
    number_BT = jnp.arange(T)[None] - rollout.first_B[:, None]  # of each token in its answer
    is_end_BT = (number_BT >= after) & (number_BT < n_B[:, None])
    is_end_BT &= rollout.tokens_BT == (-1 if end_token is None else end_token)
    ends_B = is_end_BT.any(axis=1)
    at_B = jnp.take_along_axis(number_BT, jnp.argmax(is_end_BT, axis=1)[:, None], axis=1)[:, 0]
    return jnp.where(ends_B, at_B + 1, n_B).astype(jnp.int32), ends_B
