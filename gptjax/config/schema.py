"""The dataclasses that describe a run, and their validation; those of its data are in data.py.

All are frozen and keyword-only: `dataclasses.replace` and `overrides.override` are the only ways to vary one. Alternatives are
unions of small dataclasses (`Dense() | Banded(window=256)`), each consumed by one `match`. Derived values are properties.
Units: batch, warm-up, decay and length are in tokens, as in the GPT-3 paper; steps derive. `every_*` is a period in steps.
Every ValueError says what was given, what is allowed and what to do.
"""

from typing import Literal

from gptjax.config.data import Data
from gptjax.config.record import fraction, positive, record
from gptjax.config.task import Task

# --- attention patterns: which keys may a query see? The predicates are in model/patterns.py --------------------------


@record
class Dense:
    """Every key up to the query itself."""


@record
class Banded:
    """The last `window` keys, the query's own included (OpenAI's `local` mode: q - k < window). GPT-3 section 2.1."""

    window: int

    def __post_init__(self):
        positive(self, "window")


@record
class Strided:
    """Sparse Transformer's (1904.10509) strided attention, both heads merged: the last `stride` keys, and every `stride`-th before."""

    stride: int

    def __post_init__(self):
        positive(self, "stride")


@record
class Fixed:
    """Sparse Transformer's fixed attention, both heads merged: the query's own block, and the last `summary` keys of each earlier block."""

    block: int
    summary: int

    def __post_init__(self):
        positive(self, "block", "summary")
        if self.summary > self.block:
            raise ValueError(f"Fixed.summary={self.summary} is more than block={self.block}: a summary is the last columns of a block")


Attention = Dense | Banded | Strided | Fixed


# --- model -------------------------------------------------------------------------------------------------------------


@record
class Init:
    """Standard deviations of the normal initializers. Biases start at 0, layer-norm gains at 1."""

    weight: float = 0.02
    token: float = 0.02
    position: float = 0.02
    residual: Literal["flat", "depth_scaled"] = "flat"  # depth_scaled: the two output projections of a layer / sqrt(2 n_layers)

    def __post_init__(self):
        positive(self, "weight", "token", "position")


@record
class Dropout:
    """Probabilities: on the summed embeddings, on the attention weights, at the end of each residual branch."""

    embedding: float = 0.0
    attention: float = 0.0
    residual: float = 0.0

    def __post_init__(self):
        fraction(self, "embedding", "attention", "residual")


