"""Slices of accelerators by name, such as v5p-128, and compile-only devices for those that are not
present. jax is imported only for the latter.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import itertools
import math
import os
import re
import resource
from collections.abc import Iterator
from typing import Any

from gptjax.config import parse
from gptjax.runtime import errors, units
from gptjax.sharding import chips

# --- names ----------------------------------------------------------------------------------------

# Units that N in FAMILY-N counts, per chip: TensorCores, chips or GPUs.
PER_CHIP = {"v4": 2, "v5p": 2, "tpu7x": 2, "v5e": 1, "v6e": 1, "h100": 1}
FLAT_FAMILIES = ("v5e", "v6e")  # 2-D tori; those of the other TPUs are 3-D
MAX_POD_CHIPS = {"v4": 4096, "v5p": 8960, "tpu7x": 9216, "v5e": 256, "v6e": 256}
ALIASES = {"v5litepod": "v5e", "v5": "v5p"}
MAX_SLICES = 1024
NAME_PATTERN = re.compile(
    r"(?:(?P<slices>[1-9]\d*)x)?(?P<family>[a-z]\w*?)(?::(?P<layout>\d+(x\d+)*)|-(?P<size>\d+))"
)


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or more slices of a family of chips. layout: chips of a slice along each dimension of its
    torus; for GPUs, (GPUs of a host,).
    """

    family: str  # a key of chips.CHIPS and of PER_CHIP
    layout: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> chips.Chip:
        """Specifications of its devices."""
        return chips.CHIPS[self.family]

    @property
    def platform(self) -> str:
        """jax's name of the platform, as in device.platform and .lower(lowering_platforms=)."""
        return "cuda" if self.family == "h100" else "tpu"

    @property
    def n_devices(self) -> int:
        """Number of devices as jax counts them."""
        return self.slices * math.prod(self.layout) * (2 if self.family == "tpu7x" else 1)

    def __str__(self) -> str:
        one = (
            f"h100-{self.layout[0]}"
            if self.family == "h100"
            else f"{self.family}:{'x'.join(map(str, self.layout))}"
        )
        return one if self.slices == 1 else f"{self.slices}x{one}"

    def devices(self) -> list[Any]:
        """Compile-only devices, for a mesh on which nothing can run.

        Use `jax.jit(f).trace(...).lower(lowering_platforms=(self.platform,)).compile()` within
        `disable_cache`, with ShapeDtypeStructs with shardings as arguments. Raises ValueError if
        the compiler is not installed.
        """
        return _gpu_devices(self) if self.platform == "cuda" else _tpu_devices(self)


def from_name(name: str) -> Topology:
    """Parses a topology name; needs no compiler.

    The number in a name counts TensorCores (v4-8, v5p-8, tpu7x-8), chips (v5litepod-16, v5e-16,
    v6e-8) or GPUs (h100-8). A layout of chips as libtpu writes it (v5p:2x2x1) works too. A prefix
    of 2x means two slices or, for GPUs, two hosts. Raises ValueError with the nearest names for
    anything else.
    """
    match = NAME_PATTERN.fullmatch(name.lower()) if name.isascii() and len(name) < 40 else None
    family = "" if match is None else ALIASES.get(match["family"], match["family"])
    if match is None or family not in PER_CHIP:
        known = [size for family in PER_CHIP for size in slice_layouts(family)]
        nearest = difflib.get_close_matches(name[:40].lower(), known, n=3) or [
            "v5p-8",
            "v5litepod-16",
            "v6e-8",
            "tpu7x-16",
            "h100-8",
        ]
        raise ValueError(
            f"topology {parse.quote(name)} is not known; give for example {', '.join(nearest)}, "
            "v5p:2x2x1, or two slices as 2xv5p-128"
        )
    slices, known = int(match["slices"] or 1), slice_layouts(family)
    if match["size"]:
        n_chips, layout = (
            int(match["size"]) / PER_CHIP[family],
            known.get(f"{family}-{match['size']}"),
        )
    else:
        layout = tuple(map(int, match["layout"].split("x")))
        n_chips = math.prod(layout)
        layout = layout if _is_valid_layout(family, layout) else None
    if not 1 <= slices <= MAX_SLICES:
        raise ValueError(f"topology {name!r}: give from 1 to {MAX_SLICES:,} slices")
    if layout is None:
        nearest = sorted(known, key=lambda size: abs(math.prod(known[size]) - n_chips))[:3]
        forms = (
            ""
            if family == "h100"
            else f"; or give {family}:{'AxB' if family in FLAT_FAMILIES else 'AxBxC'}, A and B even"
        )
        raise ValueError(
            f"topology {name!r}: there is no such {family}; nearest: {', '.join(nearest)}{forms}"
        )
    return Topology(family, layout, slices)


