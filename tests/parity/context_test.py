"""A sequence cut over devices: the reference's output and gradients, whatever the pattern; and
only the keys that are needed move."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gptjax.aot import hlo_cost
from gptjax.config import schema
from gptjax.model.attention import context_parallel, dispatch, reference, ring
from gptjax.sharding import chips, device_mesh, rules
from tests import tiny

DENSE, BAND = schema.Dense(), schema.Banded(window=7)
T = 48  # on 8 devices a part has 6 positions
SEGMENTS = jnp.cumsum((jnp.arange(T) % 11 == 7).astype(jnp.int32))[None].repeat(4, 0)


def place(exchange="gather", **sizes):
    sizes = {"fsdp": 1} | sizes
    mesh = device_mesh.make_mesh(schema.Mesh(**sizes), jax.devices()[: math.prod(sizes.values())])
    return rules.Sharding(rules.PRESETS["fsdp_tensor"], mesh, exchange)


def arrays(dtype, B=4, N=2):
    return [
        jax.random.normal(key, (B, T, N, 8), dtype)
        for key in jax.random.split(jax.random.key(0), 4)
    ]


def out_and_gradients(attend, patterns, dtype):
    """For each pattern: the output, and the gradients of q, k and v for a random cotangent. One
    program."""

    def each(q, k, v, g):
        pulled = [
            jax.vjp(lambda q, k, v, pattern=pattern: attend(q, k, v, pattern), q, k, v)
            for pattern in patterns
        ]
        return [(out, *pull(g)) for out, pull in pulled]

    return jax.tree.map(lambda x: np.asarray(x, np.float32), jax.jit(each)(*arrays(dtype)))


def assert_is_reference(where, patterns, segments=None, dtype=jnp.float32, atol=2e-5):
    found = out_and_gradients(
        lambda q, k, v, p: dispatch.attend("reference", where, q, k, v, p, segments),
        patterns,
        dtype,
    )
    expected = out_and_gradients(
        lambda q, k, v, p: reference.attend(q, k, v, p, segments), patterns, dtype
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), found, expected)


def bands(*windows):
    return [schema.Banded(window=window) for window in windows]


@pytest.mark.parametrize("windows", [(1, 2, 6, 7), (13, 42), (43,)], ids=str)
def test_bands_on_eight_devices(windows):
    """Within a part, as long as one and its own first key, over several parts, over all but one;
    from 43 on the last part needs all."""
    assert_is_reference(place(context=8), bands(*windows))


@pytest.mark.parametrize("exchange", ["gather", "ring"])
def test_other_patterns(exchange):
    assert_is_reference(
        place(exchange, context=4),
        [DENSE, schema.Strided(stride=5), schema.Fixed(block=8, summary=2), *bands(1000)],
    )


@pytest.mark.parametrize("exchange, n", [("gather", 2), ("gather", 8), ("ring", 8)])
def test_documents_kept_apart(exchange, n):
    assert_is_reference(place(exchange, context=n), [DENSE, BAND], SEGMENTS)


@pytest.mark.parametrize("exchange", ["gather", "ring"])
def test_parts_of_odd_length(exchange, monkeypatch):
    """In tiles of the ring that do not divide them."""
    monkeypatch.setattr(ring, "TILE", 5)
    assert_is_reference(place(exchange, context=3), [DENSE, BAND])


@pytest.mark.parametrize(
    "sizes", [{"data": 2, "fsdp": 2, "context": 2}, {"fsdp": 2, "tensor": 2, "context": 2}], ids=str
)
def test_on_a_mesh_with_other_axes(sizes):
    assert_is_reference(place(**sizes), [DENSE, BAND], SEGMENTS)


def test_bfloat16():
    assert_is_reference(place(context=4), [DENSE, BAND], None, jnp.bfloat16, atol=0.05)


def test_dropout_masks_differ_by_device_and_keep_the_mean():
    where, (q, k, v, _) = place(fsdp=2, context=4), arrays(jnp.float32)
    q, k, v = (jnp.broadcast_to(x[:1], x.shape) for x in (q, k, v))  # all rows alike
    for pattern in (DENSE, BAND):
        attend = jax.jit(
            lambda key: dispatch.attend(
                "reference",
                where,
                q,
                k,
                v,
                pattern,  # noqa: B023
                None,
                key if key is None else (key, 0.3),
            )
        )
        plain, drawn = attend(None), np.stack([attend(jax.random.key(i)) for i in range(60)])
        assert (
            np.abs(drawn.mean(0) - plain)[:, 10:].mean() < 0.08
            and np.abs(drawn[0] - plain).max() > 0.1
        )
        assert np.abs(drawn[0, 0] - drawn[0, 2]).max() > 0.1  # rows of different devices
        np.testing.assert_array_equal(drawn[1], attend(jax.random.key(1)))


def sent(where, pattern, segments, backward):
    """(kind, elements) of every collective of the compiled program, on one device of `where`."""

    def attend(q, k, v):
        return dispatch.attend("reference", where, q, k, v, pattern, segments)

    cut = NamedSharding(where.mesh, where.spec("BTNH", (4, T, 2, 8)))
    q, k, v, g = (jax.device_put(x, cut) for x in arrays(jnp.float32))
    program = jax.jit(
        lambda q, k, v, g: jax.vjp(attend, q, k, v)[1](g) if backward else attend(q, k, v),
        out_shardings=cut,
    )
    text = program.lower(q, k, v, g).compile().as_text()
    return sorted(
        (c.kind, sum(math.prod(size) for _, size in c.shapes))
        for c in hlo_cost.Program(text).collectives()
    )


@pytest.mark.parametrize(
    "window, hops", [(1, []), (7, [6]), (12, [5, 6]), (42, [5, 6, 6, 6, 6, 6, 6])]
)
def test_a_band_sends_its_halo_and_nothing_else(window, hops):
    """window - 1 keys and as many values, of 4 rows, 2 heads of 8; back as many gradients; with
    documents, their numbers."""
    where, (pattern,) = place(context=8), bands(window)
    once = sorted(("collective-permute", keys * 4 * 2 * 8) for keys in hops)
    assert sent(where, pattern, None, backward=False) == sorted(2 * once)
    assert sent(where, pattern, None, backward=True) == sorted(4 * once)
    numbers = [("collective-permute", keys * 4) for keys in hops]
    assert sent(where, pattern, SEGMENTS, backward=False) == sorted(2 * once + numbers)


def test_dense_gathers_keys_and_values_and_swaps_half_of_the_queries():
    row = 4 * 2 * 8
    forward = [("all-gather", T * row)] * 2 + [("collective-permute", 3 * row)] * 2
    assert sent(place(context=8), DENSE, None, backward=False) == forward
    backward = [("reduce-scatter", 6 * row)] * 2 + [("collective-permute", 3 * row)]
    assert sent(place(context=8), DENSE, None, backward=True) == sorted(forward + backward)


def test_a_ring_passes_parts_around_and_gathers_nothing():
    """Keys and values n - 1 times; half of the queries and of the output are swapped."""
    found = sent(place("ring", context=8), DENSE, None, backward=False)
    assert {kind for kind, _ in found} == {"collective-permute"}
    part, half = 6 * 4 * 2 * 8, 3 * 4 * 2 * 8
    assert sorted(n for _, n in found) == sorted([half, half, part, part])


@pytest.mark.parametrize(
    "setting, dropout, memory, choice",
    [
        ("auto", 0.0, None, "gather"),
        ("auto", 0.0, 200_000, "gather"),
        ("auto", 0.0, 20_000, "ring"),
        ("gather", 0.0, 20_000, "gather"),
        ("ring", 0.0, None, "ring"),
        ("ring", 0.1, None, "gather"),
    ],
)
def test_the_exchange_is_chosen_by_memory(monkeypatch, setting, dropout, memory, choice):
    """A row of 48 tokens, 4 heads of 4, takes 2 * 48 * 16 * 8 = 12,288 bytes."""
    chip = memory and dataclasses.replace(chips.CHIPS["v5p"], hbm_bytes=memory)
    monkeypatch.setattr(chips, "from_device", lambda device: chip)
    c = tiny.config(n_ctx=48, dropout=schema.Dropout(attention=dropout))
    c = tiny.replace_parts(c, compute={"context_exchange": setting})
    found, reason = context_parallel.choose_exchange(c, place(context=8).mesh, 4)
    assert found == choice and ("12.0 KiB a layer and row" in reason or dropout)


@pytest.mark.slow
def test_the_loss_at_8k_is_that_of_one_device():
    """Of a model of two layers, its loss and the gradient of its keys, in float32."""
    c = tiny.config(rows=1, n_ctx=8192, n_layers=2, attention=(DENSE,))
    tokens = tiny.random_tokens(c, 1)

    def loss_and_gradient(n_devices, **changes):
        mesh, built, state = tiny.make_step(tiny.replace_parts(c, **changes), n_devices)

        def loss(params):
            return built.nll(params, tokens, np.ones((1, c.model.n_ctx), np.float32))

        with jax.set_mesh(mesh):
            found, gradient = jax.jit(jax.value_and_grad(loss))(state.params)
        qkv = gradient["periods"]["block_0"]["attention"]["qkv"]["weight_DQNH"]
        return float(found), np.asarray(qkv)

    expected, expected_gradient = loss_and_gradient(1)
    for exchange in ("gather", "ring"):
        found, gradient = loss_and_gradient(
            8, mesh={"fsdp": 1, "context": 8}, compute={"context_exchange": exchange}
        )
        assert found == pytest.approx(expected, rel=1e-6)
        size = np.abs(expected_gradient).max()
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-3, atol=1e-4 * size)
