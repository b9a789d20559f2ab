"""Evaluate in context as the GPT-2 and GPT-3 papers do: `python -m gptjax.evaluate
--model=DIR --tasks=lambada --num_fewshot=0,1,few`.

Each task with each number of demonstrations writes two files in DIR/evaluations: scores with
standard errors, and a line per item with prompt, answer and log-likelihoods. Finished work is not
repeated. `--text=FILE` instead of tasks measures the loss of texts, in nats per token and bits per
byte.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gptjax import cli
from gptjax.config import count, overrides, parse
from gptjax.runtime.errors import classify_error

EXAMPLE = (
    "python -m gptjax.evaluate --model=runs/gpt3_small --tasks=lambada,hellaswag,arithmetic "
    "--num_fewshot=0,1,few --limit=500"
)
FEW = "few"  # the K of the task's paper
SHOTS = f"0,1,{FEW}"
FLAGS = {  # kind of evaluation -> the flags that it uses; --out applies to all
    "--curve": ("runs",),
    "--text": ("--model", "--stride"),
    "--tasks": (
        "--model",
        "--num_fewshot",
        "--limit",
        "--seed",
        "--task_data",
        "--tfds_dir",
        "--set",
    ),
}


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the program's arguments."""
    parser = cli.make_parser(
        "evaluate",
        "Score a model on tasks that it reads in its context, by the papers' protocols.",
        EXAMPLE,
    )
    int_argument = parse.int_argument
    parser.add_argument(
        "--model", metavar="DIR", type=parse.path_argument, help="a run, or a folder of weights"
    )
    parser.add_argument(
        "--tasks", metavar="NAMES", help="tasks or groups of them, commas between; --list shows all"
    )
    parser.add_argument(
        "--num_fewshot",
        metavar="K",
        help=f"numbers of demonstrations (default: {SHOTS}; {FEW}: the paper's)",
    )
    parser.add_argument(
        "--limit",
        metavar="N",
        type=int_argument(),
        help="ask N items of each task, drawn with the seed (default: all)",
    )
    parser.add_argument(
        "--seed", metavar="N", type=parse.seed_argument, help="of what is drawn (default: 0)"
    )
    parser.add_argument(
        "--task_data",
        metavar="DIR",
        type=parse.path_argument,
        help="where TASK.jsonl files lie (default: TFDS, where prepared)",
    )
    parser.add_argument("--tfds_dir", metavar="DIR", help="of TFDS (default: its own)")
    parser.add_argument(
        "--out",
        "--output_path",
        metavar="DIR",
        type=parse.path_argument,
        help="where results go (default: evaluations/ in the run; of weights, in runs/)",
    )
    parser.add_argument(
        "--list", action="store_true", help="show the tasks, their protocols and what they need"
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        action="append",
        help="loss and bits per byte of a text, folder or glob; repeatable",
    )
    parser.add_argument(
        "--stride",
        metavar="N",
        type=int_argument(),
        help="with --text: tokens predicted in each window (default: the context)",
    )
    parser.add_argument(
        "--curve",
        metavar="FILE.png",
        type=parse.path_argument,
        help="draw the results of the runs that follow, and those in --out",
    )
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        type=parse.path_argument,
        help="with --curve: whose results to draw",
    )
    cli.add_set_flag(
        parser,
        "another protocol, as in hellaswag.method=Total or all.description=''; repeatable",
        metavar="TASK.FIELD=VALUE",
    )
    return parser


def main(arguments: list[str]) -> int:
    """Runs the program; the exit status is 1 if a task could not be evaluated."""
    args = make_parser().parse_args(arguments)
    from gptjax.evals import score_table, task_list
    from gptjax.report import console

    out = console.Console(quiet=False, vital=args.list)
    if args.list:
        task_list.print_tasks(out)
        return 0
    check(args)
    if args.curve is not None:
        from gptjax.evals import icl_plot

        icl_plot.draw(
            [*map(results_dir, args.runs), *([args.out] if args.out else [])], args.curve, out.warn
        )
        out.print(f"wrote {args.curve}")
        return 0
    directory = args.out or results_dir(args.model)
    if args.text is not None:
        return evaluate_texts(args, directory, out)
    task_runs = build_runs(args)
    model = load_model(args.model, out)
    table = score_table.ScoreTable(task_runs, model.metadata, out.width)
    table.print_header(out)
    all_records = []
    for task_run, record in run_all(
        task_runs, model, args.task_data, args.tfds_dir, directory, out
    ):
        all_records.append(record)
        if record is not None:
            table.print_scores(task_run, record, out)
            score_table.print_remarks(task_run, record, model.metadata["n_ctx"], out)
    if any(all_records):
        out.print(f"each item, with prompt and answer: {directory}/*.jsonl")
    return 0 if all(all_records) else 1


