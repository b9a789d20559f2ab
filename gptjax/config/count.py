"""Parameters, FLOPs and bytes of a model, computed from its config alone.

FLOPs of one token in a full row of n_ctx: two per weight of a matmul and, in attention, 4 n_heads
d_head for each key that a query sees (a score and a weighted value), so that causal and banded
layers are counted at their true cost. Biases, norms, softmax and look-ups are not counted. The
backward pass costs twice the forward pass. MFU = train_flops_per_token x tokens per second /
(devices x peak FLOPs per second of one); recomputation does not count.
"""

import collections
from typing import Literal, assert_never

from gptjax.config import parameter_shapes
from gptjax.config.compute import REMAT_NAMES
from gptjax.config.layer import GELU, Experts
from gptjax.config.schema import (
    Attention,
    Banded,
    BlockSparse,
    Config,
    Dense,
    Fixed,
    Model,
    Strided,
)

PF_DAY = 8.64e19  # FLOPs: 1e15 per second for a day (GPT-3 Appendix D)
LOSS_CHUNK_BYTES = 256 * 2**20  # of logits materialized at a time by training/loss.py


# --- parameters -----------------------------------------------------------------------------------


def parameters(model: Model) -> int:
    """Number of trained parameters, including the tables but not the vocabulary's padding."""
    shapes = parameter_shapes
    return non_embedding_parameters(model) + shapes.total(shapes.tables(model))


def non_embedding_parameters(model: Model) -> int:
    """Number of parameters without the tables of tokens, positions and output: for GPT-3 12 d^2
    weights and 13 d biases and norms per layer, and a final layer norm."""
    shapes = parameter_shapes
    layers = model.n_layers * shapes.total(shapes.layer_shapes(model))
    return layers + shapes.total(shapes.final_norm(model))


def active_parameters(model: Model) -> int:
    """Number of parameters that one token passes through: `parameters` but for experts, of which
    it passes through the top_k."""
    shapes = parameter_shapes
    layer = shapes.layer_shapes(model)
    idle = shapes.total(layer) - shapes.total(shapes.active(model, layer))
    return parameters(model) - model.n_layers * idle


def padded_parameters(model: Model) -> int:
    """Number of stored parameters: `parameters` plus the rows that pad the token table, and that of
    the output, to a multiple of 128.
    """
    n_tables = 1 if model.tied_output else 2
    padding = n_tables * (model.n_vocab_padded - model.n_vocab) * model.d_model
    return parameters(model) + padding


# --- FLOPs ----------------------------------------------------------------------------------------


