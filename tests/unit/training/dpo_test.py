"""The loss of preferences is its formula, and its gradient that of the formula; at the start, where
the model is the reference, it is ln 2."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config.chat import Dpo, Ipo, Preferences
from gptjax.model import gpt
from gptjax.sharding import rules
from gptjax.training import dpo, loss, sft
from tests import tiny
from tests.unit.training.sft_test import N_CTX, near, some


def make_step(kind=None, mesh=None, n_devices=1, **changes):
    c = tiny.config(n_ctx=N_CTX, n_layers=2, **changes)
    c = dataclasses.replace(c, task=Preferences(train="x", loss=kind or Dpo()))
    c = tiny.replace_parts(c, mesh=mesh or {})
    mesh, base, state = tiny.make_step(c, n_devices)
    return mesh, dpo.DpoStep(base.config, base.model, base.tx, base.end_of_text), state


def pairs(n=4):
    return list(zip(some(n), some(n, seed=1), strict=True))


def differences(step, params, reference_log_p, which):
    """Those of the pairs, from whole logits of answers padded to one length."""
    encoded = [e for pair in which for e in pair]
    ids, learned = np.zeros((len(encoded), N_CTX), np.int32), np.zeros((len(encoded), N_CTX - 1))
    for row, e in enumerate(encoded):
        ids[row, : len(e.ids)], learned[row, : len(e.ids) - 1] = e.ids, e.learned[1:]
    x = step.model.apply({"params": params}, ids[:, :-1])
    y = gpt.logits(x, gpt.output_table(params), step.config.model.n_vocab)
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(y), ids[:, 1:, None], axis=-1)[..., 0]
    log_p = jnp.sum(jnp.where(learned > 0, log_probs, 0), axis=1).reshape(-1, 2)
    gains = log_p - reference_log_p
    return gains[:, 0] - gains[:, 1], log_p


def moved(params, seed=3):
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + 0.1 * draw.normal(size=x.shape).astype(np.float32), jax.device_get(params)
    )


def rows_with_reference(step, params, which):
    rows = dpo.pair_rows(which, N_CTX)
    return jnp.array(dpo.with_reference(rows, jax.jit(step.log_probs)(params, rows)))


@pytest.mark.parametrize("kind", [Dpo(beta=0.3), Ipo(tau=0.2)], ids=["dpo", "ipo"])
def test_loss_and_gradient_are_those_of_the_formula(kind):
    _, step, state = make_step(kind)
    reference, params, which = state.params, moved(state.params), pairs()
    rows = rows_with_reference(step, reference, which)

    _, reference_log_p = jax.jit(lambda p: differences(step, p, 0.0, which))(reference)

    def formula(params):
        d, _ = differences(step, params, reference_log_p, which)
        match kind:
            case Dpo(beta=beta):
                return jnp.mean(jnp.log1p(jnp.exp(-beta * d))), d
            case Ipo(tau=tau):
                return jnp.mean((d - 1 / (2 * tau)) ** 2), d

    (expected, d), gradients = jax.jit(jax.value_and_grad(formula, has_aux=True))(params)
    (total, parts), ours = jax.jit(jax.value_and_grad(step.loss_fn, has_aux=True))(params, rows)
    assert float(total) == pytest.approx(float(expected), rel=1e-5)
    assert float(parts.loss) == pytest.approx(float(expected), rel=1e-5)
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * max(1, scale)),
        ours,
        gradients,
    )
    beta = dpo.reward_scale(kind)
    assert float(parts.statistics["margin"]) == pytest.approx(beta * float(jnp.mean(d)), abs=1e-5)
    assert float(parts.statistics["accuracy"]) == np.mean(np.asarray(d) > 0)


def test_it_starts_at_ln_2_and_one_step_raises_the_chosen_over_the_rejected():
    mesh, step, state = make_step()
    which = pairs(8)
    rows = rows_with_reference(step, state.params, which)
    with jax.set_mesh(mesh):
        after, metrics = jax.jit(step, static_argnums=2)(state, rows[None], 1)
    assert float(metrics["loss"]) == pytest.approx(math.log(2), abs=1e-6)
    assert float(metrics["margin"]) == 0 and set(dpo.STATISTICS) <= set(metrics)
    losses, accuracy, margin = jax.jit(step.scores)(after.params, rows)
    assert float(jnp.mean(losses)) < math.log(2) and float(jnp.mean(margin)) > 0


def test_microbatches_give_the_gradient_of_the_whole():
    mesh, step, state = make_step()
    rows = rows_with_reference(step, moved(state.params), pairs(8))
    whole = jax.jit(jax.grad(lambda p: step.loss_fn(p, rows)[0]))(state.params)
    add, sums = jax.jit(step.accumulate), step.init_accumulator(state.params)
    with jax.set_mesh(mesh):
        for first in range(0, 8, 4):
            sums = add(state.params, state.step, sums, rows[first : first + 4])
    near(jax.tree.map(lambda g: g / sums.parts.weight, sums.gradients), whole)


def test_eight_devices_have_the_log_p_of_one():
    which = pairs(8)
    (_, alone, state), (mesh, split, other) = (
        make_step(mesh=m, n_devices=n)
        for m, n in (({}, 1), ({"sharding": "fsdp_tensor", "fsdp": 4, "tensor": 2}, 8))
    )
    rows = dpo.pair_rows(which, N_CTX)
    table = rules.PRESETS["fsdp_tensor"].activations
    with jax.set_mesh(mesh):
        ours = jax.jit(split.log_probs)(other.params, rules.put_on_mesh(rows, "B1", table, mesh))
    near(np.asarray(ours), np.asarray(jax.jit(alone.log_probs)(state.params, rows)))


def test_token_nll_in_chunks_is_that_of_whole_logits(monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_BYTES", 2 * 5 * 61 * 4 * 3)
    draw = np.random.default_rng(0)
    x, table = draw.normal(size=(2, 11, 8)), draw.normal(size=(64, 8))
    x, table = jnp.array(x, jnp.float32), jnp.array(table, jnp.float32)
    targets = jnp.array(draw.integers(0, 61, (2, 11)), jnp.int32)
    ours = jax.jit(lambda *a: loss.token_nll(*a, 61, softcap=5.0))(x, table, targets)
    y = gpt.logits(x, table, 61, softcap=5.0)
    target = jnp.take_along_axis(y, targets[..., None], axis=-1)[..., 0]
    near(ours, jax.nn.logsumexp(y, axis=-1) - target)


def test_a_row_holds_both_answers_and_the_reference_exactly():
    which, log_probs = pairs(3), np.array([[-1.5, -2.25], [0.1, -3e-7], [-1e9, 7.0]], np.float32)
    rows = dpo.with_reference(dpo.pair_rows(which, N_CTX), log_probs)
    np.testing.assert_array_equal(rows[:, -2:].view(np.float32), log_probs)
    width = 2 * N_CTX + 1
    for side in range(2):
        part = rows[:, side * width : (side + 1) * width]
        np.testing.assert_array_equal(
            part, sft.pack_rows([pair[side] for pair in which], N_CTX, "single")
        )
