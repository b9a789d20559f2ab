"""Beam search with a length penalty: the likeliest continuation, sought among the `width` likeliest beginnings at each length.

GPT-3's free-form tasks are scored so, with width 4 and alpha 0.6, as T5's (section 2.4). When to end is unpublished: here as in T5.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config.evaluation import MOST_ALPHA, WIDEST
from gptjax.generate import decode
from gptjax.model import inference, kv_cache


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """New tokens, the one that ended them included; the sum of their log-probabilities (nats); that over the length penalty; and whether
    they were ended, not cut off."""

    tokens: tuple[int, ...]
    log_probability: float
    score: float
    ended: bool


def penalty(length: int, alpha: float) -> float:
    """((5 + length) / 6) ** alpha, length in tokens: Wu et al. (1609.08144) equation 14, without its coverage."""
    return ((5 + length) / 6) ** alpha


def search(
    reader: inference.Reader,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
    ends: Callable[[tuple[int, ...]], bool],
    width: int = 4,
    alpha: float = 0.6,
) -> list[list[Hypothesis]]:
    """For each prompt at most `width` continuations of at most n_tokens tokens, best score first: those that ended or, where none did,
    those that were under way when n_tokens were reached.

    ends: given new tokens, whether the last one ends them. A prompt's search ends when no beginning can still beat its `width` hypotheses.
    Raises ValueError for an empty prompt and for texts longer than the context: what is read in another context cannot be compared. Raises
    reading.NonFiniteLogits where the model says NaN."""
    if not (1 <= width <= WIDEST and 0 <= alpha <= MOST_ALPHA):
        raise ValueError(
            f"a beam of width {width} with alpha {alpha}: give a width from 1 to {WIDEST:,} and an alpha from 0 to {MOST_ALPHA:g}"
        )
    n_ctx, longest = reader.model.config.n_ctx, max(map(len, prompts))
    if longest + n_tokens > n_ctx + 1:  # the last token is not read
        raise ValueError(f"a prompt of {longest} tokens and {n_tokens} new ones are more than the model's context of {n_ctx}: ask for less")
    groups, n_likely = [_Group(n_tokens, ends, width, alpha) for _ in prompts], min(2 * width, reader.model.config.n_vocab)
    read = jax.device_put(decode.padded(prompts, n_ctx))
    memory, likely = _begin(reader, *read, capacity=decode.bucket(min(n_ctx, longest + n_tokens), n_ctx), n_likely=n_likely)
    rows = 1  # of each group: one until its first tokens are chosen
    while True:
        parents = [i * rows + row for i, group in enumerate(groups) for row in group.advance(_rows(jax.device_get(likely), i * rows, rows))]
        if all(group.done for group in groups):
            return [group.hypotheses() for group in groups]
        if parents != list(range(rows * len(groups))):
            memory = _selected(memory, jax.device_put(np.array(parents, np.int32)))
        rows = width
        token_B = np.array([token for group in groups for token in group.newest()], np.int32)
        memory, likely = _go_on(reader, memory, jax.device_put(token_B), n_likely=n_likely)


class _Group:
    """The search for one prompt: `alive`, the likeliest (log-probability, tokens) under way, and `ended`, the best hypotheses."""

    def __init__(self, n_tokens: int, ends: Callable[[tuple[int, ...]], bool], width: int, alpha: float):
        self.n_tokens, self.ends, self.width, self.alpha = n_tokens, ends, width, alpha
        self.alive: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        self.ended: list[Hypothesis] = []
        self.done = False

    def advance(self, likely: list[list[tuple[float, int]]]) -> list[int]:
        """likely: for each row the (log-probability, token) that may follow. Returns, for each of the next rows, the row it continues."""
        if self.done:
            return [row % len(likely) for row in range(self.width)]
        paths = [(p + more, row, (*tokens, token)) for row, (p, tokens) in enumerate(self.alive) for more, token in likely[row]]
        if any(math.isnan(p) for p, _, _ in paths):
            raise inference.NonFiniteLogits
        # Twice the width, so that `width` are left to go on with even if each of the beams ends.
        paths = sorted((path for path in paths if path[0] > -np.inf), key=lambda path: -path[0])[: 2 * self.width]
        ending = [self.ends(tokens) for _, _, tokens in paths]
        self.ended += [self._hypothesis(p, tokens, True) for (p, _, tokens), end in zip(paths, ending, strict=True) if end]
        self.ended = sorted(self.ended, key=lambda found: -found.score)[: self.width]
        going = [path for path, end in zip(paths, ending, strict=True) if not end][: self.width]
        self.alive = [(p, tokens) for p, _, tokens in going]
        self.done = not going or len(going[0][2]) == self.n_tokens or self._settled()
        return [going[min(row, len(going) - 1)][1] if going else 0 for row in range(self.width)]

    def _settled(self) -> bool:
        """Whether nothing under way can beat the hypotheses: a log-probability only falls, and n_tokens divide it by the most."""
        return len(self.ended) == self.width and self.alive[0][0] / penalty(self.n_tokens, self.alpha) <= self.ended[-1].score

    def newest(self) -> list[int]:
        """The last token of each row; where there are fewer beginnings than rows, the rest repeats one."""
        return [self.alive[min(row, len(self.alive) - 1)][1][-1] if self.alive else 0 for row in range(self.width)]

    def hypotheses(self) -> list[Hypothesis]:
        return self.ended or [self._hypothesis(p, tokens, False) for p, tokens in self.alive]

    def _hypothesis(self, log_probability, tokens, ended):
        return Hypothesis(tokens, log_probability, log_probability / penalty(len(tokens), self.alpha), ended)


def _rows(likely, first, n):
    """Rows first .. first + n as lists of (log-probability, token)."""
    return [list(zip(p.tolist(), tokens.tolist(), strict=True)) for p, tokens in zip(*(x[first : first + n] for x in likely), strict=True)]


@functools.partial(jax.jit, static_argnames=("capacity", "n_likely"))
def _begin(reader, tokens_BT, counts_B, capacity, n_likely):
    memory, x_BTD = inference.prefill(reader, tokens_BT, counts_B, capacity)
    return memory, _likely(reader, inference.last(x_BTD, counts_B), n_likely)


@functools.partial(jax.jit, static_argnames="n_likely", donate_argnames="memory")
def _go_on(reader, memory, token_B, n_likely):
    memory, x_BTD = inference.extend(reader, memory, token_B[:, None], jnp.ones_like(token_B))
    return memory, _likely(reader, x_BTD, n_likely)


def _likely(reader, x_B1D, n_likely):
    """(log-probabilities, tokens), both (B, n_likely)."""
    return jax.lax.top_k(jax.nn.log_softmax(inference.predictions(reader, x_B1D)[:, 0], axis=-1), n_likely)


_selected = jax.jit(kv_cache.selected)
