"""Selects the kernel that computes attention. All kernels have the reference's signature and
result; they differ in speed and memory.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gptjax.config import schema
from gptjax.model.attention import context_parallel, cpu_blocks, gpu_cudnn, reference, scores
from gptjax.sharding import rules


def _attend_on_tpu(*args) -> jax.Array:
    # Imported when used: Pallas takes 0.2 s of a program's start, and a CPU never needs it.
    from gptjax.model.attention import tpu_splash

    return tpu_splash.attend(*args)


def _attend_on_gpu(*args) -> jax.Array:
    from gptjax.model.attention import gpu_flash

    return gpu_flash.attend(*args)


KERNELS = {
    "reference": reference.attend,
    "blocks": cpu_blocks.attend,
    "splash": _attend_on_tpu,
    "cudnn": gpu_cudnn.attend,
    "flash": _attend_on_gpu,
}
# Kernels that are not listed are plain XLA: they run everywhere and shard over any mesh.
PLATFORMS = {"splash": ("tpu",), "cudnn": ("gpu", "cuda"), "flash": ("gpu", "cuda")}
DEFAULT_KERNELS = {"cpu": "blocks", "tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}


def resolve_name(kernel: str, platform: str) -> str:
    """Resolves compute.attention_kernel for a platform ("cpu", "gpu" or "tpu"): "auto" is the
    fastest kernel there.

    Raises ValueError for a kernel that does not run on the platform.
    """
    if kernel == "auto":
        return DEFAULT_KERNELS[platform]
    if kernel in PLATFORMS and platform not in PLATFORMS[kernel]:
        available = [
            name for name in KERNELS if name not in PLATFORMS or platform in PLATFORMS[name]
        ]
        raise ValueError(
            f"compute.attention_kernel={kernel} does not run on {platform}; set it to auto, "
            f"{', '.join(available)}"
        )
    return kernel


def select(
    kernel: str,
    pattern: schema.Attention,
    dtype,
    d_head: int,
    *,
    has_dropout: bool = False,
    has_segments: bool = False,
    is_aligned: bool = True,
    is_even: bool = True,
    is_plain: bool = True,
    is_grouped: bool = False,
) -> tuple[str, str]:
    """Returns (the kernel to use, why it is not `kernel` or "").

    has_dropout: dropout on the attention weights. has_segments: attention within documents.
    is_aligned: as many queries as keys. is_even: an even number of queries. is_plain: neither
    softcap nor sinks. is_grouped: several query heads share keys and values.
    """
    if kernel not in PLATFORMS:
        return kernel, ""
    if has_dropout:
        return "reference", "attention dropout"
    reasons = []
    if kernel == "cudnn":
        reason = gpu_cudnn.unsupported_reason(
            pattern, jnp.dtype(dtype), d_head, has_segments, is_aligned, is_even, is_plain
        )
        if not reason:
            return kernel, ""
        kernel, reasons = "flash", [reason]
    if kernel == "flash":
        from gptjax.model.attention import gpu_flash

        if reason := gpu_flash.unsupported_reason(pattern, is_plain, is_grouped):
            kernel, reasons = "reference", [*reasons, reason]
    return kernel, "; ".join(reasons)


def holds_scores(kernel: str, model: schema.Model, dtype, has_segments: bool) -> bool:
    """Whether some layer materializes its attention scores in training: the reference does, and the
    CPU blocks do for short sequences.
    """
    if kernel == "blocks" and cpu_blocks.uses_tiles(
        model.n_ctx, model.n_ctx, model.dropout.attention > 0
    ):
        return False
    return any(
        _in_training(kernel, pattern, model, dtype, has_segments)[0] not in PLATFORMS
        for pattern in model.attention
    )


def _in_training(
    kernel: str, pattern: schema.Attention, model: schema.Model, dtype, has_segments: bool
) -> tuple[str, str]:
    """`select` for a layer of `model` in training."""
    has_dropout, is_even = model.dropout.attention > 0, model.n_ctx % 2 == 0
    return select(
        kernel,
        pattern,
        dtype,
        model.d_head,
        has_dropout=has_dropout,
        has_segments=has_segments,
        is_even=is_even,
        is_plain=model.heads.softcap is None and not model.heads.sinks,
        is_grouped=model.n_kv_heads < model.n_heads,
    )


def describe(kernel: str, model: schema.Model, dtype, has_segments: bool) -> str:
    """For display: which kernel computes each of the model's patterns in training, and why if it is
    not `kernel`.
    """

    def describe_layer(pattern):
        name, reason = _in_training(kernel, pattern, model, dtype, has_segments)
        return f"{pattern} by {name}" + (f" ({reason})" if reason else "")

    return ", ".join(map(describe_layer, dict.fromkeys(model.attention)))


def attend_local(
    kernel: str,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    pattern: schema.Attention,
    segments_BS: jax.Array | None = None,
    dropout: tuple[jax.Array, float] | None = None,
    softmax: scores.Softmax = scores.PLAIN,
) -> jax.Array:
    """reference.attend on the arrays of one device, by `kernel` or, where that does not support the
    case, by another that does.
    """
    name, _ = select(
        kernel,
        pattern,
        q_BTNH.dtype,
        q_BTNH.shape[3],
        has_dropout=dropout is not None,
        has_segments=segments_BS is not None,
        is_aligned=q_BTNH.shape[1] == k_BSKH.shape[1],
        is_even=q_BTNH.shape[1] % 2 == 0,
        is_plain=softmax.is_plain,
        is_grouped=k_BSKH.shape[2] < q_BTNH.shape[2],
    )
    o_BTNH = KERNELS[name](q_BTNH, k_BSKH, v_BSKH, pattern, segments_BS, dropout, softmax)
    if name in ("splash", "flash"):  # these name their own residuals
        return o_BTNH
    return checkpoint_name(o_BTNH, "attention")


def attend(
    kernel: str,
    sharding: rules.Sharding,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    pattern: schema.Attention,
    segments_BS: jax.Array | None = None,
    dropout: tuple[jax.Array, float] | None = None,
    softmax: scores.Softmax = scores.PLAIN,
) -> jax.Array:
    """`attend_local` on arrays sharded by `sharding`: each device computes its rows and heads and,
    with context parallelism, its part of the sequence.
    """
    if sharding.axes("T"):
        return context_parallel.attend(
            functools.partial(attend_local, kernel),
            sharding,
            q_BTNH,
            k_BSKH,
            v_BSKH,
            pattern,
            segments_BS,
            dropout,
            softmax,
        )
    if kernel == "splash" and sharding.mesh is None and rules.is_left_to_compiler():
        kernel = "blocks"  # the compiler does not partition a TPU kernel
    if kernel not in PLATFORMS or dropout is not None:
        return attend_local(kernel, q_BTNH, k_BSKH, v_BSKH, pattern, segments_BS, dropout, softmax)

    def attend_shard(q_BTNH, k_BSKH, v_BSKH, segments_BS, softmax):
        return attend_local(kernel, q_BTNH, k_BSKH, v_BSKH, pattern, segments_BS, None, softmax)

    queries, keys = sharding.spec("BTNH", q_BTNH.shape), sharding.spec("BSNH", k_BSKH.shape)
    rows = None if segments_BS is None else sharding.spec("BS", segments_BS.shape)
    heads = sharding.spec("N", q_BTNH.shape[2:3])
    return sharding.shard_map(attend_shard, (queries, keys, keys, rows, heads), queries)(
        q_BTNH, k_BSKH, v_BSKH, segments_BS, softmax
    )
