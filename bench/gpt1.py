"""GPT-1's Table 5 and Figure 2 in small: what pre-training and the auxiliary loss are worth, on data that is here.

    python -m bench.gpt1 --data=DIR [--run=runs/gpt1_mini] [--out=docs/gpt1] [--seeds=5]

DIR has text/ (brown.txt.xz, moby_dick.txt.xz, shakespeare.txt.xz, sotu.jsonl.xz and wordnet_glosses.txt.xz, all of NLTK and Project
Gutenberg) and labelled/ (VADER's sentiment_vader, bsdgames' quiz_bsdgames). Pre-trains gpt1_mini on the former (20 minutes on 2 cores)
unless --run holds it, makes four small tasks, fine-tunes each with both pre-training and auxiliary loss and without either, and movies with
0 to 4 layers transferred; each an ordinary `python -m gptjax.finetune`, below --work, where what is done is not done again. Prints the
table, writes OUT.json and the picture OUT.png.
"""

import argparse
import json
import lzma
import math
import os
import random
import re
import statistics
import subprocess
import sys
from pathlib import Path

from gptjax.config import parse
from gptjax.report import loss_plot
from gptjax.runtime import atomic
from gptjax.sweeps import comparison

CLASSES = {
    "movies": ("gpt1_sst2", []),
    "glosses": ("gpt1_rte", ["task.fields=(premise,hypothesis)", "task.labels=(entailment,not_entailment)"]),
    "sources": ("gpt1_qqp", ["task.fields=(one,other)", "task.metric=accuracy"]),
    "quiz": ("gpt1_story_cloze", ["task.fields=question", "task.answers=answers", "task.labels=(A,B,C,D)"]),
}
ARMS = {
    "pre-training and auxiliary loss": [],
    "no auxiliary loss": ["task.lm_weight=0"],
    "no pre-training": ["task.transfer=Nothing()"],
}
# A model that begins with nothing may want another rate and more time: on movies both get 10 epochs, at the rate that is best on dev.
LONGER = {
    "pre-training, 10 epochs at its best rate": (["task.epochs=10"], (2e-4, 5e-4, 1e-3)),
    "no pre-training, 10 epochs at its best rate": (["task.epochs=10", "task.transfer=Nothing()"], (5e-4, 1e-3, 2e-3)),
}
TRAIN, DEV = 2000, 800


# --- the tasks -----------------------------------------------------------------------------------------------------------


def movies(draw: random.Random, data: Path) -> list[dict]:
    """Sentences of film reviews (Hutto and Gilbert 2014), positive where the mean of 20 ratings is above 0."""
    lines = (data / "labelled/sentiment_vader/movieReviewSnippets_GroundTruth.txt").read_text(errors="replace").splitlines()
    rated = [(float(rating), text) for _, rating, text in (line.split("\t") for line in lines)]
    return [{"sentence": text, "label": int(rating > 0)} for rating, text in rated if rating]


def glosses(draw: random.Random, data: Path) -> list[dict]:
    """Does WordNet's definition entail the word? Its own word, or another's."""
    lines = [line.split(": ", 1) for line in _text(data, "wordnet_glosses.txt").splitlines() if ": " in line]
    lines = [(word, gloss) for word, gloss in lines if len(gloss) < 120]
    made = []
    for word, gloss in draw.sample(lines, 2 * (TRAIN + DEV)):
        other = draw.random() < 0.5
        said = draw.choice(lines)[0] if other else word
        made.append({"premise": gloss, "hypothesis": said, "label": "not_entailment" if other else "entailment"})
    return made


def sources(draw: random.Random, data: Path) -> list[dict]:
    """Are two passages of 25 words of the same source: Brown, Moby Dick, Shakespeare, State of the Union?"""
    speeches = " ".join(json.loads(line)["text"] for line in _text(data, "sotu.jsonl").splitlines())
    words = [_text(data, f"{name}.txt").split() for name in ("brown", "moby_dick", "shakespeare")] + [speeches.split()]

    def passage(source):
        start = draw.randrange(len(source) - 25)
        return " ".join(source[start : start + 25])

    made = []
    for _ in range(2 * (TRAIN + DEV)):
        same = draw.random() < 0.5
        one, other = [draw.choice(words)] * 2 if same else draw.sample(words, 2)
        made.append({"one": passage(one), "other": passage(other), "label": int(same)})
    return made


