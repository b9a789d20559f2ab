"""Learned positions, extended and cut."""

import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.model import embedding

TABLE = jnp.array([[0.0, 8.0], [4.0, 4.0], [2.0, -8.0]])


@pytest.mark.parametrize(
    "n_ctx, rule, rows",
    [
        (2, "refuse", [[0, 8], [4, 4]]),
        (7, "repeat", [[0, 8], [4, 4], [2, -8], [0, 8], [4, 4], [2, -8], [0, 8]]),
        # position 2 i is that of i, those between are halfway, and nothing comes after the last row
        (6, "interpolate", [[0, 8], [2, 6], [4, 4], [3, -2], [2, -8], [2, -8]]),
        (4, "interpolate", [[0, 8], [3, 5], [3, -2], [2, -8]]),
    ],
)
def test_resized_tables(n_ctx, rule, rows):
    np.testing.assert_allclose(embedding.resize_positions(TABLE, n_ctx, rule), rows, atol=1e-6)
