"""Autoregressive decoding with a KV cache: one prefill of the prompts, then token by token."""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.generate import sampling
from gptjax.model import inference, kv_cache

# Lengths are padded to powers of two, from this up to the context, so that few programs are
# compiled.
MIN_LENGTH = 32
STEPS_PER_CALL = 16  # decode steps per call of the compiled program, at most


def bucket_length(n: int, n_ctx: int) -> int:
    """The length that `n` tokens are padded to."""
    return min(n_ctx, max(MIN_LENGTH, 1 << (n - 1).bit_length()))


def pad(texts: Sequence[Sequence[int]], n_ctx: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens int32 (B, T), with T the bucket length of the longest text, and lengths int32
    (B,). Raises ValueError for an empty text.
    """
    if not all(texts):
        raise ValueError("an empty prompt: give at least one token, for example a newline")
    lengths_B = np.array([len(text) for text in texts], np.int32)
    tokens_BT = np.zeros((len(texts), bucket_length(int(lengths_B.max()), n_ctx)), np.int32)
    for row, text in enumerate(texts):
        tokens_BT[row, : len(text)] = text
    return tokens_BT, lengths_B


@functools.partial(jax.jit, static_argnames=("capacity", "sampling_params"))
def first_tokens(
    inference_model: inference.InferenceModel,
    tokens_BT,
    counts_B,
    position,
    key,
    capacity: int,
    sampling_params: sampling.SamplingParams,
):
    """Returns (cache, the token after each row)."""
    cache, x_BTD = inference.prefill(inference_model, tokens_BT, counts_B, capacity)
    y_BTV = inference.logits(inference_model, inference.last_hidden(x_BTD, counts_B))
    return cache, sampling.sample(y_BTV[:, 0], sampling_params, jax.random.fold_in(key, position))


@functools.partial(jax.jit, static_argnames="sampling_params", donate_argnames="cache")
def decode_steps(
    inference_model: inference.InferenceModel,
    cache: kv_cache.KVCache,
    token_B,
    active_B,
    position,
    n,
    end_of_text,
    key,
    sampling_params: sampling.SamplingParams,
):
    """Runs up to n decode steps and returns (cache, new tokens (B, STEPS_PER_CALL)).

    Each step feeds the last token of every active row and samples the next; a row becomes inactive
    after end_of_text, and the loop stops once none is active. position: how many tokens were
    generated before.
    """

    def step(state):
        i, cache, token_B, active_B, new_BT = state
        cache, x_BTD = inference.decode_step(
            inference_model, cache, token_B[:, None], active_B.astype(jnp.int32)
        )
        token_B = sampling.sample(
            inference.logits(inference_model, x_BTD)[:, 0],
            sampling_params,
            jax.random.fold_in(key, position + i),
        )
        return (
            i + 1,
            cache,
            token_B,
            active_B & (token_B != end_of_text),
            new_BT.at[:, i].set(token_B),
        )

    new_BT = jnp.zeros((token_B.shape[0], STEPS_PER_CALL), jnp.int32)
    state = jnp.int32(0), cache, token_B, active_B, new_BT
    _, cache, _, _, new_BT = jax.lax.while_loop(
        lambda state: (state[0] < n) & state[3].any(), step, state
    )
    return cache, new_BT


def stream(
    inference_model: inference.InferenceModel,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
    sampling_params: sampling.SamplingParams,
    key: jax.Array,
    end_of_text: int | None = None,
    done_rows: set[int] | None = None,
    steps_per_call: int = STEPS_PER_CALL,
) -> Iterator[list[list[int]]]:
    """Yields the generated tokens as they come: each time the next few (at most `steps_per_call`)
    of every row, n_tokens in all.

    A row ends before end_of_text, or when the caller adds its index to `done_rows`. Prompts may
    differ in length. The model sees the last n_ctx tokens of a longer text. Once the context is
    full, it is prefilled again with its last half and decoding continues from there; positions
    always count from the first token in the context.

    Raises ValueError for an empty prompt, inference.NonFiniteLogits for NaN logits.
    """
    n_ctx, end = (
        inference_model.model.config.n_ctx,
        jax.device_put(np.int32(-1 if end_of_text is None else end_of_text)),
    )
    done_rows = set() if done_rows is None else done_rows
    texts = [list(prompt) for prompt in prompts]
    starts = [max(0, len(text) - n_ctx) for text in texts]
    n_generated = 0
    while n_generated < n_tokens and len(done_rows) < len(texts):
        windows = [text[start:] for text, start in zip(texts, starts, strict=True)]
        longest = max(map(len, windows))
        capacity = bucket_length(min(n_ctx, longest + n_tokens - n_generated), n_ctx)
        inputs = jax.device_put((*pad(windows, n_ctx), np.int32(n_generated)))
        cache, token_B = first_tokens(
            inference_model, *inputs, key, capacity=capacity, sampling_params=sampling_params
        )
        tokens_BT = jax.device_get(token_B)[:, None]
        while True:
            new = [
                [] if row in done_rows else _truncate(tokens, end_of_text)
                for row, tokens in enumerate(tokens_BT.tolist())
            ]
            if any(sampling.NONE in tokens for tokens in new):
                raise inference.NonFiniteLogits
            n_generated += tokens_BT.shape[1]
            for row, tokens in enumerate(new):
                texts[row] += tokens
                if row not in done_rows and len(tokens) < tokens_BT.shape[1]:
                    done_rows.add(row)
            yield new
            rows = [row for row in range(len(texts)) if row not in done_rows]
            # Each row's last token was sampled but not yet fed to the model.
            n_free = min((n_ctx + 1 - (len(texts[row]) - starts[row]) for row in rows), default=0)
            n = min(steps_per_call, n_tokens - n_generated, n_free)
            if n <= 0:
                break
            token_B, active_B = (
                np.array([text[-1] for text in texts], np.int32),
                np.array([row in rows for row in range(len(texts))]),
            )
            inputs = jax.device_put((token_B, active_B, np.int32(n_generated), np.int32(n)))
            cache, new_BT = decode_steps(
                inference_model, cache, *inputs, end, key, sampling_params=sampling_params
            )
            tokens_BT = jax.device_get(new_BT)[:, :n]
        starts = [
            len(text) - max(1, n_ctx // 2) if len(text) - b > n_ctx else b
            for text, b in zip(texts, starts, strict=True)
        ]


def _truncate(tokens, end_of_text):
    return tokens[: tokens.index(end_of_text)] if end_of_text in tokens else tokens


def generate(
    inference_model: inference.InferenceModel,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
    sampling_params: sampling.SamplingParams,
    key: jax.Array,
    end_of_text: int | None = None,
) -> list[list[int]]:
    """Returns up to n_tokens new tokens for each prompt, without the prompt: all of `stream`."""
    outputs = [[] for _ in prompts]
    for new in stream(inference_model, prompts, n_tokens, sampling_params, key, end_of_text):
        for row, tokens in zip(outputs, new, strict=True):
            row += tokens
    return outputs
