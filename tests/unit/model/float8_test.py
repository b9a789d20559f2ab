"""Products in 8 bits: which are rounded, by how much, and where."""

import importlib.util

import jax
import numpy as np
import pytest

from gptjax.config import schema
from gptjax.model import float8, gpt
from gptjax.training import step
from tests import tiny

CONFIG = tiny.config(n_layers=2)
FLOAT8 = tiny.replace_parts(CONFIG, compute={"matmul_dtype": "float8"})


def loss_and_gradients(config, n_devices=1):
    mesh, _, state = tiny.make_step(config, n_devices)
    train_step = step.build(config, "cpu", mesh, None)
    assert type(train_step.model) is gpt.GPT  # generation needs no Qwix
    tokens_BT = tiny.random_tokens(CONFIG, 4)
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):  # which Qwix's code needs
        grad_fn = jax.jit(jax.value_and_grad(lambda p: train_step.loss_fn(p, tokens_BT)[0]))
        return grad_fn(state.params)


@pytest.mark.filterwarnings("ignore:'VariableState' was removed")  # Qwix imports it
@pytest.mark.parametrize(
    "compute, mesh",
    [({}, {}), ({"scan_layers": True, "remat": "full"}, {"fsdp": 4, "tensor": 2})],
    ids=["simple", "as on accelerators"],
)
def test_every_product_of_a_layer_is_rounded_in_both_passes(compute, mesh):
    """Gradients of float32 differ by some percent in each weight, and in no direction at large."""
    pytest.importorskip("qwix", reason="needs requirements-float8.txt")
    sharding = {"sharding": "fsdp_tensor"} if mesh else {}
    configs = [
        tiny.replace_parts(c, compute=compute, mesh=mesh | sharding) for c in (CONFIG, FLOAT8)
    ]
    (loss, gradients), (loss8, gradients8) = (
        loss_and_gradients(c, 8 if mesh else 1) for c in configs
    )
    assert loss8 != loss and abs(float(loss8 - loss)) < 2e-3
    leaves = jax.tree_util.tree_leaves_with_path(gradients)
    for (path, x), y in zip(leaves, jax.tree.leaves(gradients8), strict=True):
        error = float(np.linalg.norm(np.ravel(x - y)) / np.linalg.norm(np.ravel(x)))
        name = jax.tree_util.keystr(path)
        assert error < 0.15, name
        assert "weight" not in name or error > 0.01, name


def test_without_qwix_one_line_tells_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    float8.check(CONFIG.compute)
    with pytest.raises(ValueError, match="pip install -r requirements-float8.txt"):
        float8.training_model(None, FLOAT8.compute)


def test_products_of_experts_are_not_reached():
    experts = schema.Experts(n_experts=4, top_k=2, expert=schema.SwiGLU(d_ff=32))
    with pytest.raises(ValueError, match="set compute.matmul_dtype=auto"):
        tiny.replace_parts(FLOAT8, model={"mlp": experts})
