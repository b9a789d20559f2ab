"""SmolLM2-135M-Instruct, fine-tuned to a new format: every answer a JSON object of a number and a
unit; held-out questions before and after.

    python -m bench.smollm2_format --model=SmolLM2-135M-Instruct.Q4_1.gguf \\
        [--work=runs/smollm2_format] [--out=docs/results/smollm2_format]

Parts, each of which is skipped if its result is there. before: greedy answers. with_format: the
same, with the format in each question. sft: gptjax.sft; its run is work/sft. after: answers of that
run to the questions alone. The results go to OUT.json.
"""

import argparse
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gptjax
import gptjax.sft
from bench.assistant import answer_greedily
from bench.parts import as_json, run_parts, sets, write_jsonl
from gptjax.config import parse
from gptjax.training import pair_accuracy

# Expectations, written down before the first run.
MAX_BEFORE = 0.05  # share of answers in the format before, without an instruction
MIN_AFTER = 0.95  # and after
MAX_LOSS = 0.05  # of the share of right numbers, with_format minus after

N_TRAIN, N_HELD_OUT, N_CTX, BATCH_ROWS, PEAK_LR = 300, 100, 256, 4, 2e-4
N_TOKENS = 96
INSTRUCTION = ' Answer with a JSON object such as {"answer": 3, "unit": "cups"} and nothing else.'
NAMES = ("Ann", "Tom", "Mia", "Sam", "Eva", "Ben")
THINGS = {
    "train": ("apples", "books", "coins", "stamps", "eggs", "cards", "shells", "buttons"),
    "held_out": ("pears", "pens", "marbles", "keys"),
}
TIMES = {"minutes": ("hours", 60), "days": ("weeks", 7), "months": ("years", 12)}


class Item(NamedTuple):
    """A question, the number and the unit of its answer."""

    question: str
    number: int
    unit: str


def make_question(rng: random.Random, part: str) -> Item:
    """A question of a part: train, or held_out, whose things are others."""
    a, b = sorted((rng.randint(2, 12), rng.randint(2, 12)), reverse=True)
    name, things = rng.choice(NAMES), rng.choice(THINGS[part])
    unit = rng.choice(list(TIMES))
    long_unit, factor = TIMES[unit]
    texts = (
        (f"{name} has {a} {things} and gets {b} more. How many {things} are that?", a + b, things),
        (f"{name} has {a} {things} and gives away {b}. How many {things} are left?", a - b, things),
        (
            f"{name} has {a} boxes with {b} {things} each. How many {things} are that?",
            a * b,
            things,
        ),
        (f"How many {unit} are {a} {long_unit}?", a * factor, unit),
        (f"A rope of {a * b} meters is cut into {b} equal pieces. How long is each?", a, "meters"),
    )
    return Item(*rng.choice(texts))


def make_questions() -> dict[str, list[Item]]:
    """Different questions of both parts, none in both."""
    rng, found = random.Random(0), {}
    seen: set[str] = set()
    for part, n in (("held_out", N_HELD_OUT), ("train", N_TRAIN)):
        items = []
        while len(items) < n:
            item = make_question(rng, part)
            if item.question not in seen:
                seen.add(item.question)
                items.append(item)
        found[part] = items
    return found


def read_answer(text: str) -> tuple[float, str] | None:
    """(number, unit) of an answer in the format; None of any other text."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict) or set(value) != {"answer", "unit"}:
        return None
    number, unit = value["answer"], value["unit"]
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    return (number, unit) if is_number and isinstance(unit, str) else None


def last_number(text: str) -> float | None:
    """The last number in a text."""
    found = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
    return float(found[-1]) if found else None


def measure(answers: list[str], items: list[Item]) -> dict[str, Any]:
    """Shares with intervals (Wilson, 95%): in the format; whose last number is right; in the format
    with number and unit right."""
    pairs = list(zip(answers, items, strict=True))
    counts = {
        "in_format": sum(read_answer(text) is not None for text, _ in pairs),
        "right_number": sum(last_number(text) == item.number for text, item in pairs),
        "all_right": sum(read_answer(text) == (item.number, item.unit) for text, item in pairs),
    }
    n = len(pairs)
    return {key: [k / n, *pair_accuracy.wilson(k / n, n)] for key, k in counts.items()}


def answer(model_path: Path, items: list[Item], suffix: str) -> dict[str, Any]:
    """Greedy answers of a model to questions, each followed by a suffix."""
    model = gptjax.load(model_path)
    prompts = [
        model.apply_chat_template([{"role": "user", "content": item.question + suffix}])
        for item in items
    ]
    answers = answer_greedily(model, prompts, N_TOKENS, model.chat_template.end_of_turn)
    return {"scores": measure(answers, items), "answers": answers}


def fine_tune(model_path: Path, work: Path, items: list[Item]) -> dict[str, Any]:
    """An epoch of gptjax.sft; its run is work/sft."""
    rows = [
        {"prompt": question, "completion": json.dumps({"answer": number, "unit": unit})}
        for question, number, unit in items
    ]
    write_jsonl(work / "train.jsonl", rows)
    assignments = (
        f"task.train={work / 'train.jsonl'}",
        f"n_ctx={N_CTX}",
        "task.epochs=1",
        f"task.batch_rows={BATCH_ROWS}",
        f"task.peak_lr={PEAK_LR}",
        "task.warmup_fraction=0.1",
        "loop.every_log=1",
    )
    arguments = ["--config=sft", f"--init={model_path}", f"--run_dir={work / 'sft'}"]
    status = gptjax.sft.main([*arguments, *sets(*assignments)])
    assert status == 0
    return {"questions": len(rows)}


def main() -> None:
    """Runs the parts that are missing, writes the results and prints them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=parse.path_argument, required=True, help="a .gguf file")
    parser.add_argument("--work", type=parse.path_argument, default=Path("runs/smollm2_format"))
    parser.add_argument("--out", default="docs/results/smollm2_format")
    args = parser.parse_args()
    work = args.work
    work.mkdir(parents=True, exist_ok=True)
    items = make_questions()
    held_out = items["held_out"]
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "before": lambda: answer(args.model, held_out, ""),
        "with_format": lambda: answer(args.model, held_out, INSTRUCTION),
        "sft": lambda: fine_tune(args.model, work, items["train"]),
        "after": lambda: answer(work / "sft", held_out, ""),
    }
    results = run_parts(work, parts)
    stages = {name: part for name, part in results.items() if "scores" in part}
    answers = {name: part.pop("answers") for name, part in stages.items()}
    lost = (
        stages["with_format"]["scores"]["right_number"][0]
        - stages["after"]["scores"]["right_number"][0]
    )
    found = {
        "nothing before": stages["before"]["scores"]["in_format"][0] <= MAX_BEFORE,
        "learns": stages["after"]["scores"]["in_format"][0] >= MIN_AFTER,
        "lost": lost,
        "keeps": lost <= MAX_LOSS,
    }
    Path(f"{args.out}.json").write_text(as_json({"found": found} | results))
    for name, part in stages.items():
        print(name, {key: [f"{x:.2f}" for x in value] for key, value in part["scores"].items()})
    for i in random.Random(0).sample(range(len(held_out)), 4):
        print(
            "\n", held_out[i], *(f"{name}: {texts[i]}" for name, texts in answers.items()), sep="\n"
        )
    print(found, {name: round(part["seconds"]) for name, part in results.items()})


if __name__ == "__main__":
    main()
