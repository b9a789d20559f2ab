"""GPT-3's Figures 1.2 and 1.3 in small: does accuracy rise with the number of demonstrations, and
with model size?

    python -m bench.incontext [--work=runs/incontext] [--out=docs/results/in-context]
    [--tokens=10e6] [--items=200] [--text=FILE]

Trains three sizes on documents of questions and answers, each document of one task and half of them
with its description, mixed with a tenth of --text if it is given (the documented results: NLTK's
Brown corpus). Then evaluates them, by `python -m gptjax.evaluate`, on questions that are in no
document, of those tasks and of two that are in no document either: rotation in the other direction,
and names in unseen letters. Prints a table and draws OUT.png.
"""

import argparse
import json
import random
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

from gptjax.config import parse

LETTERS, NEW_LETTERS = "abcdefgh", "stuvwxyz"
SIZES = {"small": (2, 64), "medium": (3, 96), "large": (4, 160)}  # layers, width
SHOTS = (0, 1, 2, 4, 8)
N_CTX, ROWS = 256, 8
WORLDS = 2  # sets of names for each naming task
Maker = Callable[[random.Random], tuple[str, str]]  # samples a question and its answer
DESCRIPTIONS = {
    "copy": "Write the letters again.",
    "reverse": "Write the letters from the last to the first.",
    "rotate": "Move the first letter to the end.",
    "double": "Write each letter twice.",
    "sum": "Add the numbers.",
    "naming": "Say the name of the thing.",
}
HELD_OUT = {
    "rotate_back": "Move the last letter to the front.",
    "new_naming": "Say the name of the thing.",
}


def letter_task(transform: Callable[[str], str]) -> Callable[[random.Random], Maker]:
    """Returns a task on four letters, the same in every document."""

    def make_item(rng):
        text = "".join(rng.choices(LETTERS, k=4))
        return text, transform(text)

    return lambda rng: make_item


def sum_task(rng: random.Random) -> Maker:
    """Returns a task on sums of two numbers."""

    def make_item(rng):
        a, b = rng.randrange(20), rng.randrange(20)
        return f"{a}+{b}", str(a + b)

    return make_item


def naming_task(letters: str) -> Callable[[random.Random], Maker]:
    """Returns a task on five things, each with a name of two letters, which differ in each
    document.
    """

    def make_world(rng):
        word = lambda: "".join(rng.choices(letters, k=2))  # noqa: E731
        pairs = list({word(): word() for _ in range(5)}.items())
        return lambda rng: rng.choice(pairs)

    return make_world


TASKS: dict[str, Callable[[random.Random], Maker]] = {
    "copy": letter_task(lambda text: text),
    "reverse": letter_task(lambda text: text[::-1]),
    "rotate": letter_task(lambda text: text[1:] + text[:1]),
    "double": letter_task(lambda text: "".join(letter * 2 for letter in text)),
    "sum": sum_task,
    "naming": naming_task(LETTERS),
    "rotate_back": letter_task(lambda text: text[-1:] + text[:-1]),
    "new_naming": naming_task(NEW_LETTERS),
}


def is_held_out(question: str) -> bool:
    """Whether a question is never in training: one in eight, for tasks on letters and sums."""
    return zlib.crc32(question.encode()) % 8 == 0


def sample_item(task: str, make_item: Maker, rng: random.Random, is_test: bool) -> tuple[str, str]:
    """Samples a question and answer on the given side of the split."""
    while True:
        question, answer = make_item(rng)
        if is_held_out(question) == is_test or "naming" in task:
            return question, answer


def make_document(rng: random.Random) -> str:
    """Questions and answers of one task, up to a row."""
    task = rng.choice(list(DESCRIPTIONS))
    make_item = TASKS[task](rng)
    parts = [DESCRIPTIONS[task]] if rng.random() < 0.5 else []
    for _ in range(rng.randint(4, 16)):
        question, answer = sample_item(task, make_item, rng, is_test=False)
        parts.append(f"Q: {question}\nA: {answer}")
    return "\n\n".join(parts)[: N_CTX - 1]


def write_corpus(path: Path, n_bytes: int) -> None:
    """Writes the documents for training."""
    rng, size = random.Random("documents"), 0
    with path.open("w") as file:
        while size < n_bytes:
            text = make_document(rng)
            size += len(text) + 1
            file.write(json.dumps({"text": text}) + "\n")


