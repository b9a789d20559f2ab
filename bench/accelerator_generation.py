"""Part e of bench.accelerator: tokens per second of prefill and decoding, against the floor that
bandwidth sets; bench.accelerator_torch compares transformers.

Greedy, prompts of 512 tokens and 128 new ones, weights in bfloat16, dense attention. Prefill: the
prompts and the first token. Decoding: the other tokens, by the difference of both times. The floor
is what a step must read, weights and cache, over the bandwidth of this device, measured by adding 1
to a large array: a read and a write.
"""

import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bench import accelerator_rows, accelerator_train
from bench.accelerator_rows import Figures, Recorder, target
from gptjax.config import count, schema
from gptjax.generate import decode, sampling
from gptjax.model import gpt, inference
from gptjax.sharding import chips

BATCHES = (1, 8)
FLOOR_TARGET = 2.0
GREEDY = sampling.SamplingParams(temperature=0)


def lengths(is_toy: bool) -> tuple[int, int]:
    """Tokens of a prompt, and new ones. They share a power of two with one new token, so that one
    program serves both."""
    return (40, 16) if is_toy else (512, 128)


def time_generation(
    generate: Callable[[int], None], batch: int, n_prompt: int, n_new: int, rounds: int = 3
) -> dict[str, Figures]:
    """The figures of prefill and of decoding. generate(n) generates n tokens for each of `batch`
    prompts and is done when it returns; its first call of each length is not timed. Decoding has no
    figure where noise hides it."""
    seconds: dict[int, list[float]] = {1: [], n_new: []}
    for i, n in [(i, n) for i in range(rounds + 1) for n in seconds]:
        start = time.perf_counter()
        generate(n)
        if i:
            seconds[n].append(time.perf_counter() - start)
    first, whole = (statistics.median(times) for times in seconds.values())
    step = (whole - first) / (n_new - 1)
    decoding: Figures = {"verdict": "not measured", "note": f"{n_new} tokens no slower than 1"}
    if step > 0:
        decoding = {"tokens_per_s": batch / step, "ms": step * 1e3, "seconds_of_all": whole}
    return {
        "prefill": {"tokens_per_s": batch * n_prompt / first, "ms": first * 1e3},
        "decoding": decoding,
    }


def measure_bandwidth(n_bytes: int, rounds: int = 3, n_additions: int = 20) -> float:
    """Bytes per second of additions to an array, read and written; the best round. The additions of
    a round are dispatched together, so that their launch is hidden."""
    x = jnp.ones(n_bytes // 4, jnp.float32)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    seconds = []
    for _ in range(rounds + 1):  # the first compiles
        start = time.perf_counter()
        for _ in range(n_additions):
            x = add(x)
        x.block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * x.nbytes * n_additions / min(seconds)


def load(name: str) -> inference.InferenceModel:
    """A model with random weights, prepared for inference."""
    config = accelerator_train.model_config(name, (schema.Dense(),)).model
    model = gpt.GPT(config, gpt.execution_policy(schema.Compute(), jax.devices()[0].platform))
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 1), jnp.int32))["params"])
    return inference.prepare(model, init(jax.random.key(0)))


def step_bytes(lm: inference.InferenceModel, batch: int, n_tokens: float) -> float:
    """Bytes that a decode step reads: all weights but the table of positions, and the cache of
    n_tokens of each text."""
    weights = sum(x.nbytes for x in jax.tree.leaves(lm.params)) - lm.params["position_TD"].nbytes
    dtype = "bfloat16" if lm.model.execution_policy.dtype == jnp.bfloat16 else "float32"
    return weights + batch * count.kv_cache_bytes(lm.model.config, int(n_tokens), dtype)


def measure(recorder: Recorder, names: list[str]) -> None:
    """Records the bandwidth, and the figures of each named model at each batch size."""
    n_prompt, n_new = lengths(recorder.is_toy)
    bandwidth: list[float] = []

    def copy() -> Figures:
        bandwidth.append(measure_bandwidth(2**26 if recorder.is_toy else 2**32))
        chip = chips.from_device(jax.devices()[0])
        sheet = {} if chip is None else {"note": f"data sheet {chip.hbm_bandwidth / 1e9:,.0f} GB/s"}
        return {"gb_per_s": bandwidth[0] / 1e9} | sheet

    load_once = functools.lru_cache(1)(load)

    def generate(name: str, batch: int) -> None:
        lm = load_once(name)
        n_vocab = lm.model.config.n_vocab
        prompts = np.random.default_rng(batch).integers(0, n_vocab, (batch, n_prompt)).tolist()

        def run(n: int) -> None:
            decode.generate(lm, prompts, n, GREEDY, jax.random.key(0))

        figures = time_generation(run, batch, n_prompt, n_new)
        recorder.add(f"{name} prefill, batch {batch}", **figures["prefill"])
        if bandwidth and "ms" in figures["decoding"]:
            floor = step_bytes(lm, batch, n_prompt + n_new / 2) / bandwidth[0]
            ratio = figures["decoding"]["ms"] / 1e3 / floor
            has_target = batch == 1 and not recorder.is_toy
            words = f"decoding within {FLOOR_TARGET:.0f} x the floor, {name}"
            figures["decoding"] |= {"to_floor": ratio, "floor_ms": floor * 1e3}
            figures["decoding"] |= target(words, ratio <= FLOOR_TARGET if has_target else None)
        recorder.add(f"{name} decoding, batch {batch}", **figures["decoding"])

    models = [
        (f"{name} generation, batch {batch}", functools.partial(generate, name, batch))
        for batch in BATCHES
        for name in names
    ]
    recorder.measure([("bandwidth of a copy", copy), *models])


if __name__ == "__main__":
    accelerator_rows.run_part(measure)
