"""Weights in bfloat16 give the bits that float32 ones give in a bfloat16 forward pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import positions, schema
from gptjax.model import gpt, inference, scalar_gpt
from gptjax.sharding import trees
from tests import tiny

LLAMA = {"norm_type": schema.RMSNorm(), "positions": (positions.Rotary(),)}
MODELS = {
    "gpt3": {},
    "experts and sinks": LLAMA
    | {
        "mlp": schema.Experts(n_experts=8, top_k=2, expert=schema.SwiGLU(d_ff=24)),
        "heads": schema.AttentionHeads(n_kv_heads=2, sinks=True, qk_norm=True),
        "tied_output": False,
    },
}


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_a_bfloat16_forward_pass_reads_the_same_from_cast_weights(fields):
    c = tiny.replace_parts(tiny.config(n_layers=2, **fields), compute={"dtype": "bfloat16"})
    mesh, step, _ = tiny.make_step(c)
    model = scalar_gpt.ScalarGPT(
        **{f.name: getattr(step.model, f.name) for f in dataclasses.fields(step.model) if f.init},
        head_std=0.2,
    )
    tokens_BT = tiny.random_tokens(c, 3)[:, :-1]
    with jax.set_mesh(mesh):
        params = jax.jit(model.init)(jax.random.key(1), tokens_BT)["params"]
        draw = np.random.default_rng(2)
        params = jax.tree.map(  # also of what begins at 0 or 1
            lambda x: x + 0.1 * draw.normal(size=x.shape).astype(np.float32), jax.device_get(params)
        )
        cast = inference.cast_weights(params, jnp.bfloat16)

        def results(params):
            x_BTD, _ = model.apply({"params": params}, tokens_BT, mutable="router")
            logits_BTV = gpt.logits(x_BTD, gpt.output_table(params), c.model.n_vocab)
            last_B = jnp.array([3, 11, 7])
            return logits_BTV, scalar_gpt.scores(model, params, tokens_BT, last_B)

        results = jax.jit(results)
        for x, y in zip(results(params), results(cast), strict=True):
            np.testing.assert_array_equal(x, y)
    weights = {n for n, x in trees.named_leaves(cast) if x.dtype == jnp.bfloat16}
    assert {n.rpartition("/")[2] for n in weights} >= {"token_VD", "weight_DNH"}, weights
