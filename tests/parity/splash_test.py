"""Splash attention is the reference, in output and in all gradients: interpreted on CPU, and compiled ahead of time for TPUs."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.config import schema
from gptjax.mesh import devices, rules, topology
from gptjax.model import attention, kernels, splash

PATTERNS = [
    schema.Dense(),
    schema.Banded(window=1),
    schema.Banded(window=100),
    schema.Banded(window=5000),
    schema.Strided(stride=17),
    schema.Fixed(block=32, summary=4),
]
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install -r requirements-dev.txt")


@pytest.fixture
def small(monkeypatch):
    """Small blocks, so that a short text has several."""
    monkeypatch.setattr(splash, "BLOCKS", (128,))
    splash._kernel.cache_clear()
    yield
    splash._kernel.cache_clear()


@pytest.fixture
def two_kernels(small, monkeypatch):
    """The backward pass in two kernels, as where there are many keys."""
    monkeypatch.setattr(splash, "COPIES", 0)


def out_and_gradients(attend, q, k, v, g):
    out, pull = jax.vjp(attend, q, k, v)
    return (out, *pull(g))


def compare(pattern, T, d_head=64, dtype=jnp.float32, segments_BS=None, S=None, part=(0, 1), found=None, B=1, N=1):
    """`found`, or splash, against the reference; the queries are the `part` of the last positions."""
    S, (i, n) = S or T, part
    keys = jax.random.split(jax.random.key(T), 4)
    q, g = (jax.random.normal(key, (B, T * n, N, d_head), dtype) for key in keys[:2])
    k, v = (jax.random.normal(key, (B, S, N, d_head), dtype) for key in keys[2:])
    mine = slice(i * T, (i + 1) * T)
    found = found or (lambda q, k, v: splash.attend(q, k, v, pattern, segments_BS, part=part, interpret=True))

    @jax.jit
    def both():
        g_part = jnp.zeros_like(g).at[:, mine].set(g[:, mine])
        expected = out_and_gradients(lambda q, k, v: attention.attend(q, k, v, pattern, segments_BS), q, k, v, g_part)
        out, dq, dk, dv = expected
        return out_and_gradients(found, q[:, mine], k, v, g[:, mine]), (out[:, mine], dq[:, mine], dk, dv)

    for x, y in zip(*jax.tree.map(lambda x: np.asarray(x, np.float32), both()), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5 if dtype == jnp.float32 else 0.06)


def documents(S, B=1):
    return jnp.cumsum((jnp.arange(S) % 70 == 0).astype(jnp.int32))[None].repeat(B, 0)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_patterns(pattern, small):
    compare(pattern, 300)


@pytest.mark.parametrize("d_head, dtype", [(64, jnp.bfloat16), (80, jnp.float32), (96, jnp.bfloat16), (128, jnp.float32)])
def test_head_sizes_and_types(d_head, dtype, small):
    compare(schema.Banded(window=50), 130, d_head, dtype, N=2)


@pytest.mark.parametrize("pattern", [schema.Dense(), schema.Strided(stride=17)], ids=str)
def test_documents_kept_apart(pattern, small):
    compare(pattern, 300, segments_BS=documents(300))


@pytest.mark.parametrize("pattern", [schema.Banded(window=100), schema.Fixed(block=100, summary=3)], ids=str)
def test_the_backward_pass_in_two_kernels(pattern, two_kernels):
    compare(pattern, 300, segments_BS=documents(300))


@pytest.mark.parametrize("pattern", [schema.Banded(window=1), schema.Strided(stride=17)], ids=str)
@pytest.mark.parametrize("T, S", [(1, 1), (1, 300), (40, 300)])
def test_few_queries(pattern, T, S, small):
    compare(pattern, T, S=S, segments_BS=documents(S))


@pytest.mark.parametrize("pattern", [schema.Dense(), schema.Banded(window=100), schema.Fixed(block=32, summary=4)], ids=str)
@pytest.mark.parametrize("i", [0, 2])
def test_a_part_of_the_queries(pattern, i, small):
    compare(pattern, 100, S=300, part=(jnp.int32(i), 3), segments_BS=documents(300))


def test_on_a_mesh(small, monkeypatch):
    """Rows over data and fsdp, heads over tensor."""
    monkeypatch.setitem(kernels.KERNELS, "splash", functools.partial(splash.attend, interpret=True))
    mesh = devices.mesh(schema.Mesh(data=2, fsdp=1, tensor=2), jax.devices()[:4])
    place = rules.Placement(rules.PRESETS["fsdp_tensor"], mesh)
    pattern = schema.Banded(window=50)
    segments_BS = documents(140, B=2)

    def found(q, k, v):
        return kernels.attend("splash", place, q, k, v, pattern, segments_BS)

    compare(pattern, 140, segments_BS=segments_BS, found=found, B=2, N=2)


@pytest.mark.parametrize("pattern, double", [(schema.Banded(window=256), 2.1), (schema.Dense(), 3.3)], ids=str)
def test_blocks_visited(pattern, double):
    """Twice the tokens: twice the blocks of a band, nearly four times those of dense attention; in each kernel."""
    for few, many in zip(splash.steps(pattern, 8192).values(), splash.steps(pattern, 16384).values(), strict=True):
        assert double - 0.2 < many / few <= double + 0.6


def ahead(name, pattern, T, d_head, dtype, segmented=False):
    """Forward and backward passes, compiled for a TPU; the names of the kernels in the program."""
    target = topology.topology(name)
    whole = NamedSharding(jax.sharding.Mesh(target.devices()[:1], "x"), PartitionSpec())
    x = jax.ShapeDtypeStruct((1, T, 2, d_head), dtype, sharding=whole)
    segments_BS = jax.ShapeDtypeStruct((1, T), jnp.int32, sharding=whole) if segmented else None

    def f(q, k, v, g, segments_BS):
        return out_and_gradients(lambda q, k, v: splash.attend(q, k, v, pattern, segments_BS), q, k, v, g)

    return jax.jit(f).trace(x, x, x, x, segments_BS).lower(lowering_platforms=(target.platform,)).compile()


@needs_libtpu
@pytest.mark.parametrize(
    "pattern, T, d_head, dtype, segmented",
    [
        (schema.Dense(), 1024, 64, jnp.bfloat16, False),
        (schema.Banded(window=256), 1000, 80, jnp.float32, True),
        (schema.Strided(stride=128), 600, 96, jnp.bfloat16, False),
    ],
    ids=str,
)
def test_compiled_for_v5e(pattern, T, d_head, dtype, segmented):
    program = ahead("v5e-1", pattern, T, d_head, dtype, segmented).as_text()
    assert "splash_mha_fwd" in program and "splash_mha_dkv" in program


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e-1", "v5p-8", "v6e-1"])
@pytest.mark.parametrize(
    "pattern", [schema.Dense(), schema.Banded(window=256), schema.Strided(stride=100), schema.Fixed(block=128, summary=8)]
)
@pytest.mark.parametrize(
    "T, d_head, dtype", [(2048, 64, jnp.bfloat16), (1000, 80, jnp.float32), (8192, 128, jnp.float32), (32768, 96, jnp.bfloat16)]
)
@pytest.mark.parametrize("segmented", [False, True])
def test_compiled_for_many(name, pattern, T, d_head, dtype, segmented):
    ahead(name, pattern, T, d_head, dtype, segmented)
