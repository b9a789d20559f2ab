"""Ask a model in context, as GPT-2's and GPT-3's papers did: `python -m gptjax.evaluate --run=DIR --tasks=lambada --shots=0,1,few`.

Each task with each number of demonstrations leaves two files in DIR/evaluations: scores with their standard errors, and a line an item
with prompt, answer and log-likelihoods. What is done is not done again. `--text=FILE` instead of tasks: how well are these texts
predicted, in nats a token and bits a byte?"""

import argparse
import functools
import itertools
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gptjax.config import command, count, evaluation, overrides, parse, registry

EXAMPLE = "python -m gptjax.evaluate --run=runs/gpt3_small --tasks=lambada,hellaswag,arithmetic --shots=0,1,few --examples=500"
UNITS = "its accuracy is of the last token of the word, its perplexity of the whole word"  # of protocol.LastToken
FEW = "few"  # the K of the task's paper
SHOTS = f"0,1,{FEW}"
FLAGS = {  # of each thing that can be asked for, the flags that change something; --out always does
    "--curve": ("runs",),
    "--text": ("--run", "--stride"),
    "--tasks": ("--run", "--shots", "--examples", "--seed", "--data", "--data_dir", "--set"),
}


def main(arguments: list[str]) -> int:
    """Exit status 1 if a task could not be asked."""
    parser = command.bare_parser("evaluate", "Score a model on tasks that it reads in its context, by the papers' protocols.", EXAMPLE)
    whole = parse.whole_argument
    parser.add_argument("--run", metavar="DIR", type=parse.path_argument, help="a run, or a folder of weights")
    parser.add_argument("--tasks", metavar="NAMES", help="tasks or groups of them, commas between; --list shows all")
    parser.add_argument("--shots", metavar="K", help=f"numbers of demonstrations (default: {SHOTS}; {FEW}: the paper's)")
    parser.add_argument("--examples", metavar="N", type=whole(), help="ask N items of each task, drawn with the seed (default: all)")
    parser.add_argument("--seed", metavar="N", type=parse.seed_argument, help="of what is drawn (default: 0)")
    parser.add_argument(
        "--data", metavar="DIR", type=parse.path_argument, help="where TASK.jsonl files lie (default: TFDS, where prepared)"
    )
    parser.add_argument("--data_dir", metavar="DIR", help="of TFDS (default: its own)")
    parser.add_argument(
        "--out", metavar="DIR", type=parse.path_argument, help="where results go (default: evaluations/ in the run; of weights, in runs/)"
    )
    parser.add_argument("--list", action="store_true", help="show the tasks, their protocols and what they need")
    parser.add_argument("--text", metavar="FILE", action="append", help="loss and bits per byte of a text, folder or glob; repeatable")
    parser.add_argument("--stride", metavar="N", type=whole(), help="with --text: tokens predicted in each window (default: the context)")
    parser.add_argument(
        "--curve", metavar="FILE.png", type=parse.path_argument, help="draw the results of the runs that follow, and those in --out"
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", type=parse.path_argument, help="with --curve: whose results to draw")
    parser.add_argument(
        "--set",
        metavar="TASK.FIELD=VALUE",
        action="append",
        default=[],
        dest="assignments",
        help="another protocol, as in hellaswag.method=Total or all.description=''; repeatable",
    )
    args = parser.parse_args(arguments)
    from gptjax.report import console

    out = console.Console(quiet=False, vital=args.list)
    if args.list:
        return listed(out)
    check(args)
    if args.curve is not None:
        from gptjax.evals import icl_plot

        icl_plot.draw([*map(folder, args.runs), *([args.out] if args.out else [])], args.curve, out.warn)
        out.say(f"wrote {args.curve}")
        return 0
    directory = args.out or folder(args.run)
    if args.text is not None:
        return read(args, directory, out)
    exams = examinations(args)
    model = opened(args.run, out)
    table = Table(exams, model.about, out.width)
    table.head(out)
    found = []
    for exam, record in records(exams, model, args.data, args.data_dir, directory, out):
        found.append(record)
        if record is not None:
            table.show(exam, record, out)
            remarks(exam, record, model.about["n_ctx"], out)
    if any(found):
        out.say(f"each item, with prompt and answer: {directory}/*.jsonl")
    return 0 if all(found) else 1


def check(args: argparse.Namespace) -> None:
    """ValueError unless one thing is asked for, with all that it needs, and with no flag that would change nothing."""
    if args.curve is not None:
        what = "--curve"
        if not (args.runs or args.out):
            raise ValueError(f"--curve={args.curve}: say whose results to draw: runs, after it, or --out=DIR")
    elif args.runs:
        raise ValueError(f"{' '.join(map(str, args.runs))}: runs alone are for --curve=FILE.png; whom to ask is --run=DIR")
    elif args.run is None or (args.tasks is None) == (args.text is None):
        raise ValueError("say whom to ask what: --run=DIR with --tasks=NAMES, of which --list shows all, or with --text=FILE")
    else:
        what = "--text" if args.tasks is None else "--tasks"
    if what == "--tasks" and args.stride is not None:
        raise ValueError(f"--stride={args.stride} is of --text=FILE; of a task that reads texts it is --set TASK.method.stride=N")
    given = [name for name, value in vars(args).items() if name != "list" and value is not None and value != []]
    flags = ["--set" if name == "assignments" else "runs" if name == "runs" else f"--{name}" for name in given]
    if unused := [flag for flag in flags if flag not in (what, "--out", *FLAGS[what])]:
        raise ValueError(f"{', '.join(unused)}: nothing for {what}; leave it out")


def read(args: argparse.Namespace, directory: Path, out: Any) -> int:
    """--text: how well the model predicts texts, a line each."""
    from gptjax.evals import perplexity

    paths, model = perplexity.find_texts(args.text, out.warn), opened(args.run, out)
    n_ctx = model.about["n_ctx"]
    stride = perplexity.check_stride(args.stride, n_ctx)
    out.say(
        f"windows of {n_ctx:,} tokens, stride {stride:,}: each token after {n_ctx - stride + 1:,} to {n_ctx:,} before it, or all there are"
    )
    out.say("".join(f"{head:>11}" for head in perplexity.HEAD) + "  text", "bold")
    with out.working("reading") as show:
        for record in perplexity.predict(model, paths, stride, show, out.warn):
            out.say("".join(f"{cell:>11}" for cell in perplexity.cells(record)) + f"  {Path(record['text']).name}")
            if "sha256" in record:
                perplexity.save(directory, record, out.warn)
                if record["changed"]:
                    out.say(
                        "  its tokenizer writes this text otherwise: what was predicted is simpler than the bytes it is divided by", "dim"
                    )
    out.say(f"kept in {directory}/text-*.json")
    return 0


def folder(path: str | Path) -> Path:
    """Where results go unless told: into a run; beside runs, of weights of others."""
    inside = (Path(path) / "checkpoints").is_dir()
    return Path(path) / "evaluations" if inside else Path("runs") / Path(path).resolve().name / "evaluations"


def examinations(args: argparse.Namespace) -> list[Any]:
    """Every task with every number of shots, in order. ValueError for names, numbers and protocols that there are not."""
    from gptjax.evals import metrics, runner
    from gptjax.evals import registry as tasks

    found = tasks.named([name.strip() for name in args.tasks.split(",")], args.data)
    changes: dict[str, list[str]] = {}
    for assignment in args.assignments:
        name, dot, change = assignment.partition(".")
        if not dot or "=" not in change:
            raise ValueError(f"--set {assignment!r} is not of the form TASK.FIELD=VALUE, for example hellaswag.method=Total")
        if name not in ("all", *found):
            raise ValueError(f"--set {assignment}: {name} is not among --tasks={args.tasks}; give one of them, or all")
        changes.setdefault(name, []).append(change)
    shots, seed = SHOTS if args.shots is None else args.shots, args.seed or 0
    exams, wanted = [], [(word.strip() == FEW, number(word.strip(), shots)) for word in shots.split(",")]
    for label, task in found.items():
        mine = [change for name in ("all", label) if name in changes for change in changes[name]]
        how = overrides.override(task.protocol, *mine)
        metrics.metrics(task, how)
        for few, n in wanted:
            exams.append(runner.Examination(label, task, how, how.shots if few else n, seed, args.examples, few))
    return list({(exam.label, exam.shots): exam for exam in exams}.values())  # the paper's K may be among the numbers that were given


def number(word: str, given: str) -> int:
    """A number of demonstrations; of FEW, 0."""
    try:
        return 0 if word == FEW else parse.whole_argument(0)(word)
    except argparse.ArgumentTypeError:
        raise ValueError(
            f"--shots={parse.quote(given)[1:-1]}: give numbers of demonstrations, 0 or more, commas between; {FEW} is the paper's own"
        ) from None


def opened(path: str | Path, out: Any) -> Any:
    """The model that lies there, with its tokenizer."""
    from gptjax.evals import runner
    from gptjax.model import inference
    from gptjax.weights import open_model

    with out.working(f"reading {path}") as show:
        there = open_model.opened(path, [], show)
    parameters = count.parameters(there.config.model)
    out.say(f"{path}: {there.kind}, {there.config.name}, {parameters:,} parameters")
    about = {"name": there.config.name, "parameters": parameters, "n_ctx": there.config.model.n_ctx, "digest": there.digest}
    return runner.Model(inference.reader(there.step.model, there.params), there.text, there.step.model.place, about)


def records(
    exams: Iterable[Any], model: Any, data: Path | None, data_dir: str | None, directory: Path, out: Any
) -> Iterator[tuple[Any, Any]]:
    """(examination, its record) as they come; (examination, None) where it cannot be asked, which is told in a line, once of a task that
    has no data."""
    from gptjax.evals import runner
    from gptjax.model import inference

    directory.mkdir(parents=True, exist_ok=True)
    for _, same in itertools.groupby(exams, lambda exam: exam.label):
        told: set[str] = set()
        asked: set[tuple[str, int]] = set()
        first, *others = same
        read = reader(first, data, data_dir)
        for exam in (first, *others):
            record = None
            try:
                with out.working(exam.name) as show:
                    refused: dict[str, str] = {}
                    items, pool = exam.items(read, refused)
                    exam = exam.fit_to_data(items, pool, model.text, model.about["n_ctx"])
                    if (exam.label, exam.shots) in asked:
                        continue
                    asked.add((exam.label, exam.shots))
                    made = exam.put(items, pool, model, show, refused)
                    record = runner.examined(exam, made, model, directory, show, out.warn, refused)
            except ValueError as error:
                status, why = command.verdict(error)
                if status != 2 or isinstance(error, inference.NonFiniteLogits):  # no other task will do
                    raise
                if why not in told:
                    out.warn(f"{exam.label}: {why.removeprefix(f'{exam.task.name}: ')}")
                told.add(why)
            yield exam, record


def reader(exam: Any, data: Path | None, data_dir: str | None) -> Callable[[str], Any]:
    """A split -> its rows; each is read once for all numbers of shots."""
    from gptjax.evals import task_data

    folder = None if data is None else str(data)
    return functools.cache(lambda split: task_data.found(exam.task, exam.how, split, folder, data_dir, exam.seed, lenient=True))


class Table:
    """Lines of scores beside the papers', in columns that fit the terminal: where it has no room for the tasks' names before them, each
    stands above its lines."""

    HEADS = ("task", "shots", "metric", "score", "error", "items", "papers")
    LEFT = ("task", "metric", "papers")

    def __init__(self, exams: Sequence[Any], about: dict[str, Any], width: int):
        from gptjax.evals import metrics

        names = [(exam, metric) for exam in exams for metric in metrics.metrics(exam.task, exam.how)]
        cells = [
            (exam.label, f"{exam.shots:,}", metric, "1,234.56", "12.34", "10,000", published(exam, metric, about)) for exam, metric in names
        ]
        self._widths = [max(map(len, column)) for column in zip(self.HEADS, *cells, strict=True)]
        self._about, self._above = about, ""
        self._apart = sum(self._widths) + 2 * len(self.HEADS) > width

    def head(self, out: Any) -> None:
        out.say(self._line(*self.HEADS), "bold")

    def show(self, exam: Any, record: dict[str, Any], out: Any) -> None:
        """Each metric of a task with so many shots."""
        if self._apart and self._above != exam.label:
            out.say(exam.label)
        self._above = exam.label
        for position, score in enumerate(record["scores"].values()):
            name, shots = (exam.label, f"{exam.shots:,}") if position == 0 else ("", "")
            value, error = (figure(score[part]) for part in ("value", "error"))
            paper = published(exam, score["metric"], self._about)
            out.say(self._line(name, shots, score["metric"], value, error, f"{score['n']:,}", paper))

    def _line(self, *cells: str) -> str:
        columns = list(zip(self.HEADS, cells, self._widths, strict=True))[self._apart :]
        told = (cell.ljust(width) if head in self.LEFT else cell.rjust(width) for head, cell, width in columns)
        return (" " * self._apart + "  ".join(told)).rstrip()


def figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}" if abs(value) < 1e5 else f"{value:.2e}"


