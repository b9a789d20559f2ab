"""What makes XLA quick. On TPUs: more of the fast memory for each fusion, 10% of gpt3_175b's
cycles. On x86 CPUs: the better library for each kind of work, and memory that is not given back
after every step, a fifth of a step of 6 layers, 384 wide (docs/log.md, 2026-11-22).
"""

import ctypes
import functools
import platform
import sys
from typing import Any

import jax
import jax.numpy as jnp

from gptjax.sharding import topology

# Eigen's matrix products, and YNNPACK for sums over rows alone: in a step its products are slower.
# oneDNN's are the fastest and not used: inside a loop they wait for each other for ever (jaxlib
# 0.10.2).
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
ARENA_MAX, MMAP_MAX, TOP_PAD, TRIM_THRESHOLD = -8, -4, -2, -1  # of glibc's mallopt
MAX_INT32, NEVER = 2**31 - 1, -1


def options(device: Any) -> dict[str, str]:
    """`compiler_options` of jax.jit for programs of large matrix products on such devices,
    present or compile-only."""
    if device.platform == "cpu":
        return _cpu_options()
    chip = topology.chip(device)
    return (
        {}
        if chip is None or chip.fusion_kib is None
        else {"xla_tpu_scoped_vmem_limit_kib": str(chip.fusion_kib)}
    )


@functools.cache
def _cpu_options() -> dict[str, str]:
    """None except on x86, nor where this XLA lacks them."""
    if platform.machine() != "x86_64":
        return {}
    try:  # experimental, so a newer XLA may have renamed it
        jax.jit(lambda x: x, compiler_options=CPU_OPTIONS).lower(
            jax.ShapeDtypeStruct((), jnp.float32)
        ).compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return {}
    return CPU_OPTIONS


def configure_runtime() -> None:
    """What a program that computes does first, before devices start their threads. Simulated
    devices share a few threads, of which programs in flight together starve each other: so one
    ends before the next begins. ValueError where the machine's limits are too tight."""
    topology.prepare_backends()
    tune_malloc()
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def tune_malloc() -> None:
    """Let malloc keep freed memory for the next step: XLA frees its scratch memory (1.4 GiB there)
    after each, and to map it anew costs a page fault for every 4 KiB. Only for glibc, and best
    before threads start. The heap grows once or twice by a step's scratch, where a small piece
    has taken its place, and then stays."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in (
            (ARENA_MAX, 1),
            (MMAP_MAX, 0),
            (TOP_PAD, MAX_INT32),
            (TRIM_THRESHOLD, NEVER),
        ):
            libc.mallopt(parameter, value)
