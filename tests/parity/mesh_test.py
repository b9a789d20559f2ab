"""Every preset on eight devices gives the loss curve of one device, with and without
microbatches; and keeps and sends only shards."""

import importlib.util

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gptjax.aot import hlo_cost
from gptjax.config import schema
from gptjax.sharding import device_mesh, topology
from gptjax.training import state, step
from tests import tiny

COUNTS = (1, 2, 2, 1, 2)  # microbatches of each step, as in a batch ramp
MESHES = {
    "fsdp": {"sharding": "fsdp", "fsdp": 8},
    "data": {"sharding": "fsdp", "data": 2, "fsdp": 4},
    "tensor": {"sharding": "fsdp_tensor", "fsdp": 4, "tensor": 2},
    "all": {"sharding": "fsdp_tensor", "fsdp": 2, "tensor": 2, "context": 2},
    "context": {"sharding": "fsdp", "fsdp": 1, "context": 8},
}
ROWS = 8  # of a microbatch


def config(**parts):
    """Banded and dense layers in turn, pre-LN; a row is long enough for 8 parts of 2 positions,
    and the band for 2 of them."""
    return tiny.replace_parts(tiny.config(n_layers=4, n_ctx=16), **parts)


def on_eight(name):
    return config(mesh=MESHES[name], compute={"scan_layers": name != "data"})


def curve(c, n_devices, microbatches):
    """Losses of the steps, and the parameters after them; microbatches of ROWS rows, or one
    batch of all rows of a step."""
    mesh, built, now = tiny.make_step(c, n_devices)
    run, losses = jax.jit(built, donate_argnums=0), []
    with jax.set_mesh(mesh):
        for i, count in enumerate(COUNTS):
            tokens = tiny.random_tokens(c, 2, ROWS, seed=i)
            tokens, count = (
                (tokens, count)
                if microbatches
                else (tokens[:count].reshape(1, count * ROWS, -1), 1)
            )
            now, metrics = run(now, tokens, np.int32(count))
            losses.append(float(metrics["loss"]))
    return losses, jax.device_get(now.params)


@pytest.fixture(scope="module")
def one_device():
    return curve(config(compute={"scan_layers": True}), 1, microbatches=False)


@pytest.mark.parametrize("name", MESHES)
def test_the_curve_is_that_of_one_device(one_device, name):
    """Float32 sums in another order: a few in 1e-7 of a loss in one step, of which five steps
    may make 2e-6."""
    losses, params = curve(on_eight(name), 8, microbatches=True)
    np.testing.assert_allclose(losses, one_device[0], rtol=2e-6)
    tiny.assert_near(params, one_device[1])


def family(**parts):
    """All switches at once; a period of two layers and one more."""
    return config(
        model={
            "n_layers": 3,
            "norm": "both",
            "norm_type": schema.RMSNorm(unit_offset=True),
            "positions": (schema.Rotary(), schema.Rotary(theta=100.0)),
            "heads": schema.AttentionHeads(n_kv_heads=1, softcap=3.0, qk_norm=True, sinks=True),
            "mlp": schema.SwiGLU(d_ff=24),
            "biases": "none",
            "tied_output": False,
            "logits_softcap": 5.0,
        },
        **parts,
    )


@pytest.fixture(scope="module")
def family_on_one_device():
    return curve(family(), 1, microbatches=True)


@pytest.mark.parametrize(
    "name", ["all", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tensor", "context"))]
)
def test_a_family_after_gpt3_on_a_mesh(family_on_one_device, name):
    """One key and value head, which tensor replicates."""
    losses, params = curve(family(mesh=MESHES[name]), 8, microbatches=True)
    np.testing.assert_allclose(losses, family_on_one_device[0], rtol=2e-6)
    tiny.assert_near(params, family_on_one_device[1])
    assert losses[-1] < losses[0]


def test_a_device_has_its_shards_and_no_more():
    """fsdp 4 x tensor 2; 128 x 16 is the token table, 16 x 64 a matrix of the MLP, 3 the periods
    of layers."""
    c = tiny.replace_parts(
        tiny.config(n_layers=6, n_ctx=16), mesh=MESHES["tensor"], compute={"scan_layers": True}
    )
    mesh, built, now = tiny.make_step(c, 8)
    with jax.set_mesh(mesh):
        compiled = (
            jax.jit(built, donate_argnums=0, static_argnums=2)
            .lower(now, tiny.random_tokens(c, 2, ROWS), 2)
            .compile()
        )
    text = compiled.as_text()
    assert "f32[64,16]" in text and "f32[128,16]" not in text, (
        "the table is gathered along its width only"
    )
    assert "f32[2,16,64]" in text and "f32[2,16,128]" not in text, (
        "logits are cut along the vocabulary"
    )
    assert "f32[3,4,32]" in text and "f32[3,16,32]" not in text, "stacked gradients are shards"
    kinds = {c.kind for c in hlo_cost.Program(text).collectives()}
    assert kinds <= {"all-gather", "all-reduce", "reduce-scatter"}, (
        "a reshuffle (all-to-all, permute) is a place that was not named"
    )


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs libtpu, which requirements-dev.txt installs",
)
def test_what_a_tpu_compiler_makes_of_it():
    """fsdp 4 x tensor 2 on v5p, everything rematerialised. Of each layer's activations over tensor
    the least there can be: gathered for attention and MLP, in the forward, the repeated and the
    backward pass; scattered after each of the two, but in the repeated pass once. Gradients of
    matrices are reduced into shards, never whole: newer libtpu passes them around a ring, by
    collective-permutes."""
    c = tiny.config(
        rows=16,
        n_ctx=512,
        n_vocab=4000,
        n_layers=4,
        n_heads=4,
        d_model=512,
        attention=(schema.Dense(),),
    )
    c = tiny.replace_parts(
        c, mesh=MESHES["tensor"], compute={"remat": "full", "attention_kernel": "reference"}
    )
    mesh = device_mesh.make_mesh(c.mesh, topology.from_name("v5p:2x2x2").devices())
    built = step.build(c, "tpu", mesh, None)
    now = state.abstract_state(c, built.model, built.tx, mesh)
    shape = (1, 16, c.model.n_ctx + 1)
    rows = jax.ShapeDtypeStruct(
        shape, np.int32, sharding=NamedSharding(mesh, built.model.sharding.spec("MB1", shape))
    )
    with topology.disable_cache():
        compiled = (
            jax.jit(built, donate_argnums=0, static_argnums=2)
            .trace(now, rows, 1)
            .lower(lowering_platforms=("tpu",))
            .compile()
        )
    found = hlo_cost.Program(compiled.as_text()).collectives()

    def number(kind, shape):
        return sum(one.shapes.count(("bf16", shape)) for one in found if one.kind == kind)

    stream = (4, 512, 512)  # of a device's 4 rows
    ends = 1 + 1  # before the loss, and in the gradient of the look-up
    assert (
        number("all-gather", stream) == 6 + ends and number("reduce-scatter", stream) == 2 + 1 + 2
    )
    assert number("all-reduce", stream) == 0
    assert not any(
        number("all-reduce", shape)
        for shape in ((512, 3, 2, 128), (512, 2, 128), (512, 1024), (2048, 512))
    )
