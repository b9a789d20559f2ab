"""Sweeps and ablations: `python -m gptjax.sweep --sweep=NAME` runs a recipe at many points, `report DIR` tells what came out,
`send DIR` sends that to Weights & Biases."""

import argparse
import dataclasses
import importlib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptjax.config import command, count, parse, registry, sweep
from gptjax.data import unicode
from gptjax.runtime import lock
from gptjax.sweeps import live_table, local_runner, run_status

EXAMPLE = """python -m gptjax.sweep --sweep=sparse_window --jobs=2
  python -m gptjax.sweep --config=nano --grid "train.schedule.peak=1e-3|3e-3|1e-2" --seeds=3 --dry_run
  python -m gptjax.sweep report runs/sweeps/sparse_window"""
SENDING = "WANDB_MODE=offline python -m gptjax.sweep send runs/sweeps/sparse_window --project=windows"
AGAIN = "the same command goes on"


def main(arguments: list[str]) -> int:
    """Exit status 0 if every point is done, 1 if some failed, 130 if it was stopped."""
    if arguments[:1] in (["report"], ["send"]):
        return {"report": reported, "send": sent}[arguments[0]](arguments[1:])
    own, theirs = command.passed_on(arguments)
    args = parse_arguments(own)
    if theirs and args.launch == "local":
        raise ValueError(f"{shlex.join(theirs)}: what stands after -- is for a launcher; say which with --launch=slurm or --launch=jobset")
    if args.list:
        return listed()
    name, asked = wanted(args)
    points = sweep.planned(asked)
    there = args.dir if args.dir is not None else f"runs/sweeps/{name}"
    if args.launch != "local":
        return launched(args.launch, own if args.dir else [*own, f"--dir={there}"], points, there, asked.recipe, theirs)
    if "://" in there:
        raise ValueError(f"--dir={there}: a sweep on this machine goes to a directory; buckets are for --launch=jobset")
    directory = parse.path(there)
    if args.dry_run:
        return shown(name, asked, points, directory)
    if args.point is not None:
        return one(args.point, name, asked, points, directory)
    return ran(name, asked, points, directory, args)


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    whole = parse.whole_argument(1, sweep.MOST)
    parser = command.parser("sweep", "Run a recipe at many points, each an ordinary run. What is done is not done again.", EXAMPLE)
    parser.add_argument("--sweep", metavar="NAME", help="a sweep of configs/sweeps.py; --list shows all")
    parser.add_argument(
        "--grid",
        metavar="PATH=A|B",
        action="append",
        default=[],
        help="an axis of a grid, over --config or over the points of --sweep; repeatable",
    )
    parser.add_argument("--seeds", metavar="N", type=whole, help="another axis: seeds 0 to N - 1")
    parser.add_argument("--dir", metavar="DIR", help="where the runs go, or lie (default: runs/sweeps/NAME)")
    parser.add_argument("--jobs", metavar="N", type=whole, default=1, help="points at a time, each with its part of the cores (default: 1)")
    parser.add_argument("--devices", metavar="K", type=whole, help="accelerators for each of them (default: all for each)")
    parser.add_argument(
        "--together", metavar="K", type=whole, help="train up to K small points that differ in seed or rates as one program"
    )
    parser.add_argument(
        "--retries",
        metavar="N",
        type=parse.whole_argument(0, sweep.MOST),
        default=1,
        help="how often a point that dies is tried again (default: 1)",
    )
    parser.add_argument("--dry_run", action="store_true", help="show the points, what each costs, and nothing else")
    parser.add_argument("--list", action="store_true", help="show the sweeps that there are")
    parser.add_argument(
        "--launch", choices=("local", "slurm", "jobset"), default="local", help="slurm, jobset: print what starts the points"
    )
    parser.add_argument(
        "--point", metavar="I", type=parse.whole_argument(0), help="run the point of that number alone, from 0, as an array job does"
    )
    return parser.parse_args(arguments)


def wanted(args: argparse.Namespace) -> tuple[str, sweep.Sweep]:
    """(name, the sweep) that the arguments describe: of configs/, a grid, or both."""
    axes = [axis(text) for text in args.grid] + ([sweep.seeds(args.seeds)] if args.seeds else [])
    if args.sweep is not None:
        found = registry.sweep(args.sweep)
        points, check = (sweep.grid(points, *axes) for points in (found.points, found.check))
        sets = (*found.sets, *args.assignments)
        return args.sweep, dataclasses.replace(found, recipe=args.config or found.recipe, points=points, sets=sets, check=check)
    if not axes:
        raise ValueError('say which sweep: --sweep=NAME (--list shows all), or --config=RECIPE --grid "path=value|value" --seeds=N')
    if args.config is None:
        raise ValueError(f"--grid and --seeds vary a recipe: say which with --config=NAME: {', '.join(registry.names())}")
    about = f"{args.config} by {' and '.join([text.partition('=')[0] for text in args.grid] or ['seed'])}"
    return f"{args.config}_grid", sweep.Sweep(about=about, recipe=args.config, sets=tuple(args.assignments), points=sweep.grid(*axes))