def check(args: argparse.Namespace) -> None:
    """Raises ValueError unless exactly one kind of evaluation is requested, with everything it
    needs and no flag that it ignores.
    """
    if args.curve is not None:
        what = "--curve"
        if not (args.runs or args.out):
            raise ValueError(
                f"--curve={args.curve}: say whose results to draw: runs, after it, or --out=DIR"
            )
    elif args.runs:
        raise ValueError(
            f"{' '.join(map(str, args.runs))}: runs alone are for --curve=FILE.png; whom to ask is "
            "--model=DIR"
        )
    elif args.model is None or (args.tasks is None) == (args.text is None):
        raise ValueError(
            "say whom to ask what: --model=DIR with --tasks=NAMES, of which --list shows all, or "
            "with --text=FILE"
        )
    else:
        what = "--text" if args.tasks is None else "--tasks"
    if what == "--tasks" and args.stride is not None:
        raise ValueError(
            f"--stride={args.stride} is of --text=FILE; of a task that reads texts it is --set "
            "TASK.method.stride=N"
        )
    given = [
        name
        for name, value in vars(args).items()
        if name != "list" and value is not None and value != []
    ]
    flags = [
        "--set" if name == "assignments" else "runs" if name == "runs" else f"--{name}"
        for name in given
    ]
    if unused := [flag for flag in flags if flag not in (what, "--out", *FLAGS[what])]:
        raise ValueError(f"{', '.join(unused)}: nothing for {what}; leave it out")


def evaluate_texts(args: argparse.Namespace, directory: Path, out: Any) -> int:
    """Runs --text: prints the loss of texts, one line each."""
    from gptjax.evals import perplexity

    paths, model = perplexity.find_texts(args.text, out.warn), load_model(args.model, out)
    n_ctx = model.metadata["n_ctx"]
    stride = perplexity.check_stride(args.stride, n_ctx)
    out.print(
        f"windows of {n_ctx:,} tokens, stride {stride:,}: each token after {n_ctx - stride + 1:,} "
        f"to {n_ctx:,} before it, or all there are"
    )
    out.print("".join(f"{head:>11}" for head in perplexity.COLUMNS) + "  text", "bold")
    with out.status("reading") as progress:
        for record in perplexity.predict(model, paths, stride, progress, out.warn):
            out.print(
                "".join(f"{cell:>11}" for cell in perplexity.format_cells(record))
                + f"  {Path(record['text']).name}"
            )
            if "sha256" in record:
                perplexity.save(directory, record, out.warn)
                if record["changed"]:
                    out.print(
                        "  its tokenizer writes this text otherwise: what was predicted is "
                        "simpler than the bytes it is divided by",
                        "dim",
                    )
    out.print(f"kept in {directory}/text-*.json")
    return 0


def results_dir(path: str | Path) -> Path:
    """The default directory of results: in the run or, for other weights, in runs/."""
    inside = (Path(path) / "checkpoints").is_dir()
    return (
        Path(path) / "evaluations"
        if inside
        else Path("runs") / Path(path).resolve().name / "evaluations"
    )