@record
class Model:
    """A decoder-only Transformer with learned positions, biases everywhere, and the output tied to the token embedding."""

    n_layers: int
    n_heads: int
    d_model: int
    n_vocab: int
    n_ctx: int
    attention: tuple[Attention, ...] = (Dense(),)  # one period of the layer pattern, repeated over depth
    norm: Literal["pre", "post"] = "pre"  # pre: GPT-2 and GPT-3, with a final layer norm; post: GPT-1, without
    gelu: Literal["tanh", "erf", "sigmoid"] = "tanh"  # sigmoid: x * sigmoid(1.702 x)
    init: Init = Init()
    dropout: Dropout = Dropout()

    def __post_init__(self):
        positive(self, "n_layers", "n_heads", "d_model", "n_vocab", "n_ctx")
        if self.d_model % self.n_heads:
            near = [n for n in range(1, self.d_model + 1) if self.d_model % n == 0]
            near = sorted(sorted(near, key=lambda n: abs(n - self.n_heads))[:4])
            raise ValueError(
                f"model.n_heads={self.n_heads} does not divide model.d_model={self.d_model}; heads that do: {', '.join(map(str, near))}"
            )
        if not self.attention:
            raise ValueError("model.attention=(): give at least one pattern, for example Dense()")
        if self.n_layers % len(self.attention):
            raise ValueError(
                f"model.n_layers={self.n_layers} is not a whole number of periods of model.attention, which has {len(self.attention)} "
                f"layers; change one of them"
            )

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def d_ff(self) -> int:
        """Always four times the width, in all three papers."""
        return 4 * self.d_model

    @property
    def n_periods(self) -> int:
        return self.n_layers // len(self.attention)

    @property
    def n_vocab_padded(self) -> int:
        """Rows of the token table: n_vocab up to a multiple of 128, so that it shards; the rest is masked in the loss."""
        return -(-self.n_vocab // 128) * 128


# --- training ----------------------------------------------------------------------------------------------------------


@record
class Cosine:
    """Linear from 0 to `peak` over warmup_tokens, then cosine to floor * peak at decay_tokens, then constant."""

    peak: float
    warmup_tokens: int
    decay_tokens: int
    floor: float = 0.0

    def __post_init__(self):
        positive(self, "peak", "decay_tokens")
        if not 0 <= self.warmup_tokens < self.decay_tokens:
            raise ValueError(
                f"Cosine.warmup_tokens={self.warmup_tokens:,} must lie from 0 up to decay_tokens={self.decay_tokens:,}; lower it"
            )
        if not 0 <= self.floor <= 1:
            raise ValueError(f"Cosine.floor={self.floor}: give a fraction of the peak from 0 to 1")


@record
class Linear:
    """Linear from 0 to `peak` over warmup_tokens, then linear to 0 at decay_tokens: GPT-1's fine-tuning."""

    peak: float
    warmup_tokens: int
    decay_tokens: int

    def __post_init__(self):
        positive(self, "peak", "decay_tokens")
        if not 0 <= self.warmup_tokens < self.decay_tokens:
            raise ValueError(
                f"Linear.warmup_tokens={self.warmup_tokens:,} must lie from 0 up to decay_tokens={self.decay_tokens:,}; lower it"
            )


@record
class Constant:
    """Linear from 0 to `peak` over warmup_tokens, then constant."""

    peak: float
    warmup_tokens: int = 0

    def __post_init__(self):
        positive(self, "peak")


Schedule = Cosine | Linear | Constant


@record
class Ramp:
    """The batch grows linearly from start_tokens to batch_tokens over the first over_tokens (GPT-3 Appendix B)."""

    start_tokens: int
    over_tokens: int

    def __post_init__(self):
        positive(self, "start_tokens", "over_tokens")


@record
class AdamW:
    """Adam with decoupled weight decay on weight matrices, embeddings and positions; biases and gains are exempt."""

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0  # global norm of the gradient; None: no clipping

    def __post_init__(self):
        fraction(self, "b1", "b2")
        positive(self, "eps")
        if self.weight_decay < 0:
            raise ValueError(f"AdamW.weight_decay={self.weight_decay}: give 0 or more")
        if self.clip_norm is not None:
            positive(self, "clip_norm")


@record
class Train:
    """How long, how wide a batch, and how the parameters move."""

    total_tokens: int
    batch_tokens: int
    schedule: Schedule
    optimizer: AdamW = AdamW()
    ramp: Ramp | None = None
    steps: int | None = None  # stop after so many steps; the schedule stays that of total_tokens. None: at total_tokens
    microbatch_rows: int | None = None  # rows whose activations are held at once, over all devices, at most; None: what fits memory
    skips_allowed: int = 10  # non-finite updates in a row before the run stops

    def __post_init__(self):
        positive(self, "total_tokens", "batch_tokens", "skips_allowed")
        for name in ("steps", "microbatch_rows"):
            if getattr(self, name) is not None:
                positive(self, name)
        if self.ramp and self.ramp.start_tokens > self.batch_tokens:
            raise ValueError(
                f"train.ramp.start_tokens={self.ramp.start_tokens:,} is more than train.batch_tokens={self.batch_tokens:,}; lower it"
            )


# --- how it is computed, where, and what is shown ------------------------------------------------------------------------


# What a rematerialised layer may keep, beside its input, and in how many d_model a token; names are joined by "+" in compute.remat.
SAVED = {
    "attention": 1,  # what the heads have read, before the output projection
    "qkv": 3,  # queries, keys and values
    "mid": 1,  # the residual stream between attention and MLP
    "up": 4,  # hidden units before their GELU
}


@record
class Compute:
    """Choices that change speed and memory, not the mathematics."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of activations; auto: bfloat16 on TPU and GPU, float32 on CPU
    remat: str = "none"  # full: a layer's backward pass computes it again from its input; none: nothing; else what it need not: see SAVED
    attention: Literal["auto", "reference", "blocks", "splash", "cudnn", "flash"] = "auto"  # of model/kernels.py; auto: by platform
    layers: Literal["auto", "scan", "unroll"] = "auto"  # auto: scan, but unroll on CPU where nothing is rematerialised

    def __post_init__(self):
        if self.remat not in ("none", "full") and (unknown := set(self.remat.split("+")) - set(SAVED)):
            raise ValueError(
                f"compute.remat={self.remat}: {', '.join(map(repr, sorted(unknown)))} cannot be kept; give none, full, or what a layer "
                f"keeps, of {', '.join(SAVED)}, joined by +"
            )

    @property
    def kept(self) -> tuple[str, ...]:
        """Of SAVED, what a rematerialised layer keeps."""
        return tuple(name for name in SAVED if self.remat == "none" or name in self.remat.split("+"))


@record
class Mesh:
    """Devices along each mesh axis; -1, at most once, takes all that are left."""

    data: int = 1  # each has its rows, and a copy of the state: for the slow network between slices
    fsdp: int = -1  # each has its rows, and a part of the state
    tensor: int = 1  # share heads, MLP and vocabulary, with sharding=fsdp_tensor
    context: int = 1  # each has its part of every row, for long ones
    sharding: Literal["fsdp", "fsdp_tensor"] = "fsdp"  # of mesh/rules.py: which dimension lies along which axis

    def __post_init__(self):
        sizes = {a: getattr(self, a) for a in ("data", "fsdp", "tensor", "context")}
        for axis, n in sizes.items():
            if n < 1 and n != -1:
                raise ValueError(f"mesh.{axis}={n}: give a number of devices above 0, or -1 for all that are left")
        if sum(n == -1 for n in sizes.values()) > 1:
            raise ValueError("mesh: only one axis may be -1 (all devices that are left); give the others a number")


@record
class Loop:
    """What happens beside the step, and how often."""

    every_log: int = 10
    every_eval: int = 1000
    eval_rows: int = 64  # validation rows per evaluation: the same ones every time
    every_save: int = 1000
    keep_last: int = 3
    every_keep: int | None = None  # checkpoints at multiples of this step are kept for ever
    every_sample: int | None = None
    sample_prompt: str = "\n"
    sample_tokens: int = 64
    hang_seconds: float | None = 3600.0  # without a step, a microbatch, an evaluation or a save: then the program ends

    def __post_init__(self):
        positive(self, "every_log", "every_eval", "eval_rows", "every_save", "keep_last", "sample_tokens")
        for name in ("every_keep", "every_sample", "hang_seconds"):
            if getattr(self, name) is not None:
                positive(self, name)


@record
class Config:
    """A whole run. The resolved value is written into the run directory and every checkpoint."""

    name: str
    model: Model
    data: Data
    train: Train
    compute: Compute = Compute()
    mesh: Mesh = Mesh()
    loop: Loop = Loop()
    seed: int = 0
    task: Task | None = None  # fine-tuning: a row is then an example of it, padded to n_ctx

    def __post_init__(self):
        if self.train.batch_tokens % self.model.n_ctx:
            near = max(1, round(self.train.batch_tokens / self.model.n_ctx)) * self.model.n_ctx
            raise ValueError(
                f"train.batch_tokens={self.train.batch_tokens:,} is not a whole number of rows of model.n_ctx={self.model.n_ctx:,} tokens; "
                f"the nearest that is: {near:,}"
            )
        if self.train.microbatch_rows is not None and self.batch_rows % self.train.microbatch_rows:
            raise ValueError(f"train.microbatch_rows={self.train.microbatch_rows} does not divide the batch of {self.batch_rows} rows")

    @property
    def batch_rows(self) -> int:
        """Rows of n_ctx tokens in a full batch."""
        return self.train.batch_tokens // self.model.n_ctx
