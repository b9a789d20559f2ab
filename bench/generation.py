"""Tokens per second of greedy generation, compared with Hugging Face transformers (PyTorch
GPT2LMHeadModel with its cache), in interleaved rounds.

    python -m bench.generation [--batch=1,8] [--dtype=float32,bfloat16] [--prompt=128]
    [--max_new_tokens=128] [--rounds=3]

gpt2_124m with the same random weights on both sides. Both must generate the same tokens except for
ties: each of theirs must be the argmax here within TIE_LOGITS, the difference in rounding. The
floor is what a step must read, weights and cache, over this machine's bandwidth, measured on the
sum of a large array.
"""

import argparse
import functools
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config import parse, schema
from gptjax.configs import registry
from gptjax.generate import decode, sampling
from gptjax.model import gpt, inference

TIE_LOGITS = {"float32": 1e-3, "bfloat16": 0.25}
GREEDY = sampling.SamplingParams(temperature=0)


def new_hf_model(c: schema.Model):
    """transformers' GPT-2 of these sizes, with random parameters."""
    import transformers

    config = transformers.GPT2Config(
        n_embd=c.d_model,
        n_layer=c.n_layers,
        n_head=c.n_heads,
        vocab_size=c.n_vocab,
        n_positions=c.n_ctx,
    )
    return transformers.GPT2LMHeadModel(config).eval()


def hf_model(params, c: schema.Model, dtype: str):
    """transformers' model with these parameters."""
    import torch

    model = new_hf_model(c)
    names = {
        "transformer.wte.weight": params["token_VD"][: c.n_vocab],
        "transformer.wpe.weight": params["position_TD"],
    }
    names |= {
        f"transformer.ln_f.{a}": params["norm"][b]
        for a, b in (("weight", "gain_D"), ("bias", "bias_D"))
    }
    D, block = c.d_model, params["periods"]["block_0"]
    for i in range(c.n_layers):
        b = jax.tree.map(lambda x: x[i], block)  # noqa: B023
        tensors_of_layer = {
            f"ln_{n}.{x}": b[f"norm_{n}"][y]
            for n in (1, 2)
            for x, y in (("weight", "gain_D"), ("bias", "bias_D"))
        }
        attention, mlp = b["attention"], b["mlp"]
        tensors_of_layer |= {"attn.c_attn.weight": attention["qkv"]["weight_DQNH"].reshape(D, -1)}
        tensors_of_layer |= {"attn.c_attn.bias": attention["qkv"]["bias_QNH"].reshape(-1)}
        tensors_of_layer |= {
            "attn.c_proj.weight": attention["out"]["weight_DNH"].reshape(D, D).T,
            "attn.c_proj.bias": attention["out"]["bias_D"],
        }
        tensors_of_layer |= {
            "mlp.c_fc.weight": mlp["up"]["weight_DF"],
            "mlp.c_fc.bias": mlp["up"]["bias_F"],
        }
        tensors_of_layer |= {
            "mlp.c_proj.weight": mlp["down"]["weight_DF"].T,
            "mlp.c_proj.bias": mlp["down"]["bias_D"],
        }
        names |= {f"transformer.h.{i}.{name}": x for name, x in tensors_of_layer.items()}
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in names.items()}
    missing = model.load_state_dict(tensors, strict=False)
    assert missing.missing_keys == ["lm_head.weight"] and not missing.unexpected_keys, (
        missing
    )  # tied to wte
    return model.to(getattr(torch, dtype))


def hf_generate(model, prompts, n_tokens: int) -> np.ndarray:
    """Returns the greedy continuations of transformers."""
    import torch

    with torch.inference_mode():
        ids = torch.from_numpy(prompts).long()
        options = {
            "do_sample": False,
            "use_cache": True,
            "min_new_tokens": n_tokens,
            "max_new_tokens": n_tokens,
            "pad_token_id": 0,
        }
        return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[
            :, prompts.shape[1] :
        ].numpy()


def gptjax_generate(inference_model, prompts, n_tokens: int) -> np.ndarray:
    """Returns the greedy continuations of gptjax."""
    return np.array(
        decode.generate(inference_model, prompts.tolist(), n_tokens, GREEDY, jax.random.key(0))
    )


def max_logit_gap(inference_model, prompts, generated) -> float:
    """The largest difference, in logits, between the argmax and a generated token."""

    @jax.jit
    def gaps(inference_model, tokens_BT):
        _, x_BTD = inference.prefill(
            inference_model,
            tokens_BT,
            jnp.full(len(prompts), tokens_BT.shape[1]),
            tokens_BT.shape[1],
        )
        y_BTV = inference.logits(inference_model, x_BTD[:, prompts.shape[1] - 1 : -1])
        generated_BT1 = jnp.take_along_axis(y_BTV, tokens_BT[:, prompts.shape[1] :, None], axis=2)
        return jnp.max(y_BTV.max(axis=2, keepdims=True) - generated_BT1)

    return gaps(
        inference_model, jnp.asarray(np.concatenate([prompts, generated], axis=1), jnp.int32)
    ).item()


def time_call(fn) -> float:
    """Returns the seconds that fn() takes."""
    start_time = time.perf_counter()
    fn()
    return time.perf_counter() - start_time


