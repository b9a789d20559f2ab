"""Evaluation requests per second, compared with lm-evaluation-harness with Hugging Face
transformers (PyTorch): same model, same requests, interleaved rounds.

    python -m bench.evaluation [--rounds=3] [--batch=4] [--kinds=NAME,...] [--cpu_time]

gpt2_124m with random weights, float32, CPU. Both return log-likelihoods, which must agree. `batch`
is lm_eval's number of concurrent sequences. The floor is the matrix products of the tokens that
must be read, each shared prefix once, and of the requested logits, at the speed of one large
product on this machine. Compilation is reported separately: it happens once per length. On a busy
machine, where threads wait for each other, use one core and its processor time: taskset -c 0 python
-m bench.evaluation --cpu_time
"""

import argparse
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bench.generation import hf_model
from gptjax.config import data, parse, schema
from gptjax.configs import registry
from gptjax.data.tokenizers import build
from gptjax.evals import loglikelihood, tree_batches
from gptjax.evals.tree_batches import Request
from gptjax.model import gpt, inference
from gptjax.sharding import rules, xla_options
from gptjax.weights import tokenizer_files


def request_kinds(n_vocab: int) -> dict[str, list[Request]]:
    """Requests of several kinds, with the token counts of the tasks that they represent."""
    rng = np.random.default_rng(0)

    def tokens(low, high):
        return tuple(rng.integers(0, n_vocab, rng.integers(low, high + 1)).tolist())

    def make(n, context, n_completions, completion, prefix=()):
        return [
            Request(
                prefix + tokens(*context), tuple(tokens(*completion) for _ in range(n_completions))
            )
            for _ in range(n)
        ]

    return {
        "4 endings zero-shot": make(16, (40, 110), 4, (8, 25)),  # HellaSwag
        "4 endings few-shot": make(3, (650, 900), 4, (8, 25)),
        "2 answers few-shot": make(4, (500, 800), 2, (2, 8)),
        "2 answers fixed shots": make(12, (30, 60), 2, (1, 4), prefix=tokens(400, 400)),
        # MMLU: lm_eval reads each context once too.
        "4 letters zero-shot": make(12, (60, 200), 4, (1, 1)),
        "last word zero-shot": make(32, (50, 110), 1, (1, 3)),  # LAMBADA
        "last word few-shot": make(3, (700, 950), 1, (1, 3)),
        "whole texts": make(2, (1, 1), 1, (1024, 1024)),
    }


def count_tokens(requests: list[Request]) -> tuple[int, int, int]:
    """Returns (tokens that must be read, each shared prefix once; tokens read here, including
    padding; scored tokens).
    """
    prefixes = {
        (*q.context, *c[:-1])[:n]
        for q in requests
        for c in q.completions
        for n in range(1, len(q.context) + len(c))
    }
    batches = tree_batches.plan_batches(requests, rules.UNSHARDED)
    return (
        len(prefixes),
        sum(n * length for n, length, _ in batches),
        sum(len(c) for q in requests for c in q.completions),
    )


def peak_flops(clock) -> float:
    """FLOPs per second of a large product, the best of XLA's libraries and PyTorch."""
    import torch

    n, best = 1024, 0.0
    a = np.random.default_rng(0).normal(size=(n, n)).astype(np.float32)
    x, product = (
        jax.device_put(a),
        jax.jit(jnp.matmul, compiler_options=xla_options.options(jax.devices()[0])),
    )
    t = torch.from_numpy(a)
    for _ in range(5):
        for run in (lambda: product(x, x).block_until_ready(), lambda: t @ t):
            start_time = clock()
            run()
            best = max(best, 2 * n**3 / (clock() - start_time))
    return best


def harness_model(params, c: schema.Model, batch: int):
    """lm_eval's transformers model with these parameters."""
    import transformers
    from lm_eval.models.huggingface import HFLM

    with tempfile.TemporaryDirectory() as folder:
        tokenizer_files.save(Path(folder), data.Gpt2Bpe(), build.build(data.Gpt2Bpe()), 1024, print)
        tokenizer = transformers.GPT2TokenizerFast.from_pretrained(folder)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return HFLM(
        pretrained=hf_model(params, c, "float32"),
        tokenizer=tokenizer,
        batch_size=batch,
        max_length=c.n_ctx,
    )


