import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import schema
from gptjax.model import gpt
from gptjax.training import metrics, step
from tests import tiny


def test_a_non_finite_update_is_skipped_and_counted():
    c = tiny.config()
    mesh, built, state = tiny.make_step(c)
    run = jax.jit(built)
    rows, one = tiny.random_tokens(c, 1, 8), np.int32(1)
    with jax.set_mesh(mesh):
        bad = state.replace(
            params=state.params | {"token_VD": state.params["token_VD"].at[0, 0].set(jnp.inf)}
        )
        after, values = run(bad, rows, one)
        again, values_again = run(after, rows, one)
        good, values_good = run(again.replace(params=state.params), rows, one)
    assert not np.isfinite(values["loss"])
    jax.tree.map(
        np.testing.assert_array_equal, (after.params, after.opt_state), (bad.params, bad.opt_state)
    )
    assert (
        int(values["skipped_in_row"]),
        int(values_again["skipped_in_row"]),
        int(values_good["skipped_in_row"]),
    ) == (1, 2, 0)
    assert int(good.skipped) == 2 and int(good.step) == 3 and int(good.rows) == 24
    assert np.any(np.asarray(good.params["token_VD"]) != np.asarray(state.params["token_VD"]))


def test_the_loss_falls_on_one_batch():
    c = tiny.config()
    mesh, built, state = tiny.make_step(c)
    run = jax.jit(built, donate_argnums=0)
    losses = []
    with jax.set_mesh(mesh):
        for _ in range(20):
            state, values = run(state, tiny.random_tokens(c, 1, 8), np.int32(1))
            losses.append(float(values["loss"]))
    assert losses[0] == pytest.approx(np.log(61), abs=0.2) and losses[-1] < 0.9 * losses[0]
    assert np.isnan(values["noise_scale"]), "it needs microbatches"


def test_dropout_masks_change_with_step_and_vanish_in_evaluation():
    c = tiny.config(dropout=schema.Dropout(embedding=0.2, attention=0.2, residual=0.2))
    mesh, built, state = tiny.make_step(c)
    run = jax.jit(built)
    with jax.set_mesh(mesh):
        _, a = run(state, tiny.random_tokens(c, 1, 8), np.int32(1))
        _, b = run(state.replace(step=state.step + 1), tiny.random_tokens(c, 1, 8), np.int32(1))
        _, same = run(state, tiny.random_tokens(c, 1, 8), np.int32(1))
    assert float(a["loss"]) == float(same["loss"]) != float(b["loss"])
    _, plain, _ = tiny.make_step(tiny.config())
    rows, ones = tiny.random_tokens(c, 8), np.ones((8, c.model.n_ctx), np.float32)
    assert float(jax.jit(built.nll)(state.params, rows, ones)) == float(
        jax.jit(plain.nll)(state.params, rows, ones)
    )


class Keyed(step.TrainStep):
    """A step whose loss is a number drawn from the key that dropout would draw from."""

    def loss_fn(self, params, tokens_BT, dropout_key=None):
        drawn = jax.random.uniform(dropout_key) + 0 * params["bias_D"].sum()
        return drawn, step.LossParts(drawn, jnp.float32(1))


def test_dropout_masks_change_with_seed_step_and_microbatch():
    c = tiny.config(dropout=schema.Dropout(residual=0.2))
    _, built, _ = tiny.make_step(c)
    params, rows = {"bias_D": jnp.zeros(16)}, tiny.random_tokens(c, 2)

    def drawn(seed, number, microbatch):
        keyed = Keyed(dataclasses.replace(c, seed=seed), built.model, built.tx)
        sums = keyed.init_accumulator(params).replace(count=jnp.int32(microbatch))
        return float(keyed.accumulate(params, jnp.int32(number), sums, rows).parts.loss)

    assert drawn(0, 0, 0) == drawn(0, 0, 0)
    assert len({drawn(*which) for which in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}) == 4


