import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.model import layers


class Dropped(nn.Module):
    rate: float

    @nn.compact
    def __call__(self, x, train):
        return layers.dropout(self, x, self.rate, train)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dropout_zeroes_a_share_and_scales_the_rest(dtype):
    x = jnp.full((100, 100), 3, dtype)
    out = Dropped(0.2).apply({}, x, True, rngs={"dropout": jax.random.key(0)})
    assert out.dtype == dtype and {float(v) for v in np.unique(np.asarray(out, np.float32))} == {
        0.0,
        3.75,
    }
    assert np.mean(np.asarray(out, np.float32) == 0) == pytest.approx(0.2, abs=0.02)
    np.testing.assert_array_equal(Dropped(0.2).apply({}, x, False), x)
    np.testing.assert_array_equal(Dropped(0.0).apply({}, x, True), x)
