"""OpenAI's 2019 task of sentiment in small (1909.08593): a model of 1M parameters continues film
reviews, and learns to please.

    python -m bench.rlhf_sentiment --reviews=movieReviewSnippets_GroundTruth.txt \\
        --brown=brown.txt.xz [--work=runs/rlhf_sentiment] [--out=docs/results/rlhf]

The reviews are those of the source package of vaderSentiment, a line of number, rating and text;
Brown is NLTK's corpus as text, a sentence a line. Needs requirements-rlhf.txt. The gold reward is
the compound score of the VADER lexicon; the proxy, which is what is learned from, a reward model of
noisy rankings by gold. Parts, each of which is skipped if its result is there.

lm: the model, pre-trained on reviews and Brown. reward, few: the proxy, and a weaker one of fewer
rankings. initial, initial-few: the model's scores by both. ppo-SEED: PPO with an adaptive KL
coefficient. fixed-COEF, few-COEF: with a fixed one. best-of-n: of the model. ptx-0: as ppo-0, with
Brown mixed in. dpo-BETA: DPO on the rankings that the proxy learned from. The results go to
OUT.json and OUT-*.png.
"""

import argparse
import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from jax.scipy.special import digamma

import gptjax
import gptjax.reward
import gptjax.rlhf
from bench import rlhf_dpo, rlhf_results
from bench.parts import as_json, run_parts, sets, write_jsonl
from bench.rlhf_policy import (
    ANSWER_TOKENS,
    PROMPT_TOKENS,
    Policy,
    answer_text,
    brown_loss,
    gold_scores,
    short_prompts,
    train_lm,
    write_data,
)
from bench.rlhf_results import SAVED_EVERY, SEEDS, SWEEPS, TARGET_KL
from gptjax.config import parse
from gptjax.report import events
from gptjax.training.rlhf import rewards
from gptjax.weights import reward_model

RANKED = (4, 9)  # completions of a ranking
FEW_PROMPTS = 200  # whose rankings a weaker proxy is learned from
NOISE = 0.1  # share of the completions that are ranked by the gold score of another, drawn from all
ITERATIONS, BATCH_ROWS, PEAK_LR = 80, 64, 1e-3
KL_HORIZON, FIRST_COEF = 320, 0.5  # the horizon is a sixteenth of a run's answers
PTX_WEIGHT, PTX_ITERATIONS = 1.0, 50
BEST_OF, BON_PROMPTS, BON_SAMPLES = (1, 2, 4, 8, 16, 32, 64), 32, 256


# --- the proxy ------------------------------------------------------------------------------------


def train_reward(work: Path) -> dict[str, Any]:
    """The proxy, of rankings of the model's samples by gold with noise; its run is work/reward."""
    rng, policy = np.random.default_rng(0), Policy(work / "lm")
    tokenizer = policy.model.tokenizer
    prompts = [
        prompt
        for name in ("ranked", "rl")
        for prompt in short_prompts(work / f"{name}.jsonl", tokenizer)
    ]
    counts = [int(rng.integers(RANKED[0], RANKED[1] + 1)) for _ in prompts]
    start = time.perf_counter()
    answers = policy(np.repeat(prompts, counts).tolist(), 1)
    sample_seconds = time.perf_counter() - start
    gold = gold_scores([text for _, text, _ in answers])
    is_wrong = rng.random(len(gold)) < NOISE
    noisy = np.where(is_wrong, rng.permutation(gold), gold).tolist()
    completions = [{"text": text, "ended": ended} for _, text, ended in answers]
    rows, first = [], 0
    for prompt, n in zip(prompts, counts, strict=True):
        part = slice(first, first + n)
        rows.append({"prompt": prompt, "completions": completions[part], "scores": noisy[part]})
        first += n
    write_jsonl(work / "rankings.jsonl", rows)
    result = fit_reward(work, "reward", work / "rankings.jsonl", epochs=1)
    return {
        "sample_seconds": sample_seconds,
        "prompts": len(rows),
        "answers": len(answers),
        **result,
    }


