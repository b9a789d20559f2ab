"""The dataclasses that describe a run, and their validation; those of its data are in data.py.

All are frozen and keyword-only: `dataclasses.replace` and `overrides.override` are the only ways to
vary one. Alternatives are unions of small dataclasses (`Dense() | Banded(window=256)`), each
consumed by one `match`. Derived values are properties. Units: batch, warm-up, decay and length are
in tokens, as in the GPT-3 paper; steps derive. `every_*` is a period in steps. Every number has its
bounds, in its type: far beyond any use, so that a slip is refused and nothing counts to 10^18.
Every ValueError says what was given, what is allowed and what to do.
"""

from typing import Annotated, Literal

from gptjax.config import parse
from gptjax.config.classification import ClassificationTask
from gptjax.config.data import Data
from gptjax.config.record import MAX_ROWS, Bounds, Fraction, Positive, Rows, Seed, Steps, record

Context = Annotated[int, Bounds(1, 2**24)]  # tokens of a row
Tokens = Annotated[int, Bounds(1, 10**18)]
WarmUp = Annotated[int, Bounds(0, 10**18)]
Devices = Annotated[int, Bounds(-1, 10**6)]

# --- attention patterns: which keys may a query see? The predicates are in model/attention/patterns


@record
class Dense:
    """Every key up to the query itself."""


@record
class Banded:
    """The last `window` keys, the query's own included (OpenAI's `local` mode: q - k < window).
    GPT-3 section 2.1."""

    window: Context


@record
class Strided:
    """Sparse Transformer's (1904.10509) strided attention, both heads merged: the last `stride`
    keys, and every `stride`-th before."""

    stride: Context


@record
class Fixed:
    """Sparse Transformer's fixed attention, both heads merged: the query's own block, and the
    last `summary` keys of each earlier block."""

    block: Context
    summary: Context

    def __post_init__(self):
        if self.summary > self.block:
            raise ValueError(
                f"Fixed.summary={self.summary} is more than block={self.block}: a summary is the "
                "last columns of a block"
            )


Attention = Dense | Banded | Strided | Fixed


# --- model ----------------------------------------------------------------------------------------


@record
class Init:
    """Standard deviations of the normal initializers. Biases start at 0, layer-norm gains at 1."""

    weight: Positive = 0.02
    token: Positive = 0.02
    position: Positive = 0.02
    # depth_scaled: the two output projections of a layer / sqrt(2 n_layers)
    residual: Literal["flat", "depth_scaled"] = "flat"


@record
class Dropout:
    """Probabilities: on the summed embeddings, on the attention weights, at the end of each
    residual branch."""

    embedding: Fraction = 0.0
    attention: Fraction = 0.0
    residual: Fraction = 0.0