def test_a_step_is_its_formulas():
    """Four microbatches of two rows, against numpy and the gradient of -log p(next token) from
    plain logits: the mean gradient, its norm, the rate after this step's own tokens, Adam's
    first step with an epsilon that is felt, decay of weights alone, and the noise scale."""
    adam = schema.AdamW(b1=0.9, b2=0.95, eps=0.1, weight_decay=0.1, clip_norm=None)
    c = tiny.replace_parts(tiny.config(), train={"optimizer": adam})
    mesh, built, state = tiny.make_step(c)
    state, rows = (
        state.replace(params=jax.tree.map(lambda x: 4 * x, state.params)),
        tiny.random_tokens(c, 4, 2),
    )

    def plain(params, tokens_BT):
        y_BTV = gpt.logits(
            built.model.apply({"params": params}, tokens_BT[:, :-1]),
            params["token_VD"],
            c.model.n_vocab,
        )
        return -jnp.take_along_axis(
            jax.nn.log_softmax(y_BTV), tokens_BT[:, 1:, None], axis=2
        ).mean()

    losses, gradients = jax.device_get(
        jax.jit(jax.vmap(jax.value_and_grad(plain), (None, 0)))(state.params, rows)
    )
    with jax.set_mesh(mesh):
        after, values = jax.device_get(jax.jit(built)(state, rows, np.int32(4)))
    before = jax.device_get(state.params)

    def squares(tree):
        return sum(np.square(g, dtype=np.float64).sum() for g in jax.tree.leaves(tree))

    mean = jax.tree.map(lambda g: g.mean(0), gradients)
    small, big = (
        np.mean([squares(jax.tree.map(lambda g, i=i: g[i], gradients)) for i in range(4)]),
        squares(mean),
    )
    g2, tr = (
        (96 * big - 24 * small) / 72,
        (small - big) / (1 / 24 - 1 / 96),
    )  # 96 tokens in microbatches of 24
    rate = 1e-2 * 96 / 192  # half of the warm-up
    assert values["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert (
        values["grad_norm"] == pytest.approx(np.sqrt(big), rel=1e-5)
        and big > 1
        and values["lr"] == pytest.approx(rate, rel=1e-6)
    )
    assert values["noise_scale"] == pytest.approx(tr / g2, rel=1e-2)
    assert (after.noise_g2, after.noise_tr) == (
        pytest.approx(0.01 * g2, rel=1e-2),
        pytest.approx(0.01 * tr, rel=1e-2),
    )

    def expected(path, p, g):
        decay = 0.1 * p if path[-1].key.startswith(("weight", "token", "position")) else 0
        return -rate * (g / (np.abs(g) + 0.1) + decay)

    moved = jax.tree.map(lambda new, old: new - old, after.params, before)
    tiny.assert_near(moved, jax.tree_util.tree_map_with_path(expected, before, mean))


@pytest.mark.parametrize("loss, gradient", [(jnp.inf, 1.0), (1.0, jnp.nan)])
def test_loss_and_gradient_must_both_be_finite(loss, gradient):
    c = tiny.config()
    _, built, state = tiny.make_step(c)
    gradients = jax.tree.map(jnp.ones_like, state.params) | {
        "token_VD": jnp.full_like(state.params["token_VD"], gradient)
    }
    parts = step.LossParts(jnp.float32(loss), jnp.float32(1))
    sums = step.GradientAccumulation(gradients, parts, jnp.float32(1), jnp.int32(1))
    after, values = jax.jit(built.update, static_argnums=2)(state, sums, 8)
    jax.tree.map(
        np.testing.assert_array_equal,
        (after.params, after.opt_state),
        (state.params, state.opt_state),
    )
    assert int(values["skipped"]) == int(values["skipped_in_row"]) == 1


def test_each_dropout_site_acts():
    c = tiny.config(n_layers=2)
    _, built, state = tiny.make_step(c)
    params, rows = {"params": state.params}, tiny.random_tokens(c, 2)[:, :-1]
    plain = jax.jit(built.model.apply)(params, rows)
    for site in ("embedding", "attention", "residual"):
        model = built.model.clone(
            config=dataclasses.replace(c.model, dropout=schema.Dropout(**{site: 0.3}))
        )
        dropped = jax.jit(functools.partial(model.apply, train=True))(
            params, rows, rngs={"dropout": jax.random.key(0)}
        )
        assert np.abs(plain - dropped).max() > 1e-3, site


def test_noise_estimates_are_unbiased():
    """Microbatch gradients G + noise with a known tr(Sigma): the mean estimates come out."""
    rng = np.random.default_rng(0)
    g, sigma, n, tokens = np.ones(10), 3.0, 4, 5
    draws = g + rng.normal(size=(20000, n, 10)) * sigma / np.sqrt(tokens)
    small, big = (draws**2).sum(-1).mean(1), (draws.mean(1) ** 2).sum(-1)
    g2, tr = step.noise_estimates(small, big, n, tokens)
    assert g2.mean() == pytest.approx(10, rel=0.03) and tr.mean() == pytest.approx(
        10 * sigma**2, rel=0.03
    )


