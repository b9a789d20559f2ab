"""Parameters, FLOPs and bytes of a model, from its config alone.

FLOPs of one token, in a full row of n_ctx: two for each weight of a matmul, and in attention 4
d_model for each key that a query sees (a score, and a weighted value), so that causal and banded
layers count at their true cost. Biases, norms, softmax and look-ups are not counted. The backward
pass is twice the forward pass.
MFU = train_flops_per_token x tokens per second / (devices x peak FLOPs per second of one).
Recomputation does not count as use.
"""

from typing import Literal, assert_never

from gptjax.config.schema import (
    REMAT_NAMES,
    Attention,
    Banded,
    Config,
    Dense,
    Fixed,
    Model,
    Strided,
)

PF_DAY = 8.64e19  # FLOPs: 1e15 a second for a day (GPT-3 Appendix D)
LOSS_CHUNK_BYTES = 256 * 2**20  # of logits held at a time: training/loss.py


# --- parameters -----------------------------------------------------------------------------------


def parameters(model: Model) -> int:
    """Every trained number, the token and position tables included and the padding of the
    vocabulary not."""
    return non_embedding_parameters(model) + (model.n_vocab + model.n_ctx) * model.d_model


def non_embedding_parameters(model: Model) -> int:
    """All but the two tables: weights 12 d^2 and biases and norms 13 d a layer, and a last layer
    norm if the model is pre-LN."""
    d = model.d_model
    return model.n_layers * (12 * d * d + 13 * d) + (2 * d if model.norm == "pre" else 0)


def padded_parameters(model: Model) -> int:
    """`parameters` and the rows that pad the token table to a multiple of 128: what is stored."""
    return parameters(model) + (model.n_vocab_padded - model.n_vocab) * model.d_model


# --- FLOPs ----------------------------------------------------------------------------------------


