"""How fast does the input side feed a run? Tokens per second of the whole pipeline, and how many times a consumer's rate that is.

    python -m bench.input --config=nano --consumer_tokens_per_s=10000

A run must never wait for its data: 20 times the consumer's rate is the least that is asked for (issue 2, section 4).
"""

import pathlib
import statistics
import tempfile
import time

from gptjax.config import command, parse
from gptjax.config.batch_schedule import Batches
from gptjax.data import loader


def main(arguments: list[str]) -> int:
    parser = command.parser("input", __doc__ or "", "python -m bench.input --config=nano")
    parser.set_defaults(config="nano")
    parser.prog = "python -m bench.input"
    parser.add_argument(
        "--consumer_tokens_per_s",
        type=parse.number_argument(0, above=True),
        default=10_000,
        help="what the model trains on (default: nano on 2 CPU cores)",
    )
    parser.add_argument(
        "--cache", type=parse.path_argument, default=pathlib.Path(tempfile.gettempdir()) / "gptjax-bench-input", help="for shards"
    )
    parser.add_argument("--steps", type=parse.whole_argument(), default=200, help="steps timed in each repeat")
    parser.add_argument("--repeats", type=parse.whole_argument(), default=7)
    args = parser.parse_args(arguments)
    config = command.resolved(args)
    read = loader.reading(config, args.cache, print)
    plan = Batches(config)
    rates = [rate(read, plan, config.train.microbatch_rows or plan.quantum, args.steps) for _ in range(args.repeats)]
    middle = statistics.median(rates)
    ratio = middle / args.consumer_tokens_per_s
    print(f"{config.name}: batches of {plan.full} rows of {config.model.n_ctx} tokens, {args.repeats} repeats of {args.steps} steps")
    print(f"tokens/s: median {middle:,.0f}, least {min(rates):,.0f}, most {max(rates):,.0f}")
    print(f"ratio to a consumer of {args.consumer_tokens_per_s:,.0f} tokens/s: {ratio:,.0f} (at least 20 is asked for)")
    return 0 if ratio >= 20 else 1


def rate(read: loader.Reading, plan: Batches, microbatch_rows: int, n_steps: int) -> float:
    """Tokens per second over n_steps batches, the first epoch's shuffle and the thread's start not counted."""
    batches = read.batches(plan, microbatch_rows)
    next(batches)
    start, tokens = time.perf_counter(), 0
    for _, batch in zip(range(n_steps), batches, strict=False):
        tokens += int(batch["count"]) * batch["tokens"][0, :, 1:].size
    return tokens / (time.perf_counter() - start)


if __name__ == "__main__":
    command.run(main)
