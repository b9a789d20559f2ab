"""Cache slots: the rows of one KV cache, each with a text of its own that is read and continued
apart from the others.

Four verbs: `Slots.insert` gives a slot a prompt, `prefill` reads a piece of it, `generate` adds a
token to every slot that is ready, `free` ends its text. What a slot computes depends on its own
text and settings alone, to the last bit: prompts are read in pieces of the same lengths whatever
else runs, and all slots are computed at every step, whether they are in use or not.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config import count
from gptjax.generate import decode, prefix_cache
from gptjax.model import inference, kv_cache
from gptjax.server import row_sampling
from gptjax.server.generation import RowSampling

CHUNK = 128


class State(flax.struct.PyTreeNode):
    """The device's part of S slots. token_S: the last token of each, not in the cache yet."""

    cache: kv_cache.KVCache
    token_S: jax.Array
    params: row_sampling.RowParams
    texts: row_sampling.Texts


class Tokens(NamedTuple):
    """New tokens of slots and their log-probabilities, on this machine. Scores are zeros where they
    are not wanted."""

    token_B: np.ndarray
    scores: row_sampling.Scores


class PromptScores(NamedTuple):
    """Log-probabilities of the tokens of a prompt from number `first` on."""

    first: int
    scores: row_sampling.Scores


