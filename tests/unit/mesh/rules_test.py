import jax
import pytest
from jax.sharding import PartitionSpec as P

from gptjax.config import schema
from gptjax.mesh import devices, rules
from tests import tiny


@pytest.fixture
def mesh():
    return devices.mesh(schema.Mesh(data=2, fsdp=2, tensor=2))


def test_letters_choose_axes_and_stacked_layers_stay_whole(mesh):
    table = rules.PRESETS["fsdp_tensor"].params
    assert rules.spec("DF", (16, 64), table, mesh, "w") == P("fsdp", "tensor")
    assert rules.spec("DF", (3, 16, 64), table, mesh, "w") == P(None, "fsdp", "tensor")
    assert rules.spec("BTD", (8, 5, 16), rules.PRESETS["fsdp"].activations, mesh, "x") == P(("data", "fsdp"), None, None)


def test_a_size_that_does_not_divide_is_named(mesh):
    with pytest.raises(ValueError, match=r"params/w DF\(15, 64\): D=15 does not divide over 2 devices of mesh fsdp; choose mesh sizes"):
        rules.spec("DF", (15, 64), rules.PRESETS["fsdp"].params, mesh, "params/w")


def test_an_axis_claimed_twice_is_named(mesh):
    with pytest.raises(ValueError, match=r"w DF\(16, 64\): its dimensions claim a mesh axis twice: fsdp, fsdp"):
        rules.spec("DF", (16, 64), {"D": ("fsdp",), "F": ("fsdp",)}, mesh, "w")


def test_adams_moments_lie_where_their_parameters_do():
    c = tiny.varied(tiny.config(), mesh={"fsdp": 8})
    _, _, state = tiny.machine(c, 8)
    mu = state.opt_state[1].mu
    specs = [jax.tree.map(lambda x: x.sharding.spec, tree) for tree in (state.params, mu)]
    assert specs[0] == specs[1]
    block = state.params["periods"]["block_0"]
    assert block["mlp"]["up"]["weight_DF"].sharding.spec == P(None, "fsdp", None)
    assert block["mlp"]["up"]["bias_F"].sharding.is_fully_replicated
    assert state.params["token_VD"].addressable_shards[0].data.shape == (128, 2)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"fsdp": 3}, "needs 3 devices, but there are 8"),
        ({"fsdp": -1, "tensor": 3}, "needs a multiple of 3 devices, but there are 8"),
        ({"fsdp": 16}, "needs 16 devices"),
    ],
)
def test_devices_that_a_mesh_cannot_use(sizes, message):
    with pytest.raises(ValueError, match=message):
        devices.mesh(schema.Mesh(**sizes))


def test_the_axis_of_minus_one_takes_what_is_left():
    assert dict(devices.mesh(schema.Mesh(data=2, tensor=2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2, "context": 1}