def compare(
    name: str,
    scoring_requests: list[Request],
    inference_model: inference.InferenceModel,
    model,
    rounds: int,
    peak: float,
    clock,
) -> tuple[float, float]:
    """Prints a line; returns the median times of gptjax and lm_eval."""
    lm_eval_requests = [
        (("", ""), list(q.context), list(c)) for q in scoring_requests for c in q.completions
    ]

    def run_gptjax():
        results = dict(loglikelihood.loglikelihood(inference_model, scoring_requests))
        return [x.log_prob for number in range(len(scoring_requests)) for x in results[number]]

    def run_lm_eval():
        return [
            nats for nats, _ in model._loglikelihood_tokens(lm_eval_requests, disable_tqdm=True)
        ]

    def time_run(run):
        start_time = clock()
        answers = run()
        return clock() - start_time, answers

    compiling, our_scores = time_run(run_gptjax)
    _, their_scores = time_run(run_lm_eval)
    np.testing.assert_allclose(our_scores, their_scores, rtol=1e-5, atol=1e-3)
    times = [(time_run(run_gptjax)[0], time_run(run_lm_eval)[0]) for _ in range(rounds)]
    ratios = sorted(b / a for a, b in times)
    our_median, their_median = (statistics.median(column) for column in zip(*times, strict=True))
    c = inference_model.model.config
    n_needed, n_computed, n_scored = count_tokens(scoring_requests)
    floor = (
        n_needed * 24 * c.n_layers * c.d_model**2 + n_scored * 2 * c.n_vocab * c.d_model
    ) / peak
    n_tokens = sum(
        len(context) + len(completion) - 1 for _, context, completion in lm_eval_requests
    )
    print(
        f"{name:24}{len(lm_eval_requests):>5}{n_tokens:>8,}{n_needed:>8,}{n_computed:>8,}{n_scored:>7,}"
        f"{our_median:>9.2f}{their_median:>9.2f}{their_median / our_median:>8.2f}"
        f"  {ratios[0]:.2f} to "
        f"{ratios[-1]:.2f}{our_median / floor:>9.2f}{max(0.0, compiling - our_median):>10.1f}",
        flush=True,
    )
    return our_median, their_median


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=parse.int_argument(), default=3, help="timed rounds (default: 3)"
    )
    parser.add_argument(
        "--batch", type=parse.int_argument(), default=4, help="lm_eval's batch_size (default: 4)"
    )
    parser.add_argument(
        "--cpu_time",
        action="store_true",
        help="seconds of the processor, not of the clock on the wall",
    )
    parser.add_argument("--kinds", metavar="NAME,...", help="only these")
    args = parser.parse_args()
    try:
        import accelerate  # noqa: F401
        import lm_eval  # noqa: F401
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        print(
            f"{error.name} is not installed: pip install -r requirements-dev.txt -r "
            "requirements-eval.txt",
            file=sys.stderr,
        )
        return 2
    xla_options.tune_malloc()
    c = registry.config("gpt2_124m").model
    requests_by_kind = request_kinds(c.n_vocab)
    selected = args.kinds.split(",") if args.kinds else list(requests_by_kind)
    if unknown := set(selected) - set(requests_by_kind):
        print(
            f"no kind {', '.join(unknown)}: there are {', '.join(requests_by_kind)}",
            file=sys.stderr,
        )
        return 2
    model = gpt.GPT(c, gpt.execution_policy(schema.Compute(), "cpu"))
    params = jax.jit(lambda key: model.init(key, jnp.zeros((1, 1), jnp.int32))["params"])(
        jax.random.key(0)
    )
    clock = time.process_time if args.cpu_time else time.perf_counter
    inference_model, hf, peak = (
        inference.prepare(model, params),
        harness_model(params, c, args.batch),
        peak_flops(clock),
    )
    print(
        f"gpt2_124m, float32, {peak / 1e9:.0f} GFLOP/s of a large product; lm_eval with "
        f"{args.batch} sequences at once; medians in ",
        end="",
    )
    print("seconds of the processor" if args.cpu_time else "seconds")
    print(
        f"{'':24}{'reqs':>5}{'tokens':>8}{'needed':>8}{'read':>8}{'asked':>7}{'gptjax':>9}{'lm_eval':>9}{'ratio':>8}",
        end="",
    )
    print(f"  {'rounds':12}{'x floor':>9}{'compiling':>10}", flush=True)
    medians = [
        compare(name, requests_by_kind[name], inference_model, hf, args.rounds, peak, clock)
        for name in selected
    ]
    our_total, their_total = map(sum, zip(*medians, strict=True))
    print(f"{'all together':59}{our_total:>9.2f}{their_total:>9.2f}{their_total / our_total:>8.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
