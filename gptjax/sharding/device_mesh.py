"""Device mesh: arranges the devices by a config's axis sizes, so that neighbors on the mesh are
neighbors in the hardware.
"""

import math

import jax
import numpy as np
import psutil
from jax.experimental import mesh_utils

from gptjax.config import count, schema
from gptjax.runtime import units
from gptjax.sharding import topology

AXES = ("data", "fsdp", "tensor", "context")
# These axes communicate in every layer: too often for the network between slices.
INTRA_SLICE_AXES = ("tensor", "context")


def make_mesh(sizes: schema.Mesh, devices: list | None = None) -> jax.sharding.Mesh:
    """Returns a mesh with the axes data, fsdp, tensor and context over all `devices` (default:
    jax.devices()).

    The axis of size -1 takes the remaining devices. Multiple TPU slices, or hosts of GPUs, are laid
    out along data first, then fsdp. Raises ValueError if the sizes do not use exactly the available
    devices, or would split tensor or context across TPU slices.
    """
    if devices is None:
        topology.prepare_backends()
        devices = jax.devices()
    shape = [getattr(sizes, axis) for axis in AXES]
    n_known = math.prod(n for n in shape if n != -1)
    sizes_text = " x ".join(f"{axis} {n}" for axis, n in zip(AXES, shape, strict=True))
    if -1 in shape and len(devices) % n_known == 0:
        shape[shape.index(-1)] = len(devices) // n_known
    elif n_known != len(devices):
        raise ValueError(
            f"mesh {sizes_text} needs {'a multiple of ' if -1 in shape else ''}{n_known} devices, "
            f"but there are {len(devices)}; "
            f"set mesh.data, mesh.fsdp, mesh.tensor and mesh.context to divide {len(devices)}, or "
            "one of them to -1"
        )
    # Auto: XLA propagates shardings; the default, Explicit, breaks Linen.
    return jax.sharding.Mesh(
        device_array(shape, devices), AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES)
    )


def check_state_fits(model: schema.Model, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError if parameters and Adam moments alone exceed a device's memory, which
    catches mistyped sizes early.
    """
    stats = mesh.local_devices[0].memory_stats()
    # On CPU the simulated devices share the machine's memory.
    available = (
        stats["bytes_limit"] if stats else psutil.virtual_memory().total // len(mesh.local_devices)
    )
    needed = count.state_bytes(model) * mesh.shape["data"] // mesh.size
    if needed > available:
        raise ValueError(
            f"the model's state takes {units.human_bytes(needed)} of each device, which has "
            f"{units.human_bytes(available)}: choose smaller "
            f"model.n_layers, model.d_model or model.n_vocab, or more devices along mesh.fsdp"
        )


def device_array(shape: list[int], devices: list) -> np.ndarray:
    """Returns the devices in the given shape. jax.make_mesh would suffice for one slice, but cannot
    split a physical axis (8 x 8 of 4 x 4 x 4 chips).
    """
    tpu = devices[0].platform == "tpu"
    unit = (
        ("slice_index" if hasattr(devices[0], "slice_index") else None) if tpu else "process_index"
    )
    n_units = 1 if unit is None else len({getattr(d, unit) for d in devices})
    if n_units == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    within, across = split_axes(shape, n_units)
    if tpu and any(n > 1 for axis, n in zip(AXES, across, strict=True) if axis in INTRA_SLICE_AXES):
        raise ValueError(
            f"{n_units} slices do not divide mesh.data x mesh.fsdp = {shape[0]} x {shape[1]}, and "
            f"{' and '.join(INTRA_SLICE_AXES)} must "
            f"stay within a slice; set mesh.data to a multiple of {n_units}"
        )
    return mesh_utils.create_hybrid_device_mesh(
        within,
        across,
        devices,
        process_is_granule=not tpu,
        allow_split_physical_axes=True,
        should_sort_granules_by_key=True,
    )


def split_axes(shape: list[int], n_units: int) -> tuple[list[int], list[int]]:
    """Returns (sizes within a unit, sizes across units) of a mesh over `n_units` equal units joined
    by a slow network, with the earliest possible axes across units. Their product is `shape`.
    """
    across, remaining = [], n_units
    for size in shape:
        across.append(math.gcd(size, remaining))
        remaining //= across[-1]
    assert remaining == 1, (shape, n_units)
    return [size // n for size, n in zip(shape, across, strict=True)], across
