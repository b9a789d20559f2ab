"""PPO, the loss of reward models and what goes with them are those of OpenAI's 2019 code
(openai/lm-human-preferences, cbfd210b: train_policy.py, label_types.py, rewards.py, lm_tasks.py,
utils/core.py), transcribed to NumPy in float64 with the derivatives written out. Its answers all
have the same length, and its arrays (B, S) are of their tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import rlhf
from gptjax.config.chat import BeforeAndAfter, Rankings
from gptjax.model import scalar_head
from gptjax.training import reward
from gptjax.training.rlhf import advantages, losses, rollout
from gptjax.training.rlhf import step as rlhf_step
from tests import tiny

B, P, S, COEF = 8, 3, 5, 0.15
REST = 3  # tokens after an answer, which do not count


def whiten(x, shift_mean=True):
    out = (x - x.mean()) / np.sqrt(x.var() + 1e-8)
    return out if shift_mean else out + x.mean()


def advantages_and_returns(scores, log_probs, reference, values, whiten_rewards):
    """compute_rewards and the first half of PPOTrainer.loss; gamma 1, lambda 0.95."""
    rewards = -COEF * (log_probs - reference)
    rewards[:, -1] += scores
    if whiten_rewards:
        rewards = whiten(rewards, shift_mean=False)
    later, out = np.zeros(len(scores)), np.zeros_like(rewards)
    for t in reversed(range(S)):
        following = values[:, t + 1] if t < S - 1 else 0.0
        later = rewards[:, t] + following - values[:, t] + 0.95 * later
        out[:, t] = later
    return whiten(out), out + values


def policy_loss(log_probs, old, estimates):
    """(pg_loss, its derivatives by log_probs)."""
    ratio = np.exp(log_probs - old)
    free, clipped = -estimates * ratio, -estimates * np.clip(ratio, 0.8, 1.2)
    # Where the clipped term is the greater, the ratio is outside, and nothing depends on it.
    return np.maximum(free, clipped).mean(), np.where(free >= clipped, free, 0) / free.size


def value_loss(values, old, returns):
    """(vf_loss, its derivatives by values, vf_clipfrac)."""
    near = np.clip(values, old - 0.2, old + 0.2)
    free, clipped = (values - returns) ** 2, (near - returns) ** 2
    slopes = np.where(free >= clipped, values - returns, 0) / free.size
    return 0.5 * np.maximum(free, clipped).mean(), slopes, (clipped > free).mean()


def placed(x_BS):
    """An array of the tokens of the answers, at the predictions of those tokens in rows."""
    return jnp.asarray(np.pad(x_BS, ((0, 0), (P - 1, REST))), jnp.float32)


def of_answers(x_BT):
    return np.asarray(x_BT)[:, P - 1 : P - 1 + S]


def near(ours, theirs):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("whiten_rewards", [False, True])
def test_ppo(whiten_rewards):
    draw = np.random.default_rng(0)
    old = -3 + draw.normal(size=(B, S))
    reference, now = (old + 0.3 * draw.normal(size=(B, S)) for _ in range(2))
    values = 0.3 + draw.normal(size=(B, S))
    new_values, scores = values + 0.3 * draw.normal(size=(B, S)), 2 + draw.normal(size=B)
    estimates, returns = advantages_and_returns(scores, old, reference, values, whiten_rewards)

    spec = rlhf.Gae(whiten_rewards=whiten_rewards)
    task = rlhf.Rlhf(prompts="p", reward=rlhf.PythonFunction(name="m:f"), advantage=spec)
    answers = rlhf_step.Answers(
        jnp.zeros((B, P + S + REST - 1), jnp.int32),
        placed(np.ones((B, S))),
        *map(placed, (old, reference, values)),
        jnp.asarray(scores, jnp.float32),
    )

    config = dataclasses.replace(tiny.config(), task=task)
    step = rlhf_step.RlhfStep(config, None, None, None)
    part, _ = step.minibatch(answers, None, np.arange(B), jnp.float32(COEF))
    near(of_answers(part.advantages_BT), estimates)
    near(of_answers(part.returns_BT), returns)

    def ours(log_probs_BT, values_BT):
        policy_B, _ = losses.policy_losses(
            task,
            log_probs_BT,
            answers.log_probs_BT,
            answers.reference_BT,
            part.advantages_BT,
            part.weights_BT,
            jnp.float32(COEF),
        )
        value_B, clipped_B = losses.value_losses(
            spec, values_BT, answers.values_BT, part.returns_BT, part.weights_BT
        )
        policy, value = jnp.sum(policy_B), jnp.sum(value_B)
        return policy + spec.value_weight * value, (policy, value, jnp.sum(clipped_B))

    (total, parts), slopes = jax.value_and_grad(ours, (0, 1), has_aux=True)(
        placed(now), placed(new_values)
    )
    policy, policy_slopes = policy_loss(now, old, estimates)
    value, value_slopes, clip_fraction = value_loss(new_values, values, returns)
    near(parts, (policy, value, clip_fraction))
    near(total, policy + 0.1 * value)
    near(of_answers(slopes[0]), policy_slopes)
    near(of_answers(slopes[1]), 0.1 * value_slopes)
    assert 0 < clip_fraction < 1 and 0 < (policy_slopes == 0).mean() < 1


def test_best_of_four():
    """PickBest.loss: the cross-entropy of the scores."""
    draw = np.random.default_rng(1)
    scores, best = draw.normal(size=(B, 4)), draw.integers(0, 4, B)
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    is_best = np.eye(4)[best]
    ranks = np.where(is_best, 0, 1)

    def ours(scores):
        return jnp.mean(reward.ranking_loss("best_of", scores, jnp.asarray(ranks)))

    loss, slopes = jax.value_and_grad(ours)(jnp.asarray(scores, jnp.float32))
    near(loss, -np.log(p[np.arange(B), best]).mean())
    near(slopes, (p - is_best) / B)


def test_scores_are_normalized():
    """set_reward_norm to mean 0 and deviation 1, of a model whose gain is 1 and bias 0."""
    scores = np.random.default_rng(2).normal(2, 3, 50).astype(np.float32)
    head = {"gain": jnp.float32(1), "bias": jnp.float32(0)}
    task = Rankings(train="x", normalize=BeforeAndAfter(path="x"))
    scale = reward.find_scale(task, {scalar_head.NAME: head}, scores)
    near(scale["gain"], 1 / scores.std(dtype=np.float64))
    near(scale["bias"], -scale["gain"] * scores.mean(dtype=np.float64))


@pytest.mark.parametrize("kl", [0.5, 5.9, 6.6, 30.0])
def test_adaptive_kl(kl):
    """AdaptiveKLController.update."""
    error = np.clip(kl / 6 - 1, -0.2, 0.2)
    spec = rlhf.AdaptiveKl(target=6.0, horizon=10_000.0)
    ours = advantages.next_kl_coef(spec, jnp.float32(COEF), jnp.float32(kl), 512)
    near(ours, COEF * (1 + error * 512 / 10_000))


def test_answers_are_cut_where_their_text_ends():
    """postprocess_fn and filter_fn: what is scored ends with the first token `end` at or after
    place `after`; an answer without one does not pass."""
    draw, after, end = np.random.default_rng(3), 2, 1
    answers = draw.integers(0, 5, (40, S))
    is_end = np.where(np.arange(S) < after, 0, answers == end)
    is_left_out = (np.cumsum(is_end, axis=1) - is_end) > 0
    rolled = rollout.Rollout(
        jnp.asarray(np.pad(answers, ((0, 0), (P, 2)), constant_values=end), jnp.int32),
        jnp.full(40, P, jnp.int32),
        jnp.full(40, S, jnp.int32),
        jnp.zeros((40, S), jnp.float32),
        jnp.bool_(True),
    )
    lengths, passes = rollout.scored_length(rlhf.CutAt(text=".", after=after), rolled, end)
    np.testing.assert_array_equal(lengths, (~is_left_out).sum(axis=1))
    np.testing.assert_array_equal(passes, is_end.any(axis=1))
    assert 0 < np.mean(passes) < 1
