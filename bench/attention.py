"""Cost of a layer's attention by pattern: time and memory, forward and backward, from context 1k to
32k, on the present device.

    python -m bench.attention [--longest=32768] [--heads=4] [--window=256] [--rounds=3]

Prints milliseconds and scratch memory of a dense and a banded layer (head size 64, batch 1, the
platform's kernel), the factor by which they grow when the context doubles (2 is linear, 4
quadratic), and the rate by the FLOPs that the pattern needs (attention_pairs of config/count.py;
forward and backward, without recomputation). Medians of interleaved rounds.
"""

import argparse
import statistics
import time

import jax

from gptjax.config import count, parse, schema
from gptjax.model import gpt
from gptjax.model.attention import dispatch
from gptjax.sharding import rules, xla_options


def compile_attention(pattern: schema.Attention, n_ctx: int, n_heads: int):
    """Returns (compiled forward and backward pass of attention, its arguments)."""
    platform = jax.devices()[0].platform
    execution_policy = gpt.execution_policy(schema.Compute(), platform)
    q, k, v, g = (
        jax.random.normal(key, (1, n_ctx, n_heads, 64), execution_policy.dtype)
        for key in jax.random.split(jax.random.key(0), 4)
    )

    def run(q, k, v, g):
        out, vjp_fn = jax.vjp(
            lambda q, k, v: dispatch.attend(
                execution_policy.kernel, rules.UNSHARDED, q, k, v, pattern
            ),
            q,
            k,
            v,
        )
        return out, vjp_fn(g)

    return jax.jit(run, compiler_options=xla_options.options(jax.devices()[0])).lower(
        q, k, v, g
    ).compile(), (q, k, v, g)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--longest",
        type=parse.int_argument(),
        default=32768,
        help="the longest context (default: 32768)",
    )
    parser.add_argument("--heads", type=parse.int_argument(), default=4, help="heads (default: 4)")
    parser.add_argument(
        "--window",
        type=parse.int_argument(),
        default=256,
        help="of the banded layer (default: 256)",
    )
    parser.add_argument(
        "--rounds", type=parse.int_argument(), default=3, help="timed runs of each (default: 3)"
    )
    args = parser.parse_args()
    xla_options.tune_malloc()
    patterns = {"dense": schema.Dense(), "banded": schema.Banded(window=args.window)}
    last: dict[str, tuple[float, int]] = {}
    print(
        f"{'context':>8} {'layer':8} {'ms':>9} {'x':>5} {'scratch MiB':>12} {'x':>5} "
        f"{'GFLOP/s':>8} {'banded is':>10}"
    )
    n_ctx = 1024
    while n_ctx <= args.longest:
        compiled = {
            name: compile_attention(pattern, n_ctx, args.heads)
            for name, pattern in patterns.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in patterns}
        for i in range(args.rounds + 1):  # the first round is a warm-up
            for name, (run, arrays) in compiled.items():
                start_time = time.perf_counter()
                jax.block_until_ready(run(*arrays))
                if i:
                    seconds[name].append(time.perf_counter() - start_time)
        for name, pattern in patterns.items():
            median, scratch = (
                statistics.median(seconds[name]),
                compiled[name][0].memory_analysis().temp_size_in_bytes,
            )
            growth = (
                [
                    f"{new / old:5.1f}"
                    for new, old in zip((median, scratch), last[name], strict=True)
                ]
                if name in last
                else ["    -"] * 2
            )
            flops = 3 * 4 * 64 * args.heads * count.attention_pairs(pattern, n_ctx)
            ratio = (
                f"{statistics.median(seconds['dense']) / median:8.1f} x" if name == "banded" else ""
            )
            print(
                f"{n_ctx:8,} {name:8} {median * 1e3:9.1f} {growth[0]} {scratch / 2**20:12,.0f} "
                f"{growth[1]} "
                f"{flops / median / 1e9:8.1f} {ratio:>10}",
                flush=True,
            )
            last[name] = median, scratch
        n_ctx *= 2


if __name__ == "__main__":
    main()
