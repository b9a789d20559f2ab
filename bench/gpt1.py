"""GPT-1's Table 5 and Figure 2 in small: the effect of pre-training and of the auxiliary loss, on
data that are available offline.

    python -m bench.gpt1 --data=DIR [--run_dir=runs/gpt1_mini] [--seeds=5]
    [--out=docs/results/gpt1-ablation]

DIR has text/ (brown.txt.xz, moby_dick.txt.xz, shakespeare.txt.xz, sotu.jsonl.xz and
wordnet_glosses.txt.xz, all of NLTK and Project Gutenberg) and labelled/ (VADER's sentiment_vader,
bsdgames' quiz_bsdgames). Pre-trains gpt1_mini on the former (20 minutes on 2 cores) unless
--run_dir has it, makes four small tasks, fine-tunes each with both pre-training and auxiliary loss
and without either, and movies with 0 to 4 layers transferred; each is an ordinary `python -m
gptjax.finetune` below --work, where finished runs are not repeated. Prints the table, writes
OUT.json and the plot OUT.png.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

from bench import gpt1_tasks
from gptjax.config import parse
from gptjax.report import loss_plot
from gptjax.runtime import atomic
from gptjax.sweeps import comparison

TASKS = {
    "movies": ("gpt1_sst2", []),
    "glosses": (
        "gpt1_rte",
        ["task.fields=(premise,hypothesis)", "task.labels=(entailment,not_entailment)"],
    ),
    "sources": ("gpt1_qqp", ["task.fields=(one,other)", "task.metric=accuracy"]),
    "quiz": (
        "gpt1_story_cloze",
        ["task.fields=question", "task.answers=answers", "task.labels=(A,B,C,D)"],
    ),
}
ARMS = {
    "pre-training and auxiliary loss": [],
    "no auxiliary loss": ["task.lm_weight=0"],
    "no pre-training": ["task.transfer=Nothing()"],
}
# A model without pre-training may need another learning rate and more time: on movies both get 10
# epochs, at the rate that is best on dev.
LONG_ARMS = {
    "pre-training, 10 epochs at its best rate": (["task.epochs=10"], (2e-4, 5e-4, 1e-3)),
    "no pre-training, 10 epochs at its best rate": (
        ["task.epochs=10", "task.transfer=Nothing()"],
        (5e-4, 1e-3, 2e-3),
    ),
}


def run_finetune(
    task: str, arm: str, edits: list[str], args: argparse.Namespace, files: list[str], seeds: int
) -> list[dict]:
    """Returns the result of each seed: accuracy on dev and test at the epoch that is
    best on dev.
    """
    run = args.work / f"{task} {arm}".replace(" ", "_")
    results = run / ("results.json" if seeds > 1 else "result.json")
    if not results.exists():
        config, sets = TASKS[task]
        flags = [
            part
            for text in [*sets, f"task.peak_lr={args.peak}", "loop.every_log=1000000", *edits]
            for part in ("--set", text)
        ]
        program = [
            sys.executable,
            "-m",
            "gptjax.finetune",
            f"--config={config}",
            f"--init={args.run_dir}",
            f"--run_dir={run}",
            f"--seeds={seeds}",
        ]
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(args.work / "compiled")}
        process = subprocess.run(
            [*program, *files, *flags], capture_output=True, text=True, env=environment
        )
        if process.returncode:
            raise SystemExit(f"{' '.join(program)}: {process.stderr[-2000:]}")
    seed_results = json.loads(results.read_text())
    seed_results = seed_results if seeds > 1 else [seed_results]
    print(f"{task:8} {arm:44} {format_interval(test_scores(seed_results))}", flush=True)
    return seed_results


def run_long_arm(arm: str, args: argparse.Namespace, files: list[str]) -> list[dict]:
    """Runs an arm of LONG_ARMS on movies: finds the rate that is best on dev with the first seed,
    then runs all seeds with it.
    """
    edits, rates = LONG_ARMS[arm]
    trials = [
        (
            rate,
            run_finetune(
                "movies", f"{arm} {rate:g}", [*edits, f"task.peak_lr={rate}"], args, files, 1
            ),
        )
        for rate in rates
    ]
    best, _ = max(trials, key=lambda trial: trial[1][0]["dev"])
    return run_finetune("movies", arm, [*edits, f"task.peak_lr={best}"], args, files, args.seeds)


def test_scores(results: list[dict]) -> list[float]:
    """Returns the test score of each result."""
    return [result["test"] for result in results]


def format_interval(values: list[float]) -> str:
    """Mean and 95% interval of the mean."""
    estimate = comparison.mean_interval(values)
    return f"{estimate.mean:.1f}" + (
        "" if math.isnan(estimate.half_width) else f" +- {estimate.half_width:.1f}"
    )


def zero_shot_scores(
    args: argparse.Namespace, files: dict[str, list[str]]
) -> dict[str, list[tuple[int, float]]]:
    """Returns (updates, accuracy) of the heuristics at every kept checkpoint of pre-training."""
    import jax
    import numpy as np

    from gptjax.config import overrides
    from gptjax.configs import registry
    from gptjax.data.tokenizers import build
    from gptjax.sharding import device_mesh
    from gptjax.training import checkpoint, state, step
    from gptjax.training.classification import examples, metrics, zero_shot
    from gptjax.weights import load

    weights = load.load(args.run_dir)
    tokenizer, mesh = (
        build.build(weights.config.data.tokenizer),
        device_mesh.make_mesh(weights.config.mesh),
    )
    train_step = step.build(weights.config, jax.devices()[0].platform, mesh, tokenizer.end_of_text)
    checkpoint_reader = checkpoint.CheckpointReader(Path(args.run_dir) / "checkpoints", print)
    abstract_params = state.abstract_state(
        weights.config, train_step.model, train_step.tx, mesh
    ).params
    init_params = state.init_sharded(weights.config, train_step.model, train_step.tx, mesh).params
    scores: dict[str, list[tuple[int, float]]] = {}
    for task in ("movies", "quiz"):
        config, sets = TASKS[task]
        spec = overrides.override(registry.finetuning(config), *sets, *files[task][1::2]).task
        dev_examples = examples.read(spec, "dev", print)
        labels = np.array([example.label for example in dev_examples])
        for step_number in [0, *checkpoint_reader.steps()]:
            loaded = (
                None
                if step_number == 0
                else checkpoint_reader.restore(
                    {"params": abstract_params}, prefix="params/", steps=[step_number]
                )
            )
            params = init_params if loaded is None else loaded[1]["params"]
            y_BC = zero_shot.predict(spec, dev_examples, train_step.model, params, tokenizer)
            scores.setdefault(task, []).append(
                (step_number, metrics.score("accuracy", y_BC, labels))
            )
            print(
                f"zero-shot {task:8} after {step_number:6,} updates {scores[task][-1][1]:5.1f}",
                flush=True,
            )
    return scores


def plot(
    out: Path, layers: dict[str, list[float]], shots: dict[str, list[tuple[int, float]]]
) -> None:
    """Draws GPT-1's Figure 2: left, accuracy by transferred layers; right, zero-shot accuracy by
    updates of pre-training.
    """
    figure = loss_plot.new_figure(9, 3.8)
    left, right = figure.subplots(1, 2)
    names = list(layers)
    means = [statistics.mean(values) for values in layers.values()]
    left.errorbar(
        range(len(names)),
        means,
        [
            [m - min(f) for m, f in zip(means, layers.values(), strict=True)],
            [max(f) - m for m, f in zip(means, layers.values(), strict=True)],
        ],
        marker="o",
        capsize=3,
        color="#4C78A8",
    )
    left.set_xticks(
        range(len(names)), [name.replace("1 layers", "1 layer") for name in names], fontsize=8
    )
    left.set(
        xlabel="transferred",
        ylabel="accuracy on movies, %",
        title="layers transferred (mean, range)",
    )
    chance = {"movies": 50, "quiz": 25}
    for (task, points), color in zip(shots.items(), ("#4C78A8", "#D1495B"), strict=True):
        right.plot(*zip(*points, strict=True), marker="o", color=color, label=task)
        right.axhline(chance[task], color=color, lw=0.8, ls=":")
    right.set(
        xlabel="updates of pre-training", ylabel="accuracy, %", title="zero-shot (dotted: chance)"
    )
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.savefig(out.with_suffix(".png"), dpi=130)


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=parse.path_argument, required=True, help="a folder with text/ and labelled/"
    )
    parser.add_argument(
        "--run_dir",
        default="runs/gpt1_mini",
        help="the pre-trained model (default: runs/gpt1_mini; trained if absent)",
    )
    parser.add_argument(
        "--work",
        type=parse.path_argument,
        default=Path("runs/gpt1_ablation"),
        help="where runs go (default: runs/gpt1_ablation)",
    )
    parser.add_argument(
        "--out",
        type=parse.path_argument,
        default=Path("docs/results/gpt1-ablation"),
        help="of the figures (default: docs/results/gpt1-ablation)",
    )
    parser.add_argument("--tasks", default=",".join(TASKS), help="comma-separated (default: all)")
    parser.add_argument(
        "--seeds", type=parse.int_argument(), default=5, help="of each arm (default: 5)"
    )
    parser.add_argument(
        "--peak",
        type=parse.float_argument(0, above=True),
        default=5e-4,
        help="learning rate (default: 5e-4; GPT-1's 6.25e-5 is for a model 100 x larger)",
    )
    return parser


def main() -> None:
    """Pre-trains and fine-tunes; writes the table, the figures and the plot."""
    args = make_parser().parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if not (Path(args.run_dir) / "checkpoints").exists():
        subprocess.run(
            [
                sys.executable,
                "-m",
                "gptjax.train",
                "--config=gpt1_mini",
                f"--text={args.data}/text/*.xz",
                f"--run_dir={args.run_dir}",
            ],
            check=True,
        )
    tasks = [
        "movies",
        *(task for task in args.tasks.split(",") if task != "movies"),
    ]  # Figure 2 is of movies
    files = {
        task: gpt1_tasks.write_splits(task, args.data, args.work)
        for task in {*tasks, "movies", "quiz"}
    }
    table: dict[str, dict[str, list[float]]] = {task: {} for task in tasks}
    layers: dict[str, list[float]] = {}
    n_layers = json.loads((Path(args.run_dir) / "config.json").read_text())["model.n_layers"]
    for task in tasks:
        for arm, edits in ARMS.items():
            table[task][arm] = test_scores(
                run_finetune(task, arm, edits, args, files[task], args.seeds)
            )
        if task != "movies":
            continue
        table[task] |= {arm: test_scores(run_long_arm(arm, args, files[task])) for arm in LONG_ARMS}
        layers["nothing"] = table[task]["no pre-training"]
        for n in range(n_layers):
            name = f"{n} layers" if n else "embeddings"
            layers[name] = test_scores(
                run_finetune(
                    task, name, [f"task.transfer=Layers(n={n})"], args, files[task], args.seeds
                )
            )
    layers["all"] = table["movies"][next(iter(ARMS))]
    shots = zero_shot_scores(args, files)
    print(f"\n| arm | {' | '.join(tasks)} |\n|---|{'---|' * len(tasks)}")
    for arm in [*ARMS, *LONG_ARMS]:
        cells = (format_interval(table[task][arm]) if arm in table[task] else "" for task in tasks)
        print(f"| {arm} | {' | '.join(cells)} |")
    args.out.with_suffix(".json").write_bytes(
        atomic.json_bytes({"table": table, "layers": layers, "zero_shot": shots})
    )
    plot(args.out, layers, shots)
    print(f"\nwrote {args.out}.json and {args.out}.png")


if __name__ == "__main__":
    main()
