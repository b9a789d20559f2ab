"""Names of leaves are stable, and a digest notices every flipped bit wherever the leaf lives."""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gptjax.sharding import trees


class Moments(NamedTuple):
    mu: object
    nu: object


@flax.struct.dataclass
class State:
    step: object
    params: object
    opt: object


def digest(x):
    return trees.digests({"x": x})["x"]


def test_names_follow_attributes_keys_and_indices():
    state = State(
        step=0,
        params={"layers": [{"qkv_D3NH": 1, "out_NHD": 2}]},
        opt=(Moments(mu={"w": 3}, nu=None), 4),
    )
    assert trees.named_leaves(state) == [
        ("step", 0),
        ("params/layers/0/out_NHD", 2),
        ("params/layers/0/qkv_D3NH", 1),
        ("opt/0/mu/w", 3),
        ("opt/1", 4),
    ]


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint8"]
)
def test_every_single_flipped_bit_changes_the_digest(dtype):
    values = np.asarray(jnp.linspace(-3, 3, 6).reshape(2, 3).astype(dtype))
    whole = digest(jnp.asarray(values))
    raw = values.tobytes()
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        assert (
            digest(jnp.asarray(np.frombuffer(bytes(flipped), values.dtype).reshape(2, 3))) != whole
        ), f"bit {bit}"


def test_bools_scalars_keys_and_empty_arrays_have_digests():
    assert digest(jnp.array(True)) != digest(jnp.array(False))
    assert digest(jnp.int32(7)) != digest(jnp.int32(8))
    assert digest(jax.random.key(1)) != digest(jax.random.key(2))
    assert digest(jax.random.split(jax.random.key(1), 3)) == digest(
        jax.random.split(jax.random.key(1), 3)
    )
    assert digest(jnp.zeros((0, 4))) == 0
    assert digest(jnp.float32(0.0)) != digest(jnp.float32(-0.0))


def test_moved_values_change_the_digest():
    x = jnp.arange(24, dtype=jnp.float32).reshape(4, 6)
    moved = {
        "two elements of a row": x.at[0, 0].set(x[0, 1]).at[0, 1].set(x[0, 0]),
        "two elements of a column": x.at[0, 0].set(x[1, 0]).at[1, 0].set(x[0, 0]),
        "rows": x[::-1],
        "rolled": jnp.roll(x, 1),
        "transposed across the diagonal": x.at[0, 1].set(x[1, 0]).at[1, 0].set(x[0, 1]),
        "bytes of one element": jnp.asarray(np.asarray(x).byteswap()),
    }
    seen = [digest(x)] + [digest(y) for y in moved.values()]
    assert len(set(seen)) == len(seen), dict(zip(["x", *moved], seen, strict=True))


def test_the_digest_is_the_same_on_every_mesh():
    key = jax.random.key(0)
    leaves = {
        "float": jax.random.normal(key, (16, 8, 24)),
        "half": jax.random.normal(key, (8, 64)).astype(jnp.bfloat16),
        "keys": jax.random.split(key, 8),
        "count": jnp.int32(5),
    }
    alone = trees.digests(leaves)
    for shape, spec in [((8, 1), ("a",)), ((4, 2), ("a", "b")), ((2, 4), (None, "b"))]:
        mesh = jax.make_mesh(shape, ("a", "b"), axis_types=(AxisType.Auto,) * 2)
        placed = {
            n: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec[: x.ndim])))
            for n, x in leaves.items()
        }
        assert len(placed["float"].sharding.device_set) == 8
        assert trees.digests(placed) == alone, (shape, spec)
