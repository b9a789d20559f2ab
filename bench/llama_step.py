"""Training step speed of a Llama shape of 100M parameters against a plain PyTorch module of the
same shape, in float32, in one process and interleaved rounds.

    python -m bench.llama_step [--rounds=7]

12 layers of width 768, 12 heads with 4 key and value heads, SwiGLU of 2,048, RoPE, RMSNorm, tied
output over 32,000 ids, context 512, batch 2: 100,092,672 parameters. The PyTorch module is what one
writes from Llama's paper with torch.nn.functional (its scaled_dot_product_attention with shared
heads, its rms_norm, AdamW with clipping); it starts from the same parameters, and its losses are
compared, so that the same work is timed. Needs torch (requirements-dev.txt).
"""

import argparse
import importlib
import statistics
import time
from typing import Any

import jax
import numpy as np

from bench import step
from gptjax.config import count, parse, schema
from gptjax.model import gpt
from gptjax.sharding import device_mesh, xla_options

MODEL = schema.Model(
    n_layers=12,
    n_heads=12,
    d_model=768,
    n_vocab=32_000,
    n_ctx=512,
    positions=(schema.Rotary(),),
    norm_type=schema.RMSNorm(),
    heads=schema.AttentionHeads(n_kv_heads=4),
    mlp=schema.SwiGLU(d_ff=2048),
    biases="none",
)
CONFIG = step.bench_config(MODEL, 2)


def torch_params(params: Any) -> dict[str, Any]:
    """gptjax's parameters as leaves of PyTorch, matrices as (in, out)."""
    torch = importlib.import_module("torch")

    def leaf(x):
        return torch.tensor(np.array(x)).requires_grad_()

    def layer(i):
        p = gpt.layer_params(MODEL, {"periods": gpt.unstack_layers(params["periods"])}, i)
        qkv = {
            name[0]: p["attention"]["qkv"][name] for name in ("query", "key", "value")
        }  # each (D, heads, H)
        heads = {name: next(iter(w.values())).reshape(MODEL.d_model, -1) for name, w in qkv.items()}
        return {name: leaf(w) for name, w in heads.items()} | {
            "o": leaf(p["attention"]["out"]["weight_DNH"].reshape(MODEL.d_model, -1).T),
            "gate": leaf(p["mlp"]["gate"]["weight_DF"]),
            "up": leaf(p["mlp"]["up"]["weight_DF"]),
            "down": leaf(p["mlp"]["down"]["weight_DF"].T),
            "norm_1": leaf(p["norm_1"]["gain_D"]),
            "norm_2": leaf(p["norm_2"]["gain_D"]),
        }

    return {
        "token": leaf(params["token_VD"]),
        "norm": leaf(params["norm"]["gain_D"]),
        "layers": [layer(i) for i in range(MODEL.n_layers)],
    }


def torch_loss(params: dict[str, Any], tokens: Any) -> Any:
    """Mean cross-entropy of tokens (B, T + 1)."""
    torch = importlib.import_module("torch")
    F, D, H = torch.nn.functional, MODEL.d_model, MODEL.d_head
    (B, T), eps = tokens[:, 1:].shape, MODEL.norm_type.eps
    angles = torch.outer(torch.arange(T), 1e4 ** (-torch.arange(0, H, 2) / H))
    cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))

    def heads(x):
        return x.view(B, T, -1, H).transpose(1, 2)

    def rotate(x):
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    x = F.embedding(tokens[:, :-1], params["token"])
    for p in params["layers"]:
        y = F.rms_norm(x, (D,), p["norm_1"], eps)
        q, k, v = rotate(heads(y @ p["q"])), rotate(heads(y @ p["k"])), heads(y @ p["v"])
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + o.transpose(1, 2).reshape(B, T, -1) @ p["o"]
        y = F.rms_norm(x, (D,), p["norm_2"], eps)
        x = x + (F.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]
    logits = F.rms_norm(x, (D,), params["norm"], eps) @ params["token"].T
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def torch_step(params: Any) -> step.StepFn:
    """A step of AdamW with clipping, not compiled."""
    torch = importlib.import_module("torch")
    tree = torch_params(params)
    leaves = [tree["token"], tree["norm"], *(w for p in tree["layers"] for w in p.values())]
    groups = [
        {"params": [w for w in leaves if w.ndim > 1], "weight_decay": 0.1},
        {"params": [w for w in leaves if w.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=step.LR, betas=(0.9, 0.95))

    def advance(tokens):
        loss = torch_loss(tree, torch.from_numpy(tokens).long())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return advance


def main() -> None:
    """Prints tokens per second of both, and their ratio, by round."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=parse.int_argument(), default=7, help="timed steps")
    args = parser.parse_args()
    xla_options.tune_malloc()  # before devices start their threads, as train.py does
    mesh = device_mesh.make_mesh(CONFIG.mesh, jax.devices()[:1])
    shape = (2, MODEL.n_ctx + 1)
    tokens = np.random.default_rng(0).integers(0, MODEL.n_vocab, shape, dtype=np.int32)
    seconds: dict[str, list[float]] = {"gptjax": [], "PyTorch": []}
    with jax.set_mesh(mesh):
        ours, params = step.gptjax_step(CONFIG, mesh)
        step_fns = {"gptjax": ours, "PyTorch": torch_step(params)}
        del params
        for i in range(args.rounds + 2):  # two rounds to compile and settle
            losses = {}
            for name, advance in step_fns.items():
                start = time.perf_counter()
                losses[name] = advance(tokens)
                if i >= 2:
                    seconds[name].append(time.perf_counter() - start)
            difference = abs(losses["gptjax"] - losses["PyTorch"])
            assert difference < (1e-2 if i else 1e-4), (i, losses)
    print(f"{count.parameters(MODEL):,} parameters, batch 2 x {MODEL.n_ctx} tokens")
    flops = count.train_flops_per_token(MODEL) * CONFIG.train.batch_tokens
    for name, values in seconds.items():
        median = statistics.median(values)
        print(
            f"{name:8} {median:7.3f} s a step {CONFIG.train.batch_tokens / median:7,.0f} tokens/s "
            f"{flops / median / 1e9:6.1f} GFLOP/s"
        )
    ratios = sorted(t / o for o, t in zip(seconds["gptjax"], seconds["PyTorch"], strict=True))
    median = statistics.median(ratios)
    print(f"gptjax is {median:.2f} x as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
