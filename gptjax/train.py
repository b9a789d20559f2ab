"""Train a GPT on text: `python -m gptjax.train --config=NAME`."""

import argparse

from gptjax import cli
from gptjax.config import find_files, overrides, parse
from gptjax.config.batch_schedule import BatchSchedule
from gptjax.config.schema import Config
from gptjax.configs import registry
from gptjax.distributed import cluster
from gptjax.runtime import run_dir
from gptjax.training import loop, pretraining, resume

EXAMPLE = (
    "python -m gptjax.train --config=gpt3_small --set train.steps=100 --set "
    '"model.attention=Dense()"'
)


@find_files.list_once()
def main(arguments: list[str]) -> int:
    """Runs the program. Exit status 0 at the end of the run or at a graceful stop, 3 if the run
    stopped because of non-finite updates.
    """
    args, config = read_arguments(arguments)
    recipe = registry.config(args.config)
    set_length = config.train.total_tokens != recipe.train.total_tokens or run_dir.decay(
        config
    ) not in (None, run_dir.decay(recipe))
    request = resume.Request(
        run_dir.directory(args.run_dir, config.name),
        config,
        args.tokens,
        set_length,
        args.new_record,
    )

    from gptjax.distributed import processes
    from gptjax.weights import load

    process_info = cluster.detect(
        args.coordinator, args.num_processes, args.process_id, args.initialization_timeout
    )
    with processes.initialize(process_info, config, args.initialization_timeout) as process_group:
        objective = pretraining.PretrainingObjective(args.init, load.load)
        return loop.train(
            request, run_dir.bucket_url(args.run_dir), process_group, args.profile, objective
        )


def read_arguments(arguments: list[str], local: bool = True) -> tuple[argparse.Namespace, Config]:
    """Parses main's arguments; returns them with their config (without the length of --tokens).

    local: whether files and packages are those of this machine. Raises ValueError for everything
    that can be checked without devices and jax, so that launchers can check a job before they print
    it.
    """
    parser = cli.make_config_parser(
        "train",
        "Train a GPT on text. The same command continues an interrupted run.",
        EXAMPLE,
        text=True,
    )
    parser.add_argument(
        "--run_dir",
        metavar="DIR",
        help=(
            f"where the run goes, or lies; or gs://BUCKET/FOLDER, {run_dir.NO_LOCK} (default: "
            "runs/CONFIG)"
        ),
    )
    parser.add_argument(
        "--init",
        metavar="RUN_OR_WEIGHTS",
        help="begin with the weights of another run, or of a folder of weights",
    )
    steps = parse.int_argument(0, 10**6)
    parser.add_argument(
        "--profile",
        metavar="N",
        type=steps,
        default=0,
        help="trace N steps for xprof and Perfetto into DIR/profile",
    )
    tokens_help = (
        "the length: moves train.total_tokens and, in proportion, the schedule's decay of the "
        "recipe or of the run that is there"
    )
    parser.add_argument("--tokens", metavar="N", type=parse.int_argument(), help=tokens_help)
    add_new_record(parser)
    cluster.add_distributed_flags(parser)
    args = parser.parse_args(arguments)
    config = cli.resolve_config(args, local)
    BatchSchedule(
        config
        if args.tokens is None
        else overrides.override(config, f"train.total_tokens={args.tokens}")
    )
    if local or args.run_dir is not None and not args.run_dir.startswith(tuple(run_dir.BUCKETS)):
        run_dir.directory(args.run_dir, config.name)
    return args, config


def add_new_record(parser: argparse.ArgumentParser) -> None:
    """Adds the flag for continuing a run whose record is lost."""
    help_text = (
        "go on from the checkpoints though config.json or metrics.jsonl is lost or damaged: the "
        "old one is set aside"
    )
    parser.add_argument("--new_record", action="store_true", help=help_text)


if __name__ == "__main__":
    cli.run(main)
