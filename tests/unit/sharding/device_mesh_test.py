import dataclasses
import importlib.util
import math
import types

import jax
import numpy as np
import pytest

from gptjax.config import schema
from gptjax.configs import registry
from gptjax.sharding import device_mesh, topology


@pytest.mark.parametrize(
    "sizes, message",
    [
        (
            {"fsdp": 3},
            "mesh data 1 x fsdp 3 x tensor 1 x context 1 needs 3 devices, but there are 8; set "
            "mesh.data",
        ),
        ({"fsdp": -1, "tensor": 3}, "needs a multiple of 3 devices, but there are 8"),
        ({"fsdp": 16}, "needs 16 devices"),
    ],
)
def test_a_mesh_that_does_not_use_all_devices_is_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        device_mesh.make_mesh(schema.Mesh(**sizes))


def test_the_axis_of_minus_one_takes_the_remaining_devices():
    mesh = device_mesh.make_mesh(schema.Mesh(data=2, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2, "context": 1}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
    "shape, n_units, across",
    [
        ((4, 8, 1, 1), 4, [4, 1, 1, 1]),
        ((2, 8, 8, 1), 4, [2, 2, 1, 1]),
        ((1, 64, 8, 1), 8, [1, 8, 1, 1]),
        ((1, 1, 16, 1), 2, [1, 1, 2, 1]),
        ((3, 4, 1, 1), 6, [3, 2, 1, 1]),
    ],
)
def test_the_slow_network_takes_the_first_axes(shape, n_units, across):
    within, found = device_mesh.split_axes(list(shape), n_units)
    assert found == across and [a * b for a, b in zip(within, across, strict=True)] == list(shape)
    assert math.prod(found) == n_units


def machines(platform, n_units, each):
    """Stand-ins for devices: `each` on every unit, in an order that mixes the units."""
    unit = "slice_index" if platform == "tpu" else "process_index"
    made = []
    for i in range(n_units * each):
        chip = i // n_units  # of up to 2 x 2 x 2
        coords = {"coords": (chip & 1, chip >> 1 & 1, chip >> 2), "core_on_chip": 0}
        made.append(
            types.SimpleNamespace(
                platform=platform, device_kind="none", id=i, **coords, **{unit: i % n_units}
            )
        )
    return made, np.vectorize(lambda d: getattr(d, unit))


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_slices_and_hosts_lie_along_data_and_then_fsdp(platform):
    made, unit = machines(platform, 4, 8)
    found = unit(device_mesh.device_array([2, 8, 2, 1], made))
    assert found.shape == (2, 8, 2, 1)
    assert all(
        len(set(found[i, 4 * j : 4 * j + 4].ravel())) == 1 for i in range(2) for j in range(2)
    )
    assert sorted({found[i, 4 * j, 0, 0] for i in range(2) for j in range(2)}) == [0, 1, 2, 3]


def test_tensor_stays_within_a_slice_but_may_span_hosts_of_gpus():
    made, _ = machines("tpu", 4, 2)
    with pytest.raises(
        ValueError,
        match=(
            r"4 slices do not divide mesh.data x mesh.fsdp = 1 x 2, and tensor and context must "
            r"stay"
        ),
    ):
        device_mesh.device_array([1, 2, 4, 1], made)
    made, unit = machines("gpu", 2, 8)
    assert [
        len(set(unit(device_mesh.device_array([1, 1, 16, 1], made)).ravel()[half]))
        for half in (slice(8), slice(8, 16))
    ] == [1, 1]


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs libtpu, which requirements-dev.txt installs",
)
def test_a_tpu_topology_whose_links_must_be_split_and_two_slices():
    mesh = device_mesh.make_mesh(
        schema.Mesh(fsdp=8, tensor=8), topology.from_name("v5p:4x4x4").devices()
    )  # jax.make_mesh refuses it
    assert mesh.devices.shape == (1, 8, 8, 1)
    two = device_mesh.make_mesh(
        schema.Mesh(data=2, fsdp=4, tensor=2), topology.from_name("2xv5p:2x2x2").devices()
    )
    assert [{d.slice_index for d in half.ravel()} for half in two.devices] == [{0}, {1}]


def test_a_model_too_large_is_refused():
    there = device_mesh.make_mesh(schema.Mesh())
    small = registry.config("smoke").model
    device_mesh.check_state_fits(small, there)
    with pytest.raises(
        ValueError, match="the model's state takes .* TiB of each device, which has"
    ):
        device_mesh.check_state_fits(
            dataclasses.replace(small, n_layers=10_000, d_model=2**19), there
        )