@record
class Model:
    """A decoder-only Transformer with learned positions, biases everywhere, and the output tied
    to the token embedding."""

    n_layers: Annotated[int, Bounds(1, 10_000)]
    n_heads: Annotated[int, Bounds(1, 2**16)]
    d_model: Annotated[int, Bounds(1, 2**20)]
    n_vocab: Annotated[int, Bounds(1, 10**8)]
    n_ctx: Context
    # one period of the layer pattern, repeated over depth
    attention: tuple[Attention, ...] = (Dense(),)
    # pre: GPT-2 and GPT-3, with a final layer norm; post: GPT-1, without
    norm: Literal["pre", "post"] = "pre"
    gelu: Literal["tanh", "erf", "sigmoid"] = "tanh"  # sigmoid: x * sigmoid(1.702 x)
    init: Init = Init()
    dropout: Dropout = Dropout()

    def __post_init__(self):
        if self.d_model % self.n_heads:
            nearest = [n for n in range(1, self.d_model + 1) if self.d_model % n == 0]
            nearest = sorted(sorted(nearest, key=lambda n: abs(n - self.n_heads))[:4])
            raise ValueError(
                f"model.n_heads={self.n_heads} does not divide model.d_model={self.d_model}; heads "
                f"that do: {', '.join(map(str, nearest))}"
            )
        if not self.attention:
            raise ValueError("model.attention=(): give at least one pattern, for example Dense()")
        if self.n_layers % len(self.attention):
            raise ValueError(
                f"model.n_layers={self.n_layers} is not a whole number of periods of "
                f"model.attention, which has {len(self.attention)} "
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
        """Rows of the token table: n_vocab up to a multiple of 128, so that it shards; the rest
        is masked in the loss."""
        return -(-self.n_vocab // 128) * 128


# --- training -------------------------------------------------------------------------------------


@record
class Cosine:
    """Linear from 0 to `peak` over warmup_tokens, then cosine to floor * peak at decay_tokens,
    then constant."""

    peak_lr: Positive
    warmup_tokens: WarmUp
    decay_tokens: Tokens
    final_fraction: Annotated[float, Bounds(0, 1)] = 0.0

    def __post_init__(self):
        if self.warmup_tokens >= self.decay_tokens:
            raise ValueError(
                f"Cosine.warmup_tokens={self.warmup_tokens:,} must lie from 0 up to "
                f"decay_tokens={self.decay_tokens:,}; lower it"
            )


@record
class Linear:
    """Linear from 0 to `peak` over warmup_tokens, then linear to 0 at decay_tokens: GPT-1's
    fine-tuning."""

    peak_lr: Positive
    warmup_tokens: WarmUp
    decay_tokens: Tokens

    def __post_init__(self):
        if self.warmup_tokens >= self.decay_tokens:
            raise ValueError(
                f"Linear.warmup_tokens={self.warmup_tokens:,} must lie from 0 up to "
                f"decay_tokens={self.decay_tokens:,}; lower it"
            )


@record
class Constant:
    """Linear from 0 to `peak` over warmup_tokens, then constant."""

    peak_lr: Positive
    warmup_tokens: WarmUp = 0


Schedule = Cosine | Linear | Constant


@record
class Ramp:
    """The batch grows linearly from start_tokens to batch_tokens over the first over_tokens
    (GPT-3 Appendix B)."""

    start_tokens: Tokens
    over_tokens: Tokens


@record
class AdamW:
    """Adam with decoupled weight decay on weight matrices, embeddings and positions; biases and
    gains are exempt.

    bias_correction: "moments" divides each moment by its own 1 - b^t (Adam's Algorithm 1, and
    AdamW's); "rate" multiplies the rate by sqrt(1 - b2^t) / (1 - b1^t), and so the decay too,
    and adds eps to the moment as it is (GPT-1's released opt.py)."""

    b1: Fraction = 0.9
    b2: Fraction = 0.95
    eps: Positive = 1e-8
    weight_decay: Annotated[float, Bounds(0, 1e6)] = 0.1
    clip_norm: Positive | None = 1.0  # global norm of the gradient; None: no clipping
    bias_correction: Literal["moments", "rate"] = "moments"


@record
class Train:
    """How long, how wide a batch, and how the parameters move."""

    total_tokens: Tokens
    batch_tokens: Tokens
    schedule: Schedule
    optimizer: AdamW = AdamW()
    batch_ramp: Ramp | None = None
    # stop after so many steps; the schedule stays that of total_tokens. None: at total_tokens
    steps: Steps | None = None
    # rows whose activations are held at once, over all devices, at most; None: what fits memory
    microbatch_rows: Rows | None = None
    max_nonfinite_steps: Steps = 10  # non-finite updates in a row before the run stops

    def __post_init__(self):
        if self.batch_ramp and self.batch_ramp.start_tokens > self.batch_tokens:
            raise ValueError(
                f"train.batch_ramp.start_tokens={self.batch_ramp.start_tokens:,} is more than "
                f"train.batch_tokens={self.batch_tokens:,}; lower it"
            )


# --- how it is computed, where, and what is shown -------------------------------------------------


# What a rematerialised layer may keep, beside its input, and in how many d_model a token; names are
# joined by "+" in compute.remat.
REMAT_NAMES = {
    "attention": 1,  # what the heads have read, before the output projection
    "qkv": 3,  # queries, keys and values
    "mid": 1,  # the residual stream between attention and MLP
    "up": 4,  # hidden units before their GELU
}


@record
class Compute:
    """Choices that change speed and memory, not the mathematics."""

    # of activations; auto: bfloat16 on TPU and GPU, float32 on CPU
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    # full: a layer's backward pass computes it again from its input; none: nothing; else what it
    # need not: REMAT_NAMES
    remat: str = "none"
    # of model/attention/dispatch.py; auto: by platform
    attention_kernel: Literal["auto", "reference", "blocks", "splash", "cudnn", "flash"] = "auto"
    # True: one lax.scan over the periods of layers; False: unrolled; None: a scan, but unrolled on
    # CPU where nothing is rematerialized.
    scan_layers: bool | None = None

    def __post_init__(self):
        if self.remat not in ("none", "full") and (
            unknown := set(self.remat.split("+")) - set(REMAT_NAMES)
        ):
            words = ", ".join(map(parse.quote, sorted(unknown)[:3]))
            raise ValueError(
                f"compute.remat={parse.one_line(self.remat, 100)}: {words} cannot be kept; give "
                "none, full, or what a layer keeps, of "
                f"{', '.join(REMAT_NAMES)}, joined by +"
            )

    @property
    def saved_names(self) -> tuple[str, ...]:
        """Of REMAT_NAMES, what a rematerialised layer keeps."""
        return tuple(
            name for name in REMAT_NAMES if self.remat == "none" or name in self.remat.split("+")
        )


@record
class Mesh:
    """Devices along each mesh axis; -1, at most once, takes all that are left."""

    # each has its rows, and a copy of the state: for the slow network between slices
    data: Devices = 1
    fsdp: Devices = -1  # each has its rows, and a part of the state
    tensor: Devices = 1  # share heads, MLP and vocabulary, with sharding=fsdp_tensor
    context: Devices = 1  # each has its part of every row, for long ones
    # of sharding/rules.py: which dimension lies along which axis
    sharding: Literal["fsdp", "fsdp_tensor"] = "fsdp"

    def __post_init__(self):
        sizes = {a: getattr(self, a) for a in ("data", "fsdp", "tensor", "context")}
        for axis, n in sizes.items():
            if n == 0:
                raise ValueError(
                    f"mesh.{axis}={n}: give a number of devices above 0, or -1 for all that are "
                    "left"
                )
        if sum(n == -1 for n in sizes.values()) > 1:
            raise ValueError(
                "mesh: only one axis may be -1 (all devices that are left); give the others a "
                "number"
            )


@record
class Loop:
    """What happens beside the step, and how often."""

    every_log: Steps = 10
    every_eval: Steps = 1000
    eval_rows: Rows = 64  # validation rows per evaluation: the same ones every time
    every_save: Steps = 1000
    keep_last: Steps = 3
    every_keep: Steps | None = None  # checkpoints at multiples of this step are kept for ever
    every_sample: Steps | None = None
    sample_prompt: str = "\n"
    sample_tokens: Context = 64
    # without a step, microbatch, evaluation or save: then it ends
    hang_seconds: Annotated[float, Bounds(0.01, 1e9)] | None = 3600.0


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
    seed: Seed = 0
    # fine-tuning: a row is then an example of it, padded to n_ctx
    task: ClassificationTask | None = None

    def __post_init__(self):
        if (
            "/" in self.name
            or self.name in ("", ".", "..")
            or parse.one_line(self.name, 200) != self.name
        ):
            raise ValueError(
                f"name={parse.quote(self.name)}: it names a directory; give up to 200 characters, "
                "no / and no control characters among them"
            )
        if self.train.batch_tokens % self.model.n_ctx:
            nearest = max(1, round(self.train.batch_tokens / self.model.n_ctx)) * self.model.n_ctx
            raise ValueError(
                f"train.batch_tokens={self.train.batch_tokens:,} is not a whole number of rows of "
                f"model.n_ctx={self.model.n_ctx:,} tokens; "
                f"the nearest that is: {nearest:,}"
            )
        if self.batch_rows > MAX_ROWS:
            raise ValueError(
                f"train.batch_tokens={self.train.batch_tokens:,} is {self.batch_rows:,} rows of "
                f"model.n_ctx={self.model.n_ctx:,} tokens; "
                f"give at most {MAX_ROWS * self.model.n_ctx:,}"
            )
        if self.train.microbatch_rows is not None and self.batch_rows % self.train.microbatch_rows:
            raise ValueError(
                f"train.microbatch_rows={self.train.microbatch_rows} does not divide the batch of "
                f"{self.batch_rows} rows"
            )

    @property
    def batch_rows(self) -> int:
        """Rows of n_ctx tokens in a full batch."""
        return self.train.batch_tokens // self.model.n_ctx
