"""The dataclasses that describe a run, and their validation. Those of its model are in
model.py, of its data in data.py, of its devices and kernels in compute.py; all are found here.

All are frozen and keyword-only: `dataclasses.replace` and `overrides.override` are the only ways to
vary one. Alternatives are unions of small dataclasses (`Dense() | Banded(window=256)`), each
consumed by one `match`. Derived values are properties. Units: batch, warm-up, decay and length are
in tokens, as in the GPT-3 paper; steps are derived. `every_*` is a period in steps. Every number
has bounds in its type, far beyond any use, so that typos are refused and no count reaches 10^18.
Every ValueError says what was given, what is allowed and what to do.
"""

from typing import Annotated, Literal

from gptjax.config import parse
from gptjax.config.attention import Attention, Banded, BlockSparse, Context, Dense, Fixed, Strided
from gptjax.config.chat import Conversations, Preferences, Rankings
from gptjax.config.classification import ClassificationTask
from gptjax.config.compute import Compute, Mesh
from gptjax.config.data import Data
from gptjax.config.layer import (
    GELU,
    MLP,
    AttentionHeads,
    ClampedSwiGLU,
    Experts,
    GeGLU,
    LayerNorm,
    RMSNorm,
    SwiGLU,
)
from gptjax.config.model import FAMILY_FIELDS, Dropout, Init, Model
from gptjax.config.positions import (
    Learned,
    LinearScaling,
    Llama31Scaling,
    LongRope,
    Position,
    Rotary,
    Yarn,
)
from gptjax.config.record import MAX_ROWS, Bounds, Fraction, Positive, Rows, Seed, Steps, record
from gptjax.config.rlhf import Rlhf

Tokens = Annotated[int, Bounds(1, 10**18)]
WarmUp = Annotated[int, Bounds(0, 10**18)]


# --- training -------------------------------------------------------------------------------------


@record
class Cosine:
    """Learning rate: linear from 0 to peak_lr, then cosine to final_fraction * peak_lr, then
    constant.
    """

    peak_lr: Positive
    """Highest learning rate, at the end of the warm-up."""
    warmup_tokens: WarmUp
    """Tokens of the linear warm-up from 0; less than decay_tokens."""
    decay_tokens: Tokens
    """Token at which the decay ends, counted from the start of the run."""
    final_fraction: Annotated[float, Bounds(0, 1)] = 0.0
    """Learning rate from decay_tokens on, as a fraction of peak_lr."""

    def __post_init__(self):
        if self.warmup_tokens >= self.decay_tokens:
            raise ValueError(
                f"Cosine.warmup_tokens={self.warmup_tokens:,} must lie from 0 up to "
                f"decay_tokens={self.decay_tokens:,}; lower it"
            )


@record
class Linear:
    """Learning rate: linear from 0 to peak_lr, then linear to 0: GPT-1's fine-tuning."""

    peak_lr: Positive
    """Highest learning rate, at the end of the warm-up."""
    warmup_tokens: WarmUp
    """Tokens of the linear warm-up from 0; less than decay_tokens."""
    decay_tokens: Tokens
    """Token at which the learning rate reaches 0, counted from the start of the run."""

    def __post_init__(self):
        if self.warmup_tokens >= self.decay_tokens:
            raise ValueError(
                f"Linear.warmup_tokens={self.warmup_tokens:,} must lie from 0 up to "
                f"decay_tokens={self.decay_tokens:,}; lower it"
            )


@record
class Constant:
    """Learning rate: linear from 0 to peak_lr, then constant."""

    peak_lr: Positive
    """Learning rate after the warm-up."""
    warmup_tokens: WarmUp = 0
    """Tokens of the linear warm-up from 0."""


Schedule = Cosine | Linear | Constant


@record
class Ramp:
    """Batch size ramp: linear growth from start_tokens to batch_tokens over the first over_tokens
    (GPT-3 Appendix B).
    """

    start_tokens: Tokens
    """Tokens of the first batch."""
    over_tokens: Tokens
    """Tokens over which the batch grows linearly to train.batch_tokens."""