def bandwidth() -> float:
    """Bytes per second of reading, the best of several sums over 512 MB."""
    x = jnp.ones((128, 1024, 1024))
    total = jax.jit(jnp.sum)
    return x.nbytes / min(time_call(lambda: total(x).block_until_ready()) for _ in range(15))


def time_both(
    inference_model, model, prompts, n_tokens: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds for n_tokens, and for the first alone, for both sides in interleaved rounds."""
    generators = {
        "gptjax": functools.partial(gptjax_generate, inference_model, prompts),
        "transformers": functools.partial(hf_generate, model, prompts),
    }
    times = {f"{name} {what}": [] for name in generators for what in ("first", "all")}
    for _ in range(rounds):
        for name, generate in generators.items():
            times[f"{name} first"].append(time_call(lambda: generate(1)))  # noqa: B023
            times[f"{name} all"].append(time_call(lambda: generate(n_tokens)))  # noqa: B023
    return times


def compare(c, params, batch, dtype, args, speed) -> None:
    """Prints the speed of gptjax and of transformers for one batch size and data type."""
    execution_policy = gpt.execution_policy(schema.Compute(dtype=dtype), jax.default_backend())
    inference_model = inference.prepare(gpt.GPT(c, execution_policy), params)
    model = hf_model(params, c, dtype)
    prompts = np.random.default_rng(batch).integers(
        0, c.n_vocab, (batch, args.prompt), dtype=np.int32
    )
    ours, theirs = (
        gptjax_generate(inference_model, prompts, args.max_new_tokens),
        hf_generate(model, prompts, args.max_new_tokens),
    )
    agreement = np.mean(ours == theirs)
    assert max_logit_gap(inference_model, prompts, theirs) < TIE_LOGITS[dtype], max_logit_gap(
        inference_model, prompts, theirs
    )
    gptjax_generate(inference_model, prompts, 1)
    times = time_both(inference_model, model, prompts, args.max_new_tokens, args.rounds)
    medians = {name: statistics.median(samples) for name, samples in times.items()}
    step = {
        name: (medians[f"{name} all"] - medians[f"{name} first"]) / (args.max_new_tokens - 1)
        for name in ("gptjax", "transformers")
    }
    ratios = sorted(
        t / o for t, o in zip(times["transformers all"], times["gptjax all"], strict=True)
    )
    print(
        f"\nbatch {batch}, {dtype}: {agreement:.1%} of {ours.size:,} tokens the same, "
        f"{np.unique(ours).size:,} different ones"
    )
    for name in step:
        rate, first = batch * args.max_new_tokens / medians[f"{name} all"], medians[f"{name} first"]
        print(
            f"  {name:12} {rate:8.1f} tokens/s   prompt {first * 1e3:8.1f} ms   then "
            f"{step[name] * 1e3:7.1f} ms a step"
        )
    print(
        f"  gptjax / transformers: {statistics.median(ratios):.2f} (from {ratios[0]:.2f} to "
        f"{ratios[-1]:.2f} over {args.rounds} rounds)"
    )
    weights = (
        sum(x.nbytes for x in jax.tree.leaves(inference_model.params))
        - inference_model.params["position_TD"].nbytes
    )
    cache = (
        2
        * c.n_layers
        * c.d_model
        * batch
        * (args.prompt + args.max_new_tokens / 2)
        * inference_model.params["token_VD"].dtype.itemsize
    )
    floor = (weights + cache) / speed
    print(
        f"  floor: {(weights + cache) / 1e6:,.0f} MB a step at {speed / 1e9:.1f} GB/s = "
        f"{floor * 1e3:.1f} ms; ",
        end="",
    )
    print(
        f"gptjax is {step['gptjax'] / floor:.2f} x that, transformers "
        f"{step['transformers'] / floor:.2f} x",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", default="1,8", help="rows (default: 1,8)")
    parser.add_argument(
        "--dtype", default="float32,bfloat16", help="types (default: float32,bfloat16)"
    )
    parser.add_argument(
        "--prompt",
        type=parse.int_argument(),
        default=128,
        help="tokens of each prompt (default: 128)",
    )
    parser.add_argument(
        "--max_new_tokens", type=parse.int_argument(), default=128, help="new tokens (default: 128)"
    )
    parser.add_argument(
        "--rounds", type=parse.int_argument(), default=3, help="timed rounds (default: 3)"
    )
    args = parser.parse_args()
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        print(
            f"{error.name} is not installed: pip install -r requirements-dev.txt", file=sys.stderr
        )
        return 2
    c = registry.config("gpt2_124m").model
    model = gpt.GPT(c, gpt.execution_policy(schema.Compute(), "cpu"))
    params = jax.jit(lambda key: model.init(key, jnp.zeros((1, 1), jnp.int32))["params"])(
        jax.random.key(0)
    )
    # Four times the usual layer weights, so that they outweigh the token itself and the generated
    # text varies; at eight times, rounding alone changes all of it.
    params |= {"periods": jax.tree.map(lambda x: 4 * x if x.ndim > 2 else x, params["periods"])}
    speed = bandwidth()
    for dtype in args.dtype.split(","):
        for batch in map(int, args.batch.split(",")):
            compare(c, params, batch, dtype, args, speed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
