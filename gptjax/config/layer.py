"""The parts of a Transformer layer in which model families differ: norm, heads, MLP. The defaults
are GPT's. model/layers.py computes them."""

from typing import Annotated, Literal

from gptjax.config.record import Bounds, Positive, record

Width = Annotated[int, Bounds(1, 2**24)]
Heads = Annotated[int, Bounds(1, 2**16)]
Coefficient = Annotated[float, Bounds(0, 1e30)]


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


DenseMLP = GELU | SwiGLU | GeGLU | ClampedSwiGLU


@record
class Experts:
    """Mixture of experts: a router, linear in x, scores n_experts MLPs for each token, and the
    outputs of the top_k with the highest scores are summed with weights (Shazeer et al. 1701.06538;
    gpt-oss; Mixtral 2401.04088)."""

    n_experts: Annotated[int, Bounds(1, 2**16)]
    """MLPs of a layer."""
    top_k: Annotated[int, Bounds(1, 2**16)]
    """MLPs that a token passes through."""
    expert: DenseMLP
    """Form and width of one of the MLPs."""
    weights: Literal["chosen", "all"] = "chosen"
    """The softmax of the scores is over the top_k that are chosen, as in gpt-oss and Mixtral, or
    over all experts, so that the weights sum to less than 1, as in Switch Transformer."""
    capacity: Positive | None = None
    """In training an expert takes at most capacity * top_k * n_ctx / n_experts tokens of a row, the
    first that choose it, and adds nothing to the others (Fedus et al. 2101.03961, section 2.2);
    evaluation and generation have no limit. None: no limit in training either (dropless)."""
    balance_loss: Coefficient = 0.01
    """Factor of the balancing loss, n_experts * sum over experts of (share of the choices) * (mean
    softmax over all experts), the mean over layers (Fedus et al. 2101.03961, eq. 4): 1 if all
    experts are chosen alike."""
    z_loss: Coefficient = 0.0
    """Factor of the mean squared logsumexp of the scores (Zoph et al. 2202.08906, eq. 5), which
    keeps them small."""

    def __post_init__(self):
        if self.top_k > self.n_experts:
            raise ValueError(
                f"Experts.top_k={self.top_k} is more than n_experts={self.n_experts}: a token "
                "chooses among those"
            )
        if self.top_k == 1 and self.weights == "chosen" and self.n_experts > 1:
            raise ValueError(
                "Experts.top_k=1 with weights=chosen: the softmax over one score is always 1, from "
                "which the router learns nothing; set weights=all, as in Switch Transformer"
            )


# Fields of Experts that act in training alone.
TRAINING_FIELDS = ("capacity", "balance_loss", "z_loss")

MLP = GELU | SwiGLU | GeGLU | ClampedSwiGLU | Experts
