"""Peak FLOP/s, memory and bandwidths of each kind of accelerator, from its data sheet."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Specifications of one device as jax counts them: half a chip for TPU7x, a whole one for the
    others. Bandwidths are bytes/s in one direction.
    """

    kinds: tuple[str, ...]  # parts of jax's device_kind
    flops: float  # dense bfloat16 peak, FLOP/s
    # Hz: libtpu counts cycles of this clock; the peak over the FLOPs of the matrix units per cycle
    # (128 x 128 or 256 x 256 each).
    clock: float | None = None
    # KiB of a TPU's vector memory that one fusion may use; None: the compiler's default.
    fusion_kib: int | None = None
    # Usable by a program; for TPUs as reported by the compiler when a program is too big.
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float  # of all links to neighbors (ICI, NVLink) together
    # Number of those links: 2 per dimension of a TPU's torus; 1 for NVLink, whose switch reaches
    # the whole host.
    links: int
    network_bandwidth: float | None  # to other slices or hosts; None: not published


# Sources, read 2026-11: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, whose ICI figures
# count both directions; for v4's ICI the paper "TPU v4" (2304.01433: 6 links of 50 GB/s); NVIDIA's
# data sheets of the SXM boards (NVLink's 900 and 600 GB/s count both directions) and of the DGX
# H100 and A100 (a 400 or 200 Gb/s network card per GPU). hbm_bytes of TPUs: measured with libtpu
# 0.0.42.1 and 0.0.52. The order matters: "TPU v5 lite" (v5e) must match before "TPU v5" (v5p).
CHIPS = {
    "v4": Chip(
        kinds=("TPU v4",),
        flops=275e12,
        clock=275e12 / (2 * 4 * 2 * 128**2),
        hbm_bytes=int(31.75 * 2**30),
        hbm_bandwidth=1200e9,
        link_bandwidth=300e9,
        links=6,
        network_bandwidth=None,
    ),
    "v5e": Chip(
        kinds=("TPU v5 lite", "TPU v5e"),
        flops=197e12,
        clock=197e12 / (4 * 2 * 128**2),
        hbm_bytes=int(15.75 * 2**30),
        hbm_bandwidth=819e9,
        link_bandwidth=200e9,
        links=4,
        network_bandwidth=3.125e9,
    ),
    "v5p": Chip(
        kinds=("TPU v5",),
        flops=459e12,
        clock=459e12 / (2 * 4 * 2 * 128**2),
        fusion_kib=32 * 1024,
        hbm_bytes=int(95.73 * 2**30),
        hbm_bandwidth=2765e9,
        link_bandwidth=600e9,
        links=6,
        network_bandwidth=6.25e9,
    ),
    "v6e": Chip(
        kinds=("TPU v6 lite", "TPU v6e"),
        flops=918e12,
        clock=918e12 / (4 * 2 * 256**2),
        hbm_bytes=int(31.24 * 2**30),
        hbm_bandwidth=1638e9,
        link_bandwidth=400e9,
        links=4,
        network_bandwidth=12.5e9,
    ),
    "tpu7x": Chip(
        kinds=("TPU7x",),
        flops=1153.5e12,
        clock=1153.5e12 / (4 * 2 * 256**2),
        hbm_bytes=int(94.74 * 2**30),
        hbm_bandwidth=3690e9,
        link_bandwidth=300e9,
        links=6,
        network_bandwidth=6.25e9,
    ),
    "h100": Chip(
        kinds=("H100",),
        flops=989e12,
        hbm_bytes=80 * 10**9,
        hbm_bandwidth=3350e9,
        link_bandwidth=450e9,
        links=1,
        network_bandwidth=50e9,
    ),
    "h200": Chip(
        kinds=("H200",),
        flops=989e12,
        hbm_bytes=141 * 10**9,
        hbm_bandwidth=4800e9,
        link_bandwidth=450e9,
        links=1,
        network_bandwidth=50e9,
    ),
    "a100": Chip(
        kinds=("A100",),
        flops=312e12,
        hbm_bytes=80 * 10**9,
        hbm_bandwidth=2039e9,
        link_bandwidth=300e9,
        links=1,
        network_bandwidth=25e9,
    ),
}


def from_device(device: Any) -> Chip | None:
    """Returns the specifications of a device, present or compile-only, or None if unknown (every
    CPU).
    """
    return next(
        (
            candidate
            for candidate in CHIPS.values()
            if any(kind in device.device_kind for kind in candidate.kinds)
        ),
        None,
    )
