"""The model of a config: its sizes and its form. attention.py, positions.py and layer.py have the
alternatives of its fields."""

import dataclasses
from typing import Annotated, Literal

from gptjax.config.attention import Attention, Context, Dense
from gptjax.config.layer import (
    GELU,
    MLP,
    TRAINING_FIELDS,
    AttentionHeads,
    DenseMLP,
    Experts,
    LayerNorm,
    Norm,
)
from gptjax.config.positions import Learned, LongRope, Position, Rotary
from gptjax.config.record import Bounds, Fraction, Positive, record


@record
class Init:
    """Standard deviations of the normal initializers. Biases start at 0, layer norm gains at 1."""

    weight: Positive = 0.02
    """Standard deviation of all weight matrices."""
    token: Positive = 0.02
    """Standard deviation of the token table."""
    position: Positive = 0.02
    """Standard deviation of the position table."""
    residual: Literal["flat", "depth_scaled"] = "flat"
    """depth_scaled: the two output projections of a layer are divided by sqrt(2 n_layers) (GPT-2
    section 2.3)."""
    longer_positions: Literal["refuse", "repeat", "interpolate"] = "refuse"
    """How a run that begins with weights (train --init) of a shorter n_ctx gets more learned
    positions. repeat: their rows again and again, as Longformer (2004.05150, section 5);
    interpolate: position i is theirs at i times the shorter n_ctx / n_ctx, interpolated linearly
    (Chen et al. 2306.15595, for tables); refuse: not at all."""


@record
class Dropout:
    """Dropout probabilities: on the summed embeddings, on the attention weights, and at the end of
    each residual branch.
    """

    embedding: Fraction = 0.0
    """On the sum of token and position embeddings."""
    attention: Fraction = 0.0
    """On the attention weights, after the softmax."""
    residual: Fraction = 0.0
    """At the end of each residual branch."""