def axis(text: str) -> sweep.Points:
    path, equals, values = text.partition("=")
    if not equals or not all(value.strip() for value in values.split("|")):
        raise ValueError(f"--grid {text}: give a path and its values, for example train.schedule.peak=1e-3|3e-3")
    return sweep.each(path.strip(), *(value.strip() for value in values.split("|")))


def listed() -> int:
    for name in registry.sweeps():
        found = registry.sweep(name)
        print(f"{name:20} {len(found.points + found.check):4} points of {found.recipe:10} {found.about}")
    return 0


def print_text(text: str) -> None:
    """On standard output, at once, whatever a name or a value in it holds."""
    print(unicode.valid(text), flush=True)


def shown(name: str, asked: sweep.Sweep, points: list[sweep.Point], directory: Path) -> int:
    """Every point with its command and its cost; 1 if some cannot be."""
    print_text(f"{name}: {asked.about}\n{len(points)} points of {asked.recipe} in {directory}\n")
    width, flops = max(len(point.name) for point in points), 0.0
    for point in points:
        if point.config is None:
            print_text(f"{point.name:{width}}  refused: {point.refusal}")
            continue
        config, now = point.config, run_status.standing(point, directory)
        cost = sweep.flops(config)
        flops += cost
        size = f"{count.parameters(config.model):>13,} parameters {now.n_steps:>8,} steps {cost:9.2e} FLOPs"
        print(f"{point.name:{width}}  {now.state:8} {size}")
    first = next((point for point in points if point.config is not None), points[0])
    print(f"\n{flops:.2e} FLOPs in all. A point by itself:")
    print_text(f"  python -m gptjax.train --config={asked.recipe} --run={directory / first.name} {shlex.join(first.arguments)}")
    return int(any(point.config is None for point in points))


def ran(name: str, asked: sweep.Sweep, points: list[sweep.Point], directory: Path, args: argparse.Namespace) -> int:
    parts = local_runner.slots(args.jobs, args.devices)
    with lock.hold(directory, "sweep's directory", print_text):
        return run_points(name, asked, points, directory, parts, args)


def run_points(
    name: str, asked: sweep.Sweep, points: list[sweep.Point], directory: Path, parts: list[local_runner.Slot], args: argparse.Namespace
) -> int:
    run_status.write(directory, name, asked)
    print_text(f"{name}: {asked.about}\n{len(points)} points of {asked.recipe} in {directory}")
    if args.together is not None and not as_one(points, directory, args.together):
        print(f"stopped; {AGAIN}")
        return 130
    with live_table.Display(points, directory, len(parts)) as board:
        progress, through = local_runner.run(asked.recipe, points, directory, parts, args.retries, board.show)
    for point in points:
        if point.name in progress.failed:
            print_text(f"failed: {point.name}: {progress.failed[point.name]}")
    done = sum(run_status.standing(point, directory).state == "done" for point in points)
    if not through:
        print(f"stopped with {done} of {len(points)} points done; {AGAIN}")
        return 130
    print_text(f"{done} of {len(points)} points done; python -m gptjax.sweep report {directory}")
    return int(bool(progress.failed))


def launched(kind: str, own: list[str], points: list[sweep.Point], there: str, recipe: str, theirs: list[str]) -> int:
    """Print a Slurm array whose elements are the points, or a JobSet for each. own: this program's arguments; theirs: the launcher's."""
    refused = [f"{point.name}: {point.refusal}" for point in points if point.config is None]
    if refused:
        raise ValueError(f"points that cannot be: {'; '.join(refused)}")
    if kind == "slurm":
        slurm = importlib.import_module("launch.slurm")  # launch/ stands on gptjax, and is not imported unless asked for
        args = slurm.parser().parse_args(theirs)
        args.sbatch.append(f"--array=0-{len(points) - 1}")
        mine = shlex.join(without(own, "--launch"))
        print(slurm.script("gptjax.sweep", f'{mine} --point="$SLURM_ARRAY_TASK_ID"', **vars(args)), end="")
        return 0
    import yaml

    gke = importlib.import_module("launch.gke")
    args = vars(gke.parser().parse_args(theirs))
    jobsets = [
        gke.jobset(**args | {"name": f"{args['name']}-{i}"}, arguments=[f"--config={recipe}", f"--run={there}/{p.name}", *p.arguments])
        for i, p in enumerate(points)
    ]
    yaml.safe_dump_all(jobsets, sys.stdout, sort_keys=False)
    return 0


