"""A tiny assistant: a GPT of 5M parameters, pre-trained on a little text, fine-tuned on
instructions, then rewarded for right answers; held-out questions after each step.

    python -m bench.assistant --data=DIR [--work=runs/assistant] [--out=docs/results/assistant]

DIR has text/brown.txt.xz (NLTK's corpus, a sentence a line) and text/wordnet_glosses.txt.xz (lines
"word, synonym: gloss; example"), labelled/quiz_bsdgames/ (the files of Debian's bsdgames) and
translation/*.en-fr.tsv.xz (English and French in the last two columns). Parts, each of which is
skipped if its result is there.

data: the files. lm: the pre-trained model. sft: gptjax.sft on the instructions. rl: gptjax.rlhf,
GRPO, with the reward bench/assistant_tasks.py:reward. more: instead of rl, gptjax.sft on the
prompts of rl with their right answers. eval-lm, eval-sft, eval-rl, eval-more: greedy answers to the
held-out questions; those of lm, which knows no chat, continue three solved questions, as text. The
results go to OUT.json; tables and samples are printed.
"""

import argparse
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import gptjax
import gptjax.rlhf
import gptjax.sft
import gptjax.train
from bench import assistant_data, assistant_tasks
from bench.assistant_tasks import TASKS, Item
from bench.parts import as_json, run_parts, sets
from gptjax.config import evaluation, parse
from gptjax.evals import generation, metrics, scorers
from gptjax.report import events
from gptjax.training import pair_accuracy

# Expectations, written down before the first full run.
MAX_BEFORE = 0.1  # accuracy of each of TASKS by the pre-trained model
MIN_SFT = 0.5  # mean accuracy on TASKS after SFT
MIN_RISE = 0.03  # of that mean by RL
MAX_LOSS = 0.03  # of the mean accuracy on choose and quiz, which RL does not train
MIN_QUIZ, MAX_UNKNOWN = 0.3, 0.1  # accuracy after SFT on known facts in a new wording, and unknown
MIN_CHOOSE = 0.5  # lower end of the interval after SFT; chance is a half

N_CTX, BATCH_ROWS = 128, 16
LM_STEPS, LM_LR, SFT_LR = 300, 2e-3, 1e-3
ANSWERS, BATCH_ANSWERS, ITERATIONS, RL_LR = 8, 128, 60, 5e-5
PROMPT_TOKENS, ANSWER_TOKENS = 48, 28
MORE_LR = 3e-4
STAGES = ("lm", "sft", "rl", "more")
N_TOKENS = {"define": 52, "translate": 64}  # of an answer; otherwise:
SHORT = 28
N_SHOTS = 3
SAMPLE_SEED = 1  # 0 draws a slur from the word list


# --- training -------------------------------------------------------------------------------------


def train_lm(work: Path) -> dict[str, Any]:
    """The pre-trained model; its run is work/lm."""
    batch, n = BATCH_ROWS * N_CTX, LM_STEPS * BATCH_ROWS * N_CTX
    run(
        gptjax.train,
        "--config=nano",
        f"--run_dir={work / 'lm'}",
        *sets(
            "model.n_layers=6",
            "model.n_heads=8",
            "model.d_model=256",
            "model.n_vocab=257",
            f"model.n_ctx={N_CTX}",
            "model.positions=(Rotary(),)",
            "model.norm_type=RMSNorm()",
            "model.mlp=SwiGLU(d_ff=768)",
            "model.biases=none",
            "data.tokenizer=Bytes()",
            f"data.sources=(Text(path='{work}/lm.jsonl'),)",
            f"train.batch_tokens={batch}",
            f"train.total_tokens={n}",
            f"train.schedule=Cosine(peak_lr={LM_LR},warmup_tokens={n // 10},decay_tokens={n},"
            "final_fraction=0.1)",
            "loop.eval_rows=64",
            f"loop.every_eval={LM_STEPS}",
            "loop.sample_prompt='The '",
        ),
    )
    loss = next(row for row in events.read(work / "lm") if "validation_loss" in row)
    return {"tokens": n, "validation_loss": loss["validation_loss"]}


def fine_tune(work: Path, name: str, init: str, data: str, peak_lr: float) -> dict[str, Any]:
    """An epoch of gptjax.sft; its run is work/NAME."""
    run(
        gptjax.sft,
        "--config=sft",
        f"--init={work / init}",
        f"--run_dir={work / name}",
        *sets(
            f"task.train={work / data}",
            "task.dev_fraction=0.02",
            "task.epochs=1",
            f"task.batch_rows={BATCH_ROWS}",
            f"task.peak_lr={peak_lr}",
            "task.warmup_fraction=0.05",
            "loop.every_log=20",
        ),
    )
    rows = events.read(work / name)
    return {key: [row[key] for row in rows if key in row] for key in ("loss", "validation_loss")}


