"""Names of pytree leaves, and digests of their values that do not depend on the sharding."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Odd constants of Weyl sequences and of MurmurHash3's 32-bit finalizer (Austin Appleby, public
# domain).
WEYL, FIRST, SECOND = 0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35


def leaf_name(key_path) -> str:
    """Returns a leaf's name from its jax key path: "params/layers/0/qkv_D3NH" for attributes, dict
    keys and indices alike.
    """
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def named_leaves(tree) -> list[tuple[str, Any]]:
    """Returns (name, leaf) for every leaf of any pytree, in jax's order."""
    return [
        (leaf_name(key_path), leaf) for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def digests(tree) -> dict[str, int]:
    """Returns, for each leaf's name, a 32-bit digest of its bits and their positions, the same for
    every sharding of the same values.

    A leaf is an array of any shape, with a dtype of whole bytes, or a typed PRNG key. Every element
    passes through its own bijection and the results are added modulo 2^32, so one changed element
    always changes the digest; other damage (swapped elements, zeroed blocks) goes unnoticed with
    probability 2^-32. Shape and dtype are not part of it. Runs on the devices that hold the leaf
    and waits for the result.
    """
    # One leaf after another: simulated devices share a few threads, and concurrent programs starve
    # each other of them.
    jax.block_until_ready(tree)
    return {name: int(jax.device_get(_digest(leaf))) for name, leaf in named_leaves(tree)}


@jax.jit
def _digest(x):
    """The uint32 digest of one array or key. Jitted per leaf, so that equal layers compile once."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    bits = _bits(x)
    # Each index is mixed in separately: a flat index would need a reshape, which moves data between
    # devices.
    position = jnp.zeros(bits.shape, jnp.uint32)
    for dim in range(bits.ndim):
        position = _mix(
            position
            + lax.broadcasted_iota(jnp.uint32, bits.shape, dim) * jnp.uint32(WEYL)
            + jnp.uint32(dim + 1)
        )
    return jnp.sum(_mix(bits ^ position), dtype=jnp.uint32)


def _bits(x):
    """Bit pattern of x as uint32 of the same shape; 64-bit types get an extra last
    dimension of 2.
    """
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    width = min(x.dtype.itemsize, 4)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[width]
    return lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _mix(u):
    """MurmurHash3's finalizer: a bijection of uint32 in which every input bit changes about half of
    the output bits.
    """
    u = (u ^ (u >> 16)) * jnp.uint32(FIRST)
    u = (u ^ (u >> 13)) * jnp.uint32(SECOND)
    return u ^ (u >> 16)
