"""Run sweeps and ablations, and report them: `python -m gptjax.sweep --sweep=NAME` runs a recipe at
many points, `report DIR` writes a report of the results, `send DIR` uploads them to Weights &
Biases."""

import argparse
import dataclasses
import shlex
import shutil
import sys
import textwrap
from pathlib import Path

from gptjax import cli
from gptjax.config import count, parse, sweep
from gptjax.config.schema import Config
from gptjax.configs import registry
from gptjax.data import unicode
from gptjax.runtime import lock
from gptjax.sweeps import live_table, local_runner, run_status, tuning
from gptjax.sweeps.points import Point, expand, run_flops

EXAMPLE = """python -m gptjax.sweep --sweep=sparse_window --jobs=2
  python -m gptjax.sweep --sweep=gpt3_to_llama3 --tune=4 --vmap=4
  python -m gptjax.sweep --config=nano --grid "train.schedule.peak_lr=1e-3|3e-3|1e-2" --seeds=3 --dry_run
  python -m gptjax.sweep report runs/sweeps/sparse_window"""  # noqa: E501
SEND_EXAMPLE = (
    "WANDB_MODE=offline python -m gptjax.sweep send runs/sweeps/sparse_window --project=windows"
)
RESUME_HINT = "the same command goes on"


def main(arguments: list[str]) -> int:
    """Exit status 0 if every point is done, 1 if some failed, 130 if it was stopped."""
    if arguments[:1] in (["report"], ["send"]):
        return {"report": write_report, "send": log_to_wandb}[arguments[0]](arguments[1:])
    own_args, launcher_args = cli.split_at_dashes(arguments)
    args = parse_arguments(own_args)
    if launcher_args and args.launch == "local":
        raise ValueError(
            f"{shlex.join(launcher_args)}: what stands after -- is for a launcher; say which with "
            "--launch=slurm or --launch=jobset"
        )
    if args.tune is not None and (args.launch != "local" or args.point is not None):
        raise ValueError(
            f"--tune={args.tune} chooses points by the results of others: leave out --launch and "
            "--point, or give the points themselves, with --grid and --seeds"
        )
    if args.list:
        return print_sweeps()
    name, sweep_spec, recipe = parse_sweep(args)
    sweep_dir = args.dir if args.dir is not None else f"runs/sweeps/{name}"
    is_local = "://" not in sweep_dir
    directories = run_status.stored_directories(parse.path(sweep_dir)) if is_local else {}
    points = expand(sweep_spec, recipe, directories)
    if args.launch != "local":
        return print_jobs(
            args.launch,
            own_args if args.dir else [*own_args, f"--dir={sweep_dir}"],
            points,
            sweep_dir,
            sweep_spec.recipe,
            launcher_args,
        )
    if not is_local:
        raise ValueError(
            f"--dir={sweep_dir}: a sweep on this machine goes to a directory; buckets are for "
            "--launch=jobset"
        )
    directory = parse.path(sweep_dir)
    if args.dry_run:
        return print_points(name, sweep_spec, points, directory)
    if args.point is not None:
        return run_point(args.point, name, sweep_spec, recipe, points, directory)
    slots = local_runner.make_slots(args.jobs, args.devices)
    with lock.hold(directory, "sweep's directory", print_text):
        while True:
            # Those that follow from what is done already, so that the record names them all.
            while args.tune is not None and (
                further := tuning.further_points(points, directory, args.tune)
            ):
                sweep_spec = dataclasses.replace(sweep_spec, points=(*sweep_spec.points, *further))
                directories |= {point.own: point.name for point in points}
                points = expand(sweep_spec, recipe, directories)
            run_status.write_sweep(directory, name, sweep_spec, recipe, points)
            status = run_points(name, sweep_spec, points, directory, slots, args)
            if status == 130 or args.tune is None:
                return status
            if not tuning.further_points(points, directory, args.tune):
                return status


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Parses the command line of a sweep."""
    positive_int = parse.int_argument(1, sweep.MAX_POINTS)
    parser = cli.make_config_parser(
        "sweep",
        "Run a recipe at many points, each an ordinary run. What is done is not done again.",
        EXAMPLE,
    )
    parser.add_argument(
        "--sweep",
        metavar="NAME",
        help="a sweep: its name (--list shows all), or FILE.py:NAME of your own",
    )
    parser.add_argument(
        "--grid",
        metavar="PATH=A|B",
        action="append",
        default=[],
        help="an axis of a grid, over --config or over the points of --sweep; repeatable",
    )
    parser.add_argument(
        "--seeds", metavar="N", type=positive_int, help="another axis: seeds 0 to N - 1"
    )
    parser.add_argument(
        "--tune",
        metavar="N",
        type=positive_int,
        help="then N more seeds of each model at its best peak learning rate; before that, further "
        "peaks where the best is at the edge",
    )
    parser.add_argument(
        "--dir", metavar="DIR", help="where the runs go, or lie (default: runs/sweeps/NAME)"
    )
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=positive_int,
        default=1,
        help="points at a time, each with its part of the cores (default: 1)",
    )
    parser.add_argument(
        "--devices",
        metavar="K",
        type=positive_int,
        help="accelerators for each of them (default: all for each)",
    )
    parser.add_argument(
        "--vmap",
        metavar="K",
        type=positive_int,
        help="train up to K small points that differ in seed or rates as one program",
    )
    parser.add_argument(
        "--retries",
        metavar="N",
        type=parse.int_argument(0, sweep.MAX_POINTS),
        default=1,
        help="how often a point that dies is tried again (default: 1)",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="show the points, what each costs, and nothing else"
    )
    parser.add_argument("--list", action="store_true", help="show the sweeps that there are")
    parser.add_argument(
        "--launch",
        choices=("local", "slurm", "jobset"),
        default="local",
        help="slurm, jobset: print what starts the points",
    )
    parser.add_argument(
        "--point",
        metavar="I",
        type=parse.int_argument(0),
        help="run the point of that number alone, from 0, as an array job does",
    )
    return parser.parse_args(arguments)


def parse_sweep(args: argparse.Namespace) -> tuple[str, sweep.Sweep, Config]:
    """(name, the sweep, its recipe's config) that the arguments describe: of configs/, a grid,
    or both."""
    axes = [sweep.parse_axis(text) for text in args.grid] + (
        [sweep.seeds(args.seeds)] if args.seeds else []
    )
    if args.sweep is not None:
        base = registry.sweep(args.sweep)
        points, holdout = (sweep.grid(points, *axes) for points in (base.points, base.holdout))
        recipe = args.config or base.recipe
        sweep_spec = dataclasses.replace(
            base,
            recipe=recipe,
            points=points,
            overrides=(*base.overrides, *args.assignments),
            holdout=holdout,
        )
        return args.sweep.rpartition(":")[2], sweep_spec, registry.config(recipe)
    if not axes:
        raise ValueError(
            "say which sweep: --sweep=NAME (--list shows all), or --config=RECIPE --grid "
            '"path=value|value" --seeds=N'
        )
    if args.config is None:
        raise ValueError(
            "--grid and --seeds vary a recipe: say which with --config=NAME: "
            f"{', '.join(registry.config_names())}"
        )
    description = (
        f"{args.config} by "
        f"{' and '.join([text.partition('=')[0] for text in args.grid] or ['seed'])}"
    )
    sweep_spec = sweep.Sweep(
        description=description,
        recipe=args.config,
        overrides=tuple(args.assignments),
        points=sweep.grid(*axes),
    )
    name = args.config.rpartition(":")[2]
    return f"{name}_grid", sweep_spec, registry.config(args.config)


def print_sweeps() -> int:
    """Prints each registered sweep and, below it, its description; returns exit status 0."""
    for name in registry.sweep_names():
        sweep_spec = registry.sweep(name)
        n_points = len(sweep_spec.points + sweep_spec.holdout)
        print(f"{name:25} {n_points:3} points of {sweep_spec.recipe}")
        width = max(shutil.get_terminal_size().columns - 4, 20)
        print(textwrap.indent(textwrap.fill(sweep_spec.description, width), "    "))
    return 0


def print_text(text: str) -> None:
    """On standard output, at once, whatever a name or a value in it holds."""
    print(unicode.replace_surrogates(text), flush=True)


def title(name: str, sweep_spec: sweep.Sweep, points: list[Point], directory: Path) -> str:
    """Returns two lines that say what a sweep is and where it goes."""
    where = f"{len(points)} points of {sweep_spec.recipe} in {directory}"
    return f"{name}: {sweep_spec.description}\n{where}"


def print_points(name: str, sweep_spec: sweep.Sweep, points: list[Point], directory: Path) -> int:
    """Every point with its command and its cost; 1 if some cannot be."""
    print_text(f"{title(name, sweep_spec, points, directory)}\n")
    rows: list[tuple[str, ...]] = [("point", "state", "parameters", "steps", "FLOPs")]
    flops = 0.0
    for point in points:
        if point.config is None:
            rows.append((point.name, f"refused: {point.error}"))
            continue
        status, cost = run_status.read_status(point, directory), run_flops(point.config)
        flops += cost
        size = f"{count.parameters(point.config.model):,}", f"{status.n_steps:,}", f"{cost:.2e}"
        rows.append((point.name, status.state, *size))
    column = max(len(row[0]) for row in rows)
    state, *sizes = (
        max(map(len, cells)) for cells in zip(*(r[1:] for r in rows if r[2:]), strict=True)
    )
    for row in rows:
        cells = [f"{row[0]:{column}}", f"{row[1]:{state}}", *map(str.rjust, row[2:], sizes)]
        print_text("  ".join(cells).rstrip())
    example = next((point for point in points if point.config is not None), points[0])
    print(f"\n{flops:.2e} FLOPs in all. A point by itself:")
    arguments = [f"--config={sweep_spec.recipe}", f"--run_dir={directory / example.name}"]
    print_text(f"  python -m gptjax.train {shlex.join([*arguments, *example.arguments])}")
    return int(any(point.config is None for point in points))


def run_points(
    name: str,
    sweep_spec: sweep.Sweep,
    points: list[Point],
    directory: Path,
    slots: list[local_runner.Slot],
    args: argparse.Namespace,
) -> int:
    """Trains the points with a live table of their progress; returns the exit status."""
    print_text(title(name, sweep_spec, points, directory))
    if args.vmap is not None:
        from gptjax.sweeps import vmapped_runs

        if not vmapped_runs.train_groups(points, directory, args.vmap, print_text):
            print(f"stopped; {RESUME_HINT}")
            return 130
    with live_table.LiveTable(points, directory, len(slots)) as live:
        progress, is_complete = local_runner.run(
            sweep_spec.recipe, points, directory, slots, args.retries, live.show
        )
    for point in points:
        if point.name in progress.failures:
            print_text(f"failed: {point.name}: {progress.failures[point.name]}")
    n_done = sum(run_status.read_status(point, directory).state == "done" for point in points)
    if not is_complete:
        print(f"stopped with {n_done} of {len(points)} points done; {RESUME_HINT}")
        return 130
    print_text(f"{n_done} of {len(points)} points done; python -m gptjax.sweep report {directory}")
    return int(bool(progress.failures))


def print_jobs(
    kind: str,
    own_args: list[str],
    points: list[Point],
    sweep_dir: str,
    recipe: str,
    launcher_args: list[str],
) -> int:
    """Prints a Slurm array whose elements are the points, or a JobSet for each. own_args: this
    program's; launcher_args: the launcher's."""
    refused = [f"{point.name}: {point.error}" for point in points if point.config is None]
    if refused:
        raise ValueError(f"points that cannot be: {'; '.join(refused)}")
    from gptjax.launch import sweep_jobs

    if kind == "slurm":
        print(sweep_jobs.slurm_array(points, own_args, launcher_args), end="")
    else:
        print(sweep_jobs.jobsets(points, recipe, sweep_dir, launcher_args), end="")
    return 0


def run_point(
    index: int,
    name: str,
    sweep_spec: sweep.Sweep,
    recipe: Config,
    points: list[Point],
    directory: Path,
) -> int:
    """Trains a point in this process, as `train` does: on many hosts if there are."""
    if not 0 <= index < len(points):
        raise ValueError(f"--point={index}: give 0 to {len(points) - 1}")
    point = points[index]
    if point.error:
        raise ValueError(f"{point.name}: {point.error}")
    if not (directory / run_status.FILE_NAME).exists():
        run_status.write_sweep(directory, name, sweep_spec, recipe, points)
    from gptjax import train

    return train.main(
        [f"--config={sweep_spec.recipe}", f"--run_dir={directory / point.name}", *point.arguments]
    )


def write_report(arguments: list[str]) -> int:
    """report.md, report.html and pictures in the directory; the table on the screen."""
    parser = cli.make_parser(
        "sweep report",
        "A page of what came out of a sweep, finished or not.",
        EXAMPLE.splitlines()[-1].strip(),
    )
    parser.add_argument("directory", metavar="DIR", type=parse.path_argument, help="of the sweep")
    parser.add_argument(
        "--decode_rounds",
        metavar="N",
        type=parse.int_argument(0, sweep.MAX_POINTS),
        default=0,
        help="if the sweep has steps, measure the speed of decoding after each, N times "
        "(default: 0, not measured)",
    )
    args = parser.parse_args(arguments)
    directory = args.directory

    from gptjax.sharding import xla_options
    from gptjax.sweeps import report

    if args.decode_rounds:
        xla_options.configure_runtime()

    def warn(line: str) -> None:
        print(line, file=sys.stderr)

    text, names = report.write(directory, warn, args.decode_rounds)
    print_text(text)
    print_text(f"wrote {', '.join(names)} in {directory}")
    return 0


def log_to_wandb(arguments: list[str]) -> int:
    """Each run with all that it measured, to Weights & Biases."""
    parser = cli.make_parser(
        "sweep send",
        "Send a sweep's runs to Weights & Biases, finished or not; again for what is new.",
        SEND_EXAMPLE,
    )
    parser.add_argument("directory", metavar="DIR", type=parse.path_argument, help="of the sweep")
    parser.add_argument(
        "--project", metavar="NAME", default="gptjax", help="of Weights & Biases (default: gptjax)"
    )
    args = parser.parse_args(arguments)
    name, _, points = run_status.load(args.directory)

    from gptjax.sweeps import wandb

    n = wandb.log_runs(
        name, points, args.directory, args.project, lambda line: print(line, flush=True)
    )
    print(f"{n} of {len(points)} runs sent to {args.project}")
    return int(n == 0)


if __name__ == "__main__":
    cli.run(main)
