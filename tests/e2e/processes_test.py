"""Two processes of four devices each: every one supplies the rows of its own shards, whichever
axis lies across them."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

CHECKOUT = pathlib.Path(__file__).parents[2]
WORKER = """
import json, sys
import jax, numpy as np
from gptjax.config import schema
from gptjax.sharding import device_mesh, rules

process, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"localhost:{port}", 2, process, initialization_timeout=60)
said = {}
for sizes in ({"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 1, "tensor": 4, "context": 2}):
    mesh = device_mesh.make_mesh(schema.Mesh(sharding="fsdp_tensor", **sizes))
    table = rules.PRESETS["fsdp_tensor"].activations
    host = np.arange(2 * 16 * 5, dtype=np.int32).reshape(2, 16, 5)
    here = rules.local_rows(16, table, mesh)
    part = rules.put_on_mesh(host[:, here], "MB1", table, mesh, 16)
    whole = rules.put_on_mesh(host[0], "B1", table, mesh)
    weights = np.arange(16)
    sums = jax.jit(lambda x, y, w: ((x * w[None, :, None]).sum(), (y * w[:, None]).sum()))(part, whole, weights)
    said["x".join(map(str, mesh.shape.values()))] = [here, *(int(n) for n in sums)]
if process == 0:
    print("SAID" + json.dumps(said), flush=True)
"""  # noqa: E501


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def test_each_process_supplies_its_rows(port):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    command = [sys.executable, "-c", WORKER]
    workers = [
        subprocess.Popen(
            [*command, str(i), str(port)],
            cwd=CHECKOUT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
    said = json.loads(outputs[0].split("SAID")[1].splitlines()[0])
    host, weights = np.arange(2 * 16 * 5).reshape(2, 16, 5), np.arange(16)[:, None]
    weigh = [int((host * weights).sum()), int((host[0] * weights).sum())]
    assert said == {
        "1x8x1x1": [list(range(8)), *weigh],
        "2x2x2x1": [list(range(8)), *weigh],
        "1x1x4x2": [
            list(range(16)),
            *weigh,
        ],  # tensor lies across the processes: both have every row
    }