class Slots:
    """n_slots slots of `capacity` tokens each. chunk: tokens of a prompt that are read at once, for
    which the other slots wait. Raises ValueError for a capacity above the model's context."""

    def __init__(
        self, lm: inference.InferenceModel, n_slots: int, capacity: int, chunk: int = CHUNK
    ):
        config = lm.model.config
        if not 1 <= capacity <= config.n_ctx:
            raise ValueError(
                f"a context of {capacity:,} tokens: give 1 to {config.n_ctx:,}, the model's"
            )
        self.n_slots, self.capacity, self.n_vocab = n_slots, capacity, config.n_vocab
        self._lm, self._chunk = lm, min(chunk, capacity)
        # Of each slot: its last prompt, how much of it was read, and the tokens in its cache.
        self._prompts: list[list[int]] = [[] for _ in range(n_slots)]
        self._n_read = [0] * n_slots
        self.free_slots = list(range(n_slots))  # the one that has been free for longest first
        self._ring = min(count.cache_slots(p, capacity) for p in config.attention)
        self._n_cached = [0] * n_slots
        # Placed on the model's devices as what programs return, so that each is compiled once.
        mesh = jax.tree.leaves(lm.params)[0].sharding.mesh
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._state = jax.device_put(_empty(lm, n_slots, capacity), everywhere)
        self._allowed = jax.device_put(np.ones((n_slots, config.n_vocab_padded), bool))

    def compile(self) -> None:
        """Compiles all programs, so that no request waits for it: one for each length that a piece
        of a prompt is padded to, one for a step, one for an insert."""
        lengths = {decode.bucket_length(n, self._chunk) for n in range(1, self._chunk + 1)}
        for n in lengths:
            self.insert(0, [0] * n, RowSampling(), share=False)
            self.prefill(0)
            self.generate([0])
        self.clear(0)
        self.free(0)

    def insert(
        self, slot: int, prompt: Sequence[int], sampling: RowSampling, share: bool = True
    ) -> int:
        """Gives a slot a prompt; returns how many of its tokens are there already, copied from the
        slot that has most of them. share: False reads them all, so that all can be scored."""
        source, n = self._find_prefix(prompt) if share else (slot, 0)
        ids_T = np.full(self.capacity, self.n_vocab, np.int32)
        ids_T[: len(prompt)] = prompt
        params = row_sampling.row_params([sampling], self.n_vocab)
        inputs = jax.device_put((np.int32(slot), np.int32(source), np.int32(n), ids_T, params))
        self._state = _insert(self._state, *inputs)
        if slot in self.free_slots:
            self.free_slots.remove(slot)
        self._prompts[slot], self._n_read[slot], self._n_cached[slot] = list(prompt), n, n
        return n

    def _find_prefix(self, prompt: Sequence[int]) -> tuple[int, int]:
        """The slot that holds the longest beginning of a prompt in whole pieces, and its length. At
        least one token is left to be read, since the logits after it are not kept."""
        best = 0, 0
        for slot, (ids, n_read) in enumerate(zip(self._prompts, self._n_read, strict=True)):
            n = min(prefix_cache.common_prefix_length(ids, prompt[:-1]), n_read)
            n -= n % self._chunk
            # A ring buffer that has gone round has lost keys that the next token would see.
            if self._n_cached[slot] > self._ring and n < self._n_cached[slot]:
                continue
            if n > best[1]:
                best = slot, n
        return best

    def prefill(
        self, slot: int, scores: bool = False, allowed: np.ndarray | None = None
    ) -> tuple[Tokens | None, PromptScores | None]:
        """Reads the next piece of a slot's prompt. Returns the first new token, (1,), if that was
        the last piece; and, if `scores`, those of the tokens that the piece predicts. allowed: bool
        (V,), the tokens that a grammar allows first."""
        prompt, start = self._prompts[slot], self._n_read[slot]
        piece = prompt[start : start + self._chunk]
        is_last = start + len(piece) == len(prompt)
        ids_BT, counts_B = decode.pad([piece], self._chunk)
        following = prompt[start + 1 : start + self._chunk + 1]
        next_T = np.zeros(ids_BT.shape[1], np.int32)
        next_T[: len(following)] = following
        mask_BV = np.ones((1, self._allowed.shape[1]), bool)
        if allowed is not None:
            mask_BV[0, : self.n_vocab] = allowed
        inputs = jax.device_put(
            (np.int32(slot), ids_BT, counts_B, next_T, is_last, scores, mask_BV)
        )
        self._state, outputs = _prefill(self._lm, self._state, *inputs)
        token_B, new, prompt_scores = jax.device_get(outputs)
        self._n_read[slot] += len(piece)
        self._n_cached[slot] = self._n_read[slot]
        return (
            Tokens(token_B, new) if is_last else None,
            PromptScores(start + 1, jax.tree.map(lambda x: x[: len(following)], prompt_scores))
            if scores
            else None,
        )

    def generate(
        self,
        slots: Sequence[int],
        scores: bool = False,
        allowed: dict[int, np.ndarray] | None = None,
    ) -> Tokens:
        """Adds the last token of some slots to their caches, and samples the next: (S,), of which
        those of the other slots mean nothing. allowed: slot -> bool (V,), the tokens that a grammar
        allows."""
        active_S = np.zeros(self.n_slots, bool)
        active_S[list(slots)] = True
        mask = self._allowed
        if allowed:
            host = np.ones(self._allowed.shape, bool)
            for slot, allowed_V in allowed.items():
                host[slot, : self.n_vocab] = allowed_V
            mask = jax.device_put(host)
        inputs = jax.device_put((active_S, scores))
        self._state, outputs = _generate(self._lm, self._state, mask, *inputs)
        for slot in slots:
            self._n_cached[slot] += 1
        return Tokens(*jax.device_get(outputs))

    def free(self, slot: int) -> None:
        """Ends a slot's text. What was read of its prompt serves others that begin alike until the
        slot is given another, which is the last of those that are free now."""
        self.free_slots.append(slot)

    def clear(self, slot: int) -> None:
        """Forgets what a slot holds, after NaN logits: their keys would spoil another text even
        where they are not seen, since 0 times NaN is NaN."""
        self._state = _clear(self._state, jax.device_put(np.int32(slot)))
        self._prompts[slot], self._n_read[slot], self._n_cached[slot] = [], 0, 0


@functools.partial(jax.jit, static_argnums=(1, 2))
def _empty(lm: inference.InferenceModel, n_slots: int, capacity: int) -> State:
    config, policy = lm.model.config, lm.model.execution_policy
    dtype = policy.kv_cache_dtype or policy.dtype
    texts = row_sampling.Texts(
        jnp.zeros((n_slots, config.n_vocab_padded), bool),
        jnp.zeros((n_slots, config.n_vocab_padded), jnp.int32),
        jnp.zeros(n_slots, jnp.int32),
    )
    params = row_sampling.row_params([RowSampling()] * n_slots, config.n_vocab)
    return State(
        kv_cache.empty(config, n_slots, capacity, dtype),
        jnp.zeros(n_slots, jnp.int32),
        jax.tree.map(jnp.asarray, params),
        texts,
    )