def train_rl(work: Path) -> dict[str, Any]:
    """GRPO with the reward of right answers; its run is work/rl."""
    run(
        gptjax.rlhf,
        "--config=grpo",
        f"--init={work / 'sft'}",
        f"--run_dir={work / 'rl'}",
        *sets(
            f"task.prompts={work / 'rl.jsonl'}",
            f"task.reward=PythonFunction(name='{assistant_tasks.__file__}:reward')",
            f"task.prompt_tokens={PROMPT_TOKENS}",
            f"task.answer_tokens={ANSWER_TOKENS}",
            f"task.advantage=GroupMean(answers={ANSWERS})",
            "task.no_ending_score=0.0",
            f"task.batch_rows={BATCH_ANSWERS}",
            "task.minibatches=2",
            f"task.episodes={ITERATIONS * BATCH_ANSWERS}",
            f"task.peak_lr={RL_LR}",
            "task.warmup_iterations=2",
            f"loop.every_eval={ITERATIONS}",
            f"loop.every_sample={ITERATIONS}",
        ),
    )
    rows = [row for row in events.read(work / "rl") if "score" in row]
    return {key: [row[key] for row in rows] for key in ("score", "kl", "entropy")}


def run(program: Any, *arguments: str) -> None:
    status = program.main(list(arguments))
    assert status in (0, None), f"{program.__name__}: status {status}"


# --- held-out questions ---------------------------------------------------------------------------


def read_items(path: Path) -> list[Item]:
    return [Item(**json.loads(line)) for line in path.read_text().splitlines()]


def text_prompt(
    shots: list[Item], question: str, encode: Callable[[str], list[int]], n_tokens: int
) -> list[int]:
    """The ids of a question after as many solved ones as fit into n_tokens."""
    text = f"Question: {question}\nAnswer:"
    for item in shots:
        longer = f"Question: {item.question}\nAnswer: {item.answer}\n\n{text}"
        if len(encode(longer)) > n_tokens:
            break
        text = longer
    return encode(text)


def evaluate(work: Path, name: str) -> dict[str, Any]:
    """Greedy answers of the run work/NAME to the held-out questions, by the chat template; of lm
    after solved questions of the task, as text."""
    model, answers = gptjax.load(work / name), {}
    stop = "\n" if name == "lm" else model.chat_template.end_of_turn
    items, solved = (read_items(work / f"{name}.jsonl") for name in ("held_out", "solved"))
    for task in dict.fromkeys(item.task for item in items):
        n_tokens = N_TOKENS.get(task, SHORT)
        questions = [item.question for item in items if item.task == task]
        if name != "lm":
            prompts = [
                model.apply_chat_template([{"role": "user", "content": q}]) for q in questions
            ]
        else:
            shots = [item for item in solved if item.task == task.removesuffix("_unknown")]
            encode, room = model.tokenizer.encode, N_CTX - n_tokens
            prompts = [
                text_prompt(shots[i % 5 :][:N_SHOTS], question, encode, room)
                for i, question in enumerate(questions)
            ]
        answers[task] = answer_greedily(model, prompts, n_tokens, stop)
    return {"answers": answers}


def answer_greedily(
    model: gptjax.LanguageModel, prompts: list[list[int]], n_tokens: int, stop: str | None
) -> list[str]:
    """The likeliest text of at most n_tokens after each prompt, up to `stop`."""
    method = evaluation.Greedy(n_tokens=n_tokens, stops=(stop,) if stop else ())
    found = dict(
        generation.generate_until(
            model.inference_model, prompts, method, model.tokenizer, jax.random.key(0)
        )
    )
    return [found[i] for i in range(len(prompts))]


def summarize(items: list[Item], answers: dict[str, list[str]]) -> dict[str, Any]:
    """Of each task the share of right answers with an interval (Wilson, 95%), of define and
    translate also the mean F1 of words with its standard error."""
    found = {}
    for task, texts in answers.items():
        expected = [item.answer for item in items if item.task == task]
        right = [assistant_tasks.is_right(*pair) for pair in zip(texts, expected, strict=True)]
        share = float(np.mean(right))
        found[task] = {
            "n": len(right),
            "accuracy": share,
            "interval": pair_accuracy.wilson(share, len(right)),
        }
        if task in N_TOKENS:
            f1 = [scorers.word_f1(*pair) for pair in zip(texts, expected, strict=True)]
            found[task]["f1"] = metrics.mean_and_error(f1)
    return found


