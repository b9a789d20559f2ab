"""Which ways to run a config are tried."""

import dataclasses

from gptjax.aot import search
from gptjax.config import schema, sweep
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


def test_no_mesh_that_heads_or_experts_do_not_divide():
    def tensors(c):
        return {
            point.mesh.tensor
            for _, point in search.candidates(c, topology.from_name("v5p:2x2x2"), ())
        }

    c = registry.config("gpt3_small")
    assert tensors(c) == {1, 2, 4}, "12 heads"
    kv = dataclasses.replace(c.model, heads=schema.AttentionHeads(n_kv_heads=3))
    assert tensors(dataclasses.replace(c, model=kv)) == {1}
    six = schema.Experts(n_experts=6, top_k=2, expert=schema.SwiGLU(d_ff=64))
    experts = dataclasses.replace(c.model, mlp=six)
    assert tensors(dataclasses.replace(c, model=experts)) == {1, 2}
