"""Training and generation on the present accelerator; without one, every kernel and step is
compiled ahead of time instead.

    python -m bench.accelerator [--configs=gpt2_124m,gpt3_small,gpt3_medium,gpt3_xl] [--rounds=5]
    [--out=accelerator.json]

Training: each config with its own attention and with dense attention, by the platform's kernel and
by the reference, at doubling batch sizes until memory runs out, and again at four times the
context. Medians, relative to dense attention by the platform's kernel (cuDNN on NVIDIA, splash on
TPU) in the same run; one after the other, since two states of a large model do not fit. Generation:
64 tokens after a prompt of 64. MFU = tokens/s x train_flops_per_token / (devices x peak bfloat16
FLOP/s): attention counts what its pattern needs (config/count.py), backward is twice forward,
recomputation is not counted. All figures are also written to a JSON file.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from typing import Any

import jax
import numpy as np

from gptjax.aot import compile
from gptjax.config import count, parse, schema
from gptjax.configs import registry
from gptjax.generate import decode, sampling
from gptjax.model import inference
from gptjax.model.attention import dispatch
from gptjax.sharding import device_mesh, rules, topology
from gptjax.training import metrics, state, step

CONFIGS = "gpt2_124m,gpt3_small,gpt3_medium,gpt3_xl"
AOT_TARGETS = ("h100-1", "v5p:2x2x1")  # compiled for without an accelerator
PATTERNS = (
    schema.Dense(),
    schema.Banded(window=256),
    schema.Strided(stride=128),
    schema.Fixed(block=128, summary=8),
)
Row = dict[str, Any]


def bench_config(
    config: schema.Config, n_ctx: int, rows: int, attention: tuple, kernel: str
) -> schema.Config:
    """The config with one microbatch of `rows` rows of n_ctx tokens per step, without dropout."""
    model = dataclasses.replace(
        config.model, n_ctx=n_ctx, attention=attention, dropout=schema.Dropout()
    )
    train = dataclasses.replace(
        config.train, batch_tokens=rows * n_ctx, batch_ramp=None, microbatch_rows=rows
    )
    compute = dataclasses.replace(config.compute, attention_kernel=kernel)
    return dataclasses.replace(config, model=model, train=train, compute=compute)


def make_arms(config: schema.Config) -> dict[str, tuple[tuple, str]]:
    """The compared variants: name -> (attention, kernel). The first is the baseline."""
    dense, config_attention = (schema.Dense(),), config.model.attention
    dense_arms = {"dense, auto": (dense, "auto"), "dense, reference": (dense, "reference")}
    return (
        dense_arms
        if config_attention == dense
        else dense_arms
        | {
            "own, auto": (config_attention, "auto"),
            "own, reference": (config_attention, "reference"),
        }
    )


def time_training(
    name: str, config: schema.Config, n_ctx: int, rows: int, rounds: int
) -> list[Row]:
    """Returns a row for each arm that fits in memory."""
    mesh = device_mesh.make_mesh(config.mesh)
    platform = mesh.devices.flat[0].platform
    seconds: dict[str, list[float]] = {}
    tokens = np.random.default_rng(0).integers(
        0, config.model.n_vocab, (1, rows, n_ctx + 1), dtype=np.int32
    )
    results = []
    # One state at a time: two of the larger models do not fit.
    for arm, (attention, kernel) in make_arms(config).items():
        arm_config = bench_config(config, n_ctx, rows, attention, kernel)
        try:
            train_step, program, shape = compile.compile_program(arm_config, mesh, platform, rows)
            with jax.set_mesh(mesh):
                train_state = state.init_sharded(arm_config, train_step.model, train_step.tx, mesh)
                batch = jax.device_put(tokens, shape.sharding)
                seconds[arm] = []
                for i in range(rounds + 2):  # the first two rounds are warm-up
                    start_time = time.perf_counter()
                    train_state, step_metrics = program(train_state, batch)
                    jax.block_until_ready(step_metrics)
                    if i >= 2:
                        seconds[arm].append(time.perf_counter() - start_time)
        except jax.errors.JaxRuntimeError as error:
            if not compile.is_out_of_memory(error):
                raise
            seconds.pop(arm, None)
            print(f"{name:12} {n_ctx:6,} {rows:5} {arm:18} out of memory", flush=True)
            continue
        speed = rows * n_ctx / statistics.median(seconds[arm])
        mfu = metrics.mfu(
            count.train_flops_per_token(arm_config.model), speed, mesh.devices.ravel()
        )
        baseline = (
            statistics.median(seconds["dense, auto"]) / statistics.median(seconds[arm])
            if "dense, auto" in seconds
            else None
        )
        row = {
            "config": name,
            "n_ctx": n_ctx,
            "rows": rows,
            "arm": arm,
            "tokens_per_s": speed,
            "mfu": mfu,
            "to_dense": baseline,
        }
        results.append(row)
        of_peak = "      -" if mfu is None else f"{mfu:7.1%}"
        ratio = "" if baseline is None else f"{baseline:6.2f} x dense"
        print(
            f"{name:12} {n_ctx:6,} {rows:5} {arm:18} {speed:12,.0f} tokens/s  MFU {of_peak} "
            f"{ratio}",
            flush=True,
        )
    return results


def time_generation(name: str, config: schema.Config, batch: int, rounds: int) -> Row:
    """Tokens/s of greedy decoding, with prompts of 64 tokens and 64 new ones, including prefill."""
    mesh = device_mesh.make_mesh(dataclasses.replace(config.mesh, fsdp=1), jax.devices()[:1])
    train_step = step.build(config, mesh.devices.flat[0].platform, mesh, None)
    model = train_step.model.clone(sharding=rules.UNSHARDED)
    params = jax.jit(lambda: state.init_state(config, model, train_step.tx).params)()
    inference_model = inference.prepare(model, params)
    prompts = np.random.default_rng(0).integers(0, config.model.n_vocab, (batch, 64)).tolist()
    seconds = []
    for i in range(rounds + 1):
        start_time = time.perf_counter()
        decode.generate(
            inference_model,
            prompts,
            64,
            sampling.SamplingParams(temperature=0.0),
            jax.random.key(0),
        )
        if i:
            seconds.append(time.perf_counter() - start_time)
    speed = 64 * batch / statistics.median(seconds)
    print(f"{name:12} generation, batch {batch}: {speed:,.0f} tokens/s", flush=True)
    return {"config": name, "generation_batch": batch, "tokens_per_s": speed}


def compile_all(target: topology.Topology, names: list[str]) -> list[Row]:
    """Compiles each kernel of the platform, forward and backward, and each config's step, for chips
    that are not present.
    """
    results, n = [], target.n_devices
    kernel = dispatch.resolve_name("auto", target.platform)
    for pattern in PATTERNS:
        model = dataclasses.replace(
            registry.config("gpt3_small").model,
            n_layers=1,
            attention=(pattern,),
            n_ctx=2048,
            d_model=256,
            n_heads=4,
            n_vocab=256,
        )
        config = bench_config(
            dataclasses.replace(registry.config("gpt3_small"), model=model),
            2048,
            n,
            (pattern,),
            "auto",
        )
        kernel_name, reason = dispatch.select(kernel, pattern, np.dtype("bfloat16"), 64)
        results.append(
            _compile_row(
                f"{pattern} by {kernel_name}{f' ({reason})' if reason else ''}", config, target
            )
        )
    for name in names:
        config = registry.config(name)
        config = bench_config(
            dataclasses.replace(config, mesh=schema.Mesh()),
            config.model.n_ctx,
            n,
            config.model.attention,
            "auto",
        )
        results.append(_compile_row(name, config, target))
    return results


def _compile_row(label: str, config: schema.Config, target: topology.Topology) -> Row:
    compiled = compile.compile_step(config, target)
    kernel_names = ", ".join(compiled.program.kernel_counts()) or "none of a library's"
    verdict = "fits" if compiled.peak_bytes <= compiled.memory_limit else "does not fit"
    print(
        f"{target!s:10} {label:40} compiled in {compiled.compile_seconds:5.1f} s; "
        f"{compiled.peak_bytes / 2**30:6.2f} GiB a chip, {verdict}; {kernel_names}",
        flush=True,
    )
    return {
        "target": str(target),
        "what": label,
        "compile_seconds": compiled.compile_seconds,
        "peak_bytes": compiled.peak_bytes,
        "kernels": kernel_names,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", default=CONFIGS, help=f"comma-separated (default: {CONFIGS})")
    parser.add_argument(
        "--rounds", type=parse.int_argument(), default=5, help="timed steps of each (default: 5)"
    )
    parser.add_argument(
        "--out", default="accelerator.json", help="where the figures go (default: accelerator.json)"
    )
    args = parser.parse_args()
    names = args.configs.split(",")
    device = jax.devices()[0]
    results: list[Row] = []
    if device.platform == "cpu":
        print(
            "no accelerator here: each kernel and step is compiled ahead of time instead, and "
            "nothing is timed",
            flush=True,
        )
        for target in map(topology.from_name, AOT_TARGETS):
            try:
                results += compile_all(target, names)
            except ValueError as missing:  # its compiler is not installed
                print(f"{target}: {missing}", flush=True)
    else:
        for name in names:
            config = registry.config(name)
            for n_ctx in (config.model.n_ctx, 4 * config.model.n_ctx):
                rows = len(jax.devices())
                while rows_that_fit := time_training(name, config, n_ctx, rows, args.rounds):
                    results += rows_that_fit
                    rows *= 2
            results += [time_generation(name, config, batch, args.rounds) for batch in (1, 8)]
    with open(args.out, "w") as file:
        json.dump(
            {"device": device.device_kind, "jax": jax.__version__, "results": results},
            file,
            indent=1,
        )
    print(f"written to {args.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
