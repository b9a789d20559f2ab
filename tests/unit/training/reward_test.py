"""The loss of a reward model is its formula over all pairs of each prompt; a score is that of a
text alone."""

import dataclasses
import itertools
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import schema
from gptjax.config.chat import BeforeAndAfter, Demonstrations, Rankings
from gptjax.model import scalar_gpt, scalar_head
from gptjax.sharding import rules
from gptjax.training import pair_accuracy, reward, reward_rows
from gptjax.training import state as train_state
from tests import tiny
from tests.unit.training.dpo_test import moved
from tests.unit.training.sft_test import N_CTX, near

K = 4


def make_step(loss="pairs", normalize=None, mesh=None, n_devices=1, **changes):
    c = tiny.config(**({"n_ctx": N_CTX, "n_layers": 1, "attention": (schema.Dense(),)} | changes))
    task = Rankings(train="x", loss=loss, completions=K, normalize=normalize)
    c = tiny.replace_parts(dataclasses.replace(c, task=task), mesh=mesh or {})
    mesh, _, _ = tiny.make_step(c, n_devices)
    step = reward.build(c, "cpu", mesh, None)
    with jax.set_mesh(mesh):
        state = train_state.init_sharded(c, step.model, step.tx, mesh)
    return mesh, step, state


def some(n=8, seed=0):
    """n prompts with 2 to 4 completions of 1 to N_CTX ids, some of which are ties."""
    draw, out = np.random.default_rng(seed), []
    while len(out) < n:
        size = int(draw.integers(2, K + 1))
        ranks = draw.integers(0, 3, size)
        ranks = np.unique(ranks, return_inverse=True)[1].tolist()
        if ranks.count(0) == 1 and len(set(ranks)) > 1:
            texts = [draw.integers(0, 61, draw.integers(1, N_CTX + 1)).tolist() for _ in ranks]
            out.append((texts, ranks))
    return out


def rows_of(encoded):
    return jnp.array(reward_rows.pack_rankings(encoded, N_CTX, K))


def score_alone(step, params, ids):
    """The score of one text, without padding."""
    x = step.model.apply({"params": params}, jnp.array([ids]))
    head = params[scalar_head.NAME]
    return head["gain"] * (x[0, -1] @ head["weight_D"]) + head["bias"]


def scores_of(step, params, encoded):
    """The scores of each prompt's texts, in a batch whose padding is id 3."""
    texts = [ids for answers, _ in encoded for ids in answers]
    tokens = jnp.array([[*ids, *[3] * (N_CTX - len(ids))] for ids in texts])
    x = step.model.apply({"params": params}, tokens)
    head, ends = params[scalar_head.NAME], np.array([len(ids) - 1 for ids in texts])
    states = x[np.arange(len(texts)), ends]
    scores = head["gain"] * (states @ head["weight_D"]) + head["bias"]
    firsts = np.cumsum([0, *(len(answers) for answers, _ in encoded)])
    return [scores[first:stop] for first, stop in itertools.pairwise(firsts)]


def formula(loss, scores, ranks):
    """The loss of one prompt, as the papers write it."""
    if loss == "best_of":
        return jax.nn.logsumexp(scores) - scores[ranks.index(0)]
    pairs = [(i, j) for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] < ranks[j]]
    better, worse = np.array(pairs).T
    return jnp.mean(jnp.log1p(jnp.exp(scores[worse] - scores[better])))


@pytest.mark.parametrize("loss", ["pairs", "best_of"])
def test_loss_and_gradient_are_those_of_the_formula(loss):
    _, step, state = make_step(loss, BeforeAndAfter())
    params, encoded = moved(state.params), some(4)

    def expected(params):
        scores = scores_of(step, params, encoded)
        losses = [
            formula(loss, one, ranks) for one, (_, ranks) in zip(scores, encoded, strict=True)
        ]
        return sum(losses) / len(losses)

    value, gradients = jax.jit(jax.value_and_grad(expected))(params)
    rows = rows_of(encoded)
    (total, parts), ours = jax.jit(jax.value_and_grad(step.loss_fn, has_aux=True))(params, rows)
    assert float(total) == pytest.approx(float(value), rel=1e-5)
    assert float(parts.loss) == pytest.approx(float(value), rel=1e-5)
    assert abs(float(gradients[scalar_head.NAME]["gain"])) > 1e-3
    near(ours, gradients)
    scores = jax.jit(step.eval_scores)(params, rows)
    ranks = reward_rows.ranks_of(np.asarray(rows), K)
    on_host = pair_accuracy.losses(loss, np.asarray(scores), ranks)
    assert float(np.mean(on_host)) == pytest.approx(float(value), rel=1e-5)


