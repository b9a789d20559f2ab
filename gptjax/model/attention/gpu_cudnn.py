"""cuDNN's flash attention for NVIDIA GPUs, through jax.nn: the reference with its signature and
its result, but no scores in memory."""

import jax

from gptjax.config import schema
from gptjax.sharding.shapes import shaped


def unsupported_reason(
    pattern: schema.Attention,
    dtype,
    d_head: int,
    has_segments: bool,
    is_aligned: bool,
    is_even: bool,
) -> str:
    """Why cuDNN cannot compute this, or "". is_aligned: there are as many queries as keys;
    is_even: and their number is."""
    if not isinstance(pattern, schema.Dense | schema.Banded):
        return "cuDNN knows no such pattern"
    if dtype.itemsize != 2:
        return f"cuDNN computes in 16 bits, not {dtype}"
    if d_head % 8 or d_head > 128:
        return f"cuDNN wants heads of a multiple of 8 up to 128, not {d_head}"
    if has_segments:
        return "cuDNN keeps no documents apart"
    if not is_aligned:
        return "cuDNN aligns the first query with the first key"
    return "" if is_even else "jax asks cuDNN for no gradient of an odd number of tokens"


@shaped
def attend(
    q_BTNH: jax.Array,
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    pattern: schema.Attention,
    segments_BS: None = None,
    dropout: None = None,
) -> jax.Array:
    """As reference.attend, where `unsupported_reason` has none. On the arrays of one device.
    Blocks outside a band are skipped."""
    window = (pattern.window - 1, 0) if isinstance(pattern, schema.Banded) else None
    return jax.nn.dot_product_attention(
        q_BTNH, k_BSNH, v_BSNH, is_causal=True, local_window_size=window, implementation="cudnn"
    )
