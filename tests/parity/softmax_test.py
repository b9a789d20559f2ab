"""Grouped heads, softcap, sinks and patterns that differ by head: every implementation equals a
plain one that repeats keys and appends the sink as a key."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import schema
from gptjax.model import kv_cache
from gptjax.model.attention import (
    cpu_blocks,
    cpu_tiles,
    dispatch,
    patterns,
    reference,
    scores,
    tpu_splash,
    tree,
)
from gptjax.sharding import device_mesh, rules
from tests import tiny

N, KV, H = 4, 2, 16
BLOCK_SPARSE = schema.BlockSparse(block=8, local_blocks=2, stride=2)
PATTERNS = [schema.Dense(), schema.Banded(window=37), BLOCK_SPARSE]
SOFTMAXES = {
    "plain": (None, False),
    "softcap": (2.0, False),
    "sinks": (None, True),
    "softcap and sinks": (2.0, True),
}
SOFTMAX = pytest.mark.parametrize("softcap, has_sinks", SOFTMAXES.values(), ids=SOFTMAXES)
PATTERN = pytest.mark.parametrize("pattern", PATTERNS, ids=str)


def plain(q_BTNH, k_BSNH, v_BSNH, pattern, softcap, sinks_N):
    """Attention by the book: keys repeated, scores capped, the sink a key whose value is 0."""
    groups = q_BTNH.shape[2] // k_BSNH.shape[2]
    k_BSNH, v_BSNH = jnp.repeat(k_BSNH, groups, 2), jnp.repeat(v_BSNH, groups, 2)
    T = q_BTNH.shape[1]
    s_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSNH) / math.sqrt(q_BTNH.shape[3])
    if softcap is not None:
        s_BNTS = softcap * jnp.tanh(s_BNTS / softcap)
    rows, columns = np.arange(T)[:, None], np.arange(T)[None]
    visible = np.stack([patterns.mask_fn(pattern, rows, columns, n) for n in range(N)])
    s_BNTS = jnp.where(visible[None], s_BNTS, -jnp.inf)
    if sinks_N is not None:
        sinks = jnp.broadcast_to(sinks_N[None, :, None, None], (*s_BNTS.shape[:3], 1))
        s_BNTS = jnp.concatenate([s_BNTS, sinks], axis=-1)
    return jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(s_BNTS)[..., :T], v_BSNH)


def arrays(T, B=2):
    keys = jax.random.split(jax.random.key(T), 5)
    q, g = (2 * jax.random.normal(key, (B, T, N, H)) for key in keys[:2])
    k, v = (jax.random.normal(key, (B, T, KV, H)) for key in keys[2:4])
    return q, k, v, jax.random.normal(keys[4], (N,)), g


def assert_equal(attend, T, pattern, softcap, has_sinks, atol=3e-5):
    """attend(q, k, v, pattern, softmax) against `plain`, in its output and all gradients."""

    def both(q, k, v, sinks, g):
        def ours(q, k, v, sinks):
            softmax = scores.Softmax(softcap, sinks if has_sinks else None)
            return attend(q, k, v, pattern, softmax)

        def theirs(q, k, v, sinks):
            return plain(q, k, v, pattern, softcap, sinks if has_sinks else None)

        results = []
        for fn in (ours, theirs):
            out, pull = jax.vjp(fn, q, k, v, sinks)
            results.append((out, *pull(g)))
        return results

    for found, expected in zip(*jax.jit(both)(*arrays(T)), strict=True):
        np.testing.assert_allclose(found, expected, atol=atol)


@SOFTMAX
@PATTERN
@pytest.mark.parametrize("kernel", [reference, cpu_blocks], ids=["reference", "blocks"])
def test_short_sequences(kernel, pattern, softcap, has_sinks):
    def attend(q, k, v, pattern, softmax):
        return kernel.attend(q, k, v, pattern, softmax=softmax)

    assert_equal(attend, 200, pattern, softcap, has_sinks)


@SOFTMAX
@PATTERN
def test_tiles(pattern, softcap, has_sinks):
    def attend(q, k, v, pattern, softmax):
        return cpu_tiles.attend(q, k, v, pattern, None, softmax)

    assert_equal(attend, 300, pattern, softcap, has_sinks)


@pytest.mark.parametrize("softcap, has_sinks", [(None, False), (2.0, True)], ids=["plain", "both"])
@PATTERN
def test_splash(pattern, softcap, has_sinks):
    def attend(q, k, v, pattern, softmax):
        return tpu_splash.attend(q, k, v, pattern, softmax=softmax, interpret=True)

    assert_equal(attend, 200, pattern, softcap, has_sinks, atol=2e-4)


@SOFTMAX
@PATTERN
def test_a_cache_and_a_tree(pattern, softcap, has_sinks):
    """40 tokens at once and then one by one; and as one text of a tree."""
    T, first = 48, 40
    q, k, v, sinks, _ = arrays(T)
    softmax = scores.Softmax(softcap, sinks if has_sinks else None)
    expected = plain(q, k, v, pattern, softcap, sinks if has_sinks else None)

    def step(layer, start, *new):
        counts = jnp.array([new[0].shape[1]] * 2)
        update = kv_cache.CacheUpdate(layer, jnp.array([start] * 2), counts, T)
        return kv_cache.attend(update, "reference", rules.UNSHARDED, *new, pattern, softmax)

    out, layer = step(None, 0, *(x[:, :first] for x in (q, k, v)))
    parts, decode = [out], jax.jit(step)
    for i in range(first, T):
        out, layer = decode(layer, i, *(x[:, i : i + 1] for x in (q, k, v)))
        parts.append(out)
    assert layer.k_BKHS.shape[1] == KV
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), expected, atol=3e-5)

    nodes = tree.TokenTree(jnp.arange(T)[None].repeat(2, 0), jnp.full((2, T), T))
    found = tree.attend(nodes, q, k, v, pattern, softmax)
    np.testing.assert_allclose(found, expected, atol=3e-5)


@pytest.mark.parametrize(
    "sizes", [{"tensor": 2}, {"context": 4}, {"context": 2, "tensor": 2}], ids=str
)
@pytest.mark.parametrize("exchange", ["gather", pytest.param("ring", marks=pytest.mark.slow)])
@PATTERN
def test_on_a_mesh(pattern, exchange, sizes):
    """Heads and sequence are split over devices; sinks go with their heads."""
    mesh_sizes = {"fsdp": 1} | sizes
    n = math.prod(mesh_sizes.values())
    mesh = device_mesh.make_mesh(schema.Mesh(**mesh_sizes), jax.devices()[:n])
    if exchange == "ring" and "context" not in sizes:
        pytest.skip("no row is split")
    sharding = rules.Sharding(rules.PRESETS["fsdp_tensor"], mesh, exchange)

    def attend(q, k, v, pattern, softmax):
        return dispatch.attend("reference", sharding, q, k, v, pattern, softmax=softmax)

    assert_equal(attend, 64, pattern, 2.0, True)


@pytest.mark.parametrize("tensor", [2, -1], ids=["2", "the rest"])
def test_heads_fewer_than_devices_are_replicated(tensor):
    """One key head on two devices: each computes it."""
    c = dataclasses.replace(
        tiny.config(), mesh=schema.Mesh(fsdp=1, tensor=tensor, sharding="fsdp_tensor")
    )
    mesh = device_mesh.make_mesh(c.mesh, jax.devices()[:2])

    def rules_of(n_kv_heads):
        model = tiny.config(heads=schema.AttentionHeads(n_kv_heads=n_kv_heads)).model
        return rules.for_config(dataclasses.replace(c, model=model), mesh)

    assert rules_of(2).params["K"] == ("tensor",)
    assert "K" not in rules_of(1).params
    sharding = rules.Sharding(rules_of(1), mesh)
    x = jax.random.normal(jax.random.key(0), (1, 4, 1, 2))
    np.testing.assert_array_equal(sharding.repeat_heads(x), jnp.repeat(x, 2, axis=2))
    assert rules.UNSHARDED.repeat_heads(x) is x