def test_statistics_are_means_over_prompts():
    _, step, state = make_step()
    encoded, params = some(), moved(state.params)
    (_, parts) = jax.jit(step.loss_fn)(params, rows_of(encoded))
    expected = []
    all_scores = jax.jit(lambda params: scores_of(step, params, encoded))(params)
    for scores, (_, ranks) in zip(map(np.asarray, all_scores), encoded, strict=True):
        margins = [
            scores[i] - scores[j]
            for i in range(len(ranks))
            for j in range(len(ranks))
            if ranks[i] < ranks[j]
        ]
        expected.append((np.mean(np.array(margins) > 0), np.mean(margins), np.mean(scores)))
    found = [float(parts.statistics[name]) for name in reward.STATISTICS]
    np.testing.assert_allclose(found, np.mean(expected, axis=0), atol=1e-5)


@pytest.mark.parametrize("normalize, moves", [
    (None, False), (Demonstrations(path="x"), False), (BeforeAndAfter(), True),
])  # fmt: skip
def test_the_gain_is_trained_as_in_the_2019_code_alone_and_the_bias_never(normalize, moves):
    _, step, state = make_step(normalize=normalize)
    rows = rows_of(some())
    head = jax.jit(jax.grad(lambda p: step.loss_fn(p, rows)[0]))(state.params)[scalar_head.NAME]
    assert float(head["bias"]) == 0 and (float(head["gain"]) != 0) == moves
    assert float(jnp.abs(head["weight_D"]).max()) > 1e-3


def test_the_head_is_drawn_with_the_published_deviation_and_the_gpt_as_without_it():
    _, step, state = make_step(d_model=64)
    weight = np.asarray(state.params[scalar_head.NAME]["weight_D"])
    assert weight.std() * 65**0.5 == pytest.approx(1, abs=0.3)
    _, _, plain = tiny.make_step(step.config)
    without = {name: x for name, x in state.params.items() if name != scalar_head.NAME}
    jax.tree.map(np.testing.assert_array_equal, without, plain.params)


def test_a_score_depends_on_no_padding_and_no_neighbour():
    """Bit for bit, in batches of one shape."""
    _, step, state = make_step()
    params, draw = moved(state.params), np.random.default_rng(0)
    score = jax.jit(lambda tokens, last: scalar_gpt.scores(step.model, params, tokens, last))
    ids, found = draw.integers(0, 61, 5), []
    for place in (0, 3, 7):
        tokens = draw.integers(0, 61, (8, N_CTX))
        tokens[place, :5] = ids
        last = draw.integers(0, N_CTX, 8)
        last[place] = 4
        found.append(float(score(jnp.array(tokens), jnp.array(last))[place]))
    assert len(set(found)) == 1
    assert found[0] == pytest.approx(float(score_alone(step, params, ids.tolist())), abs=1e-5)
    zeros = np.zeros((8, N_CTX), np.int64)  # id 0 is padding, and a token like others
    zeros[0, :5], last = [3, 0, 0, 0, 0], np.full(8, 4)
    all_of_it = score(jnp.array(zeros), jnp.array(last))[0]
    first = score(jnp.array(zeros), jnp.zeros(8, jnp.int32))[0]
    assert float(all_of_it) != float(first)


def test_texts_are_scored_in_their_order_each_at_its_length():
    """Of up to 32 tokens, and of up to 64: a bucket each."""
    mesh, step, state = make_step(n_ctx=64)
    params, draw = moved(state.params), np.random.default_rng(1)
    texts = [draw.integers(0, 61, n).tolist() for n in (33, 3, 64, 32)]
    scores = reward.TextScores(step.config, step.model, mesh)
    done, shapes = [], []
    program = scores._fn
    scores._fn = lambda params, rows: shapes.append(rows.shape) or program(params, rows)
    with jax.set_mesh(mesh):
        found = scores(params, reward_rows.pack_texts(texts, 64), done.append)
    expected = [float(score_alone(step, params, ids)) for ids in texts]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert shapes == [(256, 33), (128, 65)] and done == [2, 4]


