"""Search over several ways to run a config on the same chips, each compiled."""

import itertools
from collections.abc import Iterator

from gptjax.config import overrides, schema
from gptjax.sharding import topology

REMATS = ("none", "attention+qkv+mid+up", "attention+mid+up", "attention+mid", "full")


def candidates(
    config: schema.Config, target: topology.Topology, choices: list[str]
) -> Iterator[tuple[str, schema.Config]]:
    """Yields (assignments, config) for each combination of choices, each "path=a|b|c".

    Without choices: every tensor size up to 16 that divides the heads and leaves a number of shards
    that divides the batch, with each of REMATS. Raises ValueError for an invalid choice.
    """
    for assignments in (
        itertools.product(*(split_choice(choice) for choice in choices))
        if choices
        else _default_choices(config, target)
    ):
        yield " ".join(assignments), overrides.override(config, *assignments)


def split_choice(choice: str) -> list[str]:
    """Splits "path=a|b" into ["path=a", "path=b"]."""
    path, equals, values = choice.partition("=")
    if not equals or not values:
        raise ValueError(
            f"--search {choice}: give a path and its values, for example mesh.tensor=2|4|8"
        )
    return [f"{path}={value}" for value in values.split("|")]


def _default_choices(config: schema.Config, target: topology.Topology) -> Iterator[tuple[str, ...]]:
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
