"""Which ways to run a config are tried."""

from gptjax.aot import search
from gptjax.config import sweep
from gptjax.configs import registry
from gptjax.sharding import topology

TARGET = topology.from_name("v5p:2x2x1")


def test_every_combination_is_tried():
    found = dict(
        search.candidates(
            registry.config("gpt3_small"),
            TARGET,
            sweep.grid(
                sweep.each("mesh.fsdp", 4, 2), sweep.each("compute.remat", "full", "attention+mid")
            ),
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


def test_without_points_meshes_by_what_is_kept():
    found = [a for a, _ in search.candidates(registry.config("gpt3_small"), TARGET, ())]
    assert len(found) == 3 * len(search.REMATS), "4 chips as tensor 1, 2 and 4"
    assert any("mesh.tensor=4 mesh.sharding=fsdp_tensor" in one for one in found)