def test_documents_masked_by_config():
    """With the mask, the loss on the second document does not depend on the first."""
    c = tiny.replace_parts(tiny.config(), data={"document_attention": "mask"})
    _, built, state = tiny.make_step(c, end_of_text=0)
    rows = np.maximum(tiny.random_tokens(c, 1), 1)
    rows[:, 4] = 0
    other = rows.copy()
    other[:, :4] = 7
    late = np.zeros((1, c.model.n_ctx), np.float32)
    late[:, 5:] = 1
    nll = jax.jit(built.nll)
    assert float(nll(state.params, rows, late)) == float(nll(state.params, other, late))
    across = dataclasses.replace(built, config=tiny.config())
    assert float(jax.jit(across.nll)(state.params, rows, late)) != float(
        jax.jit(across.nll)(state.params, other, late)
    )


@pytest.mark.parametrize("positions", [schema.Learned(), schema.Rotary()], ids=str)
def test_positions_that_restart(positions):
    """A document in the middle of a row has the loss that it has at the beginning of one, dense
    and banded; with the mask alone learned positions still differ."""
    c = tiny.config(positions=(positions,))
    document = np.maximum(tiny.random_tokens(c, 1), 1)
    document[:, 5] = 0
    moved = np.roll(document, 7, axis=1)
    moved[:, 6] = 0
    first, later = np.zeros((2, 1, c.model.n_ctx), np.float32)
    first[:, :5], later[:, 7:12] = 1, 1

    def losses(attention):
        masked = tiny.replace_parts(c, data={"document_attention": attention})
        _, built, state = tiny.make_step(masked, end_of_text=0)
        nll = jax.jit(built.nll)
        return [float(nll(state.params, *row)) for row in ((document, first), (moved, later))]

    expected, found = losses("restart")
    assert found == pytest.approx(expected, rel=1e-5)
    expected, found = losses("mask")
    is_same = found == pytest.approx(expected, rel=1e-5)
    assert is_same == isinstance(positions, schema.Rotary)


def test_positions_within_segments():
    segments = gpt.segment_ids(jnp.array([[5, 0, 6, 7, 0, 8]]), 0)
    np.testing.assert_array_equal(gpt.segment_positions(segments), [[0, 1, 0, 1, 2, 0]])


def test_segments_end_with_their_end_of_text():
    np.testing.assert_array_equal(
        gpt.segment_ids(jnp.array([[5, 0, 6, 7, 0, 8]]), 0), [[0, 0, 1, 1, 1, 2]]
    )


def test_evaluation_counts_each_token_once_whatever_the_microbatch():
    c = tiny.config()
    _, built, state = tiny.make_step(c)
    nll, rows = jax.jit(built.nll), tiny.random_tokens(c, 7)
    results = [
        metrics.loss_metrics(
            float(metrics.mean_nll(nll, state.params, rows, n, lambda x, letters: jnp.asarray(x))),
            bytes_per_token=2.0,
        )
        for n in (7, 4, 1)
    ]
    for r in results:
        assert r["validation_loss"] == pytest.approx(results[0]["validation_loss"], rel=1e-6)
        assert r["perplexity"] == pytest.approx(np.exp(r["validation_loss"]))
        assert r["bits_per_byte"] == pytest.approx(r["validation_loss"] / np.log(2) / 2)
    ones = np.ones((7, c.model.n_ctx), np.float32)
    assert results[0]["validation_loss"] == pytest.approx(
        float(nll(state.params, rows, ones)) / (7 * c.model.n_ctx)
    )


def test_trained_once_compiled_once():
    c = tiny.config()
    mesh, built, state = tiny.make_step(c)
    traces = []

    def traced(*args):
        traces.append(1)
        return built(*args)

    run = jax.jit(traced)
    with jax.set_mesh(mesh):
        for i, count in enumerate(
            (1, 2, 4)
        ):  # a batch ramp: the count varies, the program does not
            state, _ = run(
                state, tiny.random_tokens(c, 4, 2, seed=i), jax.device_put(np.int32(count))
            )
    assert len(traces) == 1 and int(state.rows) == 14
