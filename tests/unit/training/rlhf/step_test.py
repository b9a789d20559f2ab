"""Losses and gradients of PPO, GRPO and RLOO are those of their formulas, written out over whole
logits; PPO's are those of OpenAI's 2019 code, detail by detail."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import rlhf, schema
from gptjax.model import gpt, scalar_head
from gptjax.sharding import rules
from gptjax.training import step as train_step
from gptjax.training.rlhf import losses
from gptjax.training.rlhf import step as rlhf_step
from tests import tiny

N_CTX, Q, S = 12, 4, 6
KL_COEF = 0.3


def task(**changes):
    usual = {"batch_rows": 8, "minibatches": 1, "episodes": 64, "prompt_tokens": Q}
    usual |= {"answer_tokens": S, "reward": rlhf.PythonFunction(name="m:f"), "prompts": "p"}
    return rlhf.Rlhf(**(usual | changes))


def make_step(spec, n_devices=1, mesh=None, compute=None, **model):
    layer = {"n_layers": 1, "attention": (schema.Banded(window=3),)}
    c = dataclasses.replace(tiny.config(n_ctx=N_CTX, **layer | model), task=spec)
    c = tiny.replace_parts(c, mesh=mesh or {}, compute=compute or {})
    mesh = tiny.MAKE_MESH(c.mesh, jax.devices()[:n_devices])
    base = train_step.build(c, "cpu", mesh, None)
    value_model = None
    match spec.advantage:
        case rlhf.Gae(value=rlhf.SeparateValue()):
            value_model = base.model
    step = rlhf_step.RlhfStep(base.config, base.model, base.tx, None, value_model)
    with jax.set_mesh(mesh):
        return mesh, step, rlhf_step.state.create(step.init_state, c, mesh)


def moved(tree, seed, by=0.1):
    leaves, structure = jax.tree.flatten(jax.device_get(tree))
    draw = np.random.default_rng(seed)
    noise = [x + (by * draw.normal(size=x.shape)).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(structure, noise)


def random_answers(rows=8, seed=0, whole=False):
    """Answers whose numbers are random, of 1 to S tokens, or all of S."""
    draw = np.random.default_rng(seed)
    T = Q + S
    tokens, mask = draw.integers(0, 61, (rows, T)).astype(np.int32), np.zeros((rows, T))
    for row in mask:
        first = Q if whole else int(draw.integers(1, Q + 1))
        row[first - 1 : first - 1 + (S if whole else int(draw.integers(1, S + 1)))] = 1

    def number():
        return (draw.normal(size=(rows, T)) * mask).astype(np.float32)

    log_probs = -3 + 0.3 * number()
    return rlhf_step.Answers(
        jnp.array(tokens),
        jnp.array(mask, jnp.float32),
        jnp.array(log_probs * mask, jnp.float32),
        jnp.array((log_probs + 0.2 * number()) * mask, jnp.float32),
        jnp.array(number()),
        jnp.array(draw.normal(size=rows), jnp.float32),
    )


def whole_log_probs(step, params, tokens):
    """log p of every next token, from all logits."""
    x = step.model.apply({"params": params}, tokens)
    y = gpt.logits(x, gpt.output_table(params), step.config.model.n_vocab) / step.task.temperature
    log_p = jax.nn.log_softmax(y)
    return x, jnp.take_along_axis(log_p, jnp.roll(tokens, -1, 1)[..., None], axis=-1)[..., 0]


def ppo_of_2019(step, nets, a, spec):
    """The loss of train_policy.py for answers that all have S tokens: (B, S) arrays, means over
    all elements, whitening inside the loss with the biased variance."""
    where = slice(Q - 1, Q - 1 + S)
    old, reference, values = (x[:, where] for x in (a.log_probs_BT, a.reference_BT, a.values_BT))
    rewards = -KL_COEF * (old - reference)
    rewards = rewards.at[:, -1].add(a.scores_B)

    def whiten(x, shift_mean):
        out = (x - jnp.mean(x)) / jnp.sqrt(jnp.mean((x - jnp.mean(x)) ** 2) + 1e-8)
        return out if shift_mean else out + jnp.mean(x)

    if spec.whiten_rewards:
        rewards = whiten(rewards, shift_mean=False)
    last, out = 0.0, []
    for t in reversed(range(S)):
        following = values[:, t + 1] if t < S - 1 else 0.0
        last = rewards[:, t] + following - values[:, t] + 0.95 * last
        out.append(last)
    estimates = jnp.stack(out[::-1], axis=1)
    returns = estimates + values
    estimates = jax.lax.stop_gradient(whiten(estimates, shift_mean=True))
    x, log_p = whole_log_probs(step, nets["policy"], a.tokens_BT)
    if step.value_model is not None:
        x = step.value_model.apply({"params": nets["value"]}, a.tokens_BT)
    head = nets["value"][scalar_head.NAME]
    v = ((x @ head["weight_D"]) * head["gain"] + head["bias"])[:, where]
    clipped = jnp.clip(v, values - 0.2, values + 0.2)
    value_loss = 0.5 * jnp.mean(jnp.maximum((v - returns) ** 2, (clipped - returns) ** 2))
    ratio = jnp.exp(log_p[:, where] - old)
    policy_loss = jnp.mean(
        jnp.maximum(-estimates * ratio, -estimates * jnp.clip(ratio, 1 - 0.2, 1 + 0.2))
    )
    return policy_loss + 0.1 * value_loss


def grpo(step, nets, a, spec):
    _, log_p = whole_log_probs(step, nets["policy"], a.tokens_BT)
    groups = a.scores_B.reshape(-1, spec.answers)
    centered = groups - groups.mean(1, keepdims=True)
    advantage = (centered / (groups.std(1, ddof=1, keepdims=True) + 1e-4)).reshape(-1, 1)
    ratio = jnp.exp(log_p - a.log_probs_BT)
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
    gap = a.reference_BT - log_p
    losses = -(gain - KL_COEF * (jnp.exp(gap) - gap - 1)) * a.mask_BT
    if spec.mean_over == "tokens":
        return losses.sum() / a.mask_BT.sum()
    return jnp.mean(losses.sum(1) / a.mask_BT.sum(1))


def rloo(step, nets, a, spec):
    _, log_p = whole_log_probs(step, nets["policy"], a.tokens_BT)
    returns = (
        a.scores_B - KL_COEF * ((a.log_probs_BT - a.reference_BT) * a.mask_BT).sum(1)
    ).reshape(-1, spec.answers)
    others = (returns.sum(1, keepdims=True) - returns) / (spec.answers - 1)
    advantage = (returns - others).reshape(-1)
    ratio = jnp.exp(((log_p - a.log_probs_BT) * a.mask_BT).sum(1))
    return jnp.mean(-jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage))


def gradients(step, state, nets, answers, chunk, kl_coef=KL_COEF):
    """(sums over a batch that is one minibatch, taken `chunk` rows at a time; statistics)."""
    advantages_B = step.batch_advantages(answers, kl_coef)
    rows = np.arange(len(answers.scores_B))
    minibatch, statistics = jax.jit(step.minibatch)(answers, advantages_B, rows, kl_coef)
    sums = step.init_gradients(nets)
    add = jax.jit(step.accumulate_answers, static_argnums=4)
    for first in range(0, len(rows), chunk):
        sums = add(nets, sums, minibatch, first, chunk, kl_coef)
    return sums, statistics


CASES = {
    "separate": (rlhf.Gae(), ppo_of_2019, True),
    "shared": (rlhf.Gae(value=rlhf.SharedValue(), whiten_rewards=True), ppo_of_2019, True),
    "grpo": (rlhf.GroupMean(answers=4), grpo, False),
    "dr_grpo": (rlhf.GroupMean(answers=4, mean_over="tokens"), grpo, False),
    "rloo": (rlhf.LeaveOneOut(answers=4), rloo, False),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_those_of_the_formula_in_any_chunks(name):
    spec, formula, whole = CASES[name]
    mesh, step, state = make_step(task(advantage=spec, temperature=0.7))
    nets = moved(step.nets(state), 1)
    answers = random_answers(whole=whole)
    # Near the policy, so that some ratios are cut and others not.
    log_p = jax.jit(lambda params: whole_log_probs(step, params, answers.tokens_BT)[1])(
        nets["policy"]
    )
    noise = 0.3 * np.random.default_rng(5).normal(size=log_p.shape)
    old = (log_p + noise).astype(np.float32) * answers.mask_BT
    answers = answers.replace(log_probs_BT=old, reference_BT=old + answers.reference_BT * 0.1)
    expected, slopes = jax.jit(jax.value_and_grad(lambda nets: formula(step, nets, answers, spec)))(
        nets
    )
    with jax.set_mesh(mesh):
        for chunk in (8, 4) if name == "separate" else (4,):
            sums, _ = gradients(step, state, nets, answers, chunk)
            assert float(sums.parts.loss) == pytest.approx(float(expected), rel=1e-5, abs=1e-6)
            jax.tree.map(
                lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-4, atol=2e-6),
                sums.gradients,
                slopes,
            )
            assert float(sums.parts.weight) == pytest.approx(1, rel=1e-6)
    assert 0 < float(sums.parts.statistics["clip_fraction"]) < 1


@pytest.mark.parametrize("clip", [0.05, None])
def test_values_are_cut_around_those_of_the_rollout(clip):
    values, old, returns = (jnp.array([[x]]) for x in (0.5, 0.2, 1.0))
    loss_B, is_clipped_B = losses.value_losses(
        rlhf.Gae(value_clip=clip), values, old, returns, jnp.ones((1, 1))
    )
    near = 0.5 if clip is None else 0.25
    assert float(loss_B[0]) == pytest.approx(0.5 * (1 - near) ** 2)
    assert float(is_clipped_B[0]) == (0.0 if clip is None else 1.0)


def test_text_adds_its_weighted_gradient_in_any_chunks():
    mesh, step, state = make_step(task(ptx=rlhf.Ptx(weight=3.0, rows_per_answer=1)))
    text = tiny.random_tokens(step.config, 8)
    nets = step.nets(state)

    def mean_nll(params):
        return step.nll(params, text, jnp.full((8, N_CTX), 1 / (8 * N_CTX)))

    expected = jax.jit(jax.grad(mean_nll))(state.params)
    with jax.set_mesh(mesh):
        sums = step.init_gradients(nets)
        add = jax.jit(step.accumulate_text, static_argnums=3)
        for first in range(0, 8, 4):
            sums = add(nets, sums, text[first : first + 4], 8)
    jax.tree.map(
        lambda g, e: np.testing.assert_allclose(g, 3 * e, rtol=1e-4, atol=1e-6),
        sums.gradients["policy"],
        expected,
    )
    assert not any(np.any(g) for g in jax.tree.leaves(sums.gradients["value"]))
    assert float(sums.parts.statistics["lm_loss"]) == pytest.approx(float(mean_nll(state.params)))


def test_an_update_moves_policy_value_and_running_mean_at_their_own_rates():
    spec = task(advantage=rlhf.Gae(value=rlhf.SeparateValue(peak_lr=0.002)), ema=0.9)
    mesh, step, state = make_step(spec)
    sums = step.init_gradients(step.nets(state))
    sums = sums.replace(gradients=jax.tree.map(jnp.ones_like, sums.gradients))
    with jax.set_mesh(mesh):
        after, metrics = jax.jit(step.update_nets)(state, sums)
    lr = float(metrics["lr"])
    moves = {
        name: float(jnp.max(jnp.abs(new["token_VD"] - old["token_VD"])))
        for name, new, old in (
            ("policy", after.params, state.params),
            ("value", after.value, state.value),
            ("ema", after.ema, state.params),
        )
    }
    decayed = 0.1 * float(jnp.max(jnp.abs(state.params["token_VD"]))) * lr
    assert moves["policy"] == pytest.approx(lr, abs=decayed + 1e-5)
    assert moves["value"] == pytest.approx(lr * 0.002 / 1e-2, abs=decayed + 1e-5)
    assert moves["ema"] == pytest.approx(0.1 * moves["policy"], rel=1e-3)
    assert (int(after.step), int(after.rows)) == (0, 0)  # `finish` counts


def test_what_is_not_finite_changes_nothing():
    mesh, step, state = make_step(task())
    sums = step.init_gradients(step.nets(state))
    spoiled = jax.tree.map(lambda g: g * jnp.nan, sums.gradients["value"])
    sums = sums.replace(gradients=sums.gradients | {"value": spoiled})
    with jax.set_mesh(mesh):
        after, _ = jax.jit(step.update_nets)(state, sums)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, state.opt_state)
    assert int(after.skipped) == int(after.skipped_in_row) == 1


def place(mesh, x):
    table = rules.PRESETS["fsdp_tensor"].activations
    return rules.put_on_mesh(np.asarray(x), "B1"[: x.ndim], table, mesh)


def test_eight_devices_have_the_gradient_of_one():
    answers, found = random_answers(), []
    for n, sizes in ((1, {}), (8, {"sharding": "fsdp_tensor", "fsdp": 4, "tensor": 2})):
        mesh, step, state = make_step(task(), n, sizes)
        with jax.set_mesh(mesh):
            placed = jax.tree.map(functools.partial(place, mesh), answers)
            sums, statistics = gradients(step, state, step.nets(state), placed, 8)
        found.append(jax.device_get((sums.gradients, sums.parts.loss, statistics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *found)


@pytest.mark.filterwarnings("ignore:'VariableState' was removed")  # Qwix imports it
def test_products_in_8_bits_of_policy_and_value():
    """Every matrix of a layer of both gets another gradient, by some percent."""
    pytest.importorskip("qwix", reason="needs requirements-float8.txt")
    answers, found = random_answers(), []
    for dtype in ("auto", "float8"):
        mesh, step, state = make_step(task(), compute={"matmul_dtype": dtype})
        nets = moved(step.nets(state), 1)
        with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):  # which Qwix's code needs
            sums, _ = gradients(step, state, nets, answers, 8)
        found.append(jax.tree_util.tree_leaves_with_path(jax.device_get(sums.gradients)))
    for (path, x), (_, y) in zip(*found, strict=True):
        name = jax.tree_util.keystr(path)
        error = np.linalg.norm(x - y) / np.linalg.norm(x)
        assert error < 0.5, name
        assert "periods" not in name or "weight" not in name or error > 0.005, name