def attention_pairs(pattern: Attention, n_ctx: int) -> int:
    """(query, key) pairs that attend in a row of n_ctx tokens, exactly; a pattern's definition
    is in the schema."""
    match pattern:
        case Dense():
            return n_ctx * (n_ctx + 1) // 2
        case Banded(window=w):
            w = min(w, n_ctx)
            return w * n_ctx - w * (w - 1) // 2
        case Strided(stride=s):  # the last s keys, and q // s multiples of s before them
            blocks, rest = divmod(n_ctx, s)
            return (
                attention_pairs(Banded(window=s), n_ctx)
                + s * (blocks * (blocks - 1) // 2)
                + rest * blocks
            )
        case Fixed(
            block=b, summary=c
        ):  # the query's own block so far, and c keys of each block before it
            blocks, rest = divmod(n_ctx, b)
            return (
                blocks * (b * (b + 1) // 2)
                + rest * (rest + 1) // 2
                + c * (b * (blocks * (blocks - 1) // 2) + rest * blocks)
            )
        case _:
            assert_never(pattern)


def layer_flops(model: Model, pattern: Attention) -> float:
    """Forward FLOPs per token of one layer whose attention has this pattern."""
    return (
        2 * 12 * model.d_model**2
        + 4 * model.d_model * attention_pairs(pattern, model.n_ctx) / model.n_ctx
    )


def logits_flops(model: Model) -> float:
    """Forward FLOPs per token of the output."""
    return 2 * model.d_model * model.n_vocab


def forward_flops_per_token(model: Model) -> float:
    return model.n_periods * sum(
        layer_flops(model, pattern) for pattern in model.attention
    ) + logits_flops(model)


def train_flops_per_token(model: Model) -> float:
    """Forward and backward. These are the FLOPs that MFU counts."""
    return 3 * forward_flops_per_token(model)


def hardware_flops_per_token(config: Config) -> float:
    """`train_flops_per_token` and what the remat policy computes again."""
    model, d = config.model, config.model.d_model

    def recompute_flops(pattern: Attention) -> float:
        # never kept; nor is the last matmul computed again
        scores = 2 * d * attention_pairs(pattern, model.n_ctx) / model.n_ctx
        flops = {"attention": scores, "qkv": 6 * d * d, "mid": 2 * d * d, "up": 8 * d * d}
        return (
            0.0
            if config.compute.remat == "none"
            else scores
            + sum(flops[name] for name in REMAT_NAMES if name not in config.compute.saved_names)
        )

    return train_flops_per_token(model) + model.n_periods * sum(
        recompute_flops(pattern) for pattern in model.attention
    )


def pf_days(model: Model, tokens: int) -> float:
    """Training compute, attention at its true cost."""
    return train_flops_per_token(model) * tokens / PF_DAY


def paper_pf_days(model: Model, tokens: int) -> float:
    """Training compute as GPT-3's Table D.1 has it: 6 x parameters x tokens, attention ignored,
    parameters rounded as it prints them."""
    n = parameters(model)
    return 6 * round(n, -6 if n < 10**9 else -7) * tokens / PF_DAY


# --- bytes ----------------------------------------------------------------------------------------


def state_bytes(model: Model) -> int:
    """Float32 parameters and Adam's two moments, over all devices, padding included. A step also
    holds `gradient_bytes`."""
    return 12 * padded_parameters(model)


def gradient_bytes(model: Model) -> int:
    """Float32 gradients, over all devices; twice this while microbatches are summed."""
    return 4 * padded_parameters(model)


def activation_bytes(
    config: Config,
    rows: int,
    dtype: Literal["float32", "bfloat16"] | None = None,
    scores: bool = True,
) -> int:
    """An estimate of what `rows` rows keep for their backward pass, over all devices; scores: with
    the reference attention, which holds them, and not with a kernel that does not.

    Bytes for a token and layer, a being the width of dtype: 24 a d_model (inputs of matmuls 16, of
    GELU 8) and 12 n_heads n_ctx (scores, their exponentials and weights, float32). "none" keeps
    this for every layer. The other policies keep it for the one layer at work, and for every layer
    its input, a d_model, and what compute.remat names of SAVED. Dropout adds random bits and a
    copy. To this come 6 a d_model a token for the two ends, and a chunk of logits with its
    gradient. dtype None: that of the config, "auto" as float32, the larger. Fitted to what XLA
    allots on CPU: see tests/unit/config/count_test.py.
    """
    model, remat, dropout = config.model, config.compute.remat, config.model.dropout
    dtype = dtype or ("bfloat16" if config.compute.dtype == "bfloat16" else "float32")
    width = {"float32": 4, "bfloat16": 2}[dtype]
    pairs = model.n_heads * model.n_ctx if scores else 0
    layer = 24 * width * model.d_model + 12 * pairs
    layer += (4 + width) * (
        (2 * model.d_model if dropout.residual else 0) + (pairs if dropout.attention else 0)
    )
    saved_bytes = (
        layer
        if remat == "none"
        else width
        * model.d_model
        * (1 + sum(REMAT_NAMES[name] for name in config.compute.saved_names))
    )
    active_bytes = 0 if remat == "none" else layer
    tokens = rows * model.n_ctx
    loss = 2 * min(LOSS_CHUNK_BYTES, 4 * tokens * model.n_vocab_padded)
    return tokens * (model.n_layers * saved_bytes + active_bytes + 6 * width * model.d_model) + loss


def activation_budget(model: Model, limit: int, in_use: int, n_shards: int) -> int:
    """Bytes that a device of `limit` has for activations, with `in_use` of them taken by the state:
    nine tenths of the rest, less two copies of the gradients, which lie in `n_shards` parts.
    Negative where there is none."""
    return int(0.9 * (limit - in_use)) - 2 * gradient_bytes(model) // n_shards


def microbatch_rows(
    config: Config,
    bytes_free: int,
    shards: int = 1,
    dtype: Literal["float32", "bfloat16"] | None = None,
    scores: bool = True,
) -> int:
    """Rows, over all devices, whose activations fit: a limit for BatchSchedule.largest_microbatch,
    at least `shards`.

    bytes_free: of one device, once state and gradients are in place. shards: devices over which
    rows are split.
    """
    loss = 2 * LOSS_CHUNK_BYTES
    row = activation_bytes(config, 1, dtype, scores) - min(
        loss, 8 * config.model.n_ctx * config.model.n_vocab_padded
    )
    return shards * max(1, (bytes_free - loss) // row)
