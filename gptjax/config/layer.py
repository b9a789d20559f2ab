"""The parts of a Transformer layer in which model families differ: norm, heads, MLP. The defaults
are GPT's. model/layers.py computes them."""

from typing import Annotated

from gptjax.config.record import Bounds, Positive, record

Width = Annotated[int, Bounds(1, 2**24)]
Heads = Annotated[int, Bounds(1, 2**16)]


@record
class LayerNorm:
    """Layer normalization: mean subtracted, divided by the standard deviation, times a gain, plus a
    bias unless model.biases is none (Ba et al. 1607.06450)."""

    eps: Positive = 1e-5
    """Added to the variance."""


@record
class RMSNorm:
    """Division by the root mean square, times a gain (Zhang and Sennrich 1910.07467)."""

    eps: Positive = 1e-5
    """Added to the mean square."""
    unit_offset: bool = False
    """The gain is 1 + w, with w from 0, as in Gemma: weight decay then pulls it to 1."""


Norm = LayerNorm | RMSNorm


@record
class AttentionHeads:
    """Everything about the heads of attention but their number: GPT's by default."""

    n_kv_heads: Heads | None = None
    """Key and value heads, each shared by n_heads / n_kv_heads query heads (Ainslie et al.
    2305.13245); None: n_heads."""
    d_head: Width | None = None
    """Width of one head; None: d_model / n_heads."""
    query_scalar: Positive | None = None
    """Scores are divided by its square root; None: d_head."""
    softcap: Positive | None = None
    """Scores s become softcap * tanh(s / softcap), as in Gemma 2; None: unchanged."""
    qk_norm: bool = False
    """Normalize each head of queries and keys, before rotary positions (Henry et al. 2010.04245),
    as in Gemma 3."""
    sinks: bool = False
    """A learned score for each head that takes part in the softmax and has no value, as in
    gpt-oss."""


# --- MLP ------------------------------------------------------------------------------------------


@record
class GELU:
    """d_model -> d_ff -> d_model, with a GELU in the form of model.gelu between: GPT's."""

    d_ff: Width | None = None
    """Hidden units; None: four times d_model, as in the GPT papers."""


@record
class SwiGLU:
    """silu(gate(x)) * up(x), then d_ff -> d_model (Shazeer 2002.05202): Llama's and Phi-3's."""

    d_ff: Width
    """Hidden units of each of the two branches."""


@record
class GeGLU:
    """gelu(gate(x)) * up(x), then d_ff -> d_model (Shazeer 2002.05202), the GELU in the form of
    model.gelu: Gemma's."""

    d_ff: Width
    """Hidden units of each of the two branches."""


@record
class ClampedSwiGLU:
    """g * sigmoid(1.702 g) * (u + 1), with g = min(gate(x), limit) and u = up(x) between -limit and
    limit, then d_ff -> d_model: gpt-oss's (limit 7) and, by the name GEGELU, Phi-3-small's (20).
    """

    d_ff: Width
    """Hidden units of each of the two branches."""
    limit: Positive
    """Bound of the two branches."""


MLP = GELU | SwiGLU | GeGLU | ClampedSwiGLU