def quiz(draw: random.Random, data: Path) -> list[dict]:
    """bsdgames' quiz: a question and four answers, the wrong ones of the same list."""
    made = []
    for file in sorted((data / "labelled/quiz_bsdgames").iterdir()):
        rows = [line.split(":") for line in file.read_text(errors="replace").splitlines() if line.count(":") >= 1]
        pairs = [(_plain(row[0]), _plain(row[1])) for row in rows]  # one direction: the other would tell the answers of the test set
        pairs = [(question, answer) for question, answer in pairs if question and answer]
        answers = sorted({answer for _, answer in pairs})
        for question, answer in pairs if len(answers) > 8 else []:
            others = [other for other in answers if other != answer and (question, other) not in pairs]
            options = [answer, *draw.sample(others, 3)]
            draw.shuffle(options)
            made.append({"question": question, "answers": options, "label": "ABCD"[options.index(answer)]})
    return made


def _plain(text: str) -> str:
    return re.sub(r"[\\{}\[\]]|.\x08", "", text.split("|")[0]).strip()


def _text(data: Path, name: str) -> str:
    return lzma.open(data / "text" / f"{name}.xz", "rt", errors="replace").read()


def written(task: str, data: Path, folder: Path) -> list[str]:
    """train, dev and test files of a task, equal for all runs; as arguments of gptjax.finetune."""
    arguments = []
    draw = random.Random(task)
    examples = {"movies": movies, "glosses": glosses, "sources": sources, "quiz": quiz}[task](draw, data)
    draw.shuffle(examples)
    n = min(DEV, len(examples) // 5)
    for split, part in {"dev": examples[:n], "test": examples[n : 2 * n], "train": examples[2 * n : 2 * n + TRAIN]}.items():
        path = folder / f"{task}_{split}.jsonl"
        path.write_text("".join(json.dumps(example) + "\n" for example in part))
        arguments += ["--set", f"task.{split}={path}"]
    return arguments


# --- runs ----------------------------------------------------------------------------------------------------------------


def finetuned(task: str, arm: str, more: list[str], args: argparse.Namespace, files: list[str], seeds: int) -> list[dict]:
    """The result of each seed: accuracy on dev and test, by the epoch that was best on dev."""
    run = args.work / f"{task} {arm}".replace(" ", "_")
    results = run / ("results.json" if seeds > 1 else "result.json")
    if not results.exists():
        config, sets = CLASSES[task]
        flags = [part for text in [*sets, f"task.peak={args.peak}", "loop.every_log=1000000", *more] for part in ("--set", text)]
        program = [sys.executable, "-m", "gptjax.finetune", f"--config={config}", f"--init={args.run}", f"--run={run}", f"--seeds={seeds}"]
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(args.work / "compiled")}
        done = subprocess.run([*program, *files, *flags], capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(f"{' '.join(program)}: {done.stderr[-2000:]}")
    found = json.loads(results.read_text())
    found = found if seeds > 1 else [found]
    print(f"{task:8} {arm:44} {interval(tested(found))}", flush=True)
    return found


def longer(arm: str, args: argparse.Namespace, files: list[str]) -> list[dict]:
    """An arm of LONGER on movies: the rate that is best on dev for the first seed, then all seeds with it."""
    more, rates = LONGER[arm]
    trials = [(rate, finetuned("movies", f"{arm} {rate:g}", [*more, f"task.peak={rate}"], args, files, 1)) for rate in rates]
    best, _ = max(trials, key=lambda trial: trial[1][0]["dev"])
    return finetuned("movies", arm, [*more, f"task.peak={best}"], args, files, args.seeds)


def tested(results: list[dict]) -> list[float]:
    return [result["test"] for result in results]


def interval(found: list[float]) -> str:
    """Mean and 95% interval of the mean."""
    estimate = comparison.estimate(found)
    return f"{estimate.mean:.1f}" + ("" if math.isnan(estimate.half) else f" +- {estimate.half:.1f}")


def zero_shot(args: argparse.Namespace, files: dict[str, list[str]]) -> dict[str, list[tuple[int, float]]]:
    """(updates, accuracy) of the heuristics at every checkpoint of pre-training that was kept."""
    import jax
    import numpy as np

    from gptjax.config import overrides, registry
    from gptjax.data.tokenizers import build
    from gptjax.sharding import device_mesh
    from gptjax.training import checkpoint, state, step
    from gptjax.training.classification import examples, metrics, zero_shot
    from gptjax.weights import load

    origin = load.found(args.run)
    text, mesh = build.tokenizer(origin.config.data.tokenizer), device_mesh.mesh(origin.config.mesh)
    built = step.build(origin.config, jax.devices()[0].platform, mesh, text.end_of_text)
    saved = checkpoint.Saved(Path(args.run) / "checkpoints", print)
    abstract = state.abstract(origin.config, built.model, built.tx, mesh).params
    fresh = state.created(origin.config, built.model, built.tx, mesh).params
    found: dict[str, list[tuple[int, float]]] = {}
    for task in ("movies", "quiz"):
        config, sets = CLASSES[task]
        spec = overrides.override(registry.finetuning(config), *sets, *files[task][1::2]).task
        read = examples.read(spec, "dev", print)
        labels = np.array([example.label for example in read])
        for at in [0, *saved.steps()]:
            restored = None if at == 0 else saved.restore({"params": abstract}, part="params/", steps=[at])
            params = fresh if restored is None else restored[1]["params"]
            y_BC = zero_shot.answered(spec, read, built.model, params, text)
            found.setdefault(task, []).append((at, metrics.score("accuracy", y_BC, labels)))
            print(f"zero-shot {task:8} after {at:6,} updates {found[task][-1][1]:5.1f}", flush=True)
    return found


def drawn(out: Path, layers: dict[str, list[float]], shots: dict[str, list[tuple[int, float]]]) -> None:
    """GPT-1's Figure 2: left, accuracy by transferred layers; right, zero-shot accuracy over updates of pre-training."""
    figure = loss_plot.canvas(9, 3.8)
    left, right = figure.subplots(1, 2)
    names = list(layers)
    means = [statistics.mean(found) for found in layers.values()]
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
    left.set_xticks(range(len(names)), [name.replace("1 layers", "1 layer") for name in names], fontsize=8)
    left.set(xlabel="transferred", ylabel="accuracy on movies, %", title="layers transferred (mean, range)")
    chance = {"movies": 50, "quiz": 25}
    for (task, points), colour in zip(shots.items(), ("#4C78A8", "#D1495B"), strict=True):
        right.plot(*zip(*points, strict=True), marker="o", color=colour, label=task)
        right.axhline(chance[task], color=colour, lw=0.8, ls=":")
    right.set(xlabel="updates of pre-training", ylabel="accuracy, %", title="zero-shot (dotted: chance)")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.savefig(out.with_suffix(".png"), dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=parse.path_argument, required=True, help="a folder with text/ and labelled/")
    parser.add_argument("--run", default="runs/gpt1_mini", help="the pre-trained model (default: runs/gpt1_mini; trained if absent)")
    parser.add_argument(
        "--work", type=parse.path_argument, default=Path("runs/gpt1_ablation"), help="where runs go (default: runs/gpt1_ablation)"
    )
    parser.add_argument("--out", type=parse.path_argument, default=Path("docs/gpt1"), help="of the figures (default: docs/gpt1)")
    parser.add_argument("--tasks", default=",".join(CLASSES), help="comma-separated (default: all)")
    parser.add_argument("--seeds", type=parse.whole_argument(), default=5, help="of each arm (default: 5)")
    parser.add_argument(
        "--peak",
        type=parse.number_argument(0, above=True),
        default=5e-4,
        help="learning rate (default: 5e-4; GPT-1's 6.25e-5 is for a model 100 x larger)",
    )
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if not (Path(args.run) / "checkpoints").exists():
        subprocess.run(
            [sys.executable, "-m", "gptjax.train", "--config=gpt1_mini", f"--text={args.data}/text/*.xz", f"--run={args.run}"], check=True
        )
    tasks = ["movies", *(task for task in args.tasks.split(",") if task != "movies")]  # Figure 2 is of movies
    files = {task: written(task, args.data, args.work) for task in {*tasks, "movies", "quiz"}}
    table: dict[str, dict[str, list[float]]] = {task: {} for task in tasks}
    layers: dict[str, list[float]] = {}
    n_layers = json.loads((Path(args.run) / "config.json").read_text())["model.n_layers"]
    for task in tasks:
        for arm, more in ARMS.items():
            table[task][arm] = tested(finetuned(task, arm, more, args, files[task], args.seeds))
        if task != "movies":
            continue
        table[task] |= {arm: tested(longer(arm, args, files[task])) for arm in LONGER}
        layers["nothing"] = table[task]["no pre-training"]
        for n in range(n_layers):
            name = f"{n} layers" if n else "embeddings"
            layers[name] = tested(finetuned(task, name, [f"task.transfer=Layers(n={n})"], args, files[task], args.seeds))
    layers["all"] = table["movies"][next(iter(ARMS))]
    shots = zero_shot(args, files)
    print(f"\n| arm | {' | '.join(tasks)} |\n|---|{'---|' * len(tasks)}")
    for arm in [*ARMS, *LONGER]:
        print(f"| {arm} | {' | '.join(interval(table[task][arm]) if arm in table[task] else '' for task in tasks)} |")
    args.out.with_suffix(".json").write_bytes(atomic.json_bytes({"table": table, "layers": layers, "zero_shot": shots}))
    drawn(args.out, layers, shots)
    print(f"\nwrote {args.out}.json and {args.out}.png")


if __name__ == "__main__":
    main()
