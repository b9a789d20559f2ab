"""The training step against a plain hand-written JAX step of the same mathematics, in one process, taking turns.

python -m bench.step [--rounds=9]    prints tokens per second of both, medians, and their ratio

The model is 6 layers, 384 wide, 6 heads, context 256, batch 16, float32, AdamW, no dropout: the size that nanoGPT trains on a laptop. The
plain step is what one writes from the papers in an hour: a list of layers, jnp and einsum, one jit. Both start from the same parameters;
their losses are compared, so that the same work is timed.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config import count, data, schema
from gptjax.learn import state, step
from gptjax.mesh import devices

CONFIG = schema.Config(
    name="bench",
    model=schema.Model(n_layers=6, n_heads=6, d_model=384, n_vocab=256, n_ctx=256, init=schema.Init(residual="depth_scaled")),
    data=data.Data(tokenizer=data.Bytes()),
    train=schema.Train(total_tokens=4096 * 1000, batch_tokens=4096, schedule=schema.Constant(peak=1e-3)),
)


def layer_norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["g"] + p["b"]


def plain_loss(params, tokens, n_heads):
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


def plain_step(carry, tokens, n_heads, lr=1e-3, b1=0.9, b2=0.95, decay=0.1):
    params, m, v, t = carry
    loss, g = jax.value_and_grad(plain_loss)(params, tokens, n_heads)
    norm = jnp.sqrt(sum((x**2).sum() for x in jax.tree.leaves(g)))
    g = jax.tree.map(lambda x: x * jnp.minimum(1.0, 1.0 / norm), g)
    t = t + 1
    m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, g)
    v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, v, g)

    def moved(p, m, v):
        return p - lr * (m / (1 - b1**t) / (jnp.sqrt(v / (1 - b2**t)) + 1e-8) + (decay * p if p.ndim > 1 else 0))

    return (jax.tree.map(moved, params, m, v), m, v, t), loss


def plain_params(ours):
    """Our parameters in the plain step's layout."""
    blocks, D = ours["periods"]["block_0"], CONFIG.model.d_model

    def layer(i):
        b = jax.tree.map(lambda x: x[i], blocks)
        norm = {n: {"g": b[f"norm_{k}"]["gain_D"], "b": b[f"norm_{k}"]["bias_D"]} for n, k in (("ln1", 1), ("ln2", 2))}
        a, f = b["attention"], b["mlp"]
        return norm | {
            "qkv": a["qkv"]["weight_DQNH"].reshape(D, 3 * D),
            "qkv_b": a["qkv"]["bias_QNH"].reshape(3 * D),
            "out": a["out"]["weight_NHD"].reshape(D, D),
            "out_b": a["out"]["bias_D"],
            "up": f["up"]["weight_DF"],
            "up_b": f["up"]["bias_F"],
            "down": f["down"]["weight_FD"],
            "down_b": f["down"]["bias_D"],
        }

    final = {"g": ours["norm"]["gain_D"], "b": ours["norm"]["bias_D"]}
    layers = [layer(i) for i in range(CONFIG.model.n_layers)]
    return jax.tree.map(jnp.array, {"wte": ours["token_VD"], "wpe": ours["position_TD"], "layers": layers, "ln_f": final})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each (default: 9)")
    rounds = parser.parse_args().rounds
    mesh = devices.mesh(CONFIG.mesh, jax.devices()[:1])
    built = step.build(CONFIG, jax.devices()[0].platform, mesh, None)
    rng = np.random.default_rng(0)
    tokens_B = jax.device_put(rng.integers(0, 256, (16, 257), dtype=np.int32))
    seconds = {"gptjax": [], "plain": []}
    with jax.set_mesh(mesh):
        now = state.created(CONFIG, built.model, built.tx, mesh)
        params = plain_params(now.params)
        carry = (params, jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params), jnp.int32(0))
        ours = jax.jit(built, donate_argnums=0, static_argnums=2)
        plain = jax.jit(plain_step, donate_argnums=0, static_argnums=2)
        for i in range(rounds + 2):  # two rounds to compile and settle
            began = time.perf_counter()
            now, metrics = ours(now, tokens_B[None], 1)
            jax.block_until_ready(now)
            middle = time.perf_counter()
            carry, loss = plain(carry, tokens_B, CONFIG.model.n_heads)
            jax.block_until_ready(carry)
            if i >= 2:
                seconds["gptjax"].append(middle - began)
                seconds["plain"].append(time.perf_counter() - middle)
            assert abs(float(loss) - float(metrics["loss"])) < 2e-3, (i, float(loss), float(metrics["loss"]))
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    flops = count.train_flops_per_token(CONFIG.model) * 4096
    for name, s in medians.items():
        print(f"{name:7} {s:7.3f} s a step  {4096 / s:7,.0f} tokens/s  {flops / s / 1e9:6.1f} GFLOP/s")
    ratios = sorted(p / o for p, o in zip(seconds["plain"], seconds["gptjax"], strict=True))
    print(f"gptjax / plain: {statistics.median(ratios):.3f} (from {ratios[0]:.3f} to {ratios[-1]:.3f} over {rounds} rounds)")


if __name__ == "__main__":
    main()
