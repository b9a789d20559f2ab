"""The KV cache of one text, kept from one continuation to the next, so that a conversation is not
read from its beginning at every turn: only the tokens after the longest prefix that the cache holds
are read.
"""

import functools
from collections.abc import Container, Generator, Sequence

import jax
import numpy as np

from gptjax.generate import decode, sampling
from gptjax.model import inference, kv_cache


@functools.partial(jax.jit, static_argnames="sampling_params", donate_argnames="cache")
def _extend(
    inference_model: inference.InferenceModel,
    cache: kv_cache.KVCache,
    tokens_BT,
    counts_B,
    key,
    sampling_params: sampling.SamplingParams,
):
    """Returns (cache with the new tokens, the token after them), as decode.first_tokens."""
    cache, x_BTD = inference.decode_step(inference_model, cache, tokens_BT, counts_B)
    y_BTV = inference.logits(inference_model, inference.last_hidden(x_BTD, counts_B))
    return cache, sampling.sample(y_BTV[:, 0], sampling_params, jax.random.fold_in(key, 0))


class PrefixCache:
    """Continues texts, one after the other, each from the KV cache of the one before.

    Its continuations are those of decode.stream, up to rounding: a text that is read in parts is
    not computed in the same order as one that is read at once. n_read: the tokens of the last text
    that had to be read.
    """

    def __init__(self, inference_model: inference.InferenceModel):
        self.n_read = 0
        self._inference_model = inference_model
        # The cache holds the first `n` of self._ids. Both are one attribute, and None while a
        # program has the cache's buffers, so that an exception anywhere leaves no cache of another
        # text behind.
        self._kept: tuple[kv_cache.KVCache, int] | None = None
        self._ids: list[int] = []

    def stream(
        self,
        ids: Sequence[int],
        n_tokens: int,
        sampling_params: sampling.SamplingParams,
        key: jax.Array,
        ends: Container[int] = (),
    ) -> Generator[int, None, None]:
        """Yields the tokens that continue `ids`, one by one: n_tokens, or as many as the context
        has room for, or those before the first of `ends`. The caller may stop at any of them.

        Raises ValueError for no ids and for more than the context, inference.NonFiniteLogits for
        NaN logits.
        """
        n_ctx = self._inference_model.model.config.n_ctx
        if not 0 < len(ids) <= n_ctx:
            raise ValueError(
                f"a text of {len(ids):,} tokens: give 1 to {n_ctx:,}, the model's context"
            )
        n_tokens = min(n_tokens, n_ctx + 1 - len(ids))
        capacity = decode.bucket_length(min(n_ctx, len(ids) + n_tokens), n_ctx)
        token = self._read(list(ids), capacity, sampling_params, key)
        for position in range(1, n_tokens + 1):
            if token == sampling.NONE:
                self.forget()
                raise inference.NonFiniteLogits
            if token in ends:
                return
            yield token
            if position < n_tokens:
                token = self._decode(token, position, sampling_params, key)

    def forget(self) -> None:
        """Drops the cache: the next text is read from its beginning."""
        self._kept = None

    def _read(self, ids, capacity, sampling_params, key) -> int:
        """Reads what the cache does not hold of `ids` and returns the token after them."""
        lm = self._inference_model
        attention, n_ctx = lm.model.config.attention, lm.model.config.n_ctx
        cache, n = self._cut_back(ids)
        self._ids, self.n_read = ids, len(ids) - n
        if cache is None:
            inputs = jax.device_put((*decode.pad([ids], n_ctx), np.int32(0)))
            cache, token_B = decode.first_tokens(
                lm, *inputs, key, capacity=capacity, sampling_params=sampling_params
            )
        else:
            if cache.capacity < capacity:
                cache = kv_cache.resize(cache, attention, capacity)
            inputs = jax.device_put(decode.pad([ids[n:]], n_ctx))
            cache, token_B = _extend(lm, cache, *inputs, key, sampling_params=sampling_params)
        self._kept = cache, len(ids)
        return int(jax.device_get(token_B)[0])

    def _cut_back(self, ids: list[int]) -> tuple[kv_cache.KVCache | None, int]:
        """The cache of the longest prefix of `ids` that it can hold, and the length of that. At
        least the last token is left to be read, since the logits after it are not kept."""
        kept, self._kept = self._kept, None
        if kept is None:
            return None, 0
        cache, n_cached = kept
        n = common_prefix_length(self._ids[:n_cached], ids[:-1])
        attention = self._inference_model.model.config.attention
        cut = kv_cache.truncate(cache, attention, n_cached, n) if n else None
        return cut, 0 if cut is None else n

    def _decode(self, token: int, position: int, sampling_params, key) -> int:
        """Adds a token to the cache and returns the next one, number `position` of those that
        continue the text."""
        assert self._kept is not None
        (cache, n_cached), self._kept = self._kept, None
        inputs = jax.device_put(
            (np.array([token], np.int32), np.array([True]), np.int32(position), np.int32(1))
        )
        cache, new_BT = decode.decode_steps(
            self._inference_model,
            cache,
            *inputs,
            jax.device_put(np.int32(-1)),
            key,
            sampling_params=sampling_params,
        )
        self._ids.append(token)
        self._kept = cache, n_cached + 1
        return int(jax.device_get(new_BT)[0, 0])


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two texts have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))  # noqa: B905
