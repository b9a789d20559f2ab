"""Reading with a cache is the forward pass: the same hidden states at every position, for every
pattern, however the text is divided."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import schema
from gptjax.model import gpt, inference, kv_cache
from gptjax.sharding import rules
from tests import tiny

T = 24  # the context: eight times round the ring of a band of 3
prefill = jax.jit(inference.prefill, static_argnames="capacity")
extend = jax.jit(inference.decode_step)


def machine(attention, norm="pre"):
    """(model, parameters) of a layer of each pattern."""
    _, built, state = tiny.make_step(
        tiny.config(attention=attention, norm=norm, n_ctx=T, n_layers=len(attention))
    )
    return built.model, state.params


@pytest.fixture(scope="module")
def all_patterns():
    """(model, parameters, reader) of a layer of every pattern."""
    model, params = machine(tiny.PATTERNS)
    return model, params, inference.prepare(model, params)


def texts(*lengths, width=T):
    tokens = np.random.default_rng(1).integers(0, 61, (len(lengths), width), dtype=np.int32)
    return tokens, np.array(lengths, np.int32)


def whole(model, params, tokens_BT):
    return np.asarray(jax.jit(lambda t: model.apply({"params": params}, t))(tokens_BT), np.float32)


def read_to_the_end(reader, tokens, counts, memory, expected, atol, step=1):
    """Read `step` tokens of each row at a time until all are at the end of the context; every
    hidden state is the expected one."""
    lengths, B = counts.copy(), len(counts)
    while lengths.min() < T:
        more = np.minimum(step, T - lengths).astype(
            np.int32
        )  # a row that is at its end reads nothing and changes nothing
        new = tokens[np.arange(B)[:, None], np.minimum(lengths[:, None] + np.arange(step), T - 1)]
        memory, x = extend(reader, memory, new, more)
        for row in range(B):
            np.testing.assert_allclose(
                x[row, : more[row]],
                expected[row, lengths[row] : lengths[row] + more[row]],
                atol=atol,
            )
        lengths += more
    np.testing.assert_array_equal(memory.lengths_B, lengths)


@pytest.mark.parametrize(
    "attention, norm", [((p,), "pre") for p in tiny.PATTERNS] + [(tiny.PATTERNS, "post")], ids=str
)
def test_rows_of_different_lengths_read_on_one_by_one(attention, norm):
    model, params = machine(attention, norm)
    reader, (tokens, counts) = inference.prepare(model, params), texts(1, 5, 9)
    expected = whole(model, params, tokens)
    memory, x = prefill(reader, tokens[:, :12], counts, capacity=T)
    for row, n in enumerate(counts):
        np.testing.assert_allclose(x[row, :n], expected[row, :n], atol=2e-5)
    read_to_the_end(reader, tokens, counts, memory, expected, 2e-5)


def test_several_at_a_time_more_than_a_ring_has_slots(all_patterns):
    model, params, reader = all_patterns
    tokens, counts = texts(2, 4, 7)
    memory, _ = prefill(reader, tokens[:, :12], counts, capacity=T)
    read_to_the_end(reader, tokens, counts, memory, whole(model, params, tokens), 2e-5, step=7)


def test_one_row_alone(all_patterns):
    model, params, reader = all_patterns
    tokens, counts = texts(8)
    memory, _ = prefill(reader, tokens[:, :8], counts, capacity=T)
    read_to_the_end(reader, tokens, counts, memory, whole(model, params, tokens), 2e-5)


def test_a_ring_has_as_many_slots_as_its_window():
    model, params = machine((schema.Banded(window=5), schema.Dense()))
    memory, _ = prefill(inference.prepare(model, params), *texts(3, 9, width=16), capacity=T)
    assert [layer.k_BKHS.shape for layer in memory.layers] == [(2, 4, 4, 5), (2, 4, 4, T)]
    assert [layer.v_BKSH.shape for layer in memory.layers] == [(2, 4, 5, 4), (2, 4, T, 4)]


def test_a_cache_that_grows(all_patterns):
    model, params, reader = all_patterns
    tokens, counts = texts(4, 2)
    memory, _ = prefill(reader, tokens[:, :4], counts, capacity=4)
    memory = kv_cache.resize(memory, model.config.attention, 9)
    memory, _ = extend(
        reader,
        memory,
        tokens[np.arange(2)[:, None], counts[:, None] + np.arange(5)],
        np.array([5, 5], np.int32),
    )
    memory = kv_cache.resize(memory, model.config.attention, T)
    read_to_the_end(reader, tokens, counts + 5, memory, whole(model, params, tokens), 2e-5)


def test_a_prefix_that_is_read_once_serves_several_continuations(all_patterns):
    model, params, reader = all_patterns
    tokens, _ = texts(1, 1, 1)
    prefixes = tokens[[0, 2], :10]
    memory, _ = prefill(reader, prefixes, np.array([10, 10], np.int32), capacity=T)
    rows = np.array([1, 0, 0], np.int32)
    tokens[:, :10] = prefixes[rows]
    read_to_the_end(
        reader,
        tokens,
        np.full(3, 10, np.int32),
        kv_cache.take_rows(memory, rows),
        whole(model, params, tokens),
        2e-5,
    )


def test_bfloat16():
    """On CPU the reader computes in float32 with weights of bfloat16, elsewhere in bfloat16:
    near what the forward pass does with both."""
    c = tiny.replace_parts(tiny.config(n_ctx=T), compute={"dtype": "bfloat16"})
    _, built, state = tiny.make_step(c)
    reader, (tokens, counts) = inference.prepare(built.model, state.params), texts(3, 8)
    memory, _ = prefill(reader, tokens[:, :8], counts, capacity=T)
    read_to_the_end(reader, tokens, counts, memory, whole(built.model, state.params, tokens), 0.1)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), state.params)
    same = inference.prepare(
        built.model.clone(execution_policy=gpt.execution_policy(schema.Compute(), "cpu")), rounded
    )
    np.testing.assert_array_equal(reader.params["token_VD"], same.params["token_VD"])
    assert np.any(np.asarray(same.params["token_VD"]) != np.asarray(state.params["token_VD"]))


def test_an_accelerators_reader_has_weights_of_bfloat16(monkeypatch):
    model, params = machine((schema.Dense(),))
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    model = model.clone(
        sharding=rules.UNSHARDED,  # whose mesh would tell the platform
        execution_policy=gpt.execution_policy(
            schema.Compute(dtype="bfloat16", attention_kernel="reference"), "tpu"
        ),
    )
    reader, (tokens, counts) = inference.prepare(model, params), texts(3, 8)
    kinds = {x.dtype.name for x in jax.tree.leaves(reader.params) if x.ndim > 1}
    assert "bfloat16" in kinds and reader.params["norm"]["gain_D"].dtype == jnp.float32
    memory, _ = prefill(reader, tokens[:, :8], counts, capacity=T)
    assert memory.layers[0].k_BKHS.dtype == jnp.bfloat16
    read_to_the_end(reader, tokens, counts, memory, whole(model, params, tokens), 0.1)


@pytest.mark.parametrize(
    "lengths", [(3,), (3, 1, 2)], ids=str
)  # XLA takes another way for a batch of one
def test_the_cache_is_written_in_place(lengths):
    """The compiled step copies no array of the size of a layer's keys, and its result lies where
    the donated cache lay."""
    model, params = machine((schema.Banded(window=20), schema.Dense()))
    reader = inference.prepare(model, params)
    memory, _ = prefill(reader, *texts(*lengths, width=4), capacity=T)
    tokens, ones = np.zeros((len(lengths), 1), np.int32), np.ones(len(lengths), np.int32)
    compiled = (
        jax.jit(inference.decode_step, donate_argnums=1)
        .lower(reader, memory, tokens, ones)
        .compile()
    )
    stored = jax.tree.leaves(memory.layers)
    copies = [
        math.prod(map(int, dims.split(",")))
        for dims in re.findall(r"= \w+\[([\d,]+)\]\S* copy\(", compiled.as_text())
    ]
    assert not set(copies) & {x.size for x in stored}
    assert compiled.memory_analysis().alias_size_in_bytes >= sum(x.nbytes for x in stored)


def test_more_tokens_than_the_cache_takes():
    model, params = machine((schema.Dense(),))
    with pytest.raises(
        ValueError, match="a KV cache of 4 tokens for 8 new tokens: the capacity must be 8 to 24"
    ):
        inference.prefill(inference.prepare(model, params), *texts(8, width=8), 4)