def train_few_reward(work: Path) -> dict[str, Any]:
    """A weaker proxy, of the first of these rankings; its run is work/few."""
    lines = (work / "rankings.jsonl").read_text().splitlines(keepends=True)[:FEW_PROMPTS]
    (work / "few_rankings.jsonl").write_text("".join(lines))
    return {"prompts": len(lines), **fit_reward(work, "few", work / "few_rankings.jsonl", epochs=3)}


def fit_reward(work: Path, name: str, rankings: Path, epochs: int) -> dict[str, Any]:
    """Trains the reward model work/NAME."""
    rows = [json.loads(line) for line in rankings.read_text().splitlines()]
    start = time.perf_counter()
    status = gptjax.reward.main(
        [
            "--config=reward",
            f"--init={work / 'lm'}",
            f"--run_dir={work / name}",
            *sets(
                f"task.train={rankings}",
                "task.text=plain",
                "task.dev_fraction=0.1",
                "task.normalize=BeforeAndAfter(n_samples=1000)",
                f"task.epochs={epochs}",
                "task.batch_rows=8",
                "task.peak_lr=5e-4",
            ),
        ]
    )
    assert status == 0
    chosen = json.loads((work / name / "chosen.json").read_text())
    return {
        "seconds": time.perf_counter() - start,
        "comparisons": sum(
            a > b for row in rows for a, b in itertools.permutations(row["scores"], 2)
        ),
        "accuracy": chosen["validation_accuracy"],
    }


def measure_initial(work: Path, proxy_name: str) -> dict[str, Any]:
    """Gold and proxy of the model's answers to held-out prompts, and how they agree."""
    policy, proxy = Policy(work / "lm"), reward_model.load(work / proxy_name)
    prompts = short_prompts(work / "held_out.jsonl", policy.model.tokenizer)
    answers = policy(prompts * 4, 2)
    gold = gold_scores([text for _, text, _ in answers])
    scores = proxy.score([ids for ids, _, _ in answers])
    n = len(answers) // 4
    gold_2, scores_2 = gold[: 2 * n].reshape(2, n), scores[: 2 * n].reshape(2, n)
    untied = gold_2[0] != gold_2[1]
    right = (gold_2[0] > gold_2[1]) == (scores_2[0] > scores_2[1])
    return {
        "answers": len(answers),
        "gold": float(gold.mean()),
        "gold_std": float(gold.std()),
        "neutral": float((gold == 0).mean()),
        "proxy": float(scores.mean()),
        "proxy_std": float(scores.std()),
        "correlation": float(np.corrcoef(gold, scores)[0, 1]),
        "accuracy_by_gold": float(right[untied].mean()),
        "pairs_by_gold": int(untied.sum()),
        "samples": [text for _, text, _ in answers[:5]],
    }


# --- reinforcement learning -----------------------------------------------------------------------


@contextlib.contextmanager
def record_answers(tokenizer: Any) -> Iterator[list[tuple[list[str], np.ndarray]]]:
    """Yields a list to which (texts of answers, their proxy scores) of each call are added."""
    calls, score = [], rewards.ModelReward.__call__

    def score_and_record(self: Any, sampled: Any, lengths_B: Any) -> Any:
        scores_B = score(self, sampled, lengths_B)
        first, end = np.asarray(sampled.first_B), np.asarray(sampled.first_B + sampled.n_B)
        parts = zip(np.asarray(sampled.tokens_BT).tolist(), first, end, strict=True)
        texts = [answer_text(tokenizer, row[i:j])[0] for row, i, j in parts]
        calls.append((texts, np.asarray(scores_B)))
        return scores_B

    with mock.patch.object(rewards.ModelReward, "__call__", score_and_record):
        yield calls