def without(arguments: list[str], flag: str) -> list[str]:
    """The arguments but for `--flag=value` and `--flag value`."""
    left = [part for part in arguments if not part.startswith(f"{flag}=")]
    if flag in left:
        at = left.index(flag)
        del left[at : at + 2]
    return left


def one(number: int, name: str, asked: sweep.Sweep, points: list[sweep.Point], directory: Path) -> int:
    """Train a point in this process, as `train` does: on many hosts if there are."""
    if not 0 <= number < len(points):
        raise ValueError(f"--point={number}: give 0 to {len(points) - 1}")
    point = points[number]
    if point.refusal:
        raise ValueError(f"{point.name}: {point.refusal}")
    if not (directory / "sweep.json").exists():
        run_status.write(directory, name, asked)
    from gptjax import train

    return train.main([f"--config={asked.recipe}", f"--run={directory / point.name}", *point.arguments])


def as_one(points: list[sweep.Point], directory: Path, most: int) -> bool:
    """Train the points that have not begun in groups, one after the other; False if that was stopped. Points that are alone in their group
    are left."""
    from gptjax import together

    fresh = [
        p
        for p in points
        if p.config is not None and run_status.standing(p, directory).state == "waiting" and not run_status.claim(p, directory)
    ]
    groups = [group for group in together.groups(fresh, most) if len(group) > 1]
    if groups:
        from gptjax.sharding import xla_options

        xla_options.begin()
    with local_runner.signals() as received:
        for number, group in enumerate(groups):
            print(f"{number + 1} of {len(groups)} groups: {', '.join(point.name for point in group)}", flush=True)
            try:
                if not together.trained(group, directory, print_text, lambda: bool(received)):
                    return False
            except (OSError, ValueError) as error:
                status, line = command.verdict(error)
                if status != 2:
                    raise
                print_text(f"not as one program, but one by one: {line}")
    return True


def reported(arguments: list[str]) -> int:
    """report.md, report.html and pictures in each directory; the table on the screen."""
    parser = command.bare_parser("sweep report", "A page of what came out of a sweep, finished or not.", EXAMPLE.splitlines()[-1].strip())
    parser.add_argument("directory", metavar="DIR", type=parse.path_argument, help="of the sweep")
    directory = parser.parse_args(arguments).directory
    name, asked, points = run_status.load(directory)

    from gptjax.sweeps import comparison, lr_and_batch, report_page, scaling_report

    results = comparison.compared(sweep.arms(points), directory)
    failed = [f"Refused: {point.name}: {point.refusal}" for point in points if point.config is None]
    failed += [f"{run.state.capitalize()}: {run.point.name}: {run.why}" for result in results for run in result.runs if run.why]
    pictures = [
        draw_or_warn(draw, results, directory / name) for draw, name in ((report_page.bars, "arms.png"), (report_page.curves, "curves.png"))
    ]
    pictures = [picture for picture in pictures if picture is not None]
    parts = ((lr_and_batch.rates, "rates.png"), (lr_and_batch.batch_sizes, "batches.png"), (scaling_report.section, "scaling.png"))
    sections = [section for draw, name in parts if (section := draw_or_warn(draw, results, directory / name)) is not None]
    text = report_page.markdown(name, asked.about, results, failed, sections)
    (directory / "report.md").write_text(text, encoding="utf-8")
    (directory / "report.html").write_text(report_page.page(name, asked.about, results, failed, pictures, sections), encoding="utf-8")
    print_text(text)
    names = [picture.name for picture in (*pictures, *(section.picture for section in sections))]
    print_text(f"wrote report.html, report.md, {', '.join(names)} in {directory}")
    return 0


def draw_or_warn(draw: Callable[[Any, Path], Any], results: Any, path: Path) -> Any:
    """draw(results, path); of one that cannot be drawn a warning, and None, since the table tells the same."""
    try:
        return draw(results, path)
    except Exception as error:
        print(f"warning: no {path.name}: {type(error).__name__}: {command.first_line(error)}", file=sys.stderr)
        return None


def sent(arguments: list[str]) -> int:
    """Each run with all that it measured, to Weights & Biases."""
    parser = command.bare_parser("sweep send", "Send a sweep's runs to Weights & Biases, finished or not; again for what is new.", SENDING)
    parser.add_argument("directory", metavar="DIR", type=parse.path_argument, help="of the sweep")
    parser.add_argument("--project", metavar="NAME", default="gptjax", help="of Weights & Biases (default: gptjax)")
    args = parser.parse_args(arguments)
    name, _, points = run_status.load(args.directory)

    from gptjax.sweeps import wandb

    n = wandb.sent(name, points, args.directory, args.project, lambda line: print(line, flush=True))
    print(f"{n} of {len(points)} runs sent to {args.project}")
    return int(n == 0)


if __name__ == "__main__":
    command.run(main)