def build_runs(args: argparse.Namespace) -> list[Any]:
    """Returns every task with every number of shots, in order. Raises ValueError for unknown names,
    numbers and protocols.
    """
    from gptjax.evals import metrics, runner
    from gptjax.evals import registry as tasks

    by_label = tasks.get_tasks([name.strip() for name in args.tasks.split(",")], args.task_data)
    changes: dict[str, list[str]] = {}
    for assignment in args.assignments:
        name, dot, change = assignment.partition(".")
        if not dot or "=" not in change:
            raise ValueError(
                f"--set {assignment!r} is not of the form TASK.FIELD=VALUE, for example "
                "hellaswag.method=Total"
            )
        if name not in ("all", *by_label):
            raise ValueError(
                f"--set {assignment}: {name} is not among --tasks={args.tasks}; give one of them, "
                "or all"
            )
        changes.setdefault(name, []).append(change)
    shots, seed = SHOTS if args.num_fewshot is None else args.num_fewshot, args.seed or 0
    task_runs, shot_settings = (
        [],
        [(word.strip() == FEW, parse_shots(word.strip(), shots)) for word in shots.split(",")],
    )
    for label, task in by_label.items():
        edits = [change for name in ("all", label) if name in changes for change in changes[name]]
        protocol = overrides.override(task.protocol, *edits)
        metrics.metric_names(task, protocol)
        for use_paper_shots, n in shot_settings:
            task_runs.append(
                runner.TaskRun(
                    label,
                    task,
                    protocol,
                    protocol.shots if use_paper_shots else n,
                    seed,
                    args.limit,
                    use_paper_shots,
                )
            )
    return list(
        {(task_run.label, task_run.shots): task_run for task_run in task_runs}.values()
    )  # the paper's K may be among the numbers that were given


def parse_shots(word: str, argument: str) -> int:
    """Parses a number of demonstrations; 0 for FEW."""
    try:
        return 0 if word == FEW else parse.int_argument(0)(word)
    except argparse.ArgumentTypeError:
        raise ValueError(
            f"--num_fewshot={parse.quote(argument)[1:-1]}: give numbers of demonstrations, 0 or "
            "more, "
            f"commas between; {FEW} is the paper's own"
        ) from None


def load_model(path: str | Path, out: Any) -> Any:
    """Loads a model and its tokenizer for evaluation."""
    from gptjax.evals import eval_model
    from gptjax.weights import open_model

    with out.status(f"reading {path}") as progress:
        loaded = open_model.open_model(path, [], progress, out.warn)
    parameters = count.parameters(loaded.config.model)
    out.print(f"{path}: {loaded.kind}, {loaded.config.name}, {parameters:,} parameters")
    metadata = {
        "name": loaded.config.name,
        "parameters": parameters,
        "n_ctx": loaded.config.model.n_ctx,
        "digest": loaded.digest,
    }
    return eval_model.EvalModel(
        loaded.inference_model, loaded.tokenizer, loaded.train_step.model.sharding, metadata
    )


def run_all(
    task_runs: Iterable[Any],
    model: Any,
    data: Path | None,
    data_dir: str | None,
    directory: Path,
    out: Any,
) -> Iterator[tuple[Any, Any]]:
    """Yields (task run, its record) in order; (task run, None) if it cannot be evaluated, which is
    reported once per reason.
    """
    from gptjax.evals import runner
    from gptjax.model import inference

    directory.mkdir(parents=True, exist_ok=True)
    for _, group in itertools.groupby(task_runs, lambda task_run: task_run.label):
        seen_errors: set[str] = set()
        done: set[tuple[str, int]] = set()
        first, *others = group
        load_rows = row_reader(first, data, data_dir)
        for task_run in (first, *others):
            record = None
            try:
                with out.status(task_run.name) as progress:
                    errors: dict[str, str] = {}
                    items, pool = task_run.load_items(load_rows, errors)
                    task_run = task_run.fit_to_data(
                        items, pool, model.tokenizer, model.metadata["n_ctx"]
                    )
                    if (task_run.label, task_run.shots) in done:
                        continue
                    done.add((task_run.label, task_run.shots))
                    prompt_list = task_run.build_prompts(items, pool, model, progress, errors)
                    record = runner.run_task(
                        task_run, prompt_list, model, directory, progress, out.warn, errors
                    )
            except ValueError as error:
                status, reason = classify_error(error)
                if status != 2 or isinstance(
                    error, inference.NonFiniteLogits
                ):  # no other task will do
                    raise
                if reason not in seen_errors:
                    out.warn(f"{task_run.label}: {reason.removeprefix(f'{task_run.task.name}: ')}")
                seen_errors.add(reason)
            yield task_run, record


def row_reader(task_run: Any, data: Path | None, data_dir: str | None) -> Callable[[str], Any]:
    """Returns a function that reads the rows of a split, once for all numbers of shots."""
    from gptjax.evals import task_data

    folder = None if data is None else str(data)
    return functools.cache(
        lambda split: task_data.load_rows(
            task_run.task, task_run.protocol, split, folder, data_dir, task_run.seed, lenient=True
        )
    )


if __name__ == "__main__":
    cli.run(main)