def _row(tree: Any, slot: jax.Array) -> Any:
    """One row of every array, as a batch of one."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, slot, 1), tree)


def _put_row(tree: Any, row: Any, slot: jax.Array) -> Any:
    """Inverse of `_row`."""
    return jax.tree.map(
        lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y.astype(x.dtype), slot, 0), tree, row
    )


@functools.partial(jax.jit, donate_argnums=0)
def _insert(state: State, slot, source, n, ids_T, params) -> State:
    row = _row(state.cache, source)
    row = row.replace(lengths_B=jnp.full(1, n, jnp.int32))
    n_vocab = state.texts.prompts_BV.shape[1]
    texts = row_sampling.Texts(
        jnp.zeros((1, n_vocab), bool).at[0, ids_T].set(True, mode="drop"),
        jnp.zeros((1, n_vocab), jnp.int32),
        jnp.zeros(1, jnp.int32),
    )
    return State(
        _put_row(state.cache, row, slot),
        state.token_S,
        _put_row(state.params, params, slot),
        _put_row(state.texts, texts, slot),
    )


@functools.partial(jax.jit, donate_argnums=1)
def _prefill(
    lm: inference.InferenceModel,
    state: State,
    slot,
    ids_BT,
    counts_B,
    next_T,
    is_last,
    scores,
    allowed_BV,
):
    """Returns (state, (first new token, its scores, scores of next_T))."""
    row = _row(state.cache, slot)
    row, x_BTD = inference.decode_step(lm, row, ids_BT, counts_B)

    def score_prompt():
        return row_sampling.score(inference.logits(lm, x_BTD)[0], next_T)

    prompt_scores = jax.lax.cond(
        scores, score_prompt, lambda: row_sampling.no_scores(ids_BT.shape[1])
    )
    y_BV = inference.logits(lm, inference.last_hidden(x_BTD, counts_B))[:, 0]
    texts = _row(state.texts, slot)
    token_B = row_sampling.sample(y_BV, _row(state.params, slot), texts, allowed_BV)
    state = state.replace(cache=_put_row(state.cache, row, slot))
    new = _add_tokens(
        state.replace(token_S=_row(state.token_S, slot), texts=texts), token_B, is_last[None]
    )
    state = state.replace(
        token_S=_put_row(state.token_S, new.token_S, slot),
        texts=_put_row(state.texts, new.texts, slot),
    )
    return state, (token_B, row_sampling.score(y_BV, token_B), prompt_scores)


@functools.partial(jax.jit, donate_argnums=1)
def _generate(lm: inference.InferenceModel, state: State, allowed_SV, active_S, scores):
    """Returns (state, (new tokens, their scores))."""
    cache, x_BTD = inference.decode_step(
        lm, state.cache, state.token_S[:, None], active_S.astype(jnp.int32)
    )
    y_SV = inference.logits(lm, x_BTD)[:, 0]
    token_S = row_sampling.sample(y_SV, state.params, state.texts, allowed_SV)
    token_scores = jax.lax.cond(
        scores, lambda: row_sampling.score(y_SV, token_S), lambda: row_sampling.no_scores(len(y_SV))
    )
    return _add_tokens(state.replace(cache=cache), token_S, active_S), (token_S, token_scores)


def _add_tokens(state: State, token_B: jax.Array, active_B: jax.Array) -> State:
    """The state with new tokens of the rows that are active."""
    texts = state.texts
    rows_B = jnp.arange(token_B.shape[0])
    return state.replace(
        token_S=jnp.where(active_B, token_B, state.token_S),
        texts=texts.replace(
            counts_BV=texts.counts_BV.at[rows_B, token_B].add(
                active_B.astype(jnp.int32), mode="drop"
            ),
            n_B=texts.n_B + active_B.astype(jnp.int32),
        ),
    )


@functools.partial(jax.jit, donate_argnums=0)
def _clear(state: State, slot) -> State:
    row = jax.tree.map(jnp.zeros_like, _row(state.cache, slot))
    return state.replace(cache=_put_row(state.cache, row, slot))
