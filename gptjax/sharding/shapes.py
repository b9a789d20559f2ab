"""Dimension letters, and a check that arrays have the shapes that their names promise.

The suffix of an array's name has one letter per dimension: `x_BTD` has rank 3. Einsum strings and
the sharding tables use the same letters.

    B batch        T time of queries    S time of keys     D d_model
    N heads        H d_head             Q query, key, value (size 3)
    F d_ff         V vocabulary         L layers (or periods of layers, stacked)
    M microbatch   C choices            R rank, or rows    1 broadcast, or not sharded
    K key and value heads, if fewer than N
    E experts      X experts, as a router scores them: not sharded     G hidden units of an expert
    P T in the residual stream, which is sharded along its sequence where attention and MLP are
      sharded along heads and hidden units

A suffix gives the logical shape, never the sharding.
"""

import functools
import inspect


def letters(name: str) -> str:
    """Returns the dimension letters at the end of `name`, or "" if it has none:
    letters("weight_DF") == "DF".
    """
    suffix = name.rpartition("_")[2]
    return suffix if suffix and all(c.isupper() or c == "1" for c in suffix) else ""


def shaped(fn):
    """Decorator that checks shapes when `fn` is called (under jit: traced).

    Each argument whose name has letters must have that rank, and a letter must mean the same size
    throughout the call. Raises ValueError with the argument, its shape and the argument that it
    contradicts.
    """
    signature = inspect.signature(fn)

    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        sizes = {}
        for name, x in signature.bind(*args, **kwargs).arguments.items():
            dims = letters(name)
            if not dims or not hasattr(x, "shape"):
                continue
            if len(dims) != len(x.shape):
                raise ValueError(
                    f"{fn.__qualname__}: {name} has shape {x.shape}, which is not of rank "
                    f"{len(dims)}"
                )
            for letter, size in zip(dims, x.shape, strict=True):
                expected, where = (
                    (1, "its name") if letter == "1" else sizes.setdefault(letter, (size, name))
                )
                if size != expected:
                    raise ValueError(
                        f"{fn.__qualname__}: {letter}={size} in {name} {x.shape}, but "
                        f"{letter}={expected} in {where}"
                    )
        return fn(*args, **kwargs)

    return wrapper
