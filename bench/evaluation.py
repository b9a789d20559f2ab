"""Questions a second against lm-evaluation-harness with Hugging Face transformers (PyTorch): same model, same requests, by turns.

    python -m bench.evaluation [--rounds=3] [--batch=4] [--kinds=NAME,...] [--cpu_time]

gpt2_124m on random weights, float32, CPU. Both answer with log-likelihoods, which must agree. `batch` is lm_eval's: sequences at once. The
floor is the matrix products of the tokens that have to be read, each shared beginning once, and of the logits that are asked for, at the
speed of one large product on this machine. Compiling is told by itself: it is paid once for a length. On a busy machine, where threads
wait for each other, give one core and count its seconds: taskset -c 0 python -m bench.evaluation --cpu_time
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

from bench.generation import theirs
from gptjax.config import data, parse, registry, schema
from gptjax.data.tokenizers import build
from gptjax.evals import loglikelihood
from gptjax.evals.loglikelihood import Question
from gptjax.model import gpt, inference
from gptjax.sharding import rules, xla_options
from gptjax.weights import tokenizer_files


def kinds(n_vocab: int) -> dict[str, list[Question]]:
    """Requests of several kinds, by the tokens of tasks that they stand for."""
    rng = np.random.default_rng(0)

    def tokens(low, high):
        return tuple(rng.integers(0, n_vocab, rng.integers(low, high + 1)).tolist())

    def asked(n, context, n_completions, completion, before=()):
        return [Question(before + tokens(*context), tuple(tokens(*completion) for _ in range(n_completions))) for _ in range(n)]

    return {
        "4 endings zero-shot": asked(16, (40, 110), 4, (8, 25)),  # HellaSwag
        "4 endings few-shot": asked(3, (650, 900), 4, (8, 25)),
        "2 answers few-shot": asked(4, (500, 800), 2, (2, 8)),
        "2 answers fixed shots": asked(12, (30, 60), 2, (1, 4), before=tokens(400, 400)),
        "4 letters zero-shot": asked(12, (60, 200), 4, (1, 1)),  # MMLU: lm_eval reads each context once too
        "last word zero-shot": asked(32, (50, 110), 1, (1, 3)),  # LAMBADA
        "last word few-shot": asked(3, (700, 950), 1, (1, 3)),
        "whole texts": asked(2, (1, 1), 1, (1024, 1024)),
    }


def n_read(questions: list[Question]) -> tuple[int, int, int]:
    """Tokens that have to be read, each shared beginning once; that are read here, padding too; and whose probability is asked for."""
    beginnings = {(*q.context, *c[:-1])[:n] for q in questions for c in q.completions for n in range(1, len(q.context) + len(c))}
    batches = loglikelihood._batches(loglikelihood._rows(loglikelihood._units(questions), rules.NOWHERE), rules.NOWHERE)
    return len(beginnings), sum(n * length for n, length, _ in batches), sum(len(c) for q in questions for c in q.completions)


def speed(clock) -> float:
    """FLOPs a second of a large product, the best of XLA's libraries and PyTorch."""
    import torch

    n, best = 1024, 0.0
    a = np.random.default_rng(0).normal(size=(n, n)).astype(np.float32)
    x, product = jax.device_put(a), jax.jit(jnp.matmul, compiler_options=xla_options.options(jax.devices()[0]))
    t = torch.from_numpy(a)
    for _ in range(5):
        for run in (lambda: product(x, x).block_until_ready(), lambda: t @ t):
            began = clock()
            run()
            best = max(best, 2 * n**3 / (clock() - began))
    return best


def harness(params, c: schema.Model, batch: int):
    """lm_eval's model of transformers with these parameters."""
    import transformers
    from lm_eval.models.huggingface import HFLM

    with tempfile.TemporaryDirectory() as folder:
        tokenizer_files.save(Path(folder), data.Gpt2Bpe(), build.tokenizer(data.Gpt2Bpe()), 1024, print)
        text = transformers.GPT2TokenizerFast.from_pretrained(folder)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return HFLM(pretrained=theirs(params, c, "float32"), tokenizer=text, batch_size=batch, max_length=c.n_ctx)