def attention_pairs(pattern: Attention, n_ctx: int) -> int:
    """Exact number of (query, key) pairs that attend in a row of n_ctx tokens, for BlockSparse of
    the average head, rounded; config/attention.py defines the patterns.
    """
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
        # The query's own block so far, and c keys of each block before it.
        case Fixed(block=b, summary=c):
            blocks, rest = divmod(n_ctx, b)
            return (
                blocks * (b * (b + 1) // 2)
                + rest * (rest + 1) // 2
                + c * (b * (blocks * (blocks - 1) // 2) + rest * blocks)
            )
        # Blocks before the local ones are seen every stride-th: by the average head, one in stride.
        case BlockSparse():
            return round(_block_sparse_pairs(pattern, n_ctx))
        case _:
            assert_never(pattern)


def _block_sparse_pairs(pattern: BlockSparse, n_ctx: int) -> float:
    """Pairs of BlockSparse, averaged over `stride` heads."""
    b, n_local, pairs = pattern.block, pattern.local_blocks, 0.0
    for number, start in enumerate(range(0, n_ctx, b)):  # blocks of queries
        rows = min(b, n_ctx - start)
        n_before = min(number, n_local - 1)
        pairs += rows * (rows + 1) / 2 + rows * b * n_before
        pairs += rows * b * (number - n_before) / pattern.stride
    return pairs


def layer_flops(model: Model, pattern: Attention) -> float:
    """Forward FLOPs per token of one layer whose attention has this pattern."""
    shapes = parameter_shapes.active(model, parameter_shapes.layer_shapes(model))
    return 2 * parameter_shapes.matmul_weights(shapes) + 2 * _score_flops(model, pattern)


def _score_flops(model: Model, pattern: Attention) -> float:
    """FLOPs per token of the scores, or of the weighted values."""
    pairs = attention_pairs(pattern, model.n_ctx)
    return 2 * model.n_heads * model.d_head * pairs / model.n_ctx


def logits_flops(model: Model) -> float:
    """Forward FLOPs per token of the output logits."""
    return 2 * model.d_model * model.n_vocab


def forward_flops_per_token(model: Model) -> float:
    """Forward FLOPs per token of the whole model."""
    flops = sum(n * layer_flops(model, pattern) for pattern, n in layer_counts(model).items())
    return flops + logits_flops(model)


def layer_counts(model: Model) -> dict[Attention, int]:
    """Number of layers of each attention pattern."""
    patterns = [model.attention[i % len(model.attention)] for i in range(model.n_layers)]
    return dict(collections.Counter(patterns))


def train_flops_per_token(model: Model) -> float:
    """Forward and backward FLOPs per token, as counted by MFU."""
    return 3 * forward_flops_per_token(model)


def hardware_flops_per_token(config: Config) -> float:
    """`train_flops_per_token` plus the FLOPs that the remat policy recomputes."""
    model, compute = config.model, config.compute
    if compute.remat == "none":
        return train_flops_per_token(model)
    attention = parameter_shapes.attention_shapes(model)
    mlp = parameter_shapes.active(model, parameter_shapes.mlp_shapes(model))
    # The last matmul is never recomputed.
    weights = {
        "qkv": {name: shape for name, shape in attention.items() if "/qkv/" in name},
        "mid": {name: shape for name, shape in attention.items() if "/out/" in name},
        "up": {name: shape for name, shape in mlp.items() if "/down/" not in name},
    }
    flops = {n: 2 * parameter_shapes.matmul_weights(shapes) for n, shapes in weights.items()}

    def recompute_flops(pattern: Attention) -> float:
        scores = _score_flops(model, pattern)  # never saved
        names = [name for name in REMAT_NAMES if name not in compute.saved_names]
        return scores + sum(scores if name == "attention" else flops[name] for name in names)

    return train_flops_per_token(model) + sum(
        n * recompute_flops(pattern) for pattern, n in layer_counts(model).items()
    )


def pf_days(model: Model, tokens: int) -> float:
    """Training compute in PF-days, with attention at its true cost."""
    return train_flops_per_token(model) * tokens / PF_DAY


def paper_pf_days(model: Model, tokens: int) -> float:
    """Training compute in PF-days as in GPT-3's Table D.1: 6 x parameters x tokens, ignoring
    attention, with parameters rounded as printed there; of experts, the active parameters.
    """
    n = active_parameters(model)
    return 6 * round(n, -6 if n < 10**9 else -7) * tokens / PF_DAY


# --- bytes ----------------------------------------------------------------------------------------


def state_bytes(model: Model) -> int:
    """Bytes of float32 parameters and Adam's two moments, over all devices, including padding. A
    step also needs `gradient_bytes`.
    """
    return 12 * padded_parameters(model)


def gradient_bytes(model: Model) -> int:
    """Bytes of float32 gradients, over all devices; twice this while microbatches are
    accumulated.
    """
    return 4 * padded_parameters(model)


def cache_slots(pattern: Attention, capacity: int) -> int:
    """Number of KV cache slots of a layer with this pattern, for up to `capacity` tokens."""
    match pattern:
        case Banded(window=window):
            return min(window, capacity)
        case Dense() | Strided() | Fixed() | BlockSparse():
            return capacity
        case _:
            assert_never(pattern)


def kv_cache_dtype(config: Config) -> str:
    """Type of the KV cache: "auto" is that of computation and, if that is "auto" too, bfloat16, as
    on accelerators."""
    compute = config.compute
    dtype = compute.dtype if compute.kv_cache_dtype == "auto" else compute.kv_cache_dtype
    return "bfloat16" if dtype == "auto" else dtype


def kv_cache_bytes(model: Model, n_tokens: int, dtype: str) -> int:
    """Bytes of the KV cache of one text of n_tokens. dtype: "float32", "bfloat16" or "int8", which
    has an element a byte, and a float32 scale for each token and head."""
    element, scale = {"float32": (4, 0), "bfloat16": (2, 0), "int8": (1, 4)}[dtype]
    slots = sum(n * cache_slots(p, n_tokens) for p, n in layer_counts(model).items())
    return slots * 2 * model.n_kv_heads * (model.d_head * element + scale)


def activation_bytes(
    config: Config,
    rows: int,
    dtype: Literal["float32", "bfloat16"] | None = None,
    scores: bool = True,
) -> int:
    """Estimated bytes, over all devices, that `rows` rows save for the backward pass.

    scores: whether attention scores are saved, as the reference does, or not, as with flash
    kernels. dtype None: that of the config, with "auto" taken as float32, the larger.

    Per token and layer, with a the width of dtype: a (5 d_model + q, k and v + 4 d_ff, twice with a
    gate), which for GPT is 24 a d_model (inputs of matmuls 16, of GELU 8); 2 a d_model more with
    norms after the branches; 3 a d_model more for each expert of a token; and 12 n_heads n_ctx
    (scores, their exponentials and weights, float32). remat "none" saves this for every layer.
    Other policies save it only for the layer being computed, and for every layer its input
    (a d_model) and the activations in compute.remat. Dropout adds random bits and a copy. To this
    add 6 a d_model per token for embeddings and output, and a chunk of logits with its gradient.
    Fitted to XLA's allocations on CPU: see tests/unit/config/count_test.py.
    """
    model, remat, dropout = config.model, config.compute.remat, config.model.dropout
    dtype = dtype or ("bfloat16" if config.compute.dtype == "bfloat16" else "float32")
    width = {"float32": 4, "bfloat16": 2}[dtype]
    pairs = model.n_heads * model.n_ctx if scores else 0
    widths = saved_widths(model)
    if isinstance(model.mlp, Experts):
        # Without a capacity each device along tensor has room for all choices of its rows.
        copies = max(1, config.mesh.tensor) if model.mlp.capacity is None else 1
        widths |= {
            "up": copies * widths["up"],
            "rows": 3 * copies * model.mlp.top_k * model.d_model,
        }
    layer = width * (5 * model.d_model + widths["qkv"] + 4 * widths["up"]) + 12 * pairs
    if model.norm == "both":
        layer += 2 * width * model.d_model
    layer += width * widths.get("rows", 0)
    layer += (4 + width) * (
        (2 * model.d_model if dropout.residual else 0) + (pairs if dropout.attention else 0)
    )
    saved_bytes = (
        layer
        if remat == "none"
        else width * (model.d_model + sum(widths[name] for name in config.compute.saved_names))
    )
    active_bytes = 0 if remat == "none" else layer
    tokens = rows * model.n_ctx
    loss = 2 * min(LOSS_CHUNK_BYTES, 4 * tokens * model.n_vocab_padded)
    return tokens * (model.n_layers * saved_bytes + active_bytes + 6 * width * model.d_model) + loss


def saved_widths(model: Model) -> dict[str, int]:
    """Elements per token of each activation that compute.remat names."""
    heads = model.n_heads * model.d_head
    branches = 1 if isinstance(model.expert, GELU) else 2
    branches *= model.mlp.top_k if isinstance(model.mlp, Experts) else 1
    widths = {
        "attention": heads,
        "qkv": heads + 2 * model.n_kv_heads * model.d_head,
        "mid": model.d_model,
        "up": branches * model.d_ff,
    }
    assert widths.keys() == set(REMAT_NAMES)
    return widths


def activation_budget(model: Model, limit: int, in_use: int, n_shards: int) -> int:
    """Activation budget of one device in bytes: 0.9 * (limit - in_use) minus two copies of this
    device's gradient shard (1 / n_shards). Negative if nothing is left.
    """
    return int(0.9 * (limit - in_use)) - 2 * gradient_bytes(model) // n_shards


def microbatch_rows(
    config: Config,
    bytes_free: int,
    shards: int = 1,
    dtype: Literal["float32", "bfloat16"] | None = None,
    scores: bool = True,
) -> int:
    """Maximum rows, over all devices, whose activations fit: a limit for
    BatchSchedule.largest_microbatch, at least `shards`.

    bytes_free: of one device, after state and gradients. shards: devices over which rows are split.
    """
    loss = 2 * LOSS_CHUNK_BYTES
    row = activation_bytes(config, 1, dtype, scores) - min(
        loss, 8 * config.model.n_ctx * config.model.n_vocab_padded
    )
    return shards * max(1, (bytes_free - loss) // row)
