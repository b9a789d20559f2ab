"""Training step speed compared with others on the same shapes, in one process and interleaved
rounds: a plain hand-written JAX step, and nanoGPT (PyTorch, eager) and nanodo (Flax) if clones of
them are on this machine.

    python -m bench.step [--size=laptop|gpt2_124m|sparse] [--rounds=9] [--without=NAME,...]
    [--bfloat16] [--nanogpt=DIR] [--nanodo=DIR]

Prints tokens per second of each, the median over rounds of its ratio to gptjax, and GFLOP/s by the
model's formula (config/count.py). laptop: 6 layers, width 384, 6 heads, context 256, batch 16: what
nanoGPT trains on a laptop. gpt2_124m: its shapes, context 1,024, batch 1. sparse: 12 layers of
width 768, GPT-3 small's alternating pattern at context 4,096, batch 1, compared with dense layers
only and with the others, which support only those. The plain step and nanodo materialize all scores
and do not fit in 24 GiB: --without=plain. A contender that runs out of memory is reported and
dropped. All in float32 with AdamW and gradient clipping, without dropout; --bfloat16 adds gptjax's
step in bfloat16. The plain step is what one writes from the papers in an hour: a list of layers,
jnp and einsum, one jit; it starts from the same parameters and its losses are compared, so that the
same work is timed. git clone the peers next to the project; nanoGPT needs wandb
(requirements-cloud.txt).
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gptjax.config import count, data, parse, schema
from gptjax.sharding import device_mesh, xla_options
from gptjax.training import state, step

LR = 1e-4


def bench_config(model: schema.Model, batch: int) -> schema.Config:
    """A run of `batch` rows per step."""
    tokens = batch * model.n_ctx
    train = schema.Train(
        total_tokens=tokens * 1000, batch_tokens=tokens, schedule=schema.Constant(peak_lr=LR)
    )
    return schema.Config(
        name="bench", model=model, data=data.Data(tokenizer=data.Bytes()), train=train
    )


SMALL = schema.Model(
    n_layers=12,
    n_heads=12,
    d_model=768,
    n_vocab=50304,
    n_ctx=1024,
    init=schema.Init(residual="depth_scaled"),
)
SIZES = {
    "laptop": bench_config(
        dataclasses.replace(SMALL, n_layers=6, n_heads=6, d_model=384, n_vocab=256, n_ctx=256), 16
    ),
    "gpt2_124m": bench_config(SMALL, 1),
    "sparse": bench_config(
        dataclasses.replace(
            SMALL, n_ctx=4096, attention=(schema.Banded(window=256), schema.Dense())
        ),
        1,
    ),
}
CONFIG = SIZES["laptop"]


def layer_norm(x, p):
    """Layer norm over the last axis; p: gain g and bias b."""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["g"] + p["b"]


def reference_loss(params, tokens, n_heads):
    """Mean cross-entropy of a pre-LN GPT; tokens (B, T + 1)."""
    x, y = tokens[:, :-1], tokens[:, 1:]
    B, T = x.shape
    h = params["wte"][x] + params["wpe"][:T]
    mask = jnp.tril(jnp.ones((T, T), bool))
    for p in params["layers"]:
        n = layer_norm(h, p["ln1"])
        q, k, v = jnp.split(n @ p["qkv"] + p["qkv_b"], 3, axis=-1)
        q, k, v = (a.reshape(B, T, n_heads, -1).transpose(0, 2, 1, 3) for a in (q, k, v))
        scores = jnp.where(mask, q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5, -1e9)
        out = (jax.nn.softmax(scores, -1) @ v).transpose(0, 2, 1, 3).reshape(B, T, -1)
        h = h + out @ p["out"] + p["out_b"]
        n = layer_norm(h, p["ln2"])
        h = h + jax.nn.gelu(n @ p["up"] + p["up_b"]) @ p["down"] + p["down_b"]
    logp = jax.nn.log_softmax(layer_norm(h, params["ln_f"]) @ params["wte"].T)
    return -jnp.take_along_axis(logp, y[..., None], -1).mean()


def reference_step(carry, tokens, n_heads, lr=LR, b1=0.9, b2=0.95, decay=0.1):
    """One step of AdamW with gradient clipping at norm 1. carry: (params, m, v, step count)."""
    params, m, v, t = carry
    loss, g = jax.value_and_grad(reference_loss)(params, tokens, n_heads)
    norm = jnp.sqrt(sum((x**2).sum() for x in jax.tree.leaves(g)))
    g = jax.tree.map(lambda x: x * jnp.minimum(1.0, 1.0 / norm), g)
    t = t + 1
    m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, g)
    v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, v, g)

    def new_param(p, m, v):
        return p - lr * (
            m / (1 - b1**t) / (jnp.sqrt(v / (1 - b2**t)) + 1e-8) + (decay * p if p.ndim > 1 else 0)
        )

    return (jax.tree.map(new_param, params, m, v), m, v, t), loss


def reference_params(params, model: schema.Model):
    """Our parameters in the plain step's layout."""
    D, blocks = (
        model.d_model,
        [params["periods"][f"block_{i}"] for i in range(len(model.attention))],
    )

    def layer(i):
        b = jax.tree.map(lambda x: x[i // len(blocks)], blocks[i % len(blocks)])
        norm = {
            n: {"g": b[f"norm_{k}"]["gain_D"], "b": b[f"norm_{k}"]["bias_D"]}
            for n, k in (("ln1", 1), ("ln2", 2))
        }
        a, f = b["attention"], b["mlp"]
        return norm | {
            "qkv": a["qkv"]["weight_DQNH"].reshape(D, 3 * D),
            "qkv_b": a["qkv"]["bias_QNH"].reshape(3 * D),
            "out": a["out"]["weight_DNH"].reshape(D, D).T,
            "out_b": a["out"]["bias_D"],
            "up": f["up"]["weight_DF"],
            "up_b": f["up"]["bias_F"],
            "down": f["down"]["weight_DF"].T,
            "down_b": f["down"]["bias_D"],
        }

    final = {"g": params["norm"]["gain_D"], "b": params["norm"]["bias_D"]}
    layers = [layer(i) for i in range(model.n_layers)]
    return jax.tree.map(
        jnp.array,
        {"wte": params["token_VD"], "wpe": params["position_TD"], "layers": layers, "ln_f": final},
    )


# One training step on tokens (B, T + 1), done when it returns. Returns the loss.
StepFn = Callable[[np.ndarray], float]


def dense_config(config: schema.Config) -> schema.Config:
    """Returns the config with dense attention in all layers."""
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, attention=(schema.Dense(),))
    )


