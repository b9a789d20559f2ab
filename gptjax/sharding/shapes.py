"""The legend of dimensions, and a check that array names keep their word.

An array's name ends in a letter for each dimension: `x_BTD` has rank 3. Einsum strings and the
sharding tables use the same letters.

    B batch        T time of queries    S time of keys     D d_model
    N heads        H d_head             Q query, key, value (size 3)
    F d_ff         V vocabulary         L layers (or periods of layers, stacked)
    M microbatch   C choices            R rank             1 broadcast, or not cut
    P T, for the residual stream's place on the mesh: attention and MLP have heads and hidden units
    to cut, it has its sequence

Suffixes tell the logical shape, never the placement.
"""

import functools
import inspect


def letters(name: str) -> str:
    """The dimension letters at the end of `name`, or "" if it has none: letters("weight_DF") ==
    "DF"."""
    suffix = name.rpartition("_")[2]
    return suffix if suffix and all(c.isupper() or c == "1" for c in suffix) else ""


def shaped(fn):
    """Check, when `fn` is called (under jit: traced), that each argument whose name has letters has
    that rank, and that a letter means one size throughout the call. Raises ValueError naming the
    argument, its shape and the argument it disagrees with."""
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
