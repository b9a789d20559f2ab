"""What generation costs a model: bytes of its KV cache and tokens per second, which depend on its
sizes and form, not on its weights."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from gptjax.config.model import Model

CACHE_ELEMENT_BYTES = 2  # bfloat16
DECODED_TOKENS = 64  # the last ones of a context, at most


def cache_bytes_per_token(model: Model) -> float:
    """Returns the bytes of the KV cache of one row of n_ctx tokens, in bfloat16, divided by n_ctx:
    a layer with a window keeps only the keys and values that its last query sees."""
    import jax

    layers = _full_cache_shapes(model).layers
    n_elements = sum(x.size for x in jax.tree.leaves(layers))
    return CACHE_ELEMENT_BYTES * n_elements / model.n_ctx


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

    from gptjax.model import inference

    n_tokens = min(DECODED_TOKENS, model.n_ctx // 2)
    lm = jax.jit(_random_model, static_argnums=(0, 1))(model, jax.default_backend())
    cache = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), _full_cache_shapes(model))
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


def _full_cache_shapes(model: Model) -> Any:
    """The shapes of a float32 KV cache that holds one row of n_ctx tokens."""
    import jax
    import jax.numpy as jnp

    from gptjax.model import inference

    def fill_cache():
        tokens_BT, counts_B = jnp.zeros((1, 1), jnp.int32), jnp.ones(1, jnp.int32)
        lm = _random_model(model, "cpu")  # whatever the device, which this leaves alone
        return inference.prefill(lm, tokens_BT, counts_B, model.n_ctx)[0]

    return jax.eval_shape(fill_cache)


def _random_model(model: Model, platform: str) -> Any:
    """The model with random weights, prepared for inference on a platform of jax."""
    import jax
    import jax.numpy as jnp

    from gptjax.config.schema import Compute
    from gptjax.model import gpt, inference

    module = gpt.GPT(model, gpt.execution_policy(Compute(dtype="float32"), platform))
    tokens_BT = jnp.zeros((1, 1), jnp.int32)
    return inference.prepare(module, module.init(jax.random.key(0), tokens_BT)["params"])
