"""Which kernel computes attention: each has the reference's signature and result, and differs in speed and memory."""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gptjax.config import schema
from gptjax.model.attention import context_parallel, cpu_blocks, gpu_cudnn, gpu_flash, reference, tpu_splash
from gptjax.sharding import rules

KERNELS = {
    "reference": reference.attend,
    "blocks": cpu_blocks.attend,
    "splash": tpu_splash.attend,
    "cudnn": gpu_cudnn.attend,
    "flash": gpu_flash.attend,
}
# The others are XLA's, which compiles them for all and cuts them over a mesh.
ONLY_ON = {"splash": ("tpu",), "cudnn": ("gpu", "cuda"), "flash": ("gpu", "cuda")}
AUTO = {"cpu": "blocks", "tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}


def named(asked: str, platform: str) -> str:
    """What compute.attention=`asked` means on a platform ("cpu", "tpu", "gpu"): "auto" is the fastest there. ValueError for a kernel that
    does not run there."""
    if asked == "auto":
        return AUTO[platform]
    if asked in ONLY_ON and platform not in ONLY_ON[asked]:
        runs = [name for name in KERNELS if name not in ONLY_ON or platform in ONLY_ON[name]]
        raise ValueError(f"compute.attention={asked} does not run on {platform}; set it to auto, {', '.join(runs)}")
    return asked


def chosen(
    kernel: str,
    pattern: schema.Attention,
    dtype,
    d_head: int,
    *,
    dropping: bool = False,
    segmented: bool = False,
    aligned: bool = True,
    even: bool = True,
) -> tuple[str, str]:
    """(the kernel that computes this, "" or why it is not `kernel`). dropping: with dropout on the attention weights; segmented: with
    documents kept apart; aligned: with as many queries as keys; even: their number is."""
    if kernel not in ONLY_ON:
        return kernel, ""
    if dropping:
        return "reference", "attention dropout"
    if kernel == "cudnn":
        refusal = gpu_cudnn.refusal(pattern, jnp.dtype(dtype), d_head, segmented, aligned, even)
        return ("flash" if refusal else kernel), refusal
    return kernel, ""


def holds_scores(kernel: str, model: schema.Model, dtype, segmented: bool) -> bool:
    """Whether the scores of some layer lie in memory in training: by the reference, and by CPU's blocks of short sequences."""
    if kernel == "blocks" and cpu_blocks.tiled(model.n_ctx, model.n_ctx, model.dropout.attention > 0):
        return False
    return any(_in_training(kernel, pattern, model, dtype, segmented)[0] not in ONLY_ON for pattern in model.attention)


def _in_training(kernel: str, pattern: schema.Attention, model: schema.Model, dtype, segmented: bool) -> tuple[str, str]:
    """`chosen` for a layer of the model in training."""
    dropping, even = model.dropout.attention > 0, model.n_ctx % 2 == 0
    return chosen(kernel, pattern, dtype, model.d_head, dropping=dropping, segmented=segmented, even=even)


def account(kernel: str, model: schema.Model, dtype, segmented: bool) -> str:
    """For people: what computes each of the layers in training."""

    def line(pattern):
        name, why = _in_training(kernel, pattern, model, dtype, segmented)
        return f"{pattern} by {name}" + (f" ({why})" if why else "")

    return ", ".join(map(line, dict.fromkeys(model.attention)))


def local(
    kernel: str,
    q_BTNH: jax.Array,
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    pattern: schema.Attention,
    segments_BS: jax.Array | None = None,
    dropout: tuple[jax.Array, float] | None = None,
) -> jax.Array:
    """The reference's result (see attention.attend) by the kernel of that name, or by one that can, on one device's arrays."""
    name, _ = chosen(
        kernel,
        pattern,
        q_BTNH.dtype,
        q_BTNH.shape[3],
        dropping=dropout is not None,
        segmented=segments_BS is not None,
        aligned=q_BTNH.shape[1] == k_BSNH.shape[1],
        even=q_BTNH.shape[1] % 2 == 0,
    )
    o_BTNH = KERNELS[name](q_BTNH, k_BSNH, v_BSNH, pattern, segments_BS, dropout)
    return o_BTNH if name in ("splash", "flash") else checkpoint_name(o_BTNH, "attention")  # these two name what they need


def attend(
    kernel: str,
    place: rules.Placement,
    q_BTNH: jax.Array,
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    pattern: schema.Attention,
    segments_BS: jax.Array | None = None,
    dropout: tuple[jax.Array, float] | None = None,
) -> jax.Array:
    """As `local`, on arrays that lie as `place` says: each device has its rows and heads, and perhaps a part of the sequence."""
    if place.axes("T"):
        return context_parallel.attend(functools.partial(local, kernel), place, q_BTNH, k_BSNH, v_BSNH, pattern, segments_BS, dropout)
    if kernel not in ONLY_ON or dropout is not None:
        return local(kernel, q_BTNH, k_BSNH, v_BSNH, pattern, segments_BS, dropout)

    def mine(q_BTNH, k_BSNH, v_BSNH, segments_BS):
        return local(kernel, q_BTNH, k_BSNH, v_BSNH, pattern, segments_BS)

    queries, keys = place.spec("BTNH", q_BTNH.shape), place.spec("BSNH", k_BSNH.shape)
    rows = None if segments_BS is None else place.spec("BS", segments_BS.shape)
    return place.mapped(mine, (queries, keys, keys, rows), queries)(q_BTNH, k_BSNH, v_BSNH, segments_BS)
