"""What generation costs a model: bytes of its KV cache and tokens per second, which depend on its
sizes and form, not on its weights."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from gptjax.config import count
from gptjax.config.model import Model

DECODED_TOKENS = 64  # the last ones of a context, at most


def cache_bytes_per_token(model: Model) -> float:
    """Returns the bytes of the KV cache of one row of n_ctx tokens, in bfloat16, divided by n_ctx:
    a layer with a window keeps only the keys and values that its last query sees."""
    return count.kv_cache_bytes(model, model.n_ctx, "bfloat16") / model.n_ctx


def decode_speeds(models: Sequence[Model], rounds: int) -> list[float]:
    """Returns the tokens per second with which each model, with random weights in float32, decodes
    the last tokens of one row's context greedily; the fastest of rounds in which every model has
    its turn, since the others were slowed by other programs."""
    decoders = [_decoder(model) for model in models]
    for decode in decoders:  # compile
        decode()
    speeds = [[decode() for decode in decoders] for _ in range(rounds)]
    return [max(samples) for samples in zip(*speeds, strict=True)]


def _decoder(model: Model) -> Callable[[], float]:
    """Returns a function that decodes once and returns its tokens per second. The cache that it
    begins with is zeros: its contents do not change the work."""
    import jax
    import jax.numpy as jnp

    from gptjax.model import inference, kv_cache

    n_tokens = min(DECODED_TOKENS, model.n_ctx // 2)
    lm = jax.jit(_random_model, static_argnums=(0, 1))(model, jax.default_backend())
    cache = kv_cache.empty(model, 1, model.n_ctx, jnp.float32)
    cache = cache.replace(lengths_B=jnp.full(1, model.n_ctx - n_tokens, jnp.int32))

    @jax.jit
    def decode(lm, cache, token_B):
        def step(state, _):
            cache, token_B = state
            cache, x_BTD = inference.decode_step(
                lm, cache, token_B[:, None], jnp.ones_like(token_B)
            )
            token_B = jnp.argmax(inference.logits(lm, x_BTD)[:, 0], axis=1).astype(jnp.int32)
            return (cache, token_B), token_B

        return jax.lax.scan(step, (cache, token_B), length=n_tokens)[1]

    def tokens_per_s() -> float:
        start = time.perf_counter()
        decode(lm, cache, jnp.zeros(1, jnp.int32)).block_until_ready()
        return n_tokens / (time.perf_counter() - start)

    return tokens_per_s


def _random_model(model: Model, platform: str) -> Any:
    """The model with random weights, prepared for inference on a platform of jax."""
    import jax
    import jax.numpy as jnp

    from gptjax.config.schema import Compute
    from gptjax.model import gpt, inference

    module = gpt.GPT(model, gpt.execution_policy(Compute(dtype="float32"), platform))
    tokens_BT = jnp.zeros((1, 1), jnp.int32)
    return inference.prepare(module, module.init(jax.random.key(0), tokens_BT)["params"])
