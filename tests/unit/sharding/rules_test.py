import re

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gptjax.config import schema
from gptjax.sharding import device_mesh, rules
from tests import tiny


@pytest.fixture
def mesh():
    return device_mesh.make_mesh(schema.Mesh(data=2, fsdp=2, tensor=2))


def test_letters_choose_axes_and_stacked_layers_stay_whole(mesh):
    table = rules.PRESETS["fsdp_tensor"].params
    assert rules.spec("DF", (16, 64), table, mesh, "w") == P("fsdp", "tensor")
    assert rules.spec("DF", (3, 16, 64), table, mesh, "w") == P(None, "fsdp", "tensor")
    assert rules.spec("BTD", (8, 5, 16), rules.PRESETS["fsdp"].activations, mesh, "x") == P(
        ("data", "fsdp"), None, None
    )


def test_a_size_that_does_not_divide_is_named(mesh):
    with pytest.raises(
        ValueError,
        match=(
            r"params/w DF\(15, 64\): D=15 does not divide over 2 devices of mesh fsdp; choose "
            r"mesh sizes"
        ),
    ):
        rules.spec("DF", (15, 64), rules.PRESETS["fsdp"].params, mesh, "params/w")


def test_an_axis_claimed_twice_is_named(mesh):
    with pytest.raises(
        ValueError, match=r"w DF\(16, 64\): its dimensions claim a mesh axis twice: fsdp, fsdp"
    ):
        rules.spec("DF", (16, 64), {"D": ("fsdp",), "F": ("fsdp",)}, mesh, "w")


def test_adam_moments_are_sharded_like_their_parameters():
    c = tiny.replace_parts(tiny.config(), mesh={"fsdp": 8})
    _, _, state = tiny.make_step(c, 8)
    mu = state.opt_state[1].mu
    specs = [jax.tree.map(lambda x: x.sharding.spec, tree) for tree in (state.params, mu)]
    assert specs[0] == specs[1]
    block = state.params["periods"]["block_0"]
    assert block["mlp"]["up"]["weight_DF"].sharding.spec == P(None, "fsdp", None)
    assert block["mlp"]["up"]["bias_F"].sharding.is_fully_replicated
    assert state.params["token_VD"].addressable_shards[0].data.shape == (128, 2)


@pytest.mark.parametrize(
    "mesh, model, message",
    [
        (
            {"fsdp": 4, "tensor": 2},
            {},
            "mesh.tensor=2, but mesh.sharding=fsdp does not use it; set it to 1, or "
            "sharding=fsdp_tensor",
        ),
        (
            {"fsdp": 1, "tensor": 8, "sharding": "fsdp_tensor"},
            {},
            "mesh.tensor = 8 does not divide model.n_heads = 4; choose one of 1, 2, 4",
        ),
        (
            {"fsdp": 8},
            {"d_model": 20},
            "mesh.fsdp = 8 does not divide model.d_model = 20; choose one of 1, 2, 4, 5",
        ),
        (
            {"fsdp": 1, "context": 8},
            {},
            "mesh.context = 8 does not divide model.n_ctx = 12; choose one of 1, 2, 3, 4, 6",
        ),
        (
            {"fsdp": 2, "context": 4},
            {"d_model": 20, "n_ctx": 16},
            "mesh.fsdp x mesh.context = 8 does not divide model.d_model = 20",
        ),
        (
            {"fsdp": 1, "tensor": 2, "context": 4, "sharding": "fsdp_tensor"},
            {},
            "mesh.context x mesh.tensor = 8 does not divide model.n_ctx = 12",
        ),
    ],
)
def test_a_mesh_that_does_not_fit_the_model(mesh, model, message):
    c = tiny.replace_parts(tiny.config(**model), mesh=mesh)
    with pytest.raises(ValueError, match=re.escape(message)):
        rules.check(c, device_mesh.make_mesh(c.mesh))


def test_heads_of_a_device_are_a_multiple_of_the_stride_by_which_they_differ():
    """A device of a tensor axis counts its heads from 0; without one any number of heads is
    right."""
    c = tiny.config(attention=(schema.BlockSparse(block=4, local_blocks=1, stride=3),))
    rules.check(c, device_mesh.make_mesh(schema.Mesh(), jax.devices()[:1]))
    c = tiny.replace_parts(c, mesh={"fsdp": 4, "tensor": 2, "sharding": "fsdp_tensor"})
    with pytest.raises(ValueError, match="leaves 2 heads to a device"):
        rules.check(c, device_mesh.make_mesh(c.mesh))


def test_rows_of_a_process_are_those_of_its_devices(mesh, monkeypatch):
    """Of 8 rows over data x fsdp = 4, with the second half of the devices here."""

    class Half:
        def __init__(self, mesh, spec):
            self.whole, self.here = NamedSharding(mesh, spec), mesh.devices.ravel()[4:]

        def addressable_devices_indices_map(self, shape):
            return {
                device: index
                for device, index in self.whole.devices_indices_map(shape).items()
                if device in self.here
            }

    monkeypatch.setattr(rules, "NamedSharding", Half)
    assert rules.local_rows(8, rules.PRESETS["fsdp_tensor"].activations, mesh) == [4, 5, 6, 7]


def test_rows_are_placed_by_number(mesh):
    """Of 8 rows over data x fsdp = 4, on one process: all; and a host array that has but some of
    them is refused."""
    table = rules.PRESETS["fsdp_tensor"].activations
    host = np.arange(48).reshape(2, 8, 3)
    assert rules.local_rows(8, table, mesh) == list(range(8))
    for found in (
        rules.put_on_mesh(host, "MB1", table, mesh),
        rules.put_on_mesh(host, "MB1", table, mesh, 8),
    ):
        np.testing.assert_array_equal(found, host)
        assert found.sharding.spec == P(None, ("data", "fsdp"), None)
    with pytest.raises(AssertionError):
        rules.put_on_mesh(host[:, :4], "MB1", table, mesh, 8)
