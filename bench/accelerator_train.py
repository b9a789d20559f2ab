"""Parts c and d of bench.accelerator: tokens per second and MFU of training steps.

c: a model with dense attention at doubling batch sizes until memory is used up or speed no longer
grows, without rematerialization; GPT-3's alternation of dense and banded layers at the best of
them; then dense attention with layers that save the inputs of their matmuls. The first batch size
is the power of two that gptjax's own count of activations allows. d: dense and banded attention in
one small model, at 2,048, 8,192 and 32,768 tokens, with the same tokens per step.

MFU = tokens/s x train_flops_per_token / (devices x peak bfloat16 FLOP/s): attention counts what its
pattern needs (config/count.py), backward is twice forward, recomputation is not counted. A step is
timed until its metrics have arrived; medians.
"""

import dataclasses
import functools
import itertools
import statistics
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bench import accelerator_rows
from bench.accelerator_rows import Figures, Recorder, target
from gptjax.aot import compile
from gptjax.config import count, schema
from gptjax.configs import registry
from gptjax.model import gpt
from gptjax.sharding import device_mesh, xla_options
from gptjax.training import metrics, state, step

MODELS = {"124m": "gpt2_124m", "350m": "gpt3_medium", "1.3b": "gpt3_xl"}
TOY = "toy"  # in place of each of them, without an accelerator
DENSE, WINDOW = schema.Dense(), schema.Banded(window=256)
TOY_WINDOW = schema.Banded(window=16)
REMATS = {"none": "none", "matmuls": "attention+qkv+mid+up"}  # by short names
MFU_TARGET, BANDED_TARGET = 0.45, 1.5
LENGTHS = (8192, 32768, 2048)
STEP_TOKENS = 32768
MIN_GAIN = 1.01  # of a doubled batch, for another doubling
MAX_TOY_ROWS = 4


class Program(NamedTuple):
    """A compiled step at one batch size, with its state and tokens on the device."""

    run: Any
    state: Any
    tokens: Any
    compile_s: float
    peak_bytes: int


def model_config(
    name: str, attention: tuple[schema.Attention, ...], n_ctx: int = 0
) -> schema.Config:
    """The config of a name of MODELS, or a tiny one, in one piece on one device, without
    dropout."""
    if name == TOY:
        config = registry.config("smoke")
        sizes = {"d_model": 64, "n_ctx": 128}
    else:
        config, sizes = registry.config(MODELS[name]), {}
    sizes |= {"n_ctx": n_ctx} if n_ctx else {}
    model = dataclasses.replace(
        config.model, attention=attention, dropout=schema.Dropout(), **sizes
    )
    train = dataclasses.replace(config.train, batch_tokens=model.n_ctx, batch_ramp=None)
    return dataclasses.replace(config, model=model, train=train, mesh=schema.Mesh())


def at_batch(config: schema.Config, rows: int, remat: str = "none") -> schema.Config:
    """The config with one microbatch of `rows` rows per step. remat: of REMATS."""
    train = dataclasses.replace(
        config.train, batch_tokens=rows * config.model.n_ctx, microbatch_rows=rows
    )
    compute = dataclasses.replace(config.compute, remat=REMATS[remat])
    return dataclasses.replace(config, train=train, compute=compute)


def mesh_of_one() -> jax.sharding.Mesh:
    """A mesh of the first device."""
    return device_mesh.make_mesh(schema.Mesh(), jax.devices()[:1])


def prepare(config: schema.Config) -> Program:
    """Initializes the state of a config on the first device and compiles its step."""
    mesh, device = mesh_of_one(), jax.devices()[0]
    train_step = step.build(config, device.platform, mesh, compile.END_OF_TEXT)
    shape = (1, config.batch_rows, config.model.n_ctx + 1)
    tokens = np.random.default_rng(0).integers(0, config.model.n_vocab, shape, np.int32)
    with jax.set_mesh(mesh):
        train_state = state.init_sharded(config, train_step.model, train_step.tx, mesh)
        batch = jax.device_put(tokens, NamedSharding(mesh, PartitionSpec()))
        options = xla_options.options(device)
        step_fn = jax.jit(train_step, donate_argnums=0, static_argnums=2, compiler_options=options)
        start = time.perf_counter()
        program = step_fn.lower(train_state, batch, 1).compile()
        compile_s = time.perf_counter() - start
    memory: Any = program.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    if device.platform != "cpu":  # where the peak is that of the arguments alone
        peak = memory.peak_memory_in_bytes or peak
    return Program(program, train_state, batch, compile_s, peak)


def time_step(config: schema.Config, rounds: int = 5) -> Figures:
    """The figures of training steps of a config; two more steps go before those that are timed.
    `verdict` WRONG alone if the loss is not finite."""
    program = prepare(config)
    train_state, seconds = program.state, []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        train_state, step_metrics = program.run(train_state, program.tokens)
        loss = jax.device_get(step_metrics["loss"]).item()
        seconds.append(time.perf_counter() - start)
    if not np.isfinite(loss):
        return {"verdict": "WRONG", "note": f"the loss is {loss}"}
    median = statistics.median(seconds[2:])
    speed = config.batch_rows * config.model.n_ctx / median
    flops = count.train_flops_per_token(config.model)
    return {
        "tokens_per_s": speed,
        "mfu": metrics.mfu(flops, speed, jax.devices()[:1]),
        "ms": median * 1e3,
        "step_seconds": seconds,
        "n_ctx": config.model.n_ctx,
        "rows": config.batch_rows,
        "peak_bytes": program.peak_bytes,
        "compile_s": program.compile_s,
    }


