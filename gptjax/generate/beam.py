"""Beam search with a length penalty.

GPT-3's free-form tasks use it with width 4 and alpha 0.6, as T5 does (section 2.4). When the search
ends is unpublished; here it ends as T5's does.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config.evaluation import MAX_ALPHA, MAX_BEAM_WIDTH
from gptjax.generate import decode
from gptjax.model import inference, kv_cache


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """One continuation found by the search.

    tokens: new tokens, including the one that ended them. log_prob: the sum of their
    log-probabilities, in nats. score: log_prob over the length penalty. is_complete: whether it
    ended, rather than reached the token limit.
    """

    tokens: tuple[int, ...]
    log_prob: float
    score: float
    is_complete: bool


def length_penalty(length: int, alpha: float) -> float:
    """((5 + length) / 6) ** alpha, with length in tokens: Wu et al. (1609.08144) equation 14,
    without the coverage penalty.
    """
    return ((5 + length) / 6) ** alpha


def search(
    inference_model: inference.InferenceModel,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
    is_end: Callable[[tuple[int, ...]], bool],
    width: int = 4,
    alpha: float = 0.6,
) -> list[list[Hypothesis]]:
    """Returns, for each prompt, up to `width` continuations of at most n_tokens tokens, best score
    first: the complete ones or, if there are none, those cut off at n_tokens.

    is_end: given the new tokens, whether the last one ends them. The search for a prompt stops when
    no active beam can still beat its `width` hypotheses. Raises ValueError for an empty prompt and
    for texts longer than the context, since scores from a shifted context would not be comparable;
    inference.NonFiniteLogits for NaN logits.
    """
    if not (1 <= width <= MAX_BEAM_WIDTH and 0 <= alpha <= MAX_ALPHA):
        raise ValueError(
            f"a beam of width {width} with alpha {alpha}: give a width from 1 to "
            f"{MAX_BEAM_WIDTH:,} and an alpha from 0 to {MAX_ALPHA:g}"
        )
    n_ctx, longest = inference_model.model.config.n_ctx, max(map(len, prompts))
    if longest + n_tokens > n_ctx + 1:  # the last token is never fed back
        raise ValueError(
            f"a prompt of {longest} tokens and {n_tokens} new ones exceed the model's context of "
            f"{n_ctx}: give a shorter prompt or fewer tokens"
        )
    beam_groups, n_candidates = (
        [_BeamGroup(n_tokens, is_end, width, alpha) for _ in prompts],
        min(2 * width, inference_model.model.config.n_vocab),
    )
    inputs = jax.device_put(decode.pad(prompts, n_ctx))
    cache, candidates = _prefill(
        inference_model,
        *inputs,
        capacity=decode.bucket_length(min(n_ctx, longest + n_tokens), n_ctx),
        n_candidates=n_candidates,
    )
    rows = 1  # per group: one until the first tokens are chosen
    while True:
        parents = [
            i * rows + row
            for i, group in enumerate(beam_groups)
            for row in group.advance(_candidate_lists(jax.device_get(candidates), i * rows, rows))
        ]
        if all(group.done for group in beam_groups):
            return [group.hypotheses() for group in beam_groups]
        if parents != list(range(rows * len(beam_groups))):
            cache = _take_rows(cache, jax.device_put(np.array(parents, np.int32)))
        rows = width
        token_B = np.array(
            [token for group in beam_groups for token in group.last_tokens()], np.int32
        )
        cache, candidates = _decode(
            inference_model, cache, jax.device_put(token_B), n_candidates=n_candidates
        )


class _BeamGroup:
    """The search for one prompt. active: the most likely unfinished beams, as (log-probability,
    tokens). complete: the best finished hypotheses.
    """

    def __init__(
        self, n_tokens: int, is_end: Callable[[tuple[int, ...]], bool], width: int, alpha: float
    ):
        self.n_tokens, self.is_end, self.width, self.alpha = n_tokens, is_end, width, alpha
        self.active: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        self.complete: list[Hypothesis] = []
        self.done = False

    def advance(self, candidates: list[list[tuple[float, int]]]) -> list[int]:
        """Extends the beams by one token. candidates: for each row, (log-probability, next token)
        pairs. Returns, for each of the next rows, the row that it continues.
        """
        if self.done:
            return [row % len(candidates) for row in range(self.width)]
        paths = [
            (p + log_prob, row, (*tokens, token))
            for row, (p, tokens) in enumerate(self.active)
            for log_prob, token in candidates[row]
        ]
        if any(math.isnan(p) for p, _, _ in paths):
            raise inference.NonFiniteLogits
        # Twice the width, so that `width` beams remain even if every beam has an ending among them.
        paths = sorted((path for path in paths if path[0] > -np.inf), key=lambda path: -path[0])[
            : 2 * self.width
        ]
        end_flags = [self.is_end(tokens) for _, _, tokens in paths]
        self.complete += [
            self._make_hypothesis(p, tokens, True)
            for (p, _, tokens), end in zip(paths, end_flags, strict=True)
            if end
        ]
        self.complete = sorted(self.complete, key=lambda hypothesis: -hypothesis.score)[
            : self.width
        ]
        active = [path for path, end in zip(paths, end_flags, strict=True) if not end][: self.width]
        self.active = [(p, tokens) for p, _, tokens in active]
        self.done = not active or len(active[0][2]) == self.n_tokens or self._is_settled()
        return [active[min(row, len(active) - 1)][1] if active else 0 for row in range(self.width)]

    def _is_settled(self) -> bool:
        """Whether no active beam can beat the worst complete hypothesis: log-probabilities only
        decrease, and n_tokens has the largest length penalty.
        """
        return (
            len(self.complete) == self.width
            and self.active[0][0] / length_penalty(self.n_tokens, self.alpha)
            <= self.complete[-1].score
        )

    def last_tokens(self) -> list[int]:
        """The last token of each row. If there are fewer beams than rows, the last beam is
        repeated.
        """
        return [
            self.active[min(row, len(self.active) - 1)][1][-1] if self.active else 0
            for row in range(self.width)
        ]

    def hypotheses(self) -> list[Hypothesis]:
        """The complete hypotheses or, if there are none, the active beams."""
        return self.complete or [
            self._make_hypothesis(p, tokens, False) for p, tokens in self.active
        ]

    def _make_hypothesis(self, log_prob, tokens, is_complete):
        return Hypothesis(
            tokens, log_prob, log_prob / length_penalty(len(tokens), self.alpha), is_complete
        )


def _candidate_lists(candidates, first, n):
    """Rows first to first + n - 1 as lists of (log-probability, token)."""
    return [
        list(zip(p.tolist(), tokens.tolist(), strict=True))
        for p, tokens in zip(*(x[first : first + n] for x in candidates), strict=True)
    ]


@functools.partial(jax.jit, static_argnames=("capacity", "n_candidates"))
def _prefill(inference_model, tokens_BT, counts_B, capacity, n_candidates):
    cache, x_BTD = inference.prefill(inference_model, tokens_BT, counts_B, capacity)
    return cache, _top_candidates(
        inference_model, inference.last_hidden(x_BTD, counts_B), n_candidates
    )


@functools.partial(jax.jit, static_argnames="n_candidates", donate_argnames="cache")
def _decode(inference_model, cache, token_B, n_candidates):
    cache, x_BTD = inference.decode_step(
        inference_model, cache, token_B[:, None], jnp.ones_like(token_B)
    )
    return cache, _top_candidates(inference_model, x_BTD, n_candidates)


def _top_candidates(inference_model, x_B1D, n_candidates):
    """Returns (log-probabilities, tokens) of the most likely next tokens, each (B,
    n_candidates).
    """
    return jax.lax.top_k(
        jax.nn.log_softmax(inference.logits(inference_model, x_B1D)[:, 0], axis=-1), n_candidates
    )


_take_rows = jax.jit(kv_cache.take_rows)
