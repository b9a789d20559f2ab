"""From a config's axis sizes to a mesh of devices."""

import math

import jax

from gptjax.config import schema
from gptjax.mesh import topology

AXES = ("data", "fsdp", "tensor", "context")


def mesh(sizes: schema.Mesh, devices: list | None = None) -> jax.sharding.Mesh:
    """A mesh with the axes data, fsdp, tensor, context over all `devices` (default: all that jax sees). The axis of size -1 takes what is
    left. Raises ValueError when the sizes do not use exactly the devices there are."""
    if devices is None:
        topology.without_tpus()
        devices = jax.devices()
    shape = [getattr(sizes, axis) for axis in AXES]
    known = math.prod(n for n in shape if n != -1)
    given = " x ".join(f"{axis} {n}" for axis, n in zip(AXES, shape, strict=True))
    if -1 in shape and len(devices) % known == 0:
        shape[shape.index(-1)] = len(devices) // known
    elif known != len(devices):
        raise ValueError(
            f"mesh {given} needs {'a multiple of ' if -1 in shape else ''}{known} devices, but there are {len(devices)}; "
            f"set mesh.data, mesh.fsdp, mesh.tensor and mesh.context to divide {len(devices)}, or one of them to -1"
        )
    # make_mesh orders devices along the machine's links. Auto: XLA propagates shardings; its default, Explicit, breaks Linen.
    return jax.make_mesh(tuple(shape), AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES), devices=devices)