@record
class Model:
    """A decoder-only Transformer. The defaults of the fields from `positions` on are GPT-1's to
    GPT-3's: learned positions, biases everywhere, and output weights tied to the token embedding.
    """

    n_layers: Annotated[int, Bounds(1, 10_000)]
    """Transformer layers."""
    n_heads: Annotated[int, Bounds(1, 2**16)]
    """Attention heads of a layer; divides d_model unless heads.d_head is given."""
    d_model: Annotated[int, Bounds(1, 2**20)]
    """Width of the residual stream."""
    n_vocab: Annotated[int, Bounds(1, 10**8)]
    """Token ids: those of the tokenizer. The table is stored with rows up to a multiple of 128."""
    n_ctx: Context
    """Tokens of a row: the longest context."""
    attention: tuple[Attention, ...] = (Dense(),)
    """One period of the layers' attention patterns, repeated over depth; the last period may be
    incomplete."""
    norm: Literal["pre", "post", "both"] = "pre"
    """pre: a norm before each branch and after the last layer, as GPT-2 and GPT-3; post: after
    each residual sum, as GPT-1; both: before and after each branch and after the last layer, as
    Gemma 2."""
    gelu: Literal["tanh", "erf", "sigmoid"] = "tanh"
    """Form of the GELU. tanh: the approximation of all three papers' code; erf: exact; sigmoid: x *
    sigmoid(1.702 x)."""
    init: Init = Init()
    """Standard deviations of the initial parameters."""
    dropout: Dropout = Dropout()
    """Dropout probabilities in training."""
    positions: tuple[Position, ...] = (Learned(),)
    """Position encoding of all layers or, if there are several, of each layer of a period."""
    norm_type: Norm = LayerNorm()
    """What a norm computes."""
    heads: AttentionHeads = AttentionHeads()
    """Key and value heads, their width, scale, softcap, norm and sinks."""
    mlp: MLP = GELU()
    """The MLP of a layer."""
    biases: Literal["all", "qkv", "none"] = "all"
    """Which matmuls have a bias: all but the output logits; those of queries, keys and values;
    none. A LayerNorm has one with all."""
    tied_output: bool = True
    """The output logits use the token table; otherwise a table of their own."""
    embedding_scale: Positive = 1.0
    """Factor of the token embeddings: sqrt(d_model) for Gemma, 10 for Phi-3-small."""
    logits_scale: Positive = 1.0
    """Factor of the output logits; Phi-3-small: 1/8."""
    logits_softcap: Positive | None = None
    """Logits y become logits_softcap * tanh(y / logits_softcap), as in Gemma 2; None: unchanged."""

    def __post_init__(self):
        if self.heads.d_head is None and self.d_model % self.n_heads:
            nearest = [n for n in range(1, self.d_model + 1) if self.d_model % n == 0]
            nearest = sorted(sorted(nearest, key=lambda n: abs(n - self.n_heads))[:4])
            raise ValueError(
                f"model.n_heads={self.n_heads} does not divide model.d_model={self.d_model}; heads "
                f"that do: {', '.join(map(str, nearest))}"
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"model.heads.n_kv_heads={self.n_kv_heads} does not divide model.n_heads="
                f"{self.n_heads}: each is shared by as many query heads"
            )
        if not self.attention:
            raise ValueError("model.attention=(): give at least one pattern, for example Dense()")
        if len(self.positions) not in (1, len(self.attention)):
            raise ValueError(
                f"model.positions has {len(self.positions)} encodings for a period of "
                f"{len(self.attention)} layers; give one, or one for each layer of the period"
            )
        if len(self.positions) > 1 and Learned() in self.positions:
            raise ValueError(
                "model.positions: Learned() is added to the embeddings, for all layers; give it "
                "alone, or Rotary for each layer"
            )
        rotary = [position for position in self.positions if isinstance(position, Rotary)]
        if rotary and self.d_head % 2:
            raise ValueError(
                f"model.positions=Rotary pairs the elements of a head, but d_head={self.d_head} is "
                "odd; choose an even one"
            )
        for position in rotary:
            match position.scaling:
                case LongRope(long_factors=factors) if len(factors) != self.d_head // 2:
                    raise ValueError(
                        f"LongRope has {len(factors)} factors for {self.d_head // 2} frequencies; "
                        "give d_head / 2"
                    )

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.heads.d_head or self.d_model // self.n_heads

    @property
    def n_kv_heads(self) -> int:
        """Key and value heads of a layer."""
        return self.heads.n_kv_heads or self.n_heads

    def without_training(self) -> "Model":
        """The model with the default values of what acts in training alone: its parameters compute
        the same."""
        mlp = self.mlp
        if isinstance(mlp, Experts):
            defaults = {f.name: f.default for f in dataclasses.fields(mlp)}  # type: ignore[arg-type]
            mlp = dataclasses.replace(mlp, **{name: defaults[name] for name in TRAINING_FIELDS})
        return dataclasses.replace(self, init=Init(), dropout=Dropout(), mlp=mlp)

    @property
    def expert(self) -> DenseMLP:
        """The MLP of a layer, or one of its experts."""
        return self.mlp.expert if isinstance(self.mlp, Experts) else self.mlp

    @property
    def d_ff(self) -> int:
        """Width of the MLP, or of one expert: four times d_model in the GPT papers."""
        return self.expert.d_ff or 4 * self.d_model

    @property
    def n_periods(self) -> int:
        """Number of whole periods of the attention pattern."""
        return self.n_layers // len(self.attention)

    @property
    def n_remainder(self) -> int:
        """Layers after the last whole period: the first ones of a period."""
        return self.n_layers % len(self.attention)

    @property
    def n_vocab_padded(self) -> int:
        """Rows of the token table: n_vocab rounded up to a multiple of 128, so that it can be
        sharded; the loss masks the rest.
        """
        return -(-self.n_vocab // 128) * 128

    def position(self, layer: int) -> Position:
        """The position encoding of layer number `layer`, or of that of a period."""
        return self.positions[layer % len(self.attention) % len(self.positions)]


_NAMES = [field.name for field in dataclasses.fields(Model)]  # type: ignore[arg-type]
# Fields in which families after GPT-3 differ; their defaults are GPT's.
FAMILY_FIELDS = tuple(_NAMES[_NAMES.index("positions") :])