def first_rows(config: schema.Config) -> int:
    """The largest power of two of rows whose activations fit by gptjax's count, at least 1; 1 where
    the device does not report its memory."""
    stats, mesh = jax.devices()[0].memory_stats(), mesh_of_one()
    if stats is None:
        return 1
    free = count.activation_budget(
        config.model, stats["bytes_limit"], count.state_bytes(config.model), 1
    )
    policy = gpt.execution_policy(config.compute, jax.devices()[0].platform)
    rows = step.max_microbatch_rows(config, policy, mesh, 1, free)
    return 1 << (rows.bit_length() - 1)


def next_rows(speeds: dict[int, float | None], most: int | None) -> int | None:
    """The batch size to try after those of `speeds`, tokens/s or None where memory did not suffice:
    half of the least if none fits, else twice the largest that fits, as long as doubling gains;
    None if the best is known. most: rows at most."""
    fits = {rows: speed for rows, speed in speeds.items() if speed is not None}
    if not fits:
        return min(speeds) // 2 or None
    largest = max(fits)
    doubled, before = 2 * largest, fits.get(largest // 2)
    gains = before is None or fits[largest] >= MIN_GAIN * before
    is_allowed = doubled not in speeds and (most is None or doubled <= most)
    return doubled if gains and is_allowed else None


def measure_model(recorder: Recorder, name: str) -> None:
    """Part c of one model: dense layers at each batch size, GPT-3's alternation of layers at the
    best of them, and dense layers with rematerialization."""
    window = TOY_WINDOW if recorder.is_toy else WINDOW
    dense, mixed = (model_config(name, layers) for layers in ((DENSE,), (DENSE, window)))

    def alternating() -> Figures:
        best = recorder.best(dense_rows(name))
        if best is None:
            return {"verdict": "not measured", "note": "no batch of dense layers fits"}
        figures = time_step(at_batch(mixed, best["rows"], best["remat"]))
        if "verdict" in figures:
            return figures
        note = f"batch {best['rows']}, remat {best['remat']}"
        return figures | {"to_dense": figures["tokens_per_s"] / best["tokens_per_s"], "note": note}

    measure_batches(recorder, name, dense, "none")
    recorder.measure([(f"{name} dense and banded layers", alternating)])
    measure_batches(recorder, name, dense, "matmuls")


def dense_rows(name: str) -> str:
    """How the rows of a model with dense layers, one for each batch size, begin."""
    return f"{name} dense, batch"


def measure_batches(recorder: Recorder, name: str, config: schema.Config, remat: str) -> None:
    """Records a row for each batch size that next_rows chooses, and one for the best so far, with
    the target: none below 350M, whose matmuls are small."""
    most = MAX_TOY_ROWS if recorder.is_toy else None
    speeds: dict[int, float | None] = {}

    def measure(rows: int) -> Figures:
        speeds[rows] = None
        figures = time_step(at_batch(config, rows, remat))
        speeds[rows] = figures.get("tokens_per_s")
        return figures | {"remat": remat}

    rows: int | None = first_rows(at_batch(config, 1, remat))
    while rows is not None:
        what = f"{dense_rows(name)} {rows}, remat {remat}"
        recorder.measure([(what, functools.partial(measure, rows))])
        if rows not in speeds:  # no time was left
            break
        rows = next_rows(speeds, most)
    best = recorder.best(dense_rows(name))
    if best and any(speeds.values()):
        met = None if best["mfu"] is None or name == "124m" else best["mfu"] >= MFU_TARGET
        figures = {key: best[key] for key in ("tokens_per_s", "mfu", "ms", "rows", "remat")}
        note = f"batch {best['rows']}, remat {best['remat']}"
        words = target(f"MFU of {MFU_TARGET:.0%}", met)
        recorder.add(f"{name} dense at its best", **figures, note=note, **words)


def measure_lengths(recorder: Recorder, name: str) -> None:
    """Part d: banded attention and dense at three lengths. Layers are all banded, or every second
    one as in GPT-3."""
    window = TOY_WINDOW if recorder.is_toy else WINDOW
    arms = {"dense": (DENSE,), "banded": (window,), "dense and banded": (DENSE, window)}
    lengths, tokens = ((512, 256), 512) if recorder.is_toy else (LENGTHS, STEP_TOKENS)
    speeds: dict[int, float] = {}

    def measure(n_ctx: int, arm: str) -> Figures:
        config = model_config(name, arms[arm], n_ctx)
        figures = time_step(at_batch(config, tokens // n_ctx), 3)
        if "verdict" in figures:
            return figures
        if arm == "dense":
            speeds[n_ctx] = figures["tokens_per_s"]
            return figures
        if n_ctx not in speeds:
            return figures
        figures["to_dense"] = ratio = figures["tokens_per_s"] / speeds[n_ctx]
        has_target = arm == "banded" and n_ctx == 8192
        words = f"{BANDED_TARGET} x dense at 8,192 tokens"
        return figures | target(words, ratio >= BANDED_TARGET if has_target else None)

    recorder.measure(
        (f"{name} {arm}, {n_ctx:,} tokens", functools.partial(measure, n_ctx, arm))
        for n_ctx, arm in [
            *itertools.product(lengths, ("dense", "banded")),
            *itertools.product(lengths, ("dense and banded",)),
        ]
    )


def measure(recorder: Recorder, names: list[str]) -> None:
    """Part c of the named models, or part d of one."""
    for name in names:
        (measure_model if recorder.part == "c" else measure_lengths)(recorder, name)


if __name__ == "__main__":
    accelerator_rows.run_part(measure)
