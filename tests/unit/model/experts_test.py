"""Experts equal a plain loop over all of them, in outputs and gradients, on one device and on
eight; the losses of the router, its capacity and its statistics are the papers'."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.aot import hlo_cost
from gptjax.config import schema
from gptjax.model import experts, grouped_matmul, mlp
from gptjax.sharding import rules
from tests import tiny

SWIGLU = schema.SwiGLU(d_ff=24)
MESHES = {
    "one device": schema.Mesh(),
    "fsdp 4, tensor 2": schema.Mesh(fsdp=4, tensor=2, sharding="fsdp_tensor"),
    "data 2, tensor 4": schema.Mesh(data=2, fsdp=1, tensor=4, sharding="fsdp_tensor"),
    "context 2, fsdp 2, tensor 2": schema.Mesh(fsdp=2, tensor=2, context=2, sharding="fsdp_tensor"),
}
FORMS = {
    "dropless": {},
    "weights over all": {"weights": "all"},
    "one expert": {"weights": "all", "top_k": 1},
    "capacity": {"capacity": 0.75},
}


def config(mesh=MESHES["one device"], expert=SWIGLU, biases="all", **changes):
    form = schema.Experts(**{"n_experts": 8, "top_k": 2, "expert": expert} | changes)
    model = {"mlp": form, "biases": biases, "n_layers": 1, "attention": (schema.Dense(),)}
    return dataclasses.replace(tiny.config(**model), mesh=mesh)


def dense_loop(m, params, x_BTD, train):
    """All experts on all tokens, those that were not chosen with weight 0."""
    c, router = m.mlp, params["router"]
    scores_BTX = jnp.einsum("BTD,DX->BTX", x_BTD, router["weight_DX"])
    scores_BTX += router["bias_X"][None, None] if "bias_X" in router else 0
    is_chosen_BTX = scores_BTX >= jnp.sort(scores_BTX)[..., -c.top_k, None]
    if c.weights == "chosen":
        weights_BTX = jax.nn.softmax(jnp.where(is_chosen_BTX, scores_BTX, -jnp.inf))
    else:
        weights_BTX = jnp.where(is_chosen_BTX, jax.nn.softmax(scores_BTX), 0)
    if train and c.capacity is not None:
        limit = math.ceil(c.capacity * c.top_k * x_BTD.shape[1] / c.n_experts)
        weights_BTX = jnp.where(jnp.cumsum(is_chosen_BTX, axis=1) > limit, 0, weights_BTX)
    total = jnp.zeros(x_BTD.shape)
    for e in range(c.n_experts):

        def product(x, name, e=e):
            (weight,) = (v for k, v in params[name].items() if k.startswith("weight"))
            biases = [v[e][None, None] for k, v in params[name].items() if k.startswith("bias")]
            return sum(biases, x @ weight[e])

        hidden = mlp.hidden_units(c.expert, m.gelu, functools.partial(product, x_BTD))
        total += weights_BTX[..., e, None] * product(hidden, "down")
    return total


def value_and_gradients(fn, params, x_BTD):
    """A weighted sum of the outputs, and its gradients in the parameters and in x."""
    weights = np.random.default_rng(5).normal(size=x_BTD.shape).astype(np.float32)
    return jax.jit(jax.value_and_grad(lambda p, x: jnp.sum(weights * fn(p, x)), argnums=(0, 1)))(
        params, x_BTD
    )


def near(x, y):
    np.testing.assert_allclose(x, y, rtol=0, atol=2e-6 * max(1e-3, np.abs(y).max()))


def random_params(c, x_BTD):
    module = experts.Experts(c.model, 0.02, rules.UNSHARDED)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x_BTD, False)["params"])
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda p: 0.3 * draw.normal(size=p.shape).astype(np.float32), shapes)


@functools.cache
def loop_over_all(form):
    """(parameters, inputs, value and gradients of the loop over all experts)."""
    c = config(**FORMS[form])
    x_BTD = np.random.default_rng(1).normal(size=(8, 12, 16)).astype(np.float32)
    params = random_params(c, x_BTD)
    expected = value_and_gradients(lambda p, x: dense_loop(c.model, p, x, True), params, x_BTD)
    return params, x_BTD, jax.device_get(expected)


def test_no_device_holds_the_whole_sum_of_a_weight_gradient():
    """Over fsdp the gradient is scattered as it is summed: what all devices get whole is smaller
    than the shard of a weight."""
    c = config(schema.Mesh(fsdp=8), expert=schema.SwiGLU(d_ff=64))
    mesh = tiny.MAKE_MESH(c.mesh, jax.devices()[:8])
    sharding = rules.Sharding(rules.for_config(c, mesh), mesh)
    module = experts.Experts(c.model, 0.02, sharding)
    x_BTD = jax.random.normal(jax.random.key(1), (8, 12, 16))
    params = random_params(c, x_BTD)

    def loss(p):
        return jnp.sum(module.apply({"params": sharding.shard_like_params(p)}, x_BTD, True))

    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss)).lower(params).compile().as_text()
    weight, summed = 8 * 16 * 64, [0]
    for collective in hlo_cost.Program(text).collectives():
        if collective.kind == "all-reduce":
            summed += [math.prod(sizes) for _, sizes in collective.shapes]
    assert max(summed) < weight // 8


@pytest.mark.parametrize("form, mesh", [
    *(("dropless", mesh) for mesh in MESHES),
    *(("capacity", mesh) for mesh in MESHES if "context" not in mesh),
    ("weights over all", "fsdp 4, tensor 2"),
    ("one expert", "one device"),
])  # fmt: skip
def test_outputs_and_gradients_are_those_of_a_loop_over_all_experts(form, mesh):
    c = config(MESHES[mesh], **FORMS[form])
    device_mesh = tiny.MAKE_MESH(c.mesh, jax.devices()[: 1 if mesh == "one device" else 8])
    module = experts.Experts(
        c.model, 0.02, rules.Sharding(rules.for_config(c, device_mesh), device_mesh)
    )
    params, x_BTD, (expected, expected_gradients) = loop_over_all(form)
    with jax.set_mesh(device_mesh):
        value, gradients = value_and_gradients(
            lambda p, x: module.apply({"params": p}, x, True), params, x_BTD
        )
    assert float(value) == pytest.approx(float(expected), abs=3e-4)
    jax.tree.map(near, gradients, expected_gradients)


@pytest.mark.parametrize("expert, biases", [
    (schema.GELU(d_ff=8), "all"),
    (schema.GeGLU(d_ff=8), "none"),
    (schema.ClampedSwiGLU(d_ff=8, limit=0.3), "qkv"),
], ids=str)  # fmt: skip
def test_other_forms_of_an_expert_and_no_capacity_outside_training(expert, biases):
    c = config(expert=expert, biases=biases, capacity=0.25)
    x_BTD = jax.random.normal(jax.random.key(1), (2, 12, 16))
    params = random_params(c, x_BTD)
    assert any("bias" in jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(params)) == (
        biases == "all"
    )
    module = experts.Experts(c.model, 0.02, rules.UNSHARDED)
    y_BTD = jax.jit(lambda p, x: module.apply({"params": p}, x, False))(params, x_BTD)
    near(y_BTD, jax.jit(lambda p, x: dense_loop(c.model, p, x, False))(params, x_BTD))


@pytest.mark.parametrize("sizes", [[3, 0, 5, 1], [0, 0, 0, 0], [0, 9, 0, 0], [1, 1, 1, 1]])
@pytest.mark.parametrize("rows", [9, 40])
def test_grouped_matmul_multiplies_each_group_by_its_weight(rows, sizes):
    key = jax.random.split(jax.random.key(0), 3)
    x_RD, weight_EDG = jax.random.normal(key[0], (rows, 6)), jax.random.normal(key[1], (4, 6, 5))
    sizes = [n * (rows // 9) for n in sizes]
    of_row = np.repeat(np.arange(5), [*sizes, rows - sum(sizes)])
    padded = jnp.concatenate([weight_EDG, jnp.zeros((1, 6, 5))])
    cotangent = jax.random.normal(key[2], (rows, 5))

    def plain(x, w):
        return jnp.einsum("RD,RDG->RG", x, jnp.concatenate([w, padded[4:]])[of_row])

    def grouped(x, w):
        return grouped_matmul.grouped_matmul(x, w, jnp.array(sizes))

    for fn in (grouped, lambda x, w: jax.lax.ragged_dot(x, w, jnp.array(sizes))):
        y, vjp = jax.vjp(jax.jit(fn), x_RD, weight_EDG)
        expected, expected_vjp = jax.vjp(plain, x_RD, weight_EDG)
        near(y, expected)
        jax.tree.map(near, vjp(cotangent), expected_vjp(cotangent))


@pytest.mark.parametrize("sizes", [[0, 0, 0, 0], [300, 0, 500, 224]])
def test_kernels_for_tpus_interpreted(sizes):
    """Of each group its own rows, in whole tiles and in parts of them; rows after the last group
    are of none."""
    rows = max(sizes) * 2 + 424
    x_RD, dy_RG = (jax.random.normal(jax.random.key(n), (rows, n)) for n in (6, 5))
    weight_EDG = jax.random.normal(jax.random.key(0), (4, 6, 5))
    y_RG, vjp = jax.vjp(
        lambda x, w: grouped_matmul.multiply_by_kernels(x, w, jnp.array(sizes), True),
        x_RD,
        weight_EDG,
    )
    parts = [slice(a, b) for a, b in itertools.pairwise(np.cumsum([0, *sizes]))]
    rest = jnp.zeros((rows - sum(sizes), 1))

    def by_group(x, weights):
        products = [x[part] @ w for part, w in zip(parts, weights, strict=True)]
        return jnp.concatenate([*products, jnp.repeat(rest, weights.shape[2], axis=1)])

    near(y_RG, by_group(x_RD, weight_EDG))
    dx_RD, dweight_EDG = vjp(dy_RG)
    near(dx_RD, by_group(dy_RG, weight_EDG.swapaxes(1, 2)))
    near(dweight_EDG, jnp.stack([x_RD[part].T @ dy_RG[part] for part in parts]))


def test_losses_and_statistics_by_hand():
    c = schema.Experts(n_experts=4, top_k=2, expert=SWIGLU, balance_loss=0.5, z_loss=0.25)
    scores_BTX = jnp.log(jnp.array([[[0.4, 0.3, 0.2, 0.1], [0.1, 0.6, 0.1, 0.2]]]))
    weights_BTC, experts_BTC = experts.choose(c, scores_BTX)
    np.testing.assert_array_equal(experts_BTC, [[[0, 1], [1, 3]]])
    np.testing.assert_allclose(weights_BTC, [[[4 / 7, 3 / 7], [0.75, 0.25]]], rtol=1e-6)
    stats = experts.statistics(c, scores_BTX + 1, experts_BTC)
    shares, means = [1 / 4, 2 / 4, 0, 1 / 4], [0.25, 0.45, 0.15, 0.15]
    balance = 4 * sum(f * p for f, p in zip(shares, means, strict=True))
    assert float(stats["router_balance"]) == pytest.approx(balance)
    assert float(stats["router_z"]) == pytest.approx(1.0, rel=1e-6)  # logsumexp is 1 everywhere
    assert float(stats["router_max_load"]) == pytest.approx(2.0)
    assert float(experts.loss(c, stats)) == pytest.approx(0.5 * balance + 0.25)
    layers = {"periods": {"layer": ({n: jnp.stack([x, x + 1]) for n, x in stats.items()},)}}
    mean = experts.mean_statistics(layers)
    assert float(mean["router_balance"]) == pytest.approx(balance + 0.5)
    assert float(mean["router_max_load"]) == pytest.approx(3.0)


def run_step(scan_layers, **changes):
    c = config(**changes)
    c = tiny.replace_parts(
        c, model={"n_layers": 1 + scan_layers}, compute={"scan_layers": scan_layers}
    )
    _, built, state = tiny.make_step(c)
    return jax.jit(built)(state, tiny.random_tokens(c, 2, 4), 2)


def test_a_step_reports_the_routers_and_learns_from_their_losses():
    silent, metrics = run_step(False, balance_loss=0.0)
    assert {"router_balance", "router_z", "router_max_load"} < set(metrics)
    assert "router_dropped" not in metrics and float(metrics["router_max_load"]) >= 1
    other, other_metrics = run_step(False, balance_loss=10.0)
    assert float(metrics["loss"]) == float(other_metrics["loss"])  # the cross-entropy alone
    assert float(metrics["grad_norm"]) != float(other_metrics["grad_norm"])
    router = [s.params["periods"]["block_0"]["mlp"]["router"]["weight_DX"] for s in (silent, other)]
    assert float(jnp.abs(router[0] - router[1]).max()) > 1e-3


def test_a_step_over_a_scan_reports_what_has_no_place():
    _, metrics = run_step(True, capacity=0.5)
    assert 0.3 < float(metrics["router_dropped"]) < 0.7


def test_which_tokens_have_a_place_depends_on_no_later_token_and_no_other_row():
    c = config(capacity=0.5)
    _, built, state = tiny.make_step(c)
    tokens_BT = tiny.random_tokens(c, 3)[:, :-1]
    apply = jax.jit(lambda tokens: built.model.apply({"params": state.params}, tokens, train=True))
    x_BTD = apply(tokens_BT)
    changed = np.array(tokens_BT)
    changed[0, 7:], changed[2] = 5, 9
    other = apply(changed)
    near(other[0, :7], x_BTD[0, :7])
    near(other[1], x_BTD[1])


@pytest.mark.parametrize("changes, line", [
    ({"top_k": 9}, "top_k=9 is more than n_experts=8"),
    ({"top_k": 1}, "top_k=1 with weights=chosen"),
])  # fmt: skip
def test_wrong_numbers_are_one_line(changes, line):
    with pytest.raises(ValueError, match=line):
        config(**changes)


def test_a_capacity_needs_whole_rows():
    c = config(MESHES["context 2, fsdp 2, tensor 2"], capacity=1.0)
    with pytest.raises(ValueError, match=r"capacity of experts counts the tokens of a row"):
        rules.check(c, tiny.MAKE_MESH(c.mesh, jax.devices()[:8]))


def test_experts_must_divide_over_tensor():
    c = config(schema.Mesh(tensor=4, fsdp=2, sharding="fsdp_tensor"), n_experts=6)
    with pytest.raises(
        ValueError, match=r"mesh.tensor = 4 does not divide model.mlp.n_experts = 6"
    ):
        rules.check(c, tiny.MAKE_MESH(c.mesh, jax.devices()[:8]))
