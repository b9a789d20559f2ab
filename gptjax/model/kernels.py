"""Which kernel computes attention: each has the reference's signature and result, and differs in speed and memory."""

import jax

from gptjax.config import schema
from gptjax.mesh import rules
from gptjax.model import attention, blocks, context

KERNELS = {"reference": attention.attend, "blocks": blocks.attend}


def attend(
    kernel: str,
    place: rules.Placement,
    q_BTNH: jax.Array,
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    pattern: schema.Attention,
    segments_BS: jax.Array | None = None,
    dropout: tuple[jax.Array, float] | None = None,
) -> jax.Array:
    """The reference's result (see attention.attend) by the kernel of that name, on arrays that lie as `place` says."""
    if place.axes("T"):
        return context.attend(KERNELS[kernel], place, q_BTNH, k_BSNH, v_BSNH, pattern, segments_BS, dropout)
    return KERNELS[kernel](q_BTNH, k_BSNH, v_BSNH, pattern, segments_BS, dropout)