def remarks(exam: Any, record: dict[str, Any], n_ctx: int, out: Any) -> None:
    """What the reader of the scores has to know of the items."""
    if not record["scores"]:
        out.warn(f"{exam.label}, {exam.shots:,} shots: no right answer of its {record['examples']:,} items is known, so there is no score")
    if record["refused"]:
        why = "; ".join(list(record["refused"].values())[:3])
        out.warn(f"{exam.label}: {len(record['refused']):,} items cannot be asked, and do not count: {why}")
    if record["unwritable"]:
        some = ", ".join(record["unwritable"][:3])
        out.warn(
            f"{exam.label}: no right answer of {len(record['unwritable']):,} items can be written in {exam.how.method.n_tokens} tokens and "
            f"before {', '.join(map(repr, exam.how.method.stops)) or 'the end'}: item {some}; set {exam.label}.method.n_tokens or .stops"
        )
    if record["fewer_shots"]:
        out.say(f"  {record['fewer_shots']:,} items had no room for {exam.shots}: {record['mean_shots']:.1f} on average", "dim")
    if record["cut"]:
        out.say(f"  {record['cut']:,} items were longer than the context of {n_ctx:,}: their {record['cut_at']} was left out", "dim")
    if isinstance(exam.how.method, evaluation.LastToken):
        out.say("  " + UNITS, "dim")


