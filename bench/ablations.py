"""What generation costs after each step of a sweep whose models are steps: bytes of the KV cache
and tokens per second against the first model, in interleaved rounds in one process.

    python -m bench.ablations [--sweep=gpt3_to_llama3_125m] [--rounds=3]

Random weights, float32, one row, the last tokens of the whole context. Nothing is trained.
"""

import argparse

from gptjax.config import count, parse
from gptjax.configs import registry
from gptjax.sweeps import generation_cost, tuning
from gptjax.sweeps.points import expand


def main() -> None:
    """Prints a line for each step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sweep", metavar="NAME", default="gpt3_to_llama3_125m")
    parser.add_argument("--rounds", type=parse.int_argument(), default=3)
    args = parser.parse_args()
    sweep = registry.sweep(args.sweep)
    groups = tuning.group_by_model(expand(sweep, registry.config(sweep.recipe)))
    models = [group[0].config.model for group in groups if group[0].config is not None]
    speeds = generation_cost.decode_speeds(models, args.rounds)
    print(f"{'step':34} {'parameters':>12} {'cache bytes/token':>18} {'tokens/s':>9} {'ratio':>6}")
    for name, model, speed in zip(sweep.steps, models, speeds, strict=True):
        cache = generation_cost.cache_bytes_per_token(model)
        print(
            f"{name:34} {count.parameters(model):12,} {cache:18,.0f} {speed:9,.1f} "
            f"{speed / speeds[0]:6.2f}"
        )


if __name__ == "__main__":
    main()
