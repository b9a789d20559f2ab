"""Scan or unrolled, rematerialised or not, one batch or many microbatches: the same step."""

import functools

import jax
import numpy as np
import pytest

from gptjax.config import schema
from tests import tiny

config = functools.partial(tiny.config, n_layers=4)  # two periods


def losses_and_params(c, microbatches=1, steps=3, end_of_text=None):
    mesh, step, state = tiny.make_step(c, 1, end_of_text)
    run = jax.jit(step, donate_argnums=0)
    losses = []
    with jax.set_mesh(mesh):
        for i in range(steps):
            state, metrics = run(
                state,
                tiny.random_tokens(c, microbatches, c.batch_rows // microbatches, seed=i),
                np.int32(microbatches),
            )
            losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params)


def assert_same(a, b, rtol=2e-5):
    np.testing.assert_allclose(a[0], b[0], rtol=rtol)
    tiny.assert_near(a[1], b[1])


@pytest.fixture(scope="module")
def reference():
    return losses_and_params(config())


@pytest.mark.parametrize(
    "scan_layers, remat",
    [
        (True, "none"),
        (True, "full"),
        (True, "attention"),
        (True, "attention+qkv+mid+up"),
        (False, "mid"),
    ],
)
def test_layers_and_remat(reference, scan_layers, remat):
    assert_same(
        losses_and_params(
            tiny.replace_parts(config(), compute={"scan_layers": scan_layers, "remat": remat})
        ),
        reference,
    )


@pytest.mark.parametrize("microbatches", [2, 8])
def test_microbatches_are_one_batch(reference, microbatches):
    c = config()
    mesh, step, state = tiny.make_step(c)
    run = jax.jit(step)
    losses = []
    with jax.set_mesh(mesh):
        for i in range(3):
            rows = tiny.random_tokens(c, 1, 8, seed=i).reshape(microbatches, 8 // microbatches, -1)
            padded = np.concatenate(
                [rows, np.full_like(rows[:1], 7)]
            )  # beyond `count`: must not be read
            state, metrics = run(state, padded, np.int32(microbatches))
            losses.append(float(metrics["loss"]))
    assert_same((losses, jax.device_get(state.params)), reference)


def test_host_driven_microbatches_are_the_step():
    c = tiny.config(dropout=schema.Dropout(residual=0.1))
    mesh, step, state = tiny.make_step(c)
    rows = tiny.random_tokens(c, 4, 2)
    with jax.set_mesh(mesh):
        whole, _ = jax.jit(step)(state, rows, np.int32(4))
        sums, add = step.init_accumulator(state.params), jax.jit(step.accumulate)
        for row in rows:
            sums = add(state.params, state.step, sums, row)
        halves, _ = jax.jit(step.update, static_argnums=2)(state, sums, 2)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
        whole.params,
        halves.params,
    )


def test_bfloat16_is_near_float32(reference):
    found, _ = losses_and_params(tiny.replace_parts(config(), compute={"dtype": "bfloat16"}))
    np.testing.assert_allclose(found, reference[0], rtol=0.02)
    assert found != reference[0]