def bfloat16_config(config: schema.Config) -> schema.Config:
    """Returns the config with activations in bfloat16."""
    compute = dataclasses.replace(config.compute, dtype="bfloat16")
    return dataclasses.replace(config, compute=compute)


def gptjax_step(config: schema.Config, mesh: jax.sharding.Mesh) -> tuple[StepFn, dict]:
    """gptjax's step, and its initial parameters."""
    train_step = step.build(config, jax.devices()[0].platform, mesh, None)
    train_state = state.init_sharded(config, train_step.model, train_step.tx, mesh)
    init_params = jax.tree.map(jnp.array, train_state.params)
    run = jax.jit(
        train_step,
        donate_argnums=0,
        static_argnums=2,
        compiler_options=xla_options.options(
            jax.devices()[0], train_step.model.execution_policy.dtype
        ),
    )

    def advance(tokens):
        nonlocal train_state
        train_state, metrics = run(train_state, jax.device_put(tokens)[None], 1)
        jax.block_until_ready(train_state)
        return metrics["loss"].item()

    return advance, init_params


def reference_jax(config: schema.Config, init_params: dict) -> StepFn:
    """The hand-written step, from our parameters, with dense attention for any config."""
    params = reference_params(init_params, config.model)
    carry = (
        params,
        jax.tree.map(jnp.zeros_like, params),
        jax.tree.map(jnp.zeros_like, params),
        jnp.int32(0),
    )
    run = jax.jit(reference_step, donate_argnums=0, static_argnums=2)

    def advance(tokens):
        nonlocal carry
        carry, loss = run(carry, jax.device_put(tokens), config.model.n_heads)
        jax.block_until_ready(carry)
        return loss.item()

    return advance


def nanogpt_model(c: schema.Model, directory: str) -> Any:
    """nanoGPT's model of these sizes, with biases and without dropout. directory: its source."""
    sys.path.insert(0, directory)
    import model as nanogpt_model  # pyright: ignore[reportMissingImports]

    sizes = {
        "n_layer": c.n_layers,
        "n_head": c.n_heads,
        "n_embd": c.d_model,
        "vocab_size": c.n_vocab_padded,
        "block_size": c.n_ctx,
    }
    return nanogpt_model.GPT(nanogpt_model.GPTConfig(dropout=0.0, bias=True, **sizes))


