"""The loss of conversations is a mean over all learned tokens of a step: packed or not, in any
microbatches; and conversations of a row do not see each other."""

import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config.chat import Preferences
from gptjax.config.schema import Rotary
from gptjax.data import epochs, held_out, preferences
from gptjax.data.conversations import Encoded
from gptjax.training import sft
from gptjax.training import step as train_step
from tests import tiny
from tests.unit.data.conversations_test import turns

N_CTX = 12


def some(n, seed=0):
    """n random conversations of 4 to 7 ids, of which a run in the middle or at the end is
    learned."""
    draw = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        length = int(draw.integers(4, 8))
        first = int(draw.integers(1, length))
        last = int(draw.integers(first, length))
        learned = [first <= i <= last for i in range(length)]
        out.append(Encoded(draw.integers(0, 61, length).tolist(), learned))
    return out


def make_step(**changes):
    c = tiny.config(n_ctx=N_CTX, n_layers=2, **changes)
    mesh, base, state = tiny.make_step(c)
    step = sft.SftStep(base.config, base.model, base.tx, base.end_of_text)
    return mesh, step, state


def loss_and_gradients(step, params, rows):
    def mean(params):
        total, parts = step.loss_fn(params, rows)
        return total / parts.weight

    return jax.jit(jax.value_and_grad(mean))(params)


def near(x, y):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), x, y)


def test_rows_hold_every_learned_token_after_what_stands_before_it_in_its_conversation():
    encoded = some(40)
    expected = sorted(e.ids[: i + 1] for e in encoded for i in range(1, len(e.ids)) if e.learned[i])
    for rows in (sft.pack_rows(encoded, N_CTX, form) for form in ("packed", "single")):
        tokens, segments, learned = map(np.asarray, sft.split_row(rows, N_CTX))
        found = []
        for row, t in zip(*np.nonzero(learned), strict=True):
            first = np.nonzero(segments[row] == segments[row, t])[0][0]
            found.append(tokens[row, first : t + 2].tolist())
        assert sorted(found) == expected
    packed, single = (len(sft.pack_rows(encoded, N_CTX, form)) for form in ("packed", "single"))
    assert single == 40 and packed <= 1.2 * sum(len(e.ids) for e in encoded) / (N_CTX + 1)


@pytest.mark.parametrize("changes", [{}, {"positions": (Rotary(),)}], ids=["learned", "rotary"])
def test_packed_conversations_are_learned_as_single_ones(changes):
    _, step, state = make_step(**changes)
    encoded = some(12)
    packed, single = (
        loss_and_gradients(step, state.params, jnp.array(sft.pack_rows(encoded, N_CTX, rows)))
        for rows in ("packed", "single")
    )
    near(packed, single)


def test_microbatches_of_unequal_masks_give_the_gradient_of_the_whole():
    """Some learn all their tokens, others two: a mean of means would count those two as much."""
    mesh, step, state = make_step()
    encoded = [
        Encoded(e.ids, [i > 0 and n < 4 or i == 1 for i in range(len(e.ids))])
        for n, e in enumerate(some(8))
    ]
    rows = sft.pack_rows(encoded, N_CTX, "single")
    whole = loss_and_gradients(step, state.params, jnp.array(rows))
    add, sums = jax.jit(step.accumulate), step.init_accumulator(state.params)
    with jax.set_mesh(mesh):
        for first in range(0, 8, 2):
            sums = add(state.params, state.step, sums, jnp.array(rows[first : first + 2]))
    weight = sums.parts.weight
    near((sums.parts.loss / weight, jax.tree.map(lambda g: g / weight, sums.gradients)), whole)


def test_a_microbatch_without_learned_tokens_changes_nothing():
    mesh, step, state = make_step()
    rows = sft.pack_rows(some(4), N_CTX, "single")
    silent = rows.copy()
    silent[:, N_CTX + 1 :] -= silent[:, N_CTX + 1 :] % 2
    with jax.set_mesh(mesh):
        add = jax.jit(step.accumulate)
        sums = add(state.params, state.step, step.init_accumulator(state.params), jnp.array(rows))
        more = add(state.params, state.step, sums, jnp.array(silent))
    near(more.gradients, sums.gradients)
    assert float(more.parts.weight) == float(sums.parts.weight)
    assert np.isfinite(float(more.squared_norm))


def test_the_noise_scale_of_unequal_microbatches_is_of_their_tokens():
    """E|G_i|^2 = |G|^2 + tr / n_i; the mean weighted by n_i is |G|^2 + tr / mean n_i."""
    g2, tr, counts = 2.0, 30.0, np.array([2.0, 10.0])
    small = np.sum(counts * (g2 + tr / counts)) / counts.sum()
    big = g2 + tr / counts.sum()
    np.testing.assert_allclose(train_step.noise_estimates(small, big, 2, counts.mean()), (g2, tr))


def test_evaluation_counts_the_learned_tokens():
    _, step, state = make_step()
    rows = jnp.array(sft.pack_rows(some(12), N_CTX, "packed"))
    total, count, _ = jax.jit(step.row_nll)(state.params, rows)
    assert float(count) == sum(sum(e.learned[1:]) for e in some(12))
    loss, _ = loss_and_gradients(step, state.params, rows)
    assert float(total / count) == pytest.approx(float(loss), abs=1e-5)


def test_an_epoch_reads_every_row_in_its_own_order():
    source = unittest.mock.Mock(train=np.arange(7)[:, None])
    dataset = epochs.EpochDataset(source, 3, 0)
    orders = [[int(dataset.row(6 * e + i)[0]) for i in range(6)] for e in range(3)]
    assert all(len(set(epoch)) == 6 for epoch in orders) and orders[0] != orders[1]
    again = epochs.EpochDataset(source, 3, 0)
    assert [int(again.row(i)[0]) for i in range(6, 12)] == orders[1]


def test_all_answers_to_a_prompt_are_held_out_together():
    def read(path, form):
        for n in range(400):
            answers = [turns(f"prompt {n % 100}", f"{word} {n}") for word in ("better", "worse")]
            yield str(n), preferences.Ranking(answers, [0, 1], [False, False])

    task = Preferences(train="x", dev_fraction=0.3)
    prompts = {
        name: {item.prompt[0]["content"] for _, item in part}
        for name, part in held_out.split_task(task, read, preferences.Ranking.prompt_text).items()
    }
    assert not prompts["train"] & prompts["dev"] and len(prompts["train"] | prompts["dev"]) == 100
    assert 15 < len(prompts["dev"]) < 45
