"""Reading with a cache is the forward pass: hidden states equal at every position, for every pattern, in every order of reading."""

import jax
import numpy as np
import pytest

from gptjax.config import schema
from gptjax.model import reading
from tests import tiny

T = 24  # of the context of 24: eight times round the ring of a band of 3
MIXED = (schema.Banded(window=3), schema.Dense())
prefill = jax.jit(reading.prefill, static_argnames="capacity")
extend = jax.jit(reading.extend)


def machine(attention, norm="pre", dtype="float32"):
    c = tiny.varied(tiny.config(attention=attention, norm=norm, n_ctx=T, n_layers=2), compute={"dtype": dtype})
    _, built, state = tiny.machine(c)
    return built.model, state.params


def texts(*lengths, width=T):
    tokens = np.random.default_rng(1).integers(0, 61, (len(lengths), width), dtype=np.int32)
    return tokens, np.array(lengths, np.int32)


def whole(model, params, tokens_BT):
    return np.asarray(jax.jit(lambda t: model.apply({"params": params}, t))(tokens_BT), np.float32)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("name", [*tiny.EVERY_PATTERN, "mixed"])
def test_every_position_of_every_row_read_one_by_one(name, norm):
    """Rows of 1, 5 and 9 tokens are read at once, then each goes on to the end of the context by itself."""
    model, params = machine(MIXED if name == "mixed" else (tiny.EVERY_PATTERN[name],), norm)
    reader, (tokens, counts) = reading.reader(model, params), texts(1, 5, 9)
    expected = whole(model, params, tokens)
    memory, x = prefill(reader, tokens[:, :12], counts, capacity=T)
    for row, n in enumerate(counts):
        np.testing.assert_allclose(x[row, :n], expected[row, :n], atol=2e-5)
    lengths = counts.copy()
    while lengths.min() < T:
        open_B = (lengths < T).astype(np.int32)  # a row that is at its end reads nothing and changes nothing
        token_B = tokens[np.arange(3), np.minimum(lengths, T - 1)]
        memory, x = extend(reader, memory, token_B[:, None], open_B)
        for row in np.flatnonzero(open_B):
            np.testing.assert_allclose(x[row, 0], expected[row, lengths[row]], atol=2e-5)
        lengths += open_B
    np.testing.assert_array_equal(memory.lengths_B, lengths)
