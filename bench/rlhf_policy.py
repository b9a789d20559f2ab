"""The model of bench.rlhf_sentiment: its data, its pre-training, its samples and its loss."""

import importlib
import json
import lzma
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gptjax
import gptjax.train
from bench.parts import sets, write_jsonl
from gptjax.config import rlhf
from gptjax.report import events
from gptjax.training.rlhf import rollout

N_CTX, PROMPT_WORDS, PROMPT_TOKENS, ANSWER_TOKENS = 64, 4, 12, 20
LM_STEPS, LM_BATCH_TOKENS = 1200, 1024
N_PROMPTS = {"rl": 2000, "ranked": 700, "held_out": 400}
SAMPLE_ROWS = 128


# --- data -----------------------------------------------------------------------------------------


def short_prompts(path: Path, tokenizer: Any) -> list[str]:
    """The prompts of at most PROMPT_TOKENS tokens, which gptjax.rlhf keeps as well."""
    prompts = [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
    return [text for text in prompts if len(tokenizer.encode(text)) <= PROMPT_TOKENS]


def write_data(work: Path, reviews: Path, brown: Path) -> None:
    """Reviews to pre-train on, and prompts, the beginnings of others; Brown, its end apart."""
    lines = [line.split("\t")[2].strip() for line in reviews.read_text("utf-8").splitlines()]
    random.Random(0).shuffle(lines)
    first = 0
    for name, n in N_PROMPTS.items():
        prompts = [" ".join(line.split()[:PROMPT_WORDS]) for line in lines[first : first + n]]
        write_jsonl(work / f"{name}.jsonl", [{"prompt": text} for text in dict.fromkeys(prompts)])
        first += n
    write_jsonl(work / "reviews.jsonl", [{"text": line} for line in lines[first:]])
    sentences = lzma.open(brown, "rt", encoding="utf-8").read().splitlines()
    texts = ["\n".join(sentences[i : i + 20]) for i in range(0, len(sentences), 20)]
    n = len(texts) * 19 // 20
    write_jsonl(work / "brown.jsonl", [{"text": text} for text in texts[:n]])
    write_jsonl(work / "brown_held_out.jsonl", [{"text": text} for text in texts[n:]])


def gold_scores(texts: Sequence[str]) -> np.ndarray:
    """The compound score of each text, from -1 to 1."""
    vader = importlib.import_module("vaderSentiment.vaderSentiment")
    analyzer = vader.SentimentIntensityAnalyzer()
    return np.array([analyzer.polarity_scores(text)["compound"] for text in texts])


# --- models ---------------------------------------------------------------------------------------


def train_lm(work: Path) -> dict[str, Any]:
    """The model; its run is work/lm."""
    n = LM_STEPS * LM_BATCH_TOKENS
    sources = f"(Text(path='{work}/reviews.jsonl'),Text(path='{work}/brown.jsonl'))"
    status = gptjax.train.main(
        [
            "--config=nano",
            f"--run_dir={work / 'lm'}",
            *sets(
                "model.n_layers=4",
                "model.d_model=128",
                f"model.n_ctx={N_CTX}",
                "model.n_vocab=2048",
                "data.tokenizer=SentencePiece(n_pieces=2048)",
                f"data.sources={sources}",
                f"data.validation=Separate(source=Text(path='{work}/brown_held_out.jsonl'))",
                f"train.batch_tokens={LM_BATCH_TOKENS}",
                f"train.total_tokens={n}",
                f"train.schedule=Cosine(peak_lr=3e-3,warmup_tokens={n // 30},"
                f"decay_tokens={n},final_fraction=0.1)",
                "loop.sample_prompt='The film is'",
                "loop.sample_tokens=20",
            ),
        ]
    )
    assert status == 0
    seconds = sum(row["seconds"] for row in events.read(work / "lm") if "loss" in row)
    return {"seconds": seconds, "brown_loss": brown_loss(work, work / "lm")}


def brown_loss(work: Path, run: Path, step: int | None = None) -> float:
    """Mean negative log-likelihood (nats of a token) of 300 rows of the end of Brown."""
    model = gptjax.load(run, step=step)
    lines = (work / "brown_held_out.jsonl").read_text().splitlines()
    ids = model.tokenizer.encode("\n".join(json.loads(line)["text"] for line in lines))
    rows = np.array(ids[: 300 * (N_CTX + 1)], np.int32).reshape(300, N_CTX + 1)
    nll = []
    for part in rows.reshape(3, 100, N_CTX + 1):
        log_probs = jax.nn.log_softmax(jnp.asarray(model.logits(part[:, :-1]), jnp.float32))
        nll.append(-np.take_along_axis(np.asarray(log_probs), part[:, 1:, None], axis=2).mean())
    return float(np.mean(nll))


def answer_text(tokenizer: Any, ids: list[int]) -> tuple[str, bool]:
    """The text of an answer, and whether it ends with the end of text."""
    ended = ids[-1] == tokenizer.end_of_text
    return tokenizer.decode(ids[: len(ids) - ended]), ended


class Policy:
    """Samples continuations of prompts, as a rollout of gptjax.rlhf does."""

    def __init__(self, run: Path):
        self.model = gptjax.load(run)
        task = rlhf.Rlhf(
            prompts="-",
            reward=rlhf.RewardModel(path="-"),
            text="plain",
            prompt_tokens=PROMPT_TOKENS,
            answer_tokens=ANSWER_TOKENS,
        )
        self._stop = self.model.tokenizer.end_of_text
        self._sample = jax.jit(rollout.Sampler(task, self.model.train_step.model, self._stop))

    def __call__(self, prompts: Sequence[str], seed: int) -> list[tuple[list[int], str, bool]]:
        """(ids of prompt and answer, text of the answer, whether it ends) of each prompt."""
        encoded = [self.model.tokenizer.encode(text) for text in prompts]
        out = []
        for first in range(0, len(encoded), SAMPLE_ROWS):
            part = encoded[first : first + SAMPLE_ROWS]
            rows = np.zeros((SAMPLE_ROWS, PROMPT_TOKENS), np.int32)
            lengths = np.ones(SAMPLE_ROWS, np.int32)
            for i, ids in enumerate(part):
                rows[i, : len(ids)], lengths[i] = ids, len(ids)
            keys = rollout.row_keys(seed, jnp.int32(0), jnp.int32(first), SAMPLE_ROWS)
            with jax.set_mesh(self.model.mesh):
                found = self._sample(self.model.params, rows, lengths, keys)
            rows, ends = np.asarray(found.tokens_BT), np.asarray(found.first_B + found.n_B)
            for row, ids, end in zip(rows.tolist(), part, ends.tolist(), strict=False):
                text, ended = answer_text(self.model.tokenizer, row[len(ids) : end])
                out.append((row[:end], text, ended))
        return out
