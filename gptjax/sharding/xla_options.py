"""XLA and malloc options that make steps faster.

TPU: more vector memory per fusion, which saves 10% of gpt3_175b's cycles. x86 CPU: the faster
library for each kind of operation, and no return of memory to the system after each step, which
saves a fifth of a step with 6 layers of width 384 (docs/log.md, 2026-11-22).
"""

import ctypes
import functools
import os
import pathlib
import platform
import sys
from typing import Any

import jax
import jax.numpy as jnp

from gptjax.config import schema
from gptjax.sharding import chips, topology

# Eigen for matrix products and YNNPACK only for sums over rows, since its products are slower
# within a step.
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
# Where the processor has products of bfloat16, oneDNN's take less than half the time of Eigen's,
# which convert to float32; elsewhere they take minutes, and in float32 they gain nothing. Earlier
# versions of jaxlib ignore the option (0.10.2) or are untried.
BFLOAT16_OPTIONS = {"xla_cpu_experimental_onednn_custom_call": True}
BFLOAT16_FLAGS, BFLOAT16_JAX = {"avx512_bf16", "amx_bf16"}, (0, 12)
ARENA_MAX, MMAP_MAX, TOP_PAD, TRIM_THRESHOLD = -8, -4, -2, -1  # parameters of glibc's mallopt
MAX_INT32, NEVER = 2**31 - 1, -1
SIMULATED_DEVICES = "--xla_force_host_platform_device_count"
MIN_COMPILE_TIME_VARIABLE = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def options(device: Any, dtype: Any = jnp.float32) -> dict[str, str | bool]:
    """Returns `compiler_options` for jax.jit of programs with large matrix products in `dtype` on
    such a device, present or compile-only.
    """
    if device.platform == "cpu":
        return _cpu_options(dtype == jnp.bfloat16 and multiplies_bfloat16())
    chip = chips.from_device(device)
    return (
        {}
        if chip is None or chip.fusion_kib is None
        else {"xla_tpu_scoped_vmem_limit_kib": str(chip.fusion_kib)}
    )


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether this processor and this jax have fast matrix products of bfloat16."""
    try:
        words = pathlib.Path("/proc/cpuinfo").read_text().split()
    except OSError:  # not Linux
        return False
    return not BFLOAT16_FLAGS.isdisjoint(words) and jax.__version_info__ >= BFLOAT16_JAX


@functools.cache
def _cpu_options(has_onednn: bool) -> dict[str, str | bool]:
    """CPU_OPTIONS, with BFLOAT16_OPTIONS if `has_onednn`, on x86, as far as this XLA knows them."""
    if platform.machine() != "x86_64":
        return {}
    flags = CPU_OPTIONS | (BFLOAT16_OPTIONS if has_onednn else {})
    try:  # experimental, so a newer XLA may have renamed it
        jax.jit(lambda x: x, compiler_options=flags).lower(
            jax.ShapeDtypeStruct((), jnp.float32)
        ).compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return _cpu_options(False) if has_onednn else {}
    return flags


def configure_runtime(compute: schema.Compute | None = None) -> None:
    """Configures jax and malloc for a program that computes; call it before devices start their
    threads. compute: of a config that trains.

    Asynchronous dispatch on CPU is disabled unless the config has compute.microbatch_loop=device
    and no devices are simulated, which share a few threads: concurrent programs starve each other
    of them. Raises ValueError if the address-space limit is too low.
    """
    topology.prepare_backends()
    tune_malloc()
    is_on_device = compute is not None and compute.microbatch_loop == "device"
    is_simulated = (
        SIMULATED_DEVICES in os.environ.get("XLA_FLAGS", "")
        or jax.config.values["jax_num_cpu_devices"] > 1
    )
    jax.config.update("jax_cpu_enable_async_dispatch", is_on_device and not is_simulated)
    if MIN_COMPILE_TIME_VARIABLE not in os.environ:
        # With a compilation cache (JAX_COMPILATION_CACHE_DIR) jax keeps what took it a second or
        # more. The many small programs of a start take as long together, and are read in no time.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def dispatches_asynchronously(compute: schema.Compute, mesh: jax.sharding.Mesh) -> bool:
    """Whether a training step is dispatched while the one before may still be computed: on
    accelerators, and with compute.microbatch_loop=device on CPU, too, but not by several simulated
    devices, since two programs with collectives abort there.
    """
    is_cpu = mesh.devices.flat[0].platform == "cpu"
    return not is_cpu or compute.microbatch_loop == "device" and mesh.size == 1


def tune_malloc() -> None:
    """Makes glibc's malloc keep freed memory for the next step; call it before threads start.

    XLA frees its scratch memory after each step (1.4 GiB in the measured one), and mapping it again
    costs a page fault per 4 KiB. The heap may grow once or twice by a step's scratch memory, where
    a small allocation has taken its place, and then stays the same size.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in (
            (ARENA_MAX, 1),
            (MMAP_MAX, 0),
            (TOP_PAD, MAX_INT32),
            (TRIM_THRESHOLD, NEVER),
        ):
            libc.mallopt(parameter, value)