def nanogpt_step(config: schema.Config, directory: str) -> StepFn:
    """nanoGPT's model and optimizer as its train.py uses them on CPU, not compiled."""
    import torch  # pyright: ignore[reportMissingImports]

    gpt = nanogpt_model(config.model, directory)
    optimizer = gpt.configure_optimizers(0.1, LR, (0.9, 0.95), "cpu")

    def advance(tokens):
        tokens = torch.from_numpy(tokens).long()
        _, loss = gpt(tokens[:, :-1], tokens[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return advance


def nanodo_step(config: schema.Config, directory: str) -> StepFn:
    """nanodo's model (no biases) under Adam with decay and clipping, one jit."""
    sys.path.insert(0, directory)
    from nanodo import model as nanodo_model  # pyright: ignore[reportMissingImports]

    c = config.model
    sizes = nanodo_model.DoConfig(
        D=c.d_model,
        H=c.n_heads,
        L=c.n_ctx,
        N=c.n_layers,
        V=c.n_vocab_padded,
        F=c.d_ff,
        dtype=jnp.float32,
        fsdp_enabled=False,
    )
    model = nanodo_model.TransformerDo(sizes)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, c.n_ctx), jnp.int32))
    tx = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(LR, b1=0.9, b2=0.95, weight_decay=0.1)
    )
    carry = params, jax.jit(tx.init)(params)

    def loss_of(params, tokens):
        logits = model.apply(params, tokens[:, :-1])
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    def update(carry, tokens):
        params, moments = carry
        loss, gradients = jax.value_and_grad(loss_of)(params, tokens)
        updates, moments = tx.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    run = jax.jit(update, donate_argnums=0)

    def advance(tokens):
        nonlocal carry
        carry, loss = run(carry, jax.device_put(tokens))
        jax.block_until_ready(carry)
        return loss.item()

    return advance


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the program's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="laptop", help="shapes (default: laptop)")
    parser.add_argument(
        "--rounds", type=parse.int_argument(), default=9, help="timed steps of each (default: 9)"
    )
    parser.add_argument(
        "--without",
        metavar="NAME,...",
        default="",
        help="of gptjax, plain, dense (at --size=sparse)",
    )
    parser.add_argument("--bfloat16", action="store_true", help="gptjax in bfloat16, too")
    parser.add_argument("--nanogpt", metavar="DIR", help="a clone of karpathy/nanoGPT")
    parser.add_argument("--nanodo", metavar="DIR", help="a clone of google-deepmind/nanodo")
    return parser


def main():
    args = make_parser().parse_args()
    xla_options.tune_malloc()  # before devices start their threads, as train.py does
    config = SIZES[args.size]
    c, batch = config.model, config.train.batch_tokens // config.model.n_ctx
    dense = c.attention == (schema.Dense(),)
    mesh = device_mesh.make_mesh(config.mesh, jax.devices()[:1])
    tokens = np.random.default_rng(0).integers(0, c.n_vocab, (batch, c.n_ctx + 1), dtype=np.int32)
    seconds: dict[str, list[float]] = {}
    with jax.set_mesh(mesh):
        step_fns: dict[str, StepFn] = {}
        selected = {"gptjax", "plain"} - set(args.without.split(","))
        if not dense and "dense" not in args.without.split(","):
            step_fns["all dense"], _ = gptjax_step(dense_config(config), mesh)
            del _
        if selected:
            gptjax_fn, params = gptjax_step(config, mesh)
            step_fns |= {"gptjax": gptjax_fn} if "gptjax" in selected else {}
            step_fns |= {"plain JAX": reference_jax(config, params)} if "plain" in selected else {}
            del gptjax_fn, params
        if args.bfloat16:
            step_fns["bfloat16"], _ = gptjax_step(bfloat16_config(config), mesh)
            del _
        if args.nanogpt:
            step_fns["nanoGPT"] = nanogpt_step(config, args.nanogpt)
        if args.nanodo:
            step_fns["nanodo"] = nanodo_step(config, args.nanodo)
        for i in range(args.rounds + 2):  # two rounds to compile and settle
            losses = {}
            for name, advance in list(step_fns.items()):
                start_time = time.perf_counter()
                try:
                    losses[name] = advance(tokens)
                except jax.errors.JaxRuntimeError as error:
                    if "RESOURCE_EXHAUSTED" not in str(error):
                        raise
                    print(f"{name}: {str(error).splitlines()[0]}")
                    del step_fns[name]
                    continue
                if i >= 2:
                    seconds.setdefault(name, []).append(time.perf_counter() - start_time)
            # The same work: equal at first, and close while rounding errors grow.
            if dense and {"gptjax", "plain JAX"} <= set(losses):
                assert abs(losses["gptjax"] - losses["plain JAX"]) < (1e-2 if i else 1e-4), (
                    i,
                    losses,
                )
    flops = count.train_flops_per_token(c) * config.train.batch_tokens
    print(
        f"{args.size}: {c.n_layers} layers, {c.d_model} wide, context {c.n_ctx}, batch {batch}; "
        f"medians of {args.rounds} rounds"
    )
    for name, s in seconds.items():
        median = statistics.median(s)
        line = (
            f"{name:9} {median:7.3f} s a step {config.train.batch_tokens / median:8,.0f} tokens/s"
        )
        if name == "gptjax" or dense:
            line += f" {flops / median / 1e9:6.1f} GFLOP/s"
        if name != "gptjax" and "gptjax" in seconds:
            ratios = sorted(t / o for t, o in zip(s, seconds["gptjax"], strict=True))
            line += (
                f"  gptjax is {statistics.median(ratios):.2f} x as fast ({ratios[0]:.2f} to "
                f"{ratios[-1]:.2f})"
            )
        print(line)


if __name__ == "__main__":
    main()