def verdicts(scores: dict[str, Any]) -> dict[str, Any]:
    """What the expectations are compared with, for the stages that there are. scores: those of
    `summarize` of each stage."""

    def mean(stage: str, names: Sequence[str]) -> float:
        return float(np.mean([scores[stage][name]["accuracy"] for name in names]))

    others, checked = ("choose", "quiz"), tuple(TASKS)
    found: dict[str, Any] = {f"mean {stage}": mean(stage, checked) for stage in scores}
    if "lm" in scores:
        best = max(scores["lm"][name]["accuracy"] for name in checked)
        found |= {"best before": best, "nothing before": best <= MAX_BEFORE}
    if "sft" in scores:
        sft = scores["sft"]
        found |= {
            "sft learns": mean("sft", checked) >= MIN_SFT,
            "quiz": sft["quiz"]["accuracy"] >= MIN_QUIZ,
            "unknown": sft["quiz_unknown"]["accuracy"] <= MAX_UNKNOWN,
            "choose": sft["choose"]["interval"][0] > MIN_CHOOSE,
        }
    if "rl" in scores:
        rise, loss = mean("rl", checked) - mean("sft", checked), mean("sft", others)
        loss -= mean("rl", others)
        found |= {
            "rise": rise,
            "rises": rise >= MIN_RISE,
            "loss": loss,
            "keeps the others": loss <= MAX_LOSS,
        }
    return found


def table(scores: dict[str, Any]) -> str:
    """A table in Markdown: accuracy (%) of each task after each stage, with its interval."""
    rows = ["| task | n | " + " | ".join(scores) + " |", "|---|---|" + "---|" * len(scores)]
    for task, first in next(iter(scores.values())).items():
        cells = []
        for found in scores.values():
            low, high = (100 * end for end in found[task]["interval"])
            cell = f"{100 * found[task]['accuracy']:.0f} ({low:.0f} to {high:.0f})"
            if "f1" in found[task]:
                mean, error = found[task]["f1"]
                cell += f", F1 {100 * mean:.1f} +- {100 * error:.1f}"
            cells.append(cell)
        rows.append(f"| {task} | {first['n']} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def samples(items: list[Item], answers: dict[str, dict[str, list[str]]], seed: int) -> str:
    """A table in Markdown: a question of each task, drawn by the seed, and the answers of each
    stage."""
    rng = random.Random(seed)
    rows = [
        "| question | right | " + " | ".join(answers) + " |",
        "|---|---|" + "---|" * len(answers),
    ]
    for task in dict.fromkeys(item.task for item in items):
        mine = [item for item in items if item.task == task]
        i = rng.randrange(len(mine))
        cells = [mine[i].question, mine[i].answer, *(found[task][i] for found in answers.values())]
        rows.append("| " + " | ".join(cell.strip().replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def main() -> None:
    """Runs the parts that are missing, writes the results and prints them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=parse.path_argument, required=True)
    parser.add_argument("--work", type=parse.path_argument, default=Path("runs/assistant"))
    parser.add_argument("--out", default="docs/results/assistant")
    args = parser.parse_args()
    work = args.work
    work.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "data": lambda: assistant_data.write(args.data, work),
        "lm": lambda: train_lm(work),
        "eval-lm": lambda: evaluate(work, "lm"),
        "sft": lambda: fine_tune(work, "sft", "lm", "train.jsonl", SFT_LR),
        "eval-sft": lambda: evaluate(work, "sft"),
        "rl": lambda: train_rl(work),
        "eval-rl": lambda: evaluate(work, "rl"),
        "more": lambda: fine_tune(work, "more", "sft", "rl.jsonl", MORE_LR),
        "eval-more": lambda: evaluate(work, "more"),
    }
    results = run_parts(work, parts)
    items = read_items(work / "held_out.jsonl")
    answers = {stage: results[f"eval-{stage}"].pop("answers") for stage in STAGES}
    scores = {stage: summarize(items, answers[stage]) for stage in STAGES}
    found = verdicts(scores)
    Path(f"{args.out}.json").write_text(as_json({"found": found, "scores": scores} | results))
    print(table(scores), samples(items, answers, SAMPLE_SEED), sep="\n\n")
    print(found, {name: round(part["seconds"]) for name, part in results.items()})


if __name__ == "__main__":
    main()