def run_ppo(
    work: Path, name: str, *assignments: str, proxy: str = "reward", iterations: int = ITERATIONS
) -> dict[str, Any]:
    """A run of gptjax.rlhf: KL, coefficient, gold and proxy of each iteration, and those of answers
    to held-out prompts at its end."""
    run, start = work / name, time.perf_counter()
    assert not (run / "metrics.jsonl").exists(), f"remove {run}: it was interrupted"
    tokenizer = gptjax.load(work / "lm").tokenizer
    with record_answers(tokenizer) as calls:
        status = gptjax.rlhf.main(
            [
                "--config=ppo",
                f"--init={work / 'lm'}",
                f"--run_dir={run}",
                *sets(
                    f"task.prompts={work / 'rl.jsonl'}",
                    f"task.dev={work / 'held_out.jsonl'}",
                    f"task.reward=RewardModel(path='{work / proxy}')",
                    "task.text=plain",
                    f"task.prompt_tokens={PROMPT_TOKENS}",
                    f"task.answer_tokens={ANSWER_TOKENS}",
                    "task.advantage=Gae(value=SharedValue())",
                    f"task.batch_rows={BATCH_ROWS}",
                    "task.minibatches=2",
                    "task.inner_epochs=1",
                    f"task.episodes={iterations * BATCH_ROWS}",
                    f"task.peak_lr={PEAK_LR}",
                    "task.warmup_iterations=5",
                    "task.eval_answers=400",
                    "loop.every_log=10",
                    "loop.every_eval=1000000",
                    f"loop.every_save={SAVED_EVERY}",
                    f"loop.every_keep={SAVED_EVERY}",
                    *assignments,
                ),
            ]
        )
    assert status == 0
    records = events.read(run)
    steps = [row for row in records if "score" in row]
    n_calls = next(
        n
        for n in range(1, len(calls))
        if sum(len(t) for t, _ in calls[:n]) == len(steps) * BATCH_ROWS
    )
    texts = [text for part, _ in calls[:n_calls] for text in part]
    gold = gold_scores(texts).reshape(len(steps), BATCH_ROWS)
    scores = np.concatenate([part for _, part in calls[:n_calls]]).reshape(gold.shape)
    np.testing.assert_allclose(scores.mean(1), [row["score"] for row in steps], atol=1e-4)
    final = next(row for row in records if "validation_score" in row)
    n_final = len(short_prompts(work / "held_out.jsonl", tokenizer))
    last = [text for part, _ in calls[n_calls:] for text in part][:n_final]
    last_gold = gold_scores(last)
    return {
        "seconds": time.perf_counter() - start,
        "kl": [row["kl"] for row in steps],
        "kl_coef": [row["kl_coef"] for row in steps],
        "proxy": scores.mean(1).tolist(),
        "gold": gold.mean(1).tolist(),
        "final": {
            "gold": float(last_gold.mean()),
            "gold_error": float(last_gold.std() / len(last) ** 0.5),
            "proxy": final["validation_score"],
            "kl": final["validation_kl"],
        },
        "samples": last[:5],
    }


# --- best of n ------------------------------------------------------------------------------------


def best_of_n(work: Path) -> dict[str, Any]:
    """Gold and proxy of the best of n answers by proxy, and two values of its KL to the model: the
    closed form, and an estimate, log n + (n - 1) * mean log F(score of the best answer), where F,
    the share of the model's answers to the prompt that score less, is that of other answers."""
    policy, proxy = Policy(work / "lm"), reward_model.load(work / "reward")
    prompts = short_prompts(work / "held_out.jsonl", policy.model.tokenizer)[:BON_PROMPTS]
    start = time.perf_counter()
    answers = policy(np.repeat(prompts, 2 * BON_SAMPLES).tolist(), 3)
    scores = proxy.score([ids for ids, _, _ in answers]).reshape(-1, 2, BON_SAMPLES)
    gold = gold_scores([text for _, text, _ in answers]).reshape(scores.shape)
    rows = []
    for n in BEST_OF:
        groups = scores[:, 0].reshape(len(prompts), -1, n)
        best = groups.argmax(axis=2)[..., None]
        best_scores = np.take_along_axis(groups, best, axis=2)[..., 0]
        best_gold = np.take_along_axis(gold[:, 0].reshape(groups.shape), best, axis=2)[..., 0]
        # Of `below` of M other answers: the mean of log F under a Beta distribution.
        below = (scores[:, 1, None, :] < best_scores[..., None]).sum(axis=2)
        log_share = np.asarray(digamma(below + 1.0) - digamma(BON_SAMPLES + 1.0))
        estimates = np.log(n) + (n - 1) * log_share.mean(axis=1)  # of each prompt
        rows.append(
            {
                "n": n,
                "kl": float(np.log(n) - (n - 1) / n),
                "kl_estimate": float(estimates.mean()),
                "kl_error": float(estimates.std(ddof=1) / len(prompts) ** 0.5),
                "proxy": float(best_scores.mean()),
                "gold": float(best_gold.mean()),
                "gold_error": float(best_gold.mean(1).std(ddof=1) / len(prompts) ** 0.5),
            }
        )
    return {"prompts": len(prompts), "seconds": time.perf_counter() - start, "rows": rows}


