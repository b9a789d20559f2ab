"""A product of few rows is that of many, and on CPU no weight is transposed for it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.model import linear


@pytest.mark.parametrize("n_rows", [1, 2, 3, 128, 129])
def test_few_rows_have_the_product_of_many(n_rows):
    """(B, T, N, H) times (D, N, H), and its gradients, in NumPy's float64."""
    draw = np.random.default_rng(n_rows)
    x, w = draw.normal(size=(n_rows, 1, 3, 8)), draw.normal(size=(10, 3, 8))
    g = draw.normal(size=(n_rows, 1, 10))
    y, pull = jax.vjp(
        lambda x, w: linear.contract(x, w, [2, 3], [1, 2], jnp.float32),
        x.astype(np.float32),
        w.astype(np.float32),
    )
    dx, dw = pull(jnp.asarray(g, jnp.float32))
    for ours, expected in (
        (y, np.einsum("BTNH,DNH->BTD", x, w)),
        (dx, np.einsum("BTD,DNH->BTNH", g, w)),
        (dw, np.einsum("BTD,BTNH->DNH", g, x)),
    ):
        np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("n_rows", "left"), [(1, "x"), (2, "weight"), (128, "weight"), (129, "x")])
def test_the_left_factor_on_cpu_is_the_weight_of_few_rows(n_rows, left):
    shapes = {"x": (n_rows, 96), "weight": (80, 96)}
    program = jax.jit(lambda x, w: linear.contract(x, w, [1], [1], jnp.float32))
    text = program.lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes.values()))
    (product,) = re.findall(r"dot_general (%\w+), .*tensor<(\d+)x96xf32>, ", text.as_text())
    assert int(product[1]) == shapes[left][0]
