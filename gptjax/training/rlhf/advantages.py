"""From scores of answers to advantages of their tokens, in float32. All arrays (B, T) are of the
predictions of rows of tokens; mask_BT is 1 at those of the answer, which follow each other."""

import jax
import jax.numpy as jnp

from gptjax.config import rlhf


def masked_mean(x_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """Returns the mean of x over the mask; 0 where the mask is empty."""
    return jnp.sum(jnp.where(mask_BT > 0, x_BT, 0)) / jnp.maximum(jnp.sum(mask_BT), 1)


def masked_variance(x_BT: jax.Array, mask_BT: jax.Array, kind: str = "biased") -> jax.Array:
    """Returns the variance of x over the mask, its divisor n, or n - 1 if kind is "unbiased"."""
    n = jnp.sum(mask_BT)
    variance = masked_mean(jnp.square(x_BT - masked_mean(x_BT, mask_BT)), mask_BT)
    return variance if kind == "biased" else variance * n / jnp.maximum(n - 1, 1)


def whiten(
    x_BT: jax.Array, mask_BT: jax.Array, kind: str = "biased", shift_mean: bool = True
) -> jax.Array:
    """Returns x with a standard deviation of 1 and, unless shift_mean is False, a mean of 0; 0
    outside the mask (openai/lm-human-preferences, utils/core.py, whose variance is biased)."""
    mean = masked_mean(x_BT, mask_BT)
    out_BT = (x_BT - mean) * jax.lax.rsqrt(masked_variance(x_BT, mask_BT, kind) + 1e-8)
    return jnp.where(mask_BT > 0, out_BT if shift_mean else out_BT + mean, 0)


def gae(
    rewards_BT: jax.Array, values_BT: jax.Array, mask_BT: jax.Array, discount: float, lam: float
) -> jax.Array:
    """Returns the generalized advantage estimates (Schulman et al. 1506.02438, equation 16) of
    answers after whose last token nothing more comes: sums over later tokens l of (discount *
    lam)^l * (reward + discount * next value - value). 0 outside the mask."""
    mask_BT = mask_BT > 0
    values_BT = jnp.where(mask_BT, values_BT, 0)
    next_BT = jnp.pad(values_BT[:, 1:], ((0, 0), (0, 1)))
    deltas_BT = jnp.where(mask_BT, rewards_BT, 0) + discount * next_BT - values_BT

    def back(later_B, parts):
        delta_B, is_answer_B = parts
        now_B = jnp.where(is_answer_B, delta_B + discount * lam * later_B, 0)
        return now_B, now_B

    zeros_B = jnp.zeros(rewards_BT.shape[0], jnp.float32)
    _, out_TB = jax.lax.scan(back, zeros_B, (deltas_BT.T, mask_BT.T), reverse=True)
    return out_TB.T


def group_means(spec: rlhf.GroupMean, scores_B: jax.Array) -> jax.Array:
    """Returns the advantages of answers, of which those to one prompt follow each other: GRPO."""
    scores_GK = scores_B.reshape(-1, spec.answers)
    out_GK = scores_GK - jnp.mean(scores_GK, axis=1, keepdims=True)
    if spec.divide_by == "deviation":
        out_GK /= jnp.std(scores_GK, axis=1, keepdims=True, ddof=1) + 1e-4
    return out_GK.reshape(-1)


def leave_one_out(spec: rlhf.LeaveOneOut, returns_B: jax.Array) -> jax.Array:
    """Returns the advantages of answers, of which those to one prompt follow each other: RLOO."""
    returns_GK = returns_B.reshape(-1, spec.answers)
    others_GK = (jnp.sum(returns_GK, axis=1, keepdims=True) - returns_GK) / (spec.answers - 1)
    return (returns_GK - others_GK).reshape(-1)


def next_kl_coef(
    spec: rlhf.FixedKl | rlhf.AdaptiveKl, coef: jax.Array, kl: jax.Array, n_rows: int
) -> jax.Array:
    """Returns the KL coefficient after an iteration of n_rows answers with this mean KL (nats)."""
    match spec:
        case rlhf.FixedKl():
            return coef
        case rlhf.AdaptiveKl(target=target, horizon=horizon):
            error = jnp.clip(kl / target - 1, -0.2, 0.2)
            return coef * (1 + error * n_rows / horizon)
