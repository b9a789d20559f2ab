"""Reproduce GPT-2's published zero-shot scores on local files.

--task_data holds any of: wikitext2.txt and wikitext103.txt (both wiki.test.raw), ptb.txt,
text8.txt, enwik8.txt, lambada_test.jsonl. Runs and other weights are measured too. The exit status
is 1 if a score differs by more than 2% from what others measured on the released weights.
"""

from typing import Any

from gptjax import cli, evaluate
from gptjax.config import overrides, parse
from gptjax.evals import score_table

EXAMPLE = "python -m gptjax.reproduce_gpt2 --model=gpt2/ --task_data=texts/"
TASKS = ("wikitext2", "wikitext103", "ptb", "text8", "enwik8", "lambada", "lambada:gpt2")
TOLERANCE = 0.02
# Others' measurements on the released weights: WikiText in huggingface/transformers issue 13761 and
# karpathy/llm.c issue 276, LAMBADA in EleutherAI/lm-evaluation-harness issue 2159 and
# EleutherAI/gpt-neo's README; of the last token, as OpenAI's own accuracy seems to be, in
# lm-evaluation-harness issues 350 and 356.
REFERENCE_SCORES = {
    ("wikitext2", "perplexity"): {"gpt2_124m": 29.9, "gpt2_774m": 19.44},
    ("wikitext103", "perplexity"): {"gpt2_124m": 37.37},
    ("lambada", "accuracy"): {"gpt2_124m": 32.56, "gpt2_1558m": 51.21},
    ("lambada", "perplexity"): {"gpt2_124m": 40.06, "gpt2_1558m": 10.63},
    ("lambada:gpt2", "accuracy"): {"gpt2_124m": 46.8},
}


def main(arguments: list[str]) -> int:
    """Runs the program; the exit status is 1 if a score differs."""
    parser = cli.make_parser("reproduce_gpt2", __doc__ or "", EXAMPLE)
    parser.add_argument(
        "--model",
        metavar="DIR",
        type=parse.path_argument,
        required=True,
        help="a folder of weights, or a run",
    )
    parser.add_argument(
        "--task_data",
        metavar="DIR",
        type=parse.path_argument,
        required=True,
        help="where the texts lie",
    )
    parser.add_argument(
        "--stride",
        metavar="N",
        type=parse.int_argument(),
        help="tokens predicted in each window (default: the context, no overlap)",
    )
    parser.add_argument(
        "--limit",
        metavar="N",
        type=parse.int_argument(),
        help="ask no more than N of LAMBADA's passages: no verdict then",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=parse.path_argument,
        help="where results go (default: as gptjax.evaluate's)",
    )
    args = parser.parse_args(arguments)
    if not args.task_data.is_dir():
        raise ValueError(
            f"--task_data={args.task_data} is not a directory: give one with the texts that --help "
            "names"
        )

    from gptjax.report import console

    out = console.Console(quiet=False)
    model = evaluate.load_model(args.model, out)
    out.print(format_row("", "", "ours", "error", "paper", "others*", ""), "bold")
    differs, any_score = False, False
    directory = args.out or evaluate.results_dir(args.model)
    for task_run, record in evaluate.run_all(
        build_runs(args), model, args.task_data, None, directory, out
    ):
        for score in record["scores"].values() if record else ():
            any_score, agrees = True, print_score(task_run, score, model.metadata["name"], out)
            differs = differs or agrees is False
    if not any_score:
        raise ValueError(f"--task_data={args.task_data} has none of the texts that --help names")
    out.print("* others' measurements on the released weights (gptjax/reproduce_gpt2.py)")
    out.print(f"of lambada:gpt2: {score_table.LAST_TOKEN_NOTE}")
    return 1 if differs and args.limit is None and args.stride is None else 0


def build_runs(args: Any) -> list[Any]:
    """Returns the evaluations of all texts."""
    from gptjax.evals import registry, runner

    task_runs = []
    for label, task in registry.get_tasks(TASKS, args.task_data).items():
        protocol = task.protocol
        if args.stride is not None and "lambada" not in label:
            protocol = overrides.override(protocol, f"method.stride={args.stride}")
        task_runs.append(runner.TaskRun(label, task, protocol, 0, 0, args.limit))
    return task_runs


def print_score(task_run: Any, score: dict[str, Any], size: str, out: Any) -> bool | None:
    """Prints a score; returns whether it agrees with others' measurement, None if there is none."""
    key = task_run.label, score["metric"]
    reference = (
        REFERENCE_SCORES[key][size]
        if key in REFERENCE_SCORES and size in REFERENCE_SCORES[key]
        else None
    )
    paper = [
        p.scores[size]
        for p in task_run.task.paper_scores
        if (p.paper, p.metric) == ("GPT-2", score["metric"]) and size in p.scores
    ]
    agrees = None if reference is None else abs(score["value"] / reference - 1) <= TOLERANCE
    our_text, error, paper_text, reference_text = map(
        score_table.format_score, (score["value"], score["error"], *(paper or [None]), reference)
    )
    out.print(
        format_row(
            *key,
            our_text,
            error,
            paper_text,
            reference_text,
            {None: "", True: "agrees", False: "differs"}[agrees],
        )
    )
    return agrees


def format_row(
    name: str, metric: str, our_score: str, error: str, paper: str, reference: str, verdict: str
) -> str:
    """Formats a row of the table."""
    return (
        f"{name:<13}{metric:<19}{our_score:>12}{error:>10}{paper:>8}{reference:>8}  {verdict}"
    ).rstrip()


if __name__ == "__main__":
    cli.run(main)
