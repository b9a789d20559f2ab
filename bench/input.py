"""How fast the input pipeline is: tokens per second, and the ratio to a consumer's rate.

    python -m bench.input --config=nano --consumer_tokens_per_s=10000

A run must never wait for its data: at least 20 times the consumer's rate is required.
"""

import pathlib
import statistics
import tempfile
import time

from gptjax import cli
from gptjax.config import parse
from gptjax.config.batch_schedule import BatchSchedule
from gptjax.data import loader, open_dataset


def main(arguments: list[str]) -> int:
    parser = cli.make_config_parser("input", __doc__ or "", "python -m bench.input --config=nano")
    parser.set_defaults(config="nano")
    parser.prog = "python -m bench.input"
    parser.add_argument(
        "--consumer_tokens_per_s",
        type=parse.float_argument(0, above=True),
        default=10_000,
        help="what the model trains on (default: nano on 2 CPU cores)",
    )
    parser.add_argument(
        "--cache",
        type=parse.path_argument,
        default=pathlib.Path(tempfile.gettempdir()) / "gptjax-bench-input",
        help="for shards",
    )
    parser.add_argument(
        "--steps", type=parse.int_argument(), default=200, help="steps timed in each repeat"
    )
    parser.add_argument("--repeats", type=parse.int_argument(), default=7)
    args = parser.parse_args(arguments)
    config = cli.resolve_config(args)
    dataset = open_dataset.open_dataset(config, args.cache, print)
    batch_schedule = BatchSchedule(config)
    rates = [
        rate(
            dataset,
            batch_schedule,
            config.train.microbatch_rows or batch_schedule.quantum,
            args.steps,
        )
        for _ in range(args.repeats)
    ]
    median = statistics.median(rates)
    ratio = median / args.consumer_tokens_per_s
    print(
        f"{config.name}: batches of {batch_schedule.full_rows} rows of {config.model.n_ctx} "
        f"tokens, {args.repeats} repeats of "
        f"{args.steps} steps"
    )
    print(f"tokens/s: median {median:,.0f}, minimum {min(rates):,.0f}, maximum {max(rates):,.0f}")
    print(
        f"ratio to a consumer of {args.consumer_tokens_per_s:,.0f} tokens/s: {ratio:,.0f} (at "
        "least 20 is required)"
    )
    return 0 if ratio >= 20 else 1


def rate(
    dataset: loader.Dataset, batch_schedule: BatchSchedule, microbatch_rows: int, n_steps: int
) -> float:
    """Tokens per second over n_steps batches, excluding the first epoch's shuffle and the start of
    the thread.
    """
    batches = dataset.batches(batch_schedule, microbatch_rows)
    next(batches)
    start, tokens = time.perf_counter(), 0
    for _, batch in zip(range(n_steps), batches, strict=False):
        tokens += int(batch["count"]) * batch["tokens"][0, :, 1:].size
    return tokens / (time.perf_counter() - start)


if __name__ == "__main__":
    cli.run(main)
