import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import schema
from gptjax.learn import metrics, step
from gptjax.model import gpt
from tests import tiny


def test_a_non_finite_update_is_skipped_and_counted():
    c = tiny.config()
    mesh, built, state = tiny.machine(c)
    run = jax.jit(built)
    rows, one = tiny.tokens(c, 1, 8), np.int32(1)
    with jax.set_mesh(mesh):
        bad = state.replace(params=state.params | {"token_VD": state.params["token_VD"].at[0, 0].set(jnp.inf)})
        after, values = run(bad, rows, one)
        again, values_again = run(after, rows, one)
        good, values_good = run(again.replace(params=state.params), rows, one)
    assert not np.isfinite(values["loss"])
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state), (bad.params, bad.opt_state))
    assert (int(values["skipped_in_row"]), int(values_again["skipped_in_row"]), int(values_good["skipped_in_row"])) == (1, 2, 0)
    assert int(good.skipped) == 2 and int(good.step) == 3 and int(good.rows) == 24
    assert np.any(np.asarray(good.params["token_VD"]) != np.asarray(state.params["token_VD"]))


def test_the_loss_falls_on_one_batch():
    c = tiny.config()
    mesh, built, state = tiny.machine(c)
    run = jax.jit(built, donate_argnums=0)
    losses = []
    with jax.set_mesh(mesh):
        for _ in range(20):
            state, values = run(state, tiny.tokens(c, 1, 8), np.int32(1))
            losses.append(float(values["loss"]))
    assert losses[0] == pytest.approx(np.log(61), abs=0.2) and losses[-1] < 0.9 * losses[0]


def test_dropout_masks_change_with_step_and_vanish_in_evaluation():
    c = tiny.config(dropout=schema.Dropout(embedding=0.2, attention=0.2, residual=0.2))
    mesh, built, state = tiny.machine(c)
    with jax.set_mesh(mesh):
        _, a = jax.jit(built)(state, tiny.tokens(c, 1, 8), np.int32(1))
        _, b = jax.jit(built)(state.replace(step=state.step + 1), tiny.tokens(c, 1, 8), np.int32(1))
        _, same = jax.jit(built)(state, tiny.tokens(c, 1, 8), np.int32(1))
    assert float(a["loss"]) == float(same["loss"]) != float(b["loss"])
    nll = jax.jit(built.nll)
    ones = np.ones((8, c.model.n_ctx), np.float32)
    assert float(nll(state.params, tiny.tokens(c, 8), ones)) == float(nll(state.params, tiny.tokens(c, 8), ones))


def test_each_dropout_site_acts():
    for site in ("embedding", "attention", "residual"):
        c = tiny.config(dropout=schema.Dropout(**{site: 0.3}))
        _, built, state = tiny.machine(c)
        rows = tiny.tokens(c, 2)[:, :-1]
        plain = built.model.apply({"params": state.params}, rows)
        dropped = built.model.apply({"params": state.params}, rows, train=True, rngs={"dropout": jax.random.key(0)})
        assert np.abs(plain - dropped).max() > 1e-3, site


def test_noise_estimates_are_unbiased():
    """Microbatch gradients G + noise with a known tr(Sigma): the mean estimates come out."""
    rng = np.random.default_rng(0)
    g, sigma, n, tokens = np.ones(10), 3.0, 4, 5
    draws = g + rng.normal(size=(20000, n, 10)) * sigma / np.sqrt(tokens)
    small, big = (draws**2).sum(-1).mean(1), (draws.mean(1) ** 2).sum(-1)
    g2, tr = step.noise_estimates(small, big, n, tokens)
    assert g2.mean() == pytest.approx(10, rel=0.03) and tr.mean() == pytest.approx(10 * sigma**2, rel=0.03)


def test_noise_scale_is_reported_with_microbatches_only():
    c = tiny.config()
    mesh, built, state = tiny.machine(c)
    with jax.set_mesh(mesh):
        _, one = jax.jit(built)(state, tiny.tokens(c, 1, 8), np.int32(1))
        _, four = jax.jit(built)(state, tiny.tokens(c, 4, 2), np.int32(4))
    assert np.isnan(one["noise_scale"]) and np.isfinite(four["noise_scale"])


def test_documents_masked_by_config():
    """With the mask, the loss on the second document does not depend on the first."""
    c = tiny.varied(tiny.config(), data={"across_documents": "mask"})
    _, built, state = tiny.machine(c, end_of_text=0)
    rows = np.maximum(tiny.tokens(c, 1), 1)
    rows[:, 4] = 0
    other = rows.copy()
    other[:, :4] = 7
    late = np.zeros((1, c.model.n_ctx), np.float32)
    late[:, 5:] = 1
    nll = jax.jit(built.nll)
    assert float(nll(state.params, rows, late)) == float(nll(state.params, other, late))
    across = dataclasses.replace(built, config=tiny.config())
    assert float(jax.jit(across.nll)(state.params, rows, late)) != float(jax.jit(across.nll)(state.params, other, late))


def test_segments_end_with_their_end_of_text():
    np.testing.assert_array_equal(gpt.segments(jnp.array([[5, 0, 6, 7, 0, 8]]), 0), [[0, 0, 1, 1, 1, 2]])


def test_evaluation_counts_each_token_once_whatever_the_microbatch():
    c = tiny.config()
    _, built, state = tiny.machine(c)
    nll, rows = jax.jit(built.nll), tiny.tokens(c, 7)
    results = [metrics.evaluation(nll, state.params, rows, n, lambda x, letters: jnp.asarray(x), bytes_per_token=2.0) for n in (7, 4, 1)]
    for r in results:
        assert r["validation_loss"] == pytest.approx(results[0]["validation_loss"], rel=1e-6)
        assert r["perplexity"] == pytest.approx(np.exp(r["validation_loss"]))
        assert r["bits_per_byte"] == pytest.approx(r["validation_loss"] / np.log(2) / 2)
    ones = np.ones((7, c.model.n_ctx), np.float32)
    assert results[0]["validation_loss"] == pytest.approx(float(nll(state.params, rows, ones)) / (7 * c.model.n_ctx))


def test_trained_once_compiled_once():
    c = tiny.config()
    mesh, built, state = tiny.machine(c)
    traces = []

    def traced(*args):
        traces.append(1)
        return built(*args)

    run = jax.jit(traced)
    with jax.set_mesh(mesh):
        for i, count in enumerate((1, 2, 4)):  # a batch ramp: the count varies, the program does not
            state, _ = run(state, tiny.tokens(c, 4, 2, seed=i), jax.device_put(np.int32(count)))
    assert len(traces) == 1 and int(state.rows) == 14