def write_items(folder: Path, items: int) -> dict[str, str]:
    """Writes NAME_test.jsonl and NAME_train.jsonl of each task; returns their descriptions."""
    descriptions = {}
    for task, text in (DESCRIPTIONS | HELD_OUT).items():
        for name in [f"{task}_{i + 1}" for i in range(WORLDS)] if "naming" in task else [task]:
            descriptions[name] = text
            rng = random.Random(f"items of {name}")
            make_item = TASKS[task](rng)
            for split, n in (("train", 400), ("test", items)):
                pairs = [
                    sample_item(task, make_item, rng, is_test=split == "test") for _ in range(n)
                ]
                pairs = pairs if "naming" in task else list(dict.fromkeys(pairs))
                lines = (
                    json.dumps({"context": f"Q: {question}\nA:", "completion": f" {answer}"})
                    for question, answer in pairs
                )
                (folder / f"{name}_{split}.jsonl").write_text(
                    "".join(line + "\n" for line in lines)
                )
    return descriptions


def run(*arguments: str) -> None:
    """Runs `python -m ARGUMENT ...`; exits if that fails."""
    process = subprocess.run([sys.executable, "-m", *arguments])
    if process.returncode:
        raise SystemExit(f"python -m {' '.join(arguments)} ended with {process.returncode}")


def train_size(size: str, work: Path, tokens: float, text: Path | None) -> Path:
    """Trains the model of this size on the corpus in `work`; returns its run directory."""
    run_path = work / size
    n_layers, d_model = SIZES[size]
    sources = f"Text(path='{work / 'documents.jsonl'}', weight=0.9)"
    if text is not None:
        sources = f"({sources}, Text(path='{text}', weight=0.1))"
    steps = int(tokens / (ROWS * N_CTX))
    sets = [
        f"model.n_layers={n_layers}",
        f"model.d_model={d_model}",
        f"model.n_heads={d_model // 32}",
        f"model.n_ctx={N_CTX}",
        f"data.sources={sources}",
        f"train.batch_tokens={ROWS * N_CTX}",
        f"train.total_tokens={steps * ROWS * N_CTX}",
        f"train.schedule=Cosine(peak_lr=2e-3, warmup_tokens={200 * ROWS * N_CTX}, "
        f"decay_tokens={steps * ROWS * N_CTX}, final_fraction=0.1)",
        f"name=incontext_{size}",
        "loop.every_log=100",
        "loop.every_eval=500",
        "loop.every_save=500",
        "loop.every_sample=None",
    ]
    run(
        "gptjax.train",
        "--config=smoke",
        f"--run_dir={run_path}",
        *(part for edit in sets for part in ("--set", edit)),
    )
    return run_path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work",
        type=parse.path_argument,
        default=Path("runs/incontext"),
        help="where all goes (default: runs/incontext)",
    )
    parser.add_argument(
        "--out",
        type=parse.path_argument,
        default=Path("docs/results/in-context"),
        help="of the picture (default: docs/results/in-context)",
    )
    parser.add_argument(
        "--tokens",
        type=parse.float_argument(0, above=True),
        default=10e6,
        help="of each training (default: 10e6)",
    )
    parser.add_argument("--text", type=parse.path_argument, help="mixed in, a tenth")
    parser.add_argument(
        "--items", type=parse.int_argument(), default=200, help="asked of each task (default: 200)"
    )
    parser.add_argument("--sizes", default=",".join(SIZES), help="comma-separated (default: all)")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "documents.jsonl").exists():
        write_corpus(args.work / "documents.jsonl", int(0.9 * args.tokens))
    descriptions = write_items(args.work, args.items)
    runs = [train_size(size, args.work, args.tokens, args.text) for size in args.sizes.split(",")]
    for run_path in runs:
        for with_description in (True, False):
            sets = [
                part
                for task, text in descriptions.items()
                if with_description
                for part in ("--set", f"{task}.description={text!r}")
            ]
            sets += ["--set", "all.method=Greedy(n_tokens=12)"]
            shots = ",".join(map(str, SHOTS))
            run(
                "gptjax.evaluate",
                f"--model={run_path}",
                f"--tasks={','.join(descriptions)}",
                f"--num_fewshot={shots}",
                f"--task_data={args.work}",
                *sets,
            )
    run("gptjax.evaluate", f"--curve={args.out.with_suffix('.png')}", *map(str, runs))


if __name__ == "__main__":
    main()