def slice_layouts(family: str) -> dict[str, tuple[int, ...]]:
    """Names of the single-slice topologies of a family and their layouts, smallest first. Large
    ones are built of cubes of 4 x 4 x 4 chips, as compactly as possible.
    """
    cubes: dict[int, tuple[int, ...]] = {}
    if family == "h100":
        layouts = [(1,), (2,), (4,), (8,)]
    elif family in FLAT_FAMILIES:
        layouts = [(1, 1), *((2 ** (k // 2), 2 ** (k - k // 2)) for k in range(2, 9))]
    else:
        for shape in itertools.combinations_with_replacement(
            range(4, MAX_POD_CHIPS[family] // 16 + 1, 4), 3
        ):
            n = math.prod(shape)
            if n <= MAX_POD_CHIPS[family] and (n not in cubes or sum(shape) < sum(cubes[n])):
                cubes[n] = shape
        layouts = [(2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), *(cubes[n] for n in sorted(cubes))]
        if family == "tpu7x":
            layouts.insert(0, (1, 1, 1))
    return {f"{family}-{math.prod(layout) * PER_CHIP[family]}": layout for layout in layouts}


def _is_valid_layout(family: str, layout: tuple[int, ...]) -> bool:
    """Whether libtpu supports the layout: whole hosts of 2 x 2 chips, or a single chip."""
    if family == "h100" or len(layout) != (2 if family in FLAT_FAMILIES else 3):
        return False
    n = math.prod(layout)
    return n == 1 or (layout[0] % 2 == layout[1] % 2 == 0 < n <= MAX_POD_CHIPS[family])


# --- backends and compilers -----------------------------------------------------------------------

QUIET_ENV = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # otherwise a second compiling process is refused
    # Without these two libtpu looks for chips, and prints a page when it finds none.
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
# Bytes: with less, some threads of jax or Orbax cannot start, and they abort, print traces or hang.
MIN_ADDRESS_SPACE = 2**32


def prepare_backends() -> None:
    """Checks limits and sets up the environment; must run before the first use of jax devices,
    including compile-only ones.

    Raises ValueError if the address-space limit is too low. On a machine without TPU chips it keeps
    an installed libtpu from looking for them.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < MIN_ADDRESS_SPACE:
        raise ValueError(
            f"the address space is limited to {units.human_bytes(limit)} (ulimit -v), and jax "
            f"needs {units.human_bytes(MIN_ADDRESS_SPACE)}: raise the limit"
        )
    # jax sets this at import if it finds no chips.
    if os.environ.get("TPU_SKIP_MDS_QUERY") == "1":
        for name, value in QUIET_ENV.items():
            os.environ.setdefault(name, value)


@contextlib.contextmanager
def disable_cache() -> Iterator[None]:
    """Disables jax's persistent compilation cache while entered.

    jax can write compile-only programs to it but not read them back (jax 0.10.2 and 0.12.0:
    "PjRtCompiler must be constructed with a Client").
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # jax checks the setting once, at its first compilation
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _tpu_devices(target: Topology) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"compiling for {target} needs libtpu, which is not installed: "
            f"{errors.install_hint('tpu')}"
        )
    from jax.experimental import topologies

    prepare_backends()
    options: dict[str, Any] = {"num_slices": target.slices, "wrap": wraparound(target.layout)}
    if math.prod(target.layout) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if target.family == "v4":
        options["chip_config_name"] = "megacore_dense"  # otherwise its two cores are two devices
    name = f"{target.family}:{'x'.join(map(str, target.layout))}"
    return list(topologies.get_topology_desc(name, "tpu", **options).devices)


def wraparound(layout: tuple[int, ...]) -> tuple[bool, bool, bool]:
    """Along which dimensions a TPU slice closes to a ring: those of 16 chips in a flat pod; all of
    them if the slice consists of whole cubes.
    """
    if len(layout) == 2:
        return layout[0] == 16, layout[1] == 16, False
    ring = all(n % 4 == 0 for n in layout)
    return ring, ring, ring


def _gpu_devices(target: Topology) -> list[Any]:
    if not any(
        importlib.util.find_spec("jax_plugins")
        and importlib.util.find_spec(f"jax_plugins.xla_cuda{n}")
        for n in (12, 13)
    ):
        raise ValueError(
            f"compiling for {target} needs jax's CUDA wheels, which are not installed: "
            f"{errors.install_hint('gpu')}"
        )
    from jax.experimental import topologies

    prepare_backends()
    shape = f"{target.slices}x1x{target.layout[0]}"  # slices x hosts x GPUs
    return list(
        topologies.get_topology_desc(
            "", "cuda", topology=shape, target_config=H100_TARGET_CONFIG
        ).devices
    )


# NVIDIA's H100 SXM5 as XLA's GpuTargetConfigProto: the limits of compute capability 9.0 (CUDA C++
# Programming Guide, table of technical specifications) and this board's counts and clocks.
H100_TARGET_CONFIG = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 patch: 0 }
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3" device_vendor: "NVIDIA Corporation" platform_version: "Compute Capability 9.0a"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0"
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 ecc_enabled: true
  device_address_bits: 64 pcie_bandwidth: 34359738368 device_interconnect_info { active_links: 18 }
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
}
"""  # noqa: E501
