"""The loss of a task against a plain computation, for all four kinds; and what the head must not
depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import schema
from gptjax.config.classification import ClassificationTask
from gptjax.config.finetuning import N_SPECIAL_TOKENS
from gptjax.model import gpt
from gptjax.sharding import device_mesh
from gptjax.training import state
from gptjax.training.classification import model, transformations
from tests import tiny

OLD = 58  # ids before the special tokens
S, D, E = OLD, OLD + 1, OLD + 2
KINDS = {
    "classification": ClassificationTask(
        kind="classification", fields=("a",), label="y", labels=tuple("012"), metric="accuracy"
    ),
    "entailment": ClassificationTask(
        kind="entailment", fields=("a", "b"), label="y", labels=tuple("012"), metric="accuracy"
    ),
    "similarity": ClassificationTask(
        kind="similarity", fields=("a", "b"), label="y", labels=tuple("012345"), metric="pearson"
    ),
    "choice": ClassificationTask(
        kind="choice",
        fields=("a",),
        answers=("c",),
        label="y",
        labels=tuple("012"),
        metric="accuracy",
    ),
}


def config(kind="classification", task=None, **changes):
    task = dataclasses.replace(KINDS[kind], dropout=0.0, **(task or {}))
    return dataclasses.replace(
        tiny.config(n_vocab=OLD + N_SPECIAL_TOKENS, norm="post", **changes), task=task
    )


def machine(c, n_devices=1):
    mesh = device_mesh.make_mesh(c.mesh, jax.devices()[:n_devices])
    built = model.build(c, "cpu", mesh)
    with jax.set_mesh(mesh):
        return mesh, built, state.init_sharded(c, built.model, built.tx, mesh)


def rows(c, n=8, labels=None, seed=0):
    """Encoded examples of random texts of one or three tokens."""
    draw, task, made = np.random.default_rng(seed), c.task, []
    for number in range(n):
        texts = tuple(draw.integers(0, OLD, draw.choice([1, 3])).tolist() for _ in task.fields)
        answers = tuple(
            draw.integers(0, OLD, draw.choice([1, 3])).tolist()
            for _ in range(len(task.labels) if task.answers else 0)
        )
        label = 1000 * (number % 3) if labels is None else labels[number]
        one = transformations.build_sequences(task, texts, answers, OLD, c.model.n_ctx)
        made.append(
            [
                label,
                *(len(s) - 1 for s in one),
                *(t for s in one for t in s + [0] * (c.model.n_ctx - len(s))),
            ]
        )
    return np.array(made, np.int32)


def naive(c, apply, params, row):
    """(the loss of one example, its scores): each sequence by itself and without padding, every
    softmax in full. apply: of the GPT."""
    label, extract, tokens = (
        part[0] for part in transformations.split_rows(row[None], c.task.n_sequences, c.model.n_ctx)
    )
    states, language = [], []
    for end, padded in zip(extract, tokens, strict=True):
        sequence = padded[: end + 1]
        x_TD = apply({"params": params["gpt"]}, sequence[None])[0]
        logits = (
            np.asarray(x_TD, np.float64)
            @ np.asarray(params["gpt"]["token_VD"], np.float64)[: c.model.n_vocab].T
        )
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        language.append(-np.mean([np.log(shares[t, sequence[t + 1]]) for t in range(end)]))
        states.append(np.asarray(x_TD[end], np.float64))
    weight, bias = (
        np.asarray(params["head"][name], np.float64) for name in ("weight_DC", "bias_C")
    )
    if c.task.kind == "choice":
        y = np.array([float(h @ weight[:, 0] + bias[0]) for h in states])
    else:
        y = sum(states) @ weight + bias
    shares, value = np.exp(y) / np.exp(y).sum(), label / 1000
    low = int(np.floor(value))
    target = np.zeros(len(y))
    target[low] += low + 1 - value
    if value > low:
        target[low + 1] += value - low
    return -(target * np.log(shares)).sum() + c.task.lm_weight * np.mean(language), y


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_equation_5(kind):
    c = config(kind)
    mesh, built, now = machine(c)
    given = rows(c, 4, labels=[0, 1400, 5000, 3250] if kind == "similarity" else None)
    draw = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: np.asarray(x) + 0.1 * draw.normal(size=x.shape).astype(np.float32), now.params
    )  # no bias is 0
    apply = jax.jit(gpt.GPT(c.model, built.model.execution_policy).apply)
    plain = [naive(c, apply, params, row) for row in given]
    with jax.set_mesh(mesh):
        loss, _ = jax.jit(built.loss_fn)(params, given)
        y_BC, losses_B = jax.jit(built.scores_and_losses)(params, given)
        silent = dataclasses.replace(built, config=config(kind, {"lm_weight": 0.0}))
        task_alone = float(jax.jit(silent.loss_fn)(params, given)[0])
    assert float(loss) == pytest.approx(np.mean([one[0] for one in plain]), rel=1e-5)
    np.testing.assert_allclose(y_BC, np.stack([one[1] for one in plain]), rtol=1e-4, atol=1e-5)
    assert (
        task_alone == pytest.approx(float(jnp.mean(losses_B)), rel=1e-6)
        and task_alone < float(loss) - 0.5
    )


def test_a_label_between_classes_is_shared_and_an_unknown_one_weighs_nothing():
    y = jnp.log(jnp.array([[0.5, 0.25, 0.25]] * 4))
    found = model.task_loss(y, jnp.array([1.0, 0.25, 2.0, -0.001]))
    np.testing.assert_allclose(
        found, [np.log(4), 0.75 * np.log(2) + 0.25 * np.log(4), np.log(4), 0], rtol=1e-6
    )


def scored(kind, change, **task):
    """Scores before and after `change` of (tokens, extract)."""
    c = config(kind, task)
    mesh, built, now = machine(c)
    given = rows(c)
    labels, extract, tokens = transformations.split_rows(given, c.task.n_sequences, c.model.n_ctx)
    extract, tokens = change(extract, tokens)
    other = np.concatenate([labels[:, None], extract, tokens.reshape(len(given), -1)], 1).astype(
        np.int32
    )
    with jax.set_mesh(mesh):
        asked = jax.jit(built.scores_and_losses)
        return np.asarray(asked(now.params, given)[0]), np.asarray(asked(now.params, other)[0])


def test_similarity_is_symmetric():
    before, after = scored(
        "similarity", lambda extract, tokens: (extract[:, ::-1], tokens[:, ::-1])
    )
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-7)
    assert np.ptp(before) > 0


def test_the_scores_of_a_choice_move_with_its_answers():
    order = [2, 0, 1]
    before, after = scored("choice", lambda extract, tokens: (extract[:, order], tokens[:, order]))
    np.testing.assert_allclose(before[:, order], after, rtol=1e-5, atol=1e-7)
    assert np.ptp(before, axis=1).min() > 0


@pytest.mark.parametrize("kind", ["entailment", "choice"])
def test_what_follows_the_extract_token_is_not_read(kind):
    def padded(extract, tokens):
        after = np.arange(tokens.shape[-1]) > extract[..., None]
        return extract, np.where(after, 7, tokens)

    before, after = scored(kind, padded)
    np.testing.assert_array_equal(before, after)


def test_the_answers_of_a_choice_are_dropped_out_alike():
    """Released train.py: one mask for an example's answers. Two equal answers are then scored
    equally, and unequally from step to step."""
    c = config("choice", {})
    c = dataclasses.replace(c, task=dataclasses.replace(c.task, dropout=0.5))
    mesh, built, now = machine(c)
    given = rows(c)
    labels, extract, tokens = transformations.split_rows(given, 3, c.model.n_ctx)
    twice = np.concatenate(
        [labels[:, None], extract[:, [0, 0, 0]], tokens[:, [0, 0, 0]].reshape(len(given), -1)], 1
    )
    with jax.set_mesh(mesh):
        asked = jax.jit(built.scores)
        first = np.asarray(asked(now.params, twice, jax.random.key(0))[0])
        second = np.asarray(asked(now.params, twice, jax.random.key(1))[0])
    np.testing.assert_allclose(first, first[:, :1] * np.ones((1, 3)), rtol=1e-5, atol=1e-7)
    assert np.abs(first - second).min() > 0 and len(set(first[:, 0].tolist())) == len(first)


def test_the_head_is_drawn_as_the_models_weights_are_and_what_it_reads_is_dropped_out_in_training():
    """Released train.py: a normal distribution of standard deviation 0.02, and no bias."""
    c = config("similarity", d_model=64)
    c = dataclasses.replace(c, task=dataclasses.replace(c.task, dropout=0.5))
    mesh, built, now = machine(c)
    weight, given = np.asarray(now.params["head"]["weight_DC"]), rows(c)
    assert (
        weight.shape == (64, 6)
        and np.std(weight) == pytest.approx(0.02, rel=0.15)
        and not np.any(now.params["head"]["bias_C"])
    )
    with jax.set_mesh(mesh):
        asked = jax.jit(built.scores)
        plain, first, second = (
            np.asarray(asked(now.params, given, key)[0])
            for key in (None, jax.random.key(0), jax.random.key(1))
        )
    assert np.abs(first - plain).max() > 1e-3 and np.abs(first - second).max() > 1e-3


def curve(c, n_devices, kind, steps=3):
    mesh, built, now = machine(c, n_devices)
    losses = []
    with jax.set_mesh(mesh):
        run = jax.jit(built, static_argnums=2)
        for number in range(steps):
            now, values = run(now, rows(c, 8, seed=number)[None], 1)
            losses.append([float(values["loss"]), float(values["grad_norm"])])
    return losses


@pytest.mark.parametrize("sharding", ["fsdp", pytest.param("fsdp_tensor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["similarity", pytest.param("choice", marks=pytest.mark.slow)])
def test_eight_devices_learn_as_one(kind, sharding):
    c = config(kind, n_ctx=16, n_layers=2)
    across = dataclasses.replace(
        c,
        mesh=schema.Mesh(tensor=2, fsdp=4, sharding="fsdp_tensor")
        if sharding != "fsdp"
        else c.mesh,
    )
    one, eight = curve(c, 1, kind), curve(across, 8, kind)
    np.testing.assert_allclose(eight, one, rtol=1e-4)
    assert one[2][0] != one[0][0]


@pytest.mark.filterwarnings("ignore:'VariableState' was removed")  # Qwix imports it
def test_products_in_8_bits():
    pytest.importorskip("qwix", reason="needs requirements-float8.txt")
    c = config()
    mesh, built, initial = machine(c)
    rounded = model.build(tiny.replace_parts(c, compute={"matmul_dtype": "float8"}), "cpu", mesh)
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):  # which Qwix's code needs
        losses = [jax.jit(one.loss_fn)(initial.params, rows(c))[0] for one in (built, rounded)]
    assert losses[0] != losses[1] and abs(float(losses[0] - losses[1])) < 0.1
