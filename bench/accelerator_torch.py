"""The others' side of bench.accelerator, in processes of its own: nanoGPT's training step (part c)
and generation by transformers (part e), of the same shapes.

nanoGPT as its train.py uses it: torch.compile, flash attention, bfloat16 autocast, TF32 for other
matmuls, fused AdamW, gradients clipped; biases and no dropout, as in gptjax's configs. It starts
with gptjax's best batch size, at most 65,536 tokens, and halves it until two sizes have fit.
transformers: GPT2LMHeadModel in bfloat16, not compiled, with its cache. Both with random weights.
"""

import functools
import statistics
import time
import types
from typing import Any

import jax
import numpy as np
import torch

from bench import accelerator_generation, accelerator_rows, accelerator_train, generation, step
from bench.accelerator_rows import Figures, Recorder, target
from gptjax.config import count, schema
from gptjax.training import metrics

LR = 1e-4
MAX_TOKENS = 65536  # of a batch: the logits of more may not fit


def device_name() -> str:
    """torch's name of the device."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Waits until the device has nothing to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def nanogpt_step(model: schema.Model, rows: int, directory: str):
    """Returns a function that takes one training step of nanoGPT and returns the loss."""
    device = device_name()
    torch.backends.cuda.matmul.allow_tf32 = True
    # Otherwise the second batch size is compiled for any size, and the first's arrays stay.
    torch.compiler.reset()
    torch.cuda.empty_cache()
    with torch.device(device):
        gpt = step.nanogpt_model(model, directory)
    optimizer = gpt.configure_optimizers(0.1, LR, (0.9, 0.95), device)
    compiled: Any = torch.compile(gpt) if device == "cuda" else gpt
    tokens = np.random.default_rng(0).integers(0, model.n_vocab, (rows, model.n_ctx + 1))
    tokens_B1 = torch.from_numpy(tokens).to(device)
    inputs_BT, targets_BT = tokens_B1[:, :-1].contiguous(), tokens_B1[:, 1:].contiguous()

    def advance() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            _, loss = compiled(inputs_BT, targets_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return advance


def time_nanogpt(model: schema.Model, rows: int, directory: str, rounds: int = 5) -> Figures:
    """The figures of nanoGPT's training steps; three more steps go before those that are timed."""
    advance, seconds = nanogpt_step(model, rows, directory), []
    for _ in range(rounds + 3):
        start = time.perf_counter()
        loss = advance()
        wait()
        seconds.append(time.perf_counter() - start)
    assert np.isfinite(loss), loss
    median = statistics.median(seconds[3:])
    return {
        "tokens_per_s": rows * model.n_ctx / median,
        "ms": median * 1e3,
        "step_seconds": seconds,
        "rows": rows,
        "compile_s": seconds[0],
    }


def measure_nanogpt(recorder: Recorder, name: str, model: schema.Model, directory: str) -> None:
    """Records nanoGPT's speed at the largest two batch sizes that fit, and gptjax's against it."""
    ours = recorder.best(accelerator_train.dense_rows(name))
    rows = max(1, MAX_TOKENS // model.n_ctx)
    rows = min(rows, ours["rows"]) if ours else rows
    speeds: list[float] = []

    def measure(rows: int) -> Figures:
        figures = time_nanogpt(model, rows, directory)
        speeds.append(figures["tokens_per_s"])
        card = types.SimpleNamespace(device_kind=recorder.card)
        mfu = metrics.mfu(count.train_flops_per_token(model), speeds[-1], [card])
        return figures | {"mfu": mfu}

    recorder.measure(
        (f"{name} nanoGPT, batch {rows >> i}", functools.partial(measure, rows >> i))
        for i in range(rows.bit_length())
        if len(speeds) < 2
    )
    if ours and speeds:
        ratio = ours["tokens_per_s"] / max(speeds)
        words = f"nanoGPT's speed, {name}"
        figures = target(words, None if recorder.is_toy else ratio >= 1)
        recorder.add(f"{name} gptjax against nanoGPT", to_nanogpt=ratio, **figures)


def hf_generate(model: schema.Model, batch: int, n_prompt: int):
    """Returns a function of a number of tokens: transformers generates them, greedily."""
    device = device_name()
    with torch.device(device):
        hf: Any = generation.new_hf_model(model)
    hf.to(dtype=torch.bfloat16)
    prompts = np.random.default_rng(batch).integers(0, model.n_vocab, (batch, n_prompt))
    ids = torch.from_numpy(prompts).to(device)

    def generate(n_tokens: int) -> None:
        lengths = {"min_new_tokens": n_tokens, "max_new_tokens": n_tokens}
        with torch.inference_mode():
            hf.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **lengths
            )
        wait()

    return generate


def measure_transformers(recorder: Recorder, names: list[str]) -> None:
    """Records the speed of transformers for each model at each batch size, with gptjax's against
    it."""
    n_prompt, n_new = accelerator_generation.lengths(recorder.is_toy)

    def measure(name: str, batch: int) -> None:
        model = accelerator_train.model_config(name, (schema.Dense(),)).model
        generate = hf_generate(model, batch, n_prompt)
        figures = accelerator_generation.time_generation(generate, batch, n_prompt, n_new)
        for what, theirs in figures.items():
            recorder.add(f"{name} transformers {what}, batch {batch}", **theirs)
            ours = recorder.best(f"{name} {what}, batch {batch}")
            if ours and "tokens_per_s" in theirs:
                ratio = ours["tokens_per_s"] / theirs["tokens_per_s"]
                title = f"{name} gptjax against transformers, {what}, batch {batch}"
                recorder.add(title, to_transformers=ratio)

    recorder.measure(
        (f"{name} transformers, batch {batch}", functools.partial(measure, name, batch))
        for batch in accelerator_generation.BATCHES
        for name in names
    )


def measure(recorder: Recorder, names: list[str]) -> None:
    """Part c: a model and the directory of nanoGPT. Part e: models."""
    jax.config.update("jax_platforms", "cpu")  # all memory of the device is torch's
    if recorder.part == "e":
        return measure_transformers(recorder, names)
    name, directory = names
    model = accelerator_train.model_config(name, (schema.Dense(),)).model
    return measure_nanogpt(recorder, name, model, directory)


if __name__ == "__main__":
    accelerator_rows.run_part(measure)
