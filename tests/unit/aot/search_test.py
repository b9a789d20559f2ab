"""Which ways to run a config are tried."""

import pytest

from gptjax.aot import search
from gptjax.configs import registry
from gptjax.sharding import topology

TARGET = topology.from_name("v5p:2x2x1")


def tried(name, *choices):
    return [
        assignments
        for assignments, _ in search.candidates(registry.config(name), TARGET, list(choices))
    ]


def test_every_combination_is_tried():
    found = dict(
        search.candidates(
            registry.config("gpt3_small"),
            TARGET,
            ["mesh.fsdp=4|2", "compute.remat=full|attention+mid"],
        )
    )
    assert list(found) == [
        "mesh.fsdp=4 compute.remat=full",
        "mesh.fsdp=4 compute.remat=attention+mid",
        "mesh.fsdp=2 compute.remat=full",
        "mesh.fsdp=2 compute.remat=attention+mid",
    ]
    assert found["mesh.fsdp=2 compute.remat=attention+mid"].compute.saved_names == (
        "attention",
        "mid",
    )


def test_without_choices_meshes_by_what_is_kept():
    found = tried("gpt3_small")
    assert len(found) == 3 * len(search.REMATS), "4 chips as tensor 1, 2 and 4"
    assert any("mesh.tensor=4 mesh.sharding=fsdp_tensor" in one for one in found)


@pytest.mark.parametrize("choice", ["mesh.fsdp", "mesh.fsdp="])
def test_a_choice_without_values(choice):
    with pytest.raises(ValueError, match=f"--search {choice}: give a path and its values"):
        tried("gpt3_small", choice)
