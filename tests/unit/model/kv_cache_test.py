"""The ring; that reading with it is the forward pass: tests/parity/reading_test.py."""

import jax.numpy as jnp
import numpy as np

from gptjax.config import schema
from gptjax.model import kv_cache
from gptjax.sharding import rules


def test_no_slot_is_written_twice_at_a_time(monkeypatch):
    """A scatter's order is not defined: of more new tokens than slots, and of padding, nothing
    is written."""
    into, written = [], kv_cache._write_slots
    monkeypatch.setattr(
        kv_cache,
        "_write_slots",
        lambda x, new, slots_BT, dim: into.append(slots_BT) or written(x, new, slots_BT, dim),
    )
    B, T, S = 3, 7, 3
    new = jnp.ones((B, T, 1, 2))
    turn = kv_cache.CacheUpdate(
        kv_cache.LayerCache(jnp.zeros((B, 1, 2, S)), jnp.zeros((B, 1, S, 2))),
        jnp.array([4, 4, 4]),
        jnp.array([7, 4, 1]),
        24,
    )
    _, layer = kv_cache.attend(
        turn, "reference", rules.UNSHARDED, new, new, new, schema.Banded(window=S)
    )
    np.testing.assert_array_equal(
        into[0], [[3, 3, 3, 3, 2, 0, 1], [3, 2, 0, 1, 3, 3, 3], [1, 3, 3, 3, 3, 3, 3]]
    )
    np.testing.assert_array_equal(layer.v_BKSH[2, 0, :, 0], [0, 1, 0])
