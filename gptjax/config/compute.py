"""Precision, rematerialization, kernels and devices: what changes speed, not the mathematics."""

from typing import Annotated, Literal

from gptjax.config import parse
from gptjax.config.attention import Context
from gptjax.config.record import Bounds, record

Devices = Annotated[int, Bounds(-1, 10**6)]

# Activations that a rematerialized layer may save in addition to its input.
# compute.remat joins names with "+".
REMAT_NAMES = (
    "attention",  # outputs of the heads, before the output projection
    "qkv",  # queries, keys and values
    "mid",  # the residual stream between attention and MLP
    "up",  # hidden units before their activation, and those of the gate
)


@record
class Compute:
    """Choices that change speed, memory and rounding, not the mathematics."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of activations; parameters and their updates are float32. auto: bfloat16 on TPU and GPU,
    float32 on CPU."""
    matmul_dtype: Literal["auto", "float8"] = "auto"
    """Of the products of layers and their weights, in training. auto: as dtype; float8: 8 bits in
    both passes (model/float8.py), for chips that multiply those faster, such as the H100; needs
    requirements-float8.txt, and is not for experts."""
    remat: str = "none"
    """What a layer saves for its backward pass. none: everything; full: only its input, and the
    rest is recomputed; else names of REMAT_NAMES (attention, qkv, mid, up) joined by +."""
    attention_kernel: Literal["auto", "reference", "blocks", "splash", "cudnn", "flash"] = "auto"
    """Kernel of the attention layers (model/attention/dispatch.py). auto: by platform and
    pattern."""
    scan_layers: bool | None = None
    """True: one lax.scan over the periods of layers; False: unrolled; None: a scan, but unrolled on
    CPU where nothing is rematerialized."""
    microbatch_loop: Literal["auto", "device", "host"] = "auto"
    """Where the loop over the microbatches of a step runs. device: in one program for each step,
    whose end nothing waits for; host: a program for each microbatch, so that progress shows and
    Ctrl-C works within a step; auto: device, but host on CPU, where XLA runs the bodies of loops
    slowly."""
    kv_cache_dtype: Literal["auto", "bfloat16", "int8"] = "auto"
    """Of the keys and values that generation keeps. auto: as dtype; int8: rounded to 255 steps of
    the largest element of each token and head, with a float32 scale."""
    prefill_chunk: Context | None = None
    """Tokens of a prompt that generation reads at a time, so that its memory does not grow with the
    prompt's; None: all at once."""
    context_exchange: Literal["auto", "gather", "ring"] = "auto"
    """How devices along mesh.context exchange keys and values of patterns that reach further than a
    part of the row. gather: each gets all; ring: they pass around; auto: gather, unless that takes
    more than a quarter of a device's memory."""

    def __post_init__(self):
        if self.remat not in ("none", "full") and (
            unknown := set(self.remat.split("+")) - set(REMAT_NAMES)
        ):
            words = ", ".join(map(parse.quote, sorted(unknown)[:3]))
            raise ValueError(
                f"compute.remat={parse.one_line(self.remat, 100)}: {words} cannot be saved; give "
                "none, full, or the activations that a layer saves, of "
                f"{', '.join(REMAT_NAMES)}, joined by +"
            )

    @property
    def saved_names(self) -> tuple[str, ...]:
        """The REMAT_NAMES that a rematerialized layer saves."""
        return tuple(
            name for name in REMAT_NAMES if self.remat == "none" or name in self.remat.split("+")
        )


@record
class Mesh:
    """Number of devices along each mesh axis; -1, at most once, takes all remaining devices."""

    data: Devices = 1
    """Devices with their own batch rows and a full copy of the state: for the slow network between
    slices."""
    fsdp: Devices = -1
    """Devices with their own batch rows and a shard of the state."""
    tensor: Devices = 1
    """Devices that share heads, MLP and vocabulary; needs sharding=fsdp_tensor."""
    context: Devices = 1
    """Devices that each hold a part of every row: for long rows."""
    sharding: Literal["fsdp", "fsdp_tensor"] = "fsdp"
    """Table of sharding/rules.py: which dimension of each array lies along which axis."""

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
