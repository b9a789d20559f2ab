import types

import jax

from gptjax.configs import registry
from gptjax.model import gpt
from gptjax.sharding import device_mesh
from gptjax.training import microbatches


def test_the_process_with_the_least_memory_decides_the_microbatch():
    c = registry.config("smoke")
    mesh, manner = (
        device_mesh.make_mesh(c.mesh, jax.devices()[:1]),
        gpt.execution_policy(c.compute, "cpu"),
    )

    def limit(others):
        return microbatches.microbatch_limit(
            c, mesh, manner, 1, types.SimpleNamespace(all_gather=lambda mine: [mine, *others])
        )

    assert limit([0]) == 1 < limit([]) == limit([2**60])
