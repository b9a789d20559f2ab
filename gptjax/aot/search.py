"""Search over several ways to run a config on the same chips, each compiled."""

from collections.abc import Iterator

from gptjax.config import overrides, schema, sweep
from gptjax.sharding import topology

REMATS = ("none", "attention+qkv+mid+up", "attention+mid+up", "attention+mid", "full")


def candidates(
    config: schema.Config, target: topology.Topology, points: sweep.Points
) -> Iterator[tuple[str, schema.Config]]:
    """Yields (assignments, config) for each point. Raises ValueError for an invalid assignment.

    Without points: every tensor size up to 16 that divides the heads and experts and leaves a
    number of shards that divides the batch, with each of REMATS.
    """
    for assignments in points or _default_points(config, target):
        yield " ".join(assignments), overrides.override(config, *assignments)


def _default_points(config: schema.Config, target: topology.Topology) -> Iterator[tuple[str, ...]]:
    for tensor in (1, 2, 4, 8, 16):
        rows = target.n_devices // tensor
        if (
            target.n_devices % tensor == 0
            and _divides_layers(config.model, tensor)
            and config.batch_rows % rows == 0
        ):
            sharding = "fsdp" if tensor == 1 else "fsdp_tensor"
            for remat in REMATS:
                yield f"mesh.tensor={tensor}", f"mesh.sharding={sharding}", f"compute.remat={remat}"


def _divides_layers(model: schema.Model, tensor: int) -> bool:
    """Whether the heads and experts of a layer can be split over so many devices, as
    sharding.rules.check decides. Fewer key and value heads than devices are replicated."""
    fits = model.n_heads % tensor == 0 and (
        model.n_kv_heads % tensor == 0 or tensor % model.n_kv_heads == 0
    )
    match model.mlp:
        case schema.Experts(n_experts=n_experts):
            return fits and n_experts % tensor == 0
    return fits
