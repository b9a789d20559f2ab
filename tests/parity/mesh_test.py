"""Every preset on eight devices gives the loss curve of one device, with and without microbatches; and sends what it should."""

import jax
import numpy as np
import pytest

from tests import tiny

COUNTS = (1, 2, 2, 1, 2)  # microbatches of each step, as in a batch ramp
MESHES = {
    "fsdp": {"sharding": "fsdp", "fsdp": 8},
    "data": {"sharding": "fsdp", "data": 2, "fsdp": 4},
    "tensor": {"sharding": "fsdp_tensor", "fsdp": 4, "tensor": 2},
    "all": {"sharding": "fsdp_tensor", "data": 2, "fsdp": 1, "tensor": 2, "context": 2},
    "context": {"sharding": "fsdp", "fsdp": 1, "context": 8},
}


def config(**parts):
    """One banded and one dense layer, pre-LN; a row is long enough for 8 parts of 2 positions, and the band for 2 of them."""
    return tiny.varied(tiny.config(n_layers=2, n_ctx=16), **parts)


def rows(c, count):
    return tiny.tokens(c, count, 8, seed=count)


def curve(c, n_devices, microbatches):
    """Losses of the steps, and the parameters after them. microbatches: at most so many a step, else one batch of all rows."""
    mesh, step, state = tiny.machine(c, n_devices)
    run, losses = jax.jit(step, donate_argnums=0), []
    with jax.set_mesh(mesh):
        for i, count in enumerate(COUNTS):
            tokens = tiny.tokens(c, 2, 8, seed=i)
            tokens, count = (tokens, count) if microbatches else (tokens[:count].reshape(1, count * 8, -1), 1)
            state, metrics = run(state, tokens, np.int32(count))
            losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params)


@pytest.fixture(scope="module")
def one_device():
    return curve(config(), 1, microbatches=False)


@pytest.mark.parametrize("name", MESHES)
def test_the_curve_is_that_of_one_device(one_device, name):
    """Float32 sums in another order: some 1e-7 of a loss after one step. Adam divides gradients by their size, so what differs in the
    seventh digit of a small one can move a parameter by a visible part of the learning rate, here 1e-2."""
    losses, params = curve(config(mesh=MESHES[name]), 8, microbatches=True)
    np.testing.assert_allclose(losses, one_device[0], rtol=2e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-5), params, one_device[1])
