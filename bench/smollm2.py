"""Generation and forward passes of a GGUF model against transformers with the same file, in
float32, interleaved in one process.

    python -m bench.smollm2 --model=SmolLM2-135M-Instruct.Q4_1.gguf [--rounds=5]

Needs torch, transformers and accelerate. Decoding is timed as the difference between long and short
answers, so that the prompt does not count; each token reads every weight once, which with the bytes
of the weights gives the bandwidth that is used.
"""

import argparse
import importlib
import statistics
import time
from collections.abc import Callable

import jax

import gptjax
from gptjax.config import parse
from gptjax.generate import decode, sampling

PROMPT = "Once upon a time, in a small village by the sea, there lived"
SHORT, LONG = 2, 64  # tokens generated
FORWARD_TOKENS = 512


def seconds(fn: Callable[[], object]) -> float:
    """Returns the seconds that one call takes."""
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def main() -> None:
    """Prints tokens per second of both, and their ratio, by round."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=parse.path_argument, required=True, help="a .gguf file")
    parser.add_argument("--rounds", type=parse.int_argument(), default=5)
    args = parser.parse_args()
    torch = importlib.import_module("torch")
    transformers = importlib.import_module("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        args.model.parent, gguf_file=args.model.name, dtype=torch.float32
    ).eval()
    ours = gptjax.load(args.model)
    ids = ours.tokenizer.encode(PROMPT)
    greedy = sampling.SamplingParams(temperature=0.0)

    def generate_ours(n: int) -> float:
        lm = ours.inference_model
        return seconds(lambda: decode.generate(lm, [ids], n, greedy, jax.random.key(0)))

    @torch.no_grad()
    def generate_theirs(n: int) -> float:
        prompt = torch.tensor([ids])
        return seconds(
            lambda: theirs.generate(
                prompt, max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0
            )
        )

    row = (ids * FORWARD_TOKENS)[:FORWARD_TOKENS]

    @torch.no_grad()
    def forward_theirs() -> float:
        return seconds(lambda: theirs(torch.tensor([row])))

    for n in (SHORT, LONG):  # compile
        generate_ours(n), generate_theirs(n)
    ours.logits(row)
    ratios: dict[str, list[float]] = {"decoding": [], "forward": []}
    for _ in range(args.rounds):
        speeds = [
            (LONG - SHORT) / (generate(LONG) - generate(SHORT))
            for generate in (generate_ours, generate_theirs)
        ]
        times = seconds(lambda: ours.logits(row)), forward_theirs()
        forward = [FORWARD_TOKENS / time for time in times]
        for kind, (a, b) in (("decoding", speeds), ("forward", forward)):
            ratios[kind].append(a / b)
            print(f"{kind:9} {a:8.1f} tokens/s, transformers {b:8.1f}: {a / b:.2f} x", flush=True)
    n_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(ours.inference_model.params))
    for kind, values in ratios.items():
        print(f"{kind}: median {statistics.median(values):.2f} x")
    print(f"weights: {n_bytes / 1e6:.0f} MB, read once a token")


if __name__ == "__main__":
    main()
