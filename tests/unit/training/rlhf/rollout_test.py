"""Rollouts are samples of the policy's own distribution, with the log p that the training forward
gives them; they depend on nothing but parameters, prompts and keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import rlhf
from gptjax.training.rlhf import rollout
from tests import tiny
from tests.unit.training.rlhf.step_test import Q, S, make_step, moved, place, task, whole_log_probs

STOP = 60
MODEL = {"n_layers": 2, "attention": tiny.GPT3}


@pytest.fixture(scope="module")
def policy():
    _, step, state = make_step(task(temperature=0.7), **MODEL)
    return step, moved(state.params, 1, by=0.3)


def prompts(n=64, seed=0):
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, Q + 1, n).astype(np.int32)
    tokens = draw.integers(8, 60, (n, Q)).astype(np.int32)
    return np.where(np.arange(Q)[None] < lengths[:, None], tokens, 0), lengths


@functools.cache
def jit_sampler(task, model, stop):
    return jax.jit(rollout.Sampler(task, model, stop))


def sample(policy, tokens, lengths, keys, stop=STOP):
    step, params = policy
    return jit_sampler(step.task, step.model, stop)(params, tokens, lengths, keys)


def test_log_p_of_the_sampler_is_that_of_the_training_forward(policy):
    tokens, lengths = prompts()
    out = sample(policy, tokens, lengths, rollout.row_keys(0, 3, 0, 64))
    step, params = policy
    _, log_p = whole_log_probs(step, params, out.tokens_BT)
    _, ours = jax.jit(step.states_and_log_probs)(params, out)
    mask = np.asarray(out.mask_BT) > 0
    np.testing.assert_allclose(np.asarray(ours)[mask], np.asarray(log_p)[mask], atol=5e-6)
    assert not np.asarray(ours)[~mask].any()
    for b in range(64):
        n, first = int(out.n_B[b]), int(lengths[b])
        row = np.asarray(out.tokens_BT[b])
        np.testing.assert_array_equal(row[:first], tokens[b, :first])
        answer = row[first : first + n]
        assert (STOP not in answer[:-1]) and (n == S or answer[-1] == STOP)
        assert not row[first + n :].any() and mask[b].sum() == n
        np.testing.assert_allclose(
            out.log_probs_BS[b, :n], log_p[b, first - 1 : first - 1 + n], atol=1e-5
        )
    assert set(np.asarray(out.n_B)) >= {S} and (np.asarray(out.n_B) < S).any()
    _, details = jax.jit(step.details)(params, None, _states(step, params, out), out, ours)
    assert float(np.max(details["gap_sum"])) < 1e-4


def _states(step, params, out):
    return step.states_and_log_probs(params, out)[0]


def test_an_answer_depends_on_its_own_row_and_key_alone(policy):
    tokens, lengths = prompts()
    whole = sample(policy, tokens, lengths, rollout.row_keys(0, 3, 0, 64))
    part = sample(policy, tokens[16:32], lengths[16:32], rollout.row_keys(0, 3, 16, 16))
    np.testing.assert_array_equal(part.tokens_BT, whole.tokens_BT[16:32])
    again = sample(policy, tokens, lengths, rollout.row_keys(0, 3, 0, 64))
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    for keys in (rollout.row_keys(0, 4, 0, 64), rollout.row_keys(1, 3, 0, 64)):
        other = sample(policy, tokens, lengths, keys)
        assert np.mean(np.asarray(other.tokens_BT) != np.asarray(whole.tokens_BT)) > 0.1


def test_eight_devices_sample_what_one_does(policy):
    """Rows over four devices, heads and vocabulary over two: the same tokens, log p to rounding."""
    tokens, lengths = prompts(16)
    keys = rollout.row_keys(0, 3, 0, 16)
    one = sample(policy, tokens, lengths, keys)
    sizes = {"fsdp": 4, "tensor": 2, "sharding": "fsdp_tensor"}
    mesh, step, state = make_step(task(temperature=0.7), 8, sizes, **MODEL)
    with jax.set_mesh(mesh):
        params = moved(state.params, 1, by=0.3)
        eight = sample((step, params), place(mesh, tokens), place(mesh, lengths), keys)
    np.testing.assert_array_equal(eight.tokens_BT, one.tokens_BT)
    np.testing.assert_allclose(eight.log_probs_BS, one.log_probs_BS, atol=1e-5)
    assert not eight.tokens_BT.sharding.is_fully_replicated


def test_first_tokens_have_the_frequencies_of_the_policy_at_its_temperature(policy):
    step, params = policy
    n = 4096
    tokens = np.tile(np.array([[9, 10, 0, 0]], np.int32), (n, 1))
    lengths = np.full(n, 2, np.int32)
    out = sample(policy, tokens, lengths, rollout.row_keys(0, 0, 0, n))
    candidates = np.zeros((61, Q + S), np.int32)
    candidates[:, :2], candidates[:, 2] = [9, 10], np.arange(61)
    p = np.exp(np.asarray(whole_log_probs(step, params, candidates)[1])[:, 1])
    assert p.sum() == pytest.approx(1, abs=1e-5)
    found = np.bincount(np.asarray(out.tokens_BT)[:, 2], minlength=61)
    chi2 = float(np.sum((found - n * p) ** 2 / (n * p)))
    assert chi2 < 60 + 5 * np.sqrt(120), chi2  # 60 degrees of freedom
    flat = p**0.7 / np.sum(p**0.7)  # at temperature 1 it would be this
    assert np.sum((found - n * flat) ** 2 / (n * flat)) > 60 + 5 * np.sqrt(120)


def test_without_a_stop_all_tokens_are_sampled(policy):
    out = sample(policy, *prompts(), rollout.row_keys(0, 0, 0, 64), stop=None)
    assert (np.asarray(out.n_B) == S).all()


def test_logits_that_are_not_finite_are_noticed(policy):
    step, params = policy
    spoiled = params | {"token_VD": params["token_VD"] * jnp.nan}
    assert not bool(sample((step, spoiled), *prompts(), rollout.row_keys(0, 0, 0, 64)).is_finite)


@pytest.mark.parametrize(
    ("answer", "after", "expected"),
    [
        ([5, 7, 5, 7, 5, 5], 0, (2, True)),
        ([5, 7, 5, 7, 5, 5], 2, (4, True)),
        ([5, 7, 5, 7, 5, 5], 3, (4, True)),
        ([5, 7, 5, 7, 5, 5], 4, (6, False)),
        ([7, 7, 5, 5, 5, 7], 4, (6, True)),
    ],
)
def test_what_is_scored_ends_with_the_first_end_from_a_token_on(answer, after, expected):
    tokens = jnp.array([[7, 7, *answer]], jnp.int32)  # those of the prompt do not count
    one = rollout.Rollout(
        tokens, jnp.array([2]), jnp.array([6]), jnp.zeros((1, 6)), jnp.array(True)
    )
    n_B, ends_B = rollout.scored_length(rlhf.CutAt(after=after), one, 7)
    assert (int(n_B[0]), bool(ends_B[0])) == expected


def test_an_answer_that_stops_is_scored_with_its_stop():
    one = rollout.Rollout(
        jnp.array([[7, 1, 2, 7, 0, 0], [7, 1, 2, 3, 4, 5]]),
        jnp.array([1, 1]),
        jnp.array([3, 5]),
        jnp.zeros((2, 5)),
        jnp.array(True),
    )
    n_B, ends_B = rollout.scored_length(rlhf.StopToken(), one, 7)
    assert (n_B.tolist(), ends_B.tolist()) == ([3, 5], [True, False])
