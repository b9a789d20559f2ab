"""What makes XLA quick on x86 CPUs: the better library for each kind of work, and memory that is not given back after every step.

Measured for 6 layers, 384 wide, context 256, batch 16 on two cores (LOG.md, 2026-11-22): together they take a fifth off a step.
"""

import ctypes
import functools
import platform
import sys

import jax
import jax.numpy as jnp

# Eigen's matrix products, and YNNPACK for sums over rows alone: in a step its products are slower. oneDNN's are the fastest and not used:
# inside a loop they wait for each other for ever (jaxlib 0.10.2).
OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
ARENA_MAX, MMAP_MAX, TOP_PAD, TRIM_THRESHOLD = -8, -4, -2, -1  # of glibc's mallopt
LARGEST = 2**31 - 1


@functools.cache
def options(platform_name: str) -> dict:
    """`compiler_options` of jax.jit for programs of large matrix products: none except on x86 CPUs, nor where this XLA lacks them."""
    if platform_name != "cpu" or platform.machine() != "x86_64":
        return {}
    try:  # experimental, so a newer XLA may have renamed it
        jax.jit(lambda x: x, compiler_options=OPTIONS).lower(jax.ShapeDtypeStruct((), jnp.float32)).compile()
    except jax.errors.JaxRuntimeError as refused:
        if "No such compile option" not in str(refused):
            raise
        return {}
    return OPTIONS


def keep_memory() -> None:
    """Let malloc keep freed memory for the next step: XLA frees its scratch memory (1.4 GiB there) after each, and to map it anew costs a
    page fault for every 4 KiB. Only for glibc, and best before threads start; up to 2 GiB are kept."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in ((ARENA_MAX, 1), (MMAP_MAX, 0), (TOP_PAD, LARGEST), (TRIM_THRESHOLD, LARGEST)):
            libc.mallopt(parameter, value)
