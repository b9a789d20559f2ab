"""Every kernel is its reference, in output and in all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import schema
from gptjax.model.attention import cpu_blocks, cpu_tiles, reference

KERNELS = pytest.mark.parametrize(
    "kernel", [cpu_blocks.attend, cpu_tiles.attend], ids=["blocks", "tiles"]
)

PATTERNS = [
    schema.Dense(),
    schema.Banded(window=1),
    schema.Banded(window=100),
    schema.Banded(window=256),
    schema.Banded(window=5000),
    schema.Strided(stride=17),
    schema.Fixed(block=32, summary=4),
]


def arrays(T, d_head, dtype):
    k = jax.random.split(jax.random.key(T), 4)
    return [jax.random.normal(key, (2, T, 2, d_head), dtype) for key in k]


def both(kernel, pattern, T, d_head=32, dtype=jnp.float32, segments_BS=None):
    def out_and_gradients(attend, q, k, v, g):
        out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, pattern, segments_BS), q, k, v)
        return (out, *pull(g))

    # As arguments: what is computed of constants alone XLA computes while it compiles, much slower.
    results = jax.jit(
        lambda *x: [out_and_gradients(attend, *x) for attend in (kernel, reference.attend)]
    )(*arrays(T, d_head, dtype))
    return jax.tree.map(lambda x: np.asarray(x, np.float32), results)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("T", [1, 300])
@KERNELS
def test_equals_the_reference(kernel, pattern, T):
    for found, expected in zip(*both(kernel, pattern, T), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_blocks_of_the_last_queries(pattern):
    """Fewer queries than keys: the reference's last rows."""
    q, k, v, _ = arrays(400, 64, jnp.float32)
    found, expected = jax.jit(
        lambda q, k, v: [a.attend(q[:, 150:], k, v, pattern) for a in (cpu_blocks, reference)]
    )(q, k, v)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("d_head", [64, 80, 96, 128])
@pytest.mark.parametrize("dtype, atol", [(jnp.float32, 2e-5), (jnp.bfloat16, 0.06)])
@KERNELS
def test_head_sizes_and_types(kernel, d_head, dtype, atol):
    for found, expected in zip(
        *both(kernel, schema.Banded(window=50), 150, d_head, dtype), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=atol)


@pytest.mark.parametrize("pattern", [schema.Dense(), schema.Banded(window=100)], ids=str)
@KERNELS
def test_documents_kept_apart(kernel, pattern):
    segments_BS = jnp.cumsum((jnp.arange(300) % 70 == 0).astype(jnp.int32))[None].repeat(2, 0)
    masked, reference = both(kernel, pattern, 300, segments_BS=segments_BS)
    for found, expected in zip(masked, reference, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.abs(masked[0] - both(kernel, pattern, 300)[0][0]).max() > 0.1


def test_a_band_costs_less_than_half():
    """FLOPs of the compiled program, T = 2,048, a band of 256: 2 blocks of keys for a block of
    queries, so a quarter of all keys."""

    def flops(attend, pattern):
        x = jax.ShapeDtypeStruct((1, 2048, 1, 64), jnp.float32)
        return (
            jax.jit(lambda q, k, v: attend(q, k, v, pattern))
            .lower(x, x, x)
            .compile()
            .cost_analysis()["flops"]
        )

    full = flops(reference.attend, schema.Dense())
    assert flops(cpu_blocks.attend, schema.Banded(window=256)) < 0.3 * full
    assert flops(cpu_blocks.attend, schema.Dense()) < 0.6 * full


def test_dropout_keeps_the_mean():
    q, k, v, _ = arrays(150, 16, jnp.float32)
    dropped = jax.vmap(lambda key: cpu_blocks.attend(q, k, v, schema.Dense(), None, (key, 0.3)))(
        jax.random.split(jax.random.key(0), 200)
    )
    plain = cpu_blocks.attend(q, k, v, schema.Dense())
    scale = (dropped.mean(0) * plain).sum() / (plain**2).sum()
    assert abs(scale - 1) < 0.03 and np.abs(dropped[0] - plain).max() > 0.1


def test_each_block_of_queries_has_dropout_masks_of_its_own():
    """Equal scores, values of 1: an output is how many keys were kept. A band has blocks of one
    shape."""
    x = jnp.zeros((1, 384, 1, 1))
    out = cpu_blocks.attend(x, x, x + 1, schema.Banded(window=128), None, (jax.random.key(0), 0.5))[
        0, :, 0, 0
    ]
    assert np.any(np.asarray(out[128:256]) != np.asarray(out[256:]))


def test_long_sequences_go_tile_by_tile():
    """Their memory is that of one tile of scores, not of all."""
    shape = jax.ShapeDtypeStruct((1, 8192, 1, 64), jnp.float32)
    compiled = (
        jax.jit(lambda q, k, v: cpu_blocks.attend(q, k, v, schema.Dense()))
        .lower(shape, shape, shape)
        .compile()
    )
    assert compiled.memory_analysis().temp_size_in_bytes < 8192 * 8192  # a quarter of the scores


@pytest.mark.parametrize(
    "window", [100, 258]
)  # the first query of the third tile sees just the last key of the first tile by 258
def test_tiles_beyond_the_first_few(window):
    """700 queries are three tiles; a band of 100 skips some, which must not be those that
    matter."""
    for found, expected in zip(
        *both(cpu_tiles.attend, schema.Banded(window=window), 700), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=2e-5)
