"""DPO on the rankings of bench.rlhf_sentiment, which calls this."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gptjax
import gptjax.dpo
from bench.parts import sets
from bench.rlhf_policy import ANSWER_TOKENS, PROMPT_TOKENS, Policy, gold_scores, short_prompts
from gptjax.report import events
from gptjax.weights import reward_model

# Written down before any run of DPO. The reference's strength; 0.1 is the paper's.
BETAS = (0.1, 0.5)
PEAK_LR, BATCH_ROWS = 3e-4, 64
ROW_TOKENS = PROMPT_TOKENS + ANSWER_TOKENS


def run_dpo(work: Path, beta: float) -> dict[str, Any]:
    """A run of gptjax.dpo on all pairs of the proxy's rankings, once; gold, proxy and KL of its
    answers to held-out prompts."""
    run, start = work / f"dpo-{beta}", time.perf_counter()
    status = gptjax.dpo.main(
        [
            "--config=dpo",
            f"--init={work / 'lm'}",
            f"--run_dir={run}",
            *sets(
                f"task.train={work / 'rankings.jsonl'}",
                "task.text=plain",
                f"task.loss=Dpo(beta={beta})",
                f"task.peak_lr={PEAK_LR}",
                f"task.batch_rows={BATCH_ROWS}",
                "task.choose=last",
                f"n_ctx={ROW_TOKENS}",
                "loop.every_log=20",
            ),
        ]
    )
    assert status == 0
    seconds = time.perf_counter() - start
    policy, proxy = Policy(run), reward_model.load(work / "reward")
    prompts = short_prompts(work / "held_out.jsonl", policy.model.tokenizer)
    answers = policy(prompts, 4)
    gold = gold_scores([text for _, text, _ in answers])
    rows = [ids for ids, _, _ in answers]
    firsts = [len(policy.model.tokenizer.encode(prompt)) for prompt in prompts]
    log_p, reference = (
        answer_log_probs(model, rows, firsts) for model in (policy.model, gptjax.load(work / "lm"))
    )
    last = [record for record in events.read(run) if "validation_accuracy" in record][-1]
    return {
        "seconds": seconds,
        "accuracy": last["validation_accuracy"],
        "final": {
            "gold": float(gold.mean()),
            "gold_error": float(gold.std() / len(gold) ** 0.5),
            "proxy": float(proxy.score(rows).mean()),
            "kl": float((log_p - reference).mean()),
        },
        "samples": [text for _, text, _ in answers[:5]],
    }


def answer_log_probs(model: Any, rows: Sequence[Sequence[int]], firsts: Sequence[int]) -> Any:
    """Log p (nats) of the answer of each row of ids, which begins at index `first`."""
    ids = np.zeros((len(rows), ROW_TOKENS), np.int32)
    is_answer = np.zeros(ids.shape, bool)
    for i, (row, first) in enumerate(zip(rows, firsts, strict=True)):
        ids[i, : len(row)], is_answer[i, first : len(row)] = row, True
    log_probs = jax.nn.log_softmax(jnp.asarray(model.logits(ids), jnp.float32))[:, :-1]
    picked = np.take_along_axis(np.asarray(log_probs), ids[:, 1:, None], axis=2)[..., 0]
    return np.where(is_answer[:, 1:], picked, 0).sum(axis=1)
