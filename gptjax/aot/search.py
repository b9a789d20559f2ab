"""Search over several ways to run a config on the same chips, each compiled."""

from collections.abc import Iterator

from gptjax.config import overrides, schema, sweep
from gptjax.sharding import topology

REMATS = ("none", "attention+qkv+mid+up", "attention+mid+up", "attention+mid", "full")


def candidates(
    config: schema.Config, target: topology.Topology, points: sweep.Points
) -> Iterator[tuple[str, schema.Config]]:
    """Yields (assignments, config) for each point. Raises ValueError for an invalid assignment.

    Without points: every tensor size up to 16 that divides the heads and leaves a number of shards
    that divides the batch, with each of REMATS.
    """
    for assignments in points or _default_points(config, target):
        yield " ".join(assignments), overrides.override(config, *assignments)


def _default_points(config: schema.Config, target: topology.Topology) -> Iterator[tuple[str, ...]]:
    for tensor in (1, 2, 4, 8, 16):
        rows = target.n_devices // tensor
        if (
            target.n_devices % tensor == 0
            and config.model.n_heads % tensor == 0
            and config.batch_rows % rows == 0
        ):
            sharding = "fsdp" if tensor == 1 else "fsdp_tensor"
            for remat in REMATS:
                yield f"mesh.tensor={tensor}", f"mesh.sharding={sharding}", f"compute.remat={remat}"
