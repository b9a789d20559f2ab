import types

import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import pretraining
from gptjax.config import registry
from gptjax.mesh import devices


def test_what_is_evaluated_is_what_was_held_out():
    """A loss that is the token it is of: the mean of the validation rows' tokens."""
    rows, asked = np.arange(24, dtype=np.int32).reshape(3, 8), []
    reading = types.SimpleNamespace(validation=lambda n: asked.append(n) or rows, validation_bytes_per_token=2.0)
    step = types.SimpleNamespace(nll=lambda params, tokens_BT, weights_BT: (weights_BT * tokens_BT[:, 1:].astype(jnp.float32)).sum())
    c = registry.config("smoke")
    session = types.SimpleNamespace(reading=reading, step=step, config=c, microbatch=2, mesh=devices.mesh(c.mesh))
    found = pretraining.Pretraining().evaluation(session, lambda x, letters: jnp.asarray(x))({})
    assert asked == [c.loop.eval_rows] and found["validation_loss"] == pytest.approx(rows[:, 1:].mean())