@record
class AdamW:
    """Adam with decoupled weight decay on weight matrices, embeddings and positions; biases and
    gains are exempt.
    """

    b1: Fraction = 0.9
    """Decay of the first moment."""
    b2: Fraction = 0.95
    """Decay of the second moment."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Bounds(0, 1e6)] = 0.1
    """Decay of the parameters, multiplied by the learning rate."""
    clip_norm: Positive | None = 1.0
    """Global norm to which a larger gradient is scaled down; None: no clipping."""
    bias_correction: Literal["moments", "rate"] = "moments"
    """moments: each moment is divided by 1 - b^t (Adam's Algorithm 1, and AdamW's). rate: the
    learning rate, and so the decay, is multiplied by sqrt(1 - b2^t) / (1 - b1^t), and eps is added
    to the moment as it is (GPT-1's released opt.py)."""


@record
class Train:
    """Training: length, batch size, schedule and optimizer."""

    total_tokens: Tokens
    """Tokens of the whole run."""
    batch_tokens: Tokens
    """Tokens of one update, over all devices; a whole number of rows of model.n_ctx."""
    schedule: Schedule
    """Learning rate as a function of tokens."""
    optimizer: AdamW = AdamW()
    """Optimizer and its constants."""
    batch_ramp: Ramp | None = None
    """Batch size ramp at the start; None: full batches from the first step."""
    steps: Steps | None = None
    """Stop after this many steps, on the schedule of total_tokens; None: at total_tokens."""
    microbatch_rows: Rows | None = None
    """Maximum rows, over all devices, whose activations are held at once; divides the batch. None:
    what fits in memory."""
    max_nonfinite_steps: Steps = 10
    """Non-finite updates in a row, each skipped, before the run stops."""

    def __post_init__(self):
        if self.batch_ramp and self.batch_ramp.start_tokens > self.batch_tokens:
            raise ValueError(
                f"train.batch_ramp.start_tokens={self.batch_ramp.start_tokens:,} is more than "
                f"train.batch_tokens={self.batch_tokens:,}; lower it"
            )


# --- what is logged and saved ---------------------------------------------------------------------


@record
class Loop:
    """Logging, evaluation, checkpoints and samples: how often and how much."""

    every_log: Steps = 10
    """Steps between two lines on the console."""
    every_eval: Steps = 1000
    """Steps between two evaluations on validation rows."""
    eval_rows: Rows = 64
    """Validation rows of an evaluation, the same ones every time."""
    every_save: Steps = 1000
    """Steps between two checkpoints; the last step is always saved."""
    keep_last: Steps = 3
    """How many of the newest checkpoints are kept."""
    every_keep: Steps | None = None
    """Checkpoints at multiples of this step are kept forever; None: none."""
    every_sample: Steps | None = None
    """Steps between two printed samples; None: only at the end."""
    sample_prompt: str = "\n"
    """Text that samples continue."""
    sample_tokens: Context = 64
    """Tokens of a sample."""
    hang_seconds: Annotated[float, Bounds(0.01, 1e9)] | None = 3600.0
    """Seconds without a step, microbatch, evaluation or save after which the run ends with an
    error; None: never."""


@record
class Config:
    """A whole run. The resolved config is written into the run directory and every checkpoint."""

    name: str
    """Name of the recipe: its runs lie in runs/NAME."""
    model: Model
    """Sizes and form of the model."""
    data: Data
    """Text and tokenizer."""
    train: Train
    """Length, batch, schedule and optimizer."""
    compute: Compute = Compute()
    """Precision and kernels."""
    mesh: Mesh = Mesh()
    """Devices along each axis."""
    loop: Loop = Loop()
    """Logging, evaluation, checkpoints and samples."""
    seed: Seed = 0
    """Of the initial parameters, the order of the data and dropout."""
    task: ClassificationTask | Conversations | Preferences | Rankings | Rlhf | None = None
    """Task of a fine-tuning: a row is then an example, padded to n_ctx, one or more conversations,
    a pair of answers, ranked completions, or a prompt. None: language modeling."""

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
        if self.compute.matmul_dtype == "float8" and isinstance(self.model.mlp, Experts):
            raise ValueError(
                "compute.matmul_dtype=float8 does not reach the grouped products of "
                "model.mlp=Experts(...); set compute.matmul_dtype=auto"
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


# Leaves that config.json leaves out at these values: fields that came after the GPT papers'.
LATER_LEAVES = {
    "model.init.longer_positions": Init().longer_positions,
    "compute.matmul_dtype": Compute().matmul_dtype,
    "compute.microbatch_loop": Compute().microbatch_loop,
    "compute.kv_cache_dtype": Compute().kv_cache_dtype,
    "compute.prefill_chunk": Compute().prefill_chunk,
    "compute.context_exchange": Compute().context_exchange,
}