def published(exam: Any, metric: str, about: dict[str, Any]) -> str:
    """What a paper reports for the model nearest in parameters, as "33.7 (gpt3_small)"; "" if it reports nothing of the kind."""
    kind = "zero" if exam.shots == 0 else "one" if exam.shots == 1 else "few" if exam.shots == exam.how.shots else None
    scores = {name: value for one in exam.task.published if (one.metric, one.shots) == (metric, kind) for name, value in one.scores.items()}
    if not scores:
        return ""
    size = {name: count.parameters(registry.config(name).model) for name in scores}
    nearest = min(scores, key=lambda name: abs(math.log(size[name] / about["parameters"])))
    return f"{scores[nearest]:g} ({nearest})"


def listed(out: Any) -> int:
    """All tasks: their papers' K, method and metric, and where their data come from."""
    from gptjax.evals import registry as tasks

    every = [task for members in tasks.families().values() for task in members]
    name = max(len(task.name) for task in every)
    form = f"  {{:<{name}}}  {{:>3}}  {{:<13}}  {{:<18}}  {{}}"
    before = len(form.format("", "", "", "", ""))
    room = out.width - before

    def say(data: str, *cells: Any, style: str = "") -> None:
        """A line; what has no room after the other columns stands in lines below them."""
        lines = textwrap.wrap(data, max(room, 20)) if room >= 20 else ["", *textwrap.wrap(data, out.width - 6)]
        out.say(form.format(*cells, lines[0]).rstrip(), style)
        for more in lines[1:]:
            out.say(" " * (before if room >= 20 else 6) + more, style)

    say("data", "task", "K", "method", "metric", style="bold")
    for family, members in tasks.families().items():
        out.say(family, "bold")
        for task in members:
            how = task.protocol
            also = f"; conventions: {', '.join(task.conventions)}" if task.conventions else ""
            source = "made from the seed" if task.made else task.tfds or "a .jsonl file"
            say(source + also, task.name, how.shots, type(how.method).__name__, how.metric)
    more = {name: len(members) for name, members in tasks.groups().items() if members != tasks.families().get(name)}
    out.say(f"groups: each heading; {', '.join(f'{name} ({n})' for name, n in more.items())}")
    return 0


if __name__ == "__main__":
    command.run(main)
