"""The losses of PPO, GRPO and RLOO, by token, and their slopes. All arrays (B, T) are of the
predictions of rows of tokens, mask_BT 1 at those of the answer."""

import jax
import jax.numpy as jnp

from gptjax.config import rlhf


def surrogate(ratio: jax.Array, advantage: jax.Array, clip: float) -> jax.Array:
    """Returns PPO's clipped objective with its sign turned (Schulman et al. 1707.06347, equation
    7): max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip))."""
    return jnp.maximum(-advantage * ratio, -advantage * jnp.clip(ratio, 1 - clip, 1 + clip))


def policy_losses(
    task: rlhf.Rlhf,
    log_probs_BT: jax.Array,
    old_BT: jax.Array,
    reference_BT: jax.Array,
    advantages_BT: jax.Array,
    weights_BT: jax.Array,
    kl_coef: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns (the loss of every row (B,), statistics of every row), each a sum over the tokens of
    an answer with weights_BT (`token_weights`), so that sums over a minibatch are its means.

    log_probs_BT, old_BT, reference_BT: log p of the tokens now, in the rollout, and under the
    reference (nats)."""
    is_answer_BT = weights_BT > 0
    difference_BT = jnp.where(is_answer_BT, log_probs_BT - old_BT, 0)

    def total(x_BT: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(is_answer_BT, x_BT, 0) * weights_BT, axis=1)

    match task.advantage:
        case rlhf.LeaveOneOut():
            # One ratio for a whole answer, whose weights add up to that of the answer.
            ratio_BT = jnp.exp(jnp.sum(difference_BT, axis=1, keepdims=True)) * jnp.ones_like(
                difference_BT
            )
        case _:
            ratio_BT = jnp.exp(difference_BT)
    losses_BT = surrogate(ratio_BT, advantages_BT, task.clip)
    losses_B = total(losses_BT)
    if isinstance(task.advantage, rlhf.GroupMean):
        gap_BT = jnp.where(is_answer_BT, reference_BT - log_probs_BT, 0)
        # The estimator k3 of the KL (2402.03300, equation 4), never below 0.
        losses_B += kl_coef * total(jnp.exp(gap_BT) - gap_BT - 1)
    statistics = {
        # Of tokens whose ratio has no gradient, as openai/lm-human-preferences counts them.
        "clip_fraction": total((losses_BT > -advantages_BT * ratio_BT).astype(jnp.float32)),
        "approx_kl": total(0.5 * jnp.square(difference_BT)),
        "ratio": total(ratio_BT),
    }
    return losses_B, statistics


def value_losses(
    spec: rlhf.Gae,
    values_BT: jax.Array,
    old_BT: jax.Array,
    returns_BT: jax.Array,
    weights_BT: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns (the value function's loss of every row (B,), the share of values that were cut
    (B,)), sums as in `policy_losses`: 0.5 * max((v - R)^2, (clipped v - R)^2), where v is clipped
    to value_clip around the value of the rollout (openai/lm-human-preferences, train_policy.py)."""
    losses_BT = jnp.square(values_BT - returns_BT)
    is_clipped_BT = jnp.zeros_like(losses_BT)
    if spec.value_clip is not None:
        near_BT = jnp.clip(values_BT, old_BT - spec.value_clip, old_BT + spec.value_clip)
        clipped_BT = jnp.square(near_BT - returns_BT)
        is_clipped_BT = (clipped_BT > losses_BT).astype(jnp.float32)
        losses_BT = jnp.maximum(losses_BT, clipped_BT)
    is_answer_BT = weights_BT > 0
    losses_B = 0.5 * jnp.sum(jnp.where(is_answer_BT, losses_BT, 0) * weights_BT, axis=1)
    return losses_B, jnp.sum(jnp.where(is_answer_BT, is_clipped_BT, 0) * weights_BT, axis=1)


def token_weights(task: rlhf.Rlhf, mask_BT: jax.Array) -> jax.Array:
    """Returns the weight of every token in the mean over a minibatch; they add up to 1."""
    n_B1 = jnp.maximum(jnp.sum(mask_BT, axis=1, keepdims=True), 1)
    match task.advantage:
        case rlhf.GroupMean(mean_over="answers") | rlhf.LeaveOneOut():
            return mask_BT / n_B1 / mask_BT.shape[0]
        case _:
            return mask_BT / jnp.maximum(jnp.sum(mask_BT), 1)
