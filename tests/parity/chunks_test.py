"""A prompt that is read in chunks, and a cache of another type: the whole prompt's hidden states
and cache, whatever the pattern and the softmax, in memory that does not grow with T^2."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import count, schema
from gptjax.model import inference, kv_cache
from tests import tiny

T = 40
BLOCK_SPARSE = schema.BlockSparse(block=8, local_blocks=2, stride=2)
SHARED = schema.AttentionHeads(n_kv_heads=2, softcap=2.0, sinks=True)
MODELS = {
    "two patterns": {"attention": (schema.Dense(), schema.Banded(window=5))},
    "every pattern": {"attention": (*tiny.PATTERNS, BLOCK_SPARSE)},
    "shared heads, softcap, sinks, rotary": {
        "attention": (schema.Dense(), schema.Banded(window=3), BLOCK_SPARSE),
        "heads": SHARED,
        "positions": (schema.Rotary(scaling=schema.LinearScaling(factor=2)),),
    },
}
SLOW = pytest.mark.slow
MODEL = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SLOW) for name in list(MODELS)[:2]] + list(MODELS)[2:]
)


def model_config(name, **changes):
    attention = MODELS[name]["attention"]
    return tiny.config(**{"n_layers": len(attention), "n_ctx": T} | MODELS[name] | changes)


def reader(name, **policy):
    """A model whose weights are large enough that its attention is far from uniform."""
    _, built, state = tiny.make_step(model_config(name, init=schema.Init(weight=0.5)))
    model = built.model
    policy = dataclasses.replace(model.execution_policy, **policy)
    return inference.prepare(model.clone(execution_policy=policy), state.params)


def texts(*lengths):
    tokens = np.random.default_rng(1).integers(0, 61, (len(lengths), T), dtype=np.int32)
    return tokens, np.array(lengths, np.int32)


def read(lm, tokens, counts):
    """(cache, hidden states), and those of three more tokens."""
    cache, x = jax.jit(inference.prefill, static_argnames="capacity")(
        lm, tokens[:, : T - 3], counts, capacity=T
    )
    more = np.full(len(counts), 3, np.int32)
    return cache, x, *jax.jit(inference.decode_step)(lm, cache, tokens[:, T - 3 :], more)


def used_slots(cache):
    """Keys and values of each layer, zero where there is no token."""
    for layer in cache.layers:
        S = layer.k_BKHS.shape[3]
        is_used = kv_cache.slot_positions(cache.lengths_B, S)[:, None, :] >= 0
        yield np.where(is_used[:, :, None], layer.k_BKHS, 0)
        yield np.where(is_used[..., None], layer.v_BKSH, 0)


@functools.cache
def read_whole(name):
    return read(reader(name), *texts(37, 3, 20))


@pytest.mark.parametrize(
    "chunk, tile", [(16, 6), pytest.param(5, None, marks=SLOW), pytest.param(7, 7, marks=SLOW)]
)
@MODEL
def test_chunks_are_the_whole_prompt(monkeypatch, name, chunk, tile):
    """Rows of other lengths, one of them shorter than a chunk; tile: scores in so many keys."""
    tokens, counts = texts(37, 3, 20)
    expected = read_whole(name)
    if tile is not None:
        monkeypatch.setattr(kv_cache, "TILE", tile)
        monkeypatch.setattr(kv_cache, "MAX_SCORES_BYTES", 0)
    found = read(reader(name, prefill_chunk=chunk), tokens, counts)
    for (cache, x), (cache_2, x_2) in zip(
        (found[:2], found[2:]), (expected[:2], expected[2:]), strict=True
    ):
        for row, n in enumerate(counts if x.shape[1] > 3 else [3, 3, 3]):
            np.testing.assert_allclose(x[row, :n], x_2[row, :n], atol=2e-5)
        np.testing.assert_array_equal(cache.lengths_B, cache_2.lengths_B)
        for a, b in zip(used_slots(cache), used_slots(cache_2), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def temporary_bytes(chunk, length, attention):
    """Bytes that the compiled prefill of one text needs, without arguments and results."""
    c = tiny.config(attention=attention, n_ctx=length, n_layers=1)
    _, built, state = tiny.make_step(tiny.replace_parts(c, compute={"prefill_chunk": chunk}))
    lm = inference.prepare(built.model, state.params)
    tokens, counts = np.zeros((1, length), np.int32), np.array([length], np.int32)
    prefill = jax.jit(inference.prefill, static_argnames="capacity")
    compiled = prefill.lower(lm, tokens, counts, capacity=length).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def test_memory_does_not_grow_with_the_length():
    """Without the cache and the hidden states, which are results."""
    at_4k, at_16k = (temporary_bytes(512, n, (schema.Dense(),)) for n in (2**12, 2**14))
    assert at_16k < 1.1 * at_4k


@SLOW
def test_memory_grows_with_the_chunk():
    of_512, of_1k = (temporary_bytes(n, 2**12, (schema.Dense(),)) for n in (512, 1024))
    assert of_1k > 1.5 * of_512


@pytest.mark.parametrize(
    "dtype, x_error, relative",
    [pytest.param(jnp.bfloat16, 0.06, 2**-8, marks=SLOW), (jnp.int8, 0.12, 0.5 / 127)],
    ids=["bfloat16", "int8"],
)
@pytest.mark.parametrize("chunk", [16, pytest.param(None, marks=SLOW)])
def test_smaller_types_of_the_cache(dtype, x_error, relative, chunk):
    """Each stored element is within half a step of its token's and head's largest; the hidden
    states, of size 1, are near."""
    name, (tokens, counts) = "shared heads, softcap, sinks, rotary", texts(37, 3, 20)
    expected = read_whole(name)
    found = read(reader(name, kv_cache_dtype=dtype, prefill_chunk=chunk), tokens, counts)
    for row, n in enumerate(counts):
        np.testing.assert_allclose(found[1][row, :n], expected[1][row, :n], atol=x_error)
    np.testing.assert_allclose(found[3], expected[3], atol=x_error)
    first, exact = found[0].layers[0], expected[0].layers[0].k_BKHS
    assert first.k_BKHS.dtype == dtype
    limit = relative * np.abs(exact).max(2, keepdims=True) + 1e-6
    assert (np.abs(kv_cache._decode(first.keys, jnp.float32) - exact) <= limit)[0].all()


@SLOW
def test_rows_and_size_of_a_cache_of_int8():
    """take_rows and resize keep the scales with their tokens."""
    tokens, counts = texts(8, 6)
    lm = reader("two patterns", kv_cache_dtype=jnp.int8)
    prefill = jax.jit(inference.prefill, static_argnames="capacity")
    cache, _ = prefill(lm, tokens[:, :8], counts, capacity=8)
    cache = kv_cache.resize(cache, lm.model.config.attention, T)
    rows = np.array([1, 0, 1], np.int32)
    cache = kv_cache.take_rows(cache, jnp.asarray(rows))
    whole, _ = prefill(lm, tokens[rows, :8], counts[rows], capacity=T)
    assert jax.tree.map(jnp.shape, cache) == jax.tree.map(jnp.shape, whole)
    for a, b in zip(used_slots(cache), used_slots(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(jax.tree.leaves(cache.layers), jax.tree.leaves(whole.layers), strict=True):
        assert a.dtype == b.dtype
    for name in ("k_scale_BK1S", "v_scale_BKS1"):
        scales = [getattr(c.layers[0], name).reshape(3, -1, T)[0, :, :6] for c in (cache, whole)]
        np.testing.assert_array_equal(*scales)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_bytes_of_a_cache(name, dtype):
    c = tiny.replace_parts(
        model_config(name), compute={"dtype": "float32", "kv_cache_dtype": dtype}
    )
    stored = {"auto": jnp.float32, "bfloat16": jnp.bfloat16, "int8": jnp.int8}[dtype]
    cache = jax.eval_shape(lambda: kv_cache.empty(c.model, 1, T, stored))
    n_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache.layers))
    assert count.kv_cache_bytes(c.model, T, count.kv_cache_dtype(c)) == n_bytes
