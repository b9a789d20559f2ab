"""Autoregressive decoding: the prompts are read once, then each token by itself, from the cache of what was read before."""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.generate import sampling as choose
from gptjax.model import inference, kv_cache

SHORTEST = 32  # lengths are padded to powers of two from here up to the context, so that few programs are compiled
AT_ONCE = 16  # the most tokens that one call of a program chooses


def bucket(n: int, n_ctx: int) -> int:
    """The padded length of n tokens."""
    return min(n_ctx, max(SHORTEST, 1 << (n - 1).bit_length()))


def padded(texts: Sequence[Sequence[int]], n_ctx: int) -> tuple[np.ndarray, np.ndarray]:
    """int32 (B, T) tokens, T the bucket of the longest text, and (B,) lengths. Raises ValueError for an empty text."""
    if not all(texts):
        raise ValueError("an empty prompt: give at least one token, for example a newline")
    lengths_B = np.array([len(text) for text in texts], np.int32)
    tokens_BT = np.zeros((len(texts), bucket(int(lengths_B.max()), n_ctx)), np.int32)
    for row, text in enumerate(texts):
        tokens_BT[row, : len(text)] = text
    return tokens_BT, lengths_B


@functools.partial(jax.jit, static_argnames=("capacity", "sampling"))
def _begin(reader: inference.Reader, tokens_BT, counts_B, number, key, capacity: int, sampling: choose.Sampling):
    """(cache, the token after each row)."""
    memory, x_BTD = inference.prefill(reader, tokens_BT, counts_B, capacity)
    y_BTV = inference.predictions(reader, inference.last(x_BTD, counts_B))
    return memory, choose.choose(y_BTV[:, 0], sampling, jax.random.fold_in(key, number))


@functools.partial(jax.jit, static_argnames="sampling", donate_argnames="memory")
def _go_on(reader: inference.Reader, memory: kv_cache.Cache, token_B, open_B, number, n, end_of_text, key, sampling: choose.Sampling):
    """(cache, tokens (B, AT_ONCE)): n times read a token of each open row and choose its next; fewer if no row stays open. A row closes
    after end_of_text. number: how many tokens were chosen before."""

    def one(state):
        i, memory, token_B, open_B, said_BT = state
        memory, x_BTD = inference.extend(reader, memory, token_B[:, None], open_B.astype(jnp.int32))
        token_B = choose.choose(inference.predictions(reader, x_BTD)[:, 0], sampling, jax.random.fold_in(key, number + i))
        return i + 1, memory, token_B, open_B & (token_B != end_of_text), said_BT.at[:, i].set(token_B)

    said_BT = jnp.zeros((token_B.shape[0], AT_ONCE), jnp.int32)
    state = jnp.int32(0), memory, token_B, open_B, said_BT
    _, memory, _, _, said_BT = jax.lax.while_loop(lambda state: (state[0] < n) & state[3].any(), one, state)
    return memory, said_BT


def stream(
    reader: inference.Reader,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
    sampling: choose.Sampling,
    key: jax.Array,
    end_of_text: int | None = None,
    closed: set[int] | None = None,
    at_once: int = AT_ONCE,
) -> Iterator[list[list[int]]]:
    """The tokens that follow each prompt, as they come: each time the next few (at most `at_once`) of every row, n_tokens in all.

    A row ends before end_of_text, and as soon as the caller puts its number into `closed`. Prompts may differ in length. Of a longer text
    the model reads the last n_ctx tokens; where these have no room for another, the last half of them, and goes on from there: always as
    though the text began where the reading does. ValueError for an empty prompt; reading.NonFiniteLogits where the model says NaN."""
    n_ctx, end = reader.model.config.n_ctx, jax.device_put(np.int32(-1 if end_of_text is None else end_of_text))
    closed = set() if closed is None else closed
    texts = [list(prompt) for prompt in prompts]
    begins = [max(0, len(text) - n_ctx) for text in texts]
    said = 0
    while said < n_tokens and len(closed) < len(texts):
        views = [text[begin:] for text, begin in zip(texts, begins, strict=True)]
        longest = max(map(len, views))
        capacity = bucket(min(n_ctx, longest + n_tokens - said), n_ctx)
        put = jax.device_put((*padded(views, n_ctx), np.int32(said)))
        memory, token_B = _begin(reader, *put, key, capacity=capacity, sampling=sampling)
        chosen_BT = jax.device_get(token_B)[:, None]
        while True:
            new = [[] if row in closed else _until(tokens, end_of_text) for row, tokens in enumerate(chosen_BT.tolist())]
            if any(choose.NONE in tokens for tokens in new):
                raise inference.NonFiniteLogits
            said += chosen_BT.shape[1]
            for row, tokens in enumerate(new):
                texts[row] += tokens
                if row not in closed and len(tokens) < chosen_BT.shape[1]:
                    closed.add(row)
            yield new
            rows = [row for row in range(len(texts)) if row not in closed]
            # A row's last token was chosen, but is not read yet.
            room = min((n_ctx + 1 - (len(texts[row]) - begins[row]) for row in rows), default=0)
            n = min(at_once, n_tokens - said, room)
            if n <= 0:
                break
            token_B, open_B = np.array([text[-1] for text in texts], np.int32), np.array([row in rows for row in range(len(texts))])
            put = jax.device_put((token_B, open_B, np.int32(said), np.int32(n)))
            memory, said_BT = _go_on(reader, memory, *put, end, key, sampling=sampling)
            chosen_BT = jax.device_get(said_BT)[:, :n]
        begins = [len(text) - max(1, n_ctx // 2) if len(text) - b > n_ctx else b for text, b in zip(texts, begins, strict=True)]


def _until(tokens, end_of_text):
    return tokens[: tokens.index(end_of_text)] if end_of_text in tokens else tokens


def continuations(
    reader: inference.Reader,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
    sampling: choose.Sampling,
    key: jax.Array,
    end_of_text: int | None = None,
) -> list[list[int]]:
    """`stream` at its end: up to n_tokens new tokens for each prompt, without the prompt."""
    said = [[] for _ in prompts]
    for new in stream(reader, prompts, n_tokens, sampling, key, end_of_text):
        for row, tokens in zip(said, new, strict=True):
            row += tokens
    return said