def test_microbatches_give_the_gradient_of_the_whole():
    mesh, step, state = make_step()
    rows, head = rows_of(some()), state.params[scalar_head.NAME]
    # With scores of an eighth, gradients are below 1, so that the bound is above their rounding.
    params = state.params | {scalar_head.NAME: head | {"weight_D": head["weight_D"] / 8}}
    whole = jax.jit(jax.grad(lambda p: step.loss_fn(p, rows)[0]))(params)
    add, sums = jax.jit(step.accumulate), step.init_accumulator(params)
    with jax.set_mesh(mesh):
        for first in range(0, 8, 2):
            sums = add(params, state.step, sums, rows[first : first + 2])
    near(jax.tree.map(lambda g: g / sums.parts.weight, sums.gradients), whole)


def test_eight_devices_have_the_loss_and_gradient_of_one():
    rows = np.asarray(rows_of(some()))
    (_, alone, state), (mesh, split, other) = (
        make_step(mesh=m, n_devices=n)
        for m, n in (({}, 1), ({"sharding": "fsdp_tensor", "fsdp": 4, "tensor": 2}, 8))
    )
    table = rules.PRESETS["fsdp_tensor"].activations
    with jax.set_mesh(mesh):
        on_mesh = rules.put_on_mesh(rows, "B1", table, mesh)
        ours = jax.jit(jax.value_and_grad(lambda p: split.loss_fn(p, on_mesh)[0]))(other.params)
    expected = jax.jit(jax.value_and_grad(lambda p: alone.loss_fn(p, rows)[0]))(state.params)
    near(jax.tree.map(np.asarray, ours), jax.tree.map(np.asarray, expected))


def test_a_row_holds_the_texts_their_last_ids_and_ranks():
    row = reward_rows.pack_rankings([([[5, 0], [7]], [1, 0])], 3, 3)[0].tolist()
    assert row == [5, 0, 0, 1, 7, 0, 0, 0, 0, 0, 0, 0, 1, 0, -1]
    with pytest.raises(ValueError, match="text 1 has 4 tokens: a reward model scores 1 to 3"):
        reward_rows.pack_texts([[1], [1] * 4], 3)
    with pytest.raises(ValueError, match="text 0 has 0 tokens"):
        reward_rows.pack_texts([[]], 3)


@pytest.mark.parametrize("kind", [Demonstrations(path="x"), BeforeAndAfter()])
def test_the_scale_normalizes_the_scores_of_texts(kind):
    _, step, state = make_step(normalize=kind)
    head = {"gain": jnp.float32(0.5), "bias": jnp.float32(2)}
    params = state.params | {scalar_head.NAME: state.params[scalar_head.NAME] | head}
    rows = reward_rows.pack_texts([ids for texts, _ in some() for ids in texts], N_CTX)
    score = jax.jit(lambda params: reward.text_scores(step.model, params, rows))
    before = np.asarray(score(params))
    scale = reward.find_scale(step.config.task, params, before)
    after = np.asarray(score(reward.with_scale(params, scale)))
    assert abs(after.mean()) < 1e-5
    std = before.std() if isinstance(kind, Demonstrations) else 1
    assert after.std() == pytest.approx(std, rel=1e-4)
    assert scale["gain"] == pytest.approx(0.5 * std / before.std())


def test_scores_have_mean_0_and_deviation_1_before_training_as_in_the_2019_code(monkeypatch):
    mesh, step, _ = make_step(normalize=BeforeAndAfter())
    rows = reward_rows.pack_texts([ids for texts, _ in some() for ids in texts], N_CTX)
    weights, source = unittest.mock.Mock(config=step.config), unittest.mock.Mock(texts=rows)
    objective, out = reward.RewardObjective(weights, source), unittest.mock.Mock()
    monkeypatch.setattr(objective, "_load_params", lambda state, model: state)
    with jax.set_mesh(mesh):
        params = objective.init_state(step.config, step, mesh, None, out).params
    scores = np.asarray(jax.jit(lambda p: reward.text_scores(step.model, p, rows))(params))
    assert abs(scores.mean()) < 1e-5 and scores.std() == pytest.approx(1, rel=1e-4)
    assert "before training: gain" in out.print.call_args.args[0]


def test_scores_that_cannot_be_normalized_are_one_line():
    task = Rankings(train="x", normalize=BeforeAndAfter())
    params = {scalar_head.NAME: scalar_head.init(jax.random.key(0), 4, 1.0)}
    with pytest.raises(ValueError, match="3 texts cannot be normalized"):
        reward.find_scale(task, params, np.ones(3, np.float32))
    demonstrations = dataclasses.replace(task, normalize=Demonstrations(path="x"))
    with pytest.raises(ValueError, match="cannot be normalized"):
        reward.find_scale(demonstrations, params, np.array([1, np.nan], np.float32))
