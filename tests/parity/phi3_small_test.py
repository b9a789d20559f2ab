"""Phi-3-small, which transformers does not have, against a NumPy program of its released code's
rules: block-sparse attention that differs by head, GEGELU, muP's multipliers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config import schema
from gptjax.configs import registry
from gptjax.model import gpt, inference
from gptjax.sharding import trees

T, D, N, KV, H, F, V = 96, 32, 4, 2, 8, 48, 61
BLOCK, LOCAL, STRIDE = 8, 2, 3
PUBLISHED = registry.config("phi3_small").model
assert [type(p) for p in PUBLISHED.attention] == [schema.BlockSparse, schema.Dense]
MODEL = dataclasses.replace(
    PUBLISHED,
    n_layers=4,
    n_heads=N,
    d_model=D,
    n_vocab=V,
    n_ctx=T,
    heads=dataclasses.replace(PUBLISHED.heads, n_kv_heads=KV, query_scalar=float(H**2)),
    mlp=schema.ClampedSwiGLU(d_ff=F, limit=2.0),
    attention=(schema.BlockSparse(block=BLOCK, local_blocks=LOCAL, stride=STRIDE), schema.Dense()),
)


def numpy_logits(p, tokens_T):
    """One text, in float64."""

    def layer_norm(x, norm):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * norm["gain_D"] + norm["bias_D"]

    def rotate(x_TNH):
        angles = np.arange(T)[:, None] * 1e6 ** (-np.arange(0, H, 2) / H)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        a, b = x_TNH[..., : H // 2], x_TNH[..., H // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def is_visible(query, key, head, sparse):
        if key > query:
            return False
        is_local = query // BLOCK - key // BLOCK < LOCAL
        return not sparse or is_local or (key // BLOCK + head + 1) % STRIDE == 0

    def attention(x_TD, w, sparse):
        q, k, v = (
            np.einsum("TD,DNH->TNH", x_TD, w["qkv"][name][weight]) + w["qkv"][name][bias]
            for name, weight, bias in (
                ("query", "weight_DNH", "bias_NH"),
                ("key", "weight_DKH", "bias_KH"),
                ("value", "weight_DKH", "bias_KH"),
            )
        )
        q, k = rotate(q), rotate(k)
        out = np.zeros((T, N, H))
        for head in range(N):
            shared = head // (N // KV)
            scores = q[:, head] @ k[:, shared].T / H  # muP: divided by d_head, not by its root
            for query in range(T):
                for key in range(T):
                    if not is_visible(query, key, head, sparse):
                        scores[query, key] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, shared]
        return np.einsum("TNH,DNH->TD", out, w["out"]["weight_DNH"]) + w["out"]["bias_D"]

    def mlp(x_TD, w):
        gate, up = (x_TD @ w[name]["weight_DF"] + w[name]["bias_F"] for name in ("gate", "up"))
        gate, up = np.minimum(gate, 2), np.clip(up, -2, 2)
        hidden = gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
        return hidden @ w["down"]["weight_DF"].T + w["down"]["bias_D"]

    x_TD = 10 * p["token_VD"][tokens_T]
    for layer in range(MODEL.n_layers):
        stacked, number = p["periods"][f"block_{layer % 2}"], layer // 2
        block = jax.tree.map(lambda x: x[number], stacked)  # noqa: B023
        x_TD = x_TD + attention(
            layer_norm(x_TD, block["norm_1"]), block["attention"], layer % 2 == 0
        )
        x_TD = x_TD + mlp(layer_norm(x_TD, block["norm_2"]), block["mlp"])
    return layer_norm(x_TD, p["norm"]) @ p["token_VD"][:V].T / 8


def test_logits_and_cached_decoding():
    policy = gpt.ExecutionPolicy(jnp.float32, None, "blocks", True)
    module = gpt.GPT(MODEL, policy)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    leaves = {
        name: rng.normal(size=leaf.shape) * (0.3 if leaf.ndim > 1 else 0.5)
        for name, leaf in trees.named_leaves(shapes["params"])
    }
    params = jax.tree.unflatten(jax.tree.structure(shapes["params"]), leaves.values())
    tokens_T = rng.integers(0, V, T)
    expected = numpy_logits(params, tokens_T)

    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    tokens_BT = jnp.asarray(tokens_T)[None]
    x_BTD = module.apply({"params": params}, tokens_BT)
    found = gpt.logits(x_BTD, gpt.output_table(params), V)[0, :, :V]
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())

    lm = inference.prepare(module, params)
    counts = jnp.array([T - 32])
    cache, _ = inference.prefill(lm, tokens_BT[:, : T - 32], counts, T)
    step = jax.jit(inference.decode_step)
    for i in range(T - 32, T):
        cache, x_BTD = step(lm, cache, tokens_BT[:, i : i + 1], jnp.array([1]))
        y_V = inference.logits(lm, x_BTD)[0, 0, :V]
        np.testing.assert_allclose(y_V, expected[i], atol=2e-5 * np.abs(expected).max())
