"""Rotary position embedding (Su et al. 2104.09864) and its scalings to longer contexts."""

import math
from typing import assert_never

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config import positions


def frequencies(rotary: positions.Rotary, d_head: int, n_ctx: int) -> tuple[np.ndarray, float]:
    """Returns the angle per position of each pair, float32 (d_head / 2,), and the factor of the
    rotated queries and keys. n_ctx: the model's configured context, which decides LongRoPE's
    factors."""
    base = rotary.theta ** (-np.arange(0, d_head, 2) / d_head)
    scale = 1.0
    match rotary.scaling:
        case None:
            pass
        case positions.LinearScaling(factor=factor):
            base = base / factor
        case positions.Llama31Scaling() as s:
            wavelengths = 2 * math.pi / base
            # 0: scaled whole, 1: unchanged
            unchanged = (s.original_context / wavelengths - s.low_freq_factor) / (
                s.high_freq_factor - s.low_freq_factor
            )
            unchanged = np.clip(unchanged, 0, 1)
            base = (1 - unchanged) * base / s.factor + unchanged * base
        case positions.Yarn() as s:
            low, high = (_yarn_index(rotary, d_head, s, n) for n in (s.beta_fast, s.beta_slow))
            if s.whole_indices:
                low, high = math.floor(low), math.ceil(high)
            low, high = max(low, 0), min(high, d_head - 1)
            ramp = (np.arange(d_head // 2) - low) / max(high - low, 0.001)
            scaled = np.clip(ramp, 0, 1)
            base = scaled * base / s.factor + (1 - scaled) * base
            scale = 0.1 * math.log(s.factor) + 1
        case positions.LongRope() as s:
            factors = s.long_factors if n_ctx > s.original_context else s.short_factors
            base, scale = base / np.array(factors), s.scale
        case _:
            assert_never(rotary.scaling)
    return base.astype(np.float32), scale


def _yarn_index(rotary: positions.Rotary, d_head: int, s: positions.Yarn, rotations: float):
    """The index (a float) of the frequency with so many rotations in the original context."""
    return (
        d_head
        * math.log(s.original_context / (rotations * 2 * math.pi))
        / (2 * math.log(rotary.theta))
    )


def rotate(
    x_BTNH: jax.Array, positions_BT: jax.Array, rotary: positions.Rotary, n_ctx: int
) -> jax.Array:
    """Rotates queries or keys by the angles of their positions, in float32; returned in x's dtype.
    positions_BT: int32, its first dimension may be 1."""
    frequencies_H, scale = frequencies(rotary, x_BTNH.shape[-1], n_ctx)
    angles_BT1H = (positions_BT.astype(jnp.float32)[..., None] * frequencies_H[None, None])[
        :, :, None
    ]
    cos, sin = scale * jnp.cos(angles_BT1H), scale * jnp.sin(angles_BT1H)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)
