"""cuDNN's flash attention for NVIDIA GPUs, through jax.nn."""

import jax

from gptjax.config import schema
from gptjax.model.attention import scores
from gptjax.sharding.shapes import shaped


def unsupported_reason(
    pattern: schema.Attention,
    dtype,
    d_head: int,
    has_segments: bool,
    is_aligned: bool,
    is_even: bool,
    is_plain: bool,
) -> str:
    """Why cuDNN cannot compute this case, or "". is_aligned: as many queries as keys. is_even: an
    even number of them. is_plain: neither softcap nor sinks.
    """
    if not is_plain:
        return "cuDNN has neither softcap nor sinks"
    if not isinstance(pattern, schema.Dense | schema.Banded):
        return "cuDNN has no such pattern"
    if dtype.itemsize != 2:
        return f"cuDNN computes in 16 bits, not {dtype}"
    if d_head % 8 or d_head > 128:
        return f"cuDNN needs a head size that is a multiple of 8, at most 128, not {d_head}"
    if has_segments:
        return "cuDNN cannot keep documents apart"
    if not is_aligned:
        return "cuDNN aligns the first query with the first key"
    return "" if is_even else "jax has no cuDNN gradient for an odd number of tokens"


@shaped
def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    pattern: schema.Attention,
    segments_BS: None = None,
    dropout: None = None,
    softmax: scores.Softmax = scores.PLAIN,
) -> jax.Array:
    """reference.attend on the arrays of one device, where `unsupported_reason` returns "". Blocks
    outside a band are skipped.
    """
    assert softmax.is_plain
    window = (pattern.window - 1, 0) if isinstance(pattern, schema.Banded) else None
    return jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, is_causal=True, local_window_size=window, implementation="cudnn"
    )