def compared(name: str, questions: list[Question], reader: inference.Reader, model, rounds: int, peak: float, clock) -> tuple[float, float]:
    """Prints a line; returns the medians, ours and lm_eval's."""
    requests = [(("", ""), list(q.context), list(c)) for q in questions for c in q.completions]

    def ours():
        found = dict(loglikelihood.likelihoods(reader, questions))
        return [x.log_probability for number in range(len(questions)) for x in found[number]]

    def lm_eval():
        return [nats for nats, _ in model._loglikelihood_tokens(requests, disable_tqdm=True)]

    def timed(run):
        began = clock()
        answers = run()
        return clock() - began, answers

    compiling, here = timed(ours)
    _, there = timed(lm_eval)
    np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-3)
    both = [(timed(ours)[0], timed(lm_eval)[0]) for _ in range(rounds)]
    ratios = sorted(b / a for a, b in both)
    mine, other = (statistics.median(column) for column in zip(*both, strict=True))
    c = reader.model.config
    needed, read, asked = n_read(questions)
    floor = (needed * 24 * c.n_layers * c.d_model**2 + asked * 2 * c.n_vocab * c.d_model) / peak
    whole = sum(len(context) + len(completion) - 1 for _, context, completion in requests)
    print(
        f"{name:24}{len(requests):>5}{whole:>8,}{needed:>8,}{read:>8,}{asked:>7,}{mine:>9.2f}{other:>9.2f}{other / mine:>8.2f}"
        f"  {ratios[0]:.2f} to {ratios[-1]:.2f}{mine / floor:>9.2f}{max(0.0, compiling - mine):>10.1f}",
        flush=True,
    )
    return mine, other


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=parse.whole_argument(), default=3, help="timed rounds (default: 3)")
    parser.add_argument("--batch", type=parse.whole_argument(), default=4, help="lm_eval's batch_size (default: 4)")
    parser.add_argument("--cpu_time", action="store_true", help="seconds of the processor, not of the clock on the wall")
    parser.add_argument("--kinds", metavar="NAME,...", help="only these")
    args = parser.parse_args()
    try:
        import accelerate  # noqa: F401
        import lm_eval  # noqa: F401
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        print(f"{error.name} is not installed: pip install -r requirements-dev.txt -r requirements-extra.txt", file=sys.stderr)
        return 2
    xla_options.keep_memory()
    c = registry.config("gpt2_124m").model
    all_kinds = kinds(c.n_vocab)
    chosen = args.kinds.split(",") if args.kinds else list(all_kinds)
    if unknown := set(chosen) - set(all_kinds):
        print(f"no kind {', '.join(unknown)}: there are {', '.join(all_kinds)}", file=sys.stderr)
        return 2
    model = gpt.GPT(c, gpt.manner(schema.Compute(), "cpu"))
    params = jax.jit(lambda key: model.init(key, jnp.zeros((1, 1), jnp.int32))["params"])(jax.random.key(0))
    clock = time.process_time if args.cpu_time else time.perf_counter
    reader, their, peak = inference.reader(model, params), harness(params, c, args.batch), speed(clock)
    print(
        f"gpt2_124m, float32, {peak / 1e9:.0f} GFLOP/s of a large product; lm_eval with {args.batch} sequences at once; medians in ", end=""
    )
    print("seconds of the processor" if args.cpu_time else "seconds")
    print(f"{'':24}{'reqs':>5}{'tokens':>8}{'needed':>8}{'read':>8}{'asked':>7}{'gptjax':>9}{'lm_eval':>9}{'ratio':>8}", end="")
    print(f"  {'rounds':12}{'x floor':>9}{'compiling':>10}", flush=True)
    both = [compared(name, all_kinds[name], reader, their, args.rounds, peak, clock) for name in chosen]
    mine, other = map(sum, zip(*both, strict=True))
    print(f"{'all together':59}{mine:>9.2f}{other:>9.2f}{other / mine:>8.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