# --- the mix of pre-training ----------------------------------------------------------------------


def run_ptx(work: Path) -> dict[str, Any]:
    """A run as the beginning of ppo-0 with Brown mixed in, its loss on Brown at its end, and that
    of the checkpoints of ppo-0."""
    ptx = f"Ptx(weight={PTX_WEIGHT},rows_per_answer=1,sources=(Text(path='{work}/brown.jsonl'),))"
    assignments = *adaptive(0), f"task.ptx={ptx}"
    result = run_ppo(work, "ptx-0", *assignments, iterations=PTX_ITERATIONS)
    steps = range(SAVED_EVERY, PTX_ITERATIONS + 1, SAVED_EVERY)
    return result | {
        "brown": brown_loss(work, work / "ptx-0"),
        "brown_without": [brown_loss(work, work / "ppo-0", step) for step in steps],
    }


def adaptive(seed: int) -> tuple[str, ...]:
    return (
        f"seed={seed}",
        f"task.kl_coef={FIRST_COEF}",
        f"task.kl=AdaptiveKl(target={TARGET_KL},horizon={KL_HORIZON})",
    )


def run_fixed(work: Path, sweep: str, coef: float) -> dict[str, Any]:
    """A run of rlhf_results.SWEEPS."""
    proxy = {"fixed": "reward", "few": "few"}[sweep]
    assignments = "seed=0", f"task.kl_coef={coef}", "task.max_kl=None"
    iterations = SWEEPS[sweep][coef]
    return run_ppo(work, f"{sweep}-{coef}", *assignments, proxy=proxy, iterations=iterations)


def main() -> None:
    """Runs the parts that are missing, writes the results and draws them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reviews", type=parse.path_argument, required=True)
    parser.add_argument("--brown", type=parse.path_argument, required=True)
    parser.add_argument("--work", type=parse.path_argument, default=Path("runs/rlhf_sentiment"))
    parser.add_argument("--out", default="docs/results/rlhf")
    parser.add_argument("--only", default="", help="parts, by commas")
    args = parser.parse_args()
    work = args.work
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "brown_held_out.jsonl").exists():
        write_data(work, args.reviews, args.brown)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "lm": lambda: train_lm(work),
        "reward": lambda: train_reward(work),
        "initial": lambda: measure_initial(work, "reward"),
    }
    for seed in SEEDS:
        parts[f"ppo-{seed}"] = lambda s=seed: run_ppo(work, f"ppo-{s}", *adaptive(s))
    parts |= {"best-of-n": lambda: best_of_n(work), "ptx-0": lambda: run_ptx(work)}
    parts |= {
        "few": lambda: train_few_reward(work),
        "initial-few": lambda: measure_initial(work, "few"),
    }
    for sweep, runs in SWEEPS.items():
        for coef in runs:
            parts[f"{sweep}-{coef}"] = lambda s=sweep, c=coef: run_fixed(work, s, c)
    for beta in rlhf_dpo.BETAS:
        parts[f"dpo-{beta}"] = lambda b=beta: rlhf_dpo.run_dpo(work, b)
    results = run_parts(work, parts, args.only.split(",") if args.only else ())
    if "initial" not in results:
        return
    found = rlhf_results.verdicts(results)
    Path(f"{args.out}.json").write_text(as_json({"found": found} | results))
    rlhf_results.draw(results, found, args.out)
    print(rlhf_results.table(results))
    for name, values in found.items():
        print(name, {key: value for key, value in values.items() if key != "residuals"})


if __name__ == "__main__":
    main()
