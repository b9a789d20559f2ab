"""Bytes and FLOPs of learning from a reward by sampling, from the configs alone: its three programs
rollout, score and update."""

import dataclasses
from typing import Any

from gptjax.config import count
from gptjax.config.rlhf import Gae, RewardModel, Rlhf, SeparateValue
from gptjax.config.schema import Config


def programs(policy: Config, task: Rlhf, reward: Config) -> dict[str, Any]:
    """Returns every figure of an iteration by name; bytes over all devices.

    reward: of the reward model, which a separate value function begins with; of a Python function
    that is the policy. Answers attend over their own tokens, text over the context. State is what a
    checkpoint holds: parameters and Adam's moments in float32. The reference, the reward model and
    the sampler's copy of the policy have the dtype of compute, bfloat16 on accelerators."""
    has_value = isinstance(task.advantage, Gae) and isinstance(task.advantage.value, SeparateValue)
    has_reward_model = isinstance(task.reward, RewardModel)
    p, r = policy.model, (reward if has_reward_model else policy).model
    n_policy, n_reward = count.padded_parameters(p), count.padded_parameters(r)
    rows, length = task.batch_rows, task.row_tokens
    tokens = rows * length
    forward, reward_forward = (
        count.forward_flops_per_token(dataclasses.replace(model, n_ctx=length)) for model in (p, r)
    )
    text_forward = count.forward_flops_per_token(p)
    value_forward = reward_forward if has_value else 0.0
    ptx_tokens = 0 if task.ptx is None else rows * task.ptx.rows_per_answer * p.n_ctx
    dtype = count.kv_cache_dtype(policy)
    element = 4 if policy.compute.dtype == "float32" else 2
    n_passes = task.inner_epochs
    return {
        "rows": rows,
        "row_tokens": length,
        "minibatches": task.minibatches * task.inner_epochs,
        "policy_parameters": n_policy,
        "reward_parameters": n_reward if has_reward_model else 0,
        "value_parameters": n_reward if has_value else 0,
        "policy_state_bytes": count.state_bytes(p),
        "value_state_bytes": count.state_bytes(r) if has_value else 0,
        "ema_bytes": 0 if task.ema is None else 4 * n_policy,
        "reference_bytes": element * n_policy,
        "reward_bytes": element * n_reward if has_reward_model else 0,
        "sampler_bytes": element * n_policy,
        "kv_cache_dtype": dtype,
        "kv_cache_bytes_per_row": count.kv_cache_bytes(p, length, dtype),
        "kv_cache_bytes": rows * count.kv_cache_bytes(p, length, dtype),
        "gradient_bytes": count.gradient_bytes(p) + (count.gradient_bytes(r) if has_value else 0),
        "row_bytes": count.activation_bytes(policy, 1, "bfloat16"),
        "rollout_flops": tokens * forward,
        "score_flops": tokens * (2 * forward + value_forward)
        + (tokens * reward_forward if has_reward_model else 0),
        "update_flops": n_passes
        * 3
        * (tokens * (forward + value_forward) + ptx_tokens * text_forward),
        "rollout_tokens": rows * task.answer_tokens,
        "ptx_tokens": ptx_tokens * n_passes,
        "iterations": task.episodes // rows,
    }
