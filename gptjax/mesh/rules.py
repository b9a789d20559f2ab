"""Which dimension lies along which mesh axis: two tables a preset, keyed by the letters of arrays/shapes.py.

`params` places the state (parameters, and Adam's moments, whose leaves have the same names), `activations` what flows. Model code names
letters and never a mesh axis.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.arrays import shapes

Table = dict[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Rules:
    """Letters to mesh axes; a letter that is not listed is not sharded."""

    params: Table
    activations: Table


PRESETS = {
    # ZeRO-3: every matrix is cut along d_model over fsdp and gathered where it is used; the batch is cut over both axes.
    "fsdp": Rules(params={"D": ("fsdp",)}, activations={"B": ("data", "fsdp")}),
    # Megatron's cut of heads and MLP over tensor, on top of fsdp.
    "fsdp_tensor": Rules(
        params={"D": ("fsdp",), "N": ("tensor",), "F": ("tensor",), "V": ("tensor",)},
        activations={"B": ("data", "fsdp"), "N": ("tensor",), "F": ("tensor",), "V": ("tensor",)},
    ),
}


def spec(letters: str, shape: tuple[int, ...], table: Table, mesh: jax.sharding.Mesh, where: str) -> PartitionSpec:
    """The placement of one array. `shape` may have more leading dimensions than letters (stacked layers): those stay whole.

    Raises ValueError, naming `where`, when a size does not divide over its axes or an axis is claimed twice."""
    letters = "L" * (len(shape) - len(letters)) + letters
    axes = [table[c] if c in table else () for c in letters]
    used = [a for group in axes for a in group if mesh.shape[a] > 1]
    if len(used) != len(set(used)):
        raise ValueError(f"{where} {letters}{shape}: its dimensions claim a mesh axis twice: {', '.join(used)}; change mesh.sharding")
    for letter, size, group in zip(letters, shape, axes, strict=True):
        n = 1
        for axis in group:
            n *= mesh.shape[axis]
        if size % n:
            raise ValueError(
                f"{where} {letters}{shape}: {letter}={size} does not divide over {n} devices of mesh {' x '.join(group)}; "
                f"choose mesh sizes that divide {size}"
            )
    return PartitionSpec(*(group if len(group) > 1 else group[0] if group else None for group in axes))


def shardings(tree: Any, table: Table, mesh: jax.sharding.Mesh) -> Any:
    """A NamedSharding for each leaf of `tree` (arrays or ShapeDtypeStructs), from the letters in the last named part of its path; leaves
    without letters (counts, scalars) are replicated."""

    def place(path, leaf):
        names = [k.key if isinstance(k, jax.tree_util.DictKey) else k.name for k in path if hasattr(k, "key") or hasattr(k, "name")]
        letters = shapes.letters(str(names[-1])) if names else ""
        return NamedSharding(mesh, spec(letters, leaf.shape, table, mesh, jax.tree_util.keystr(path)) if letters else PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, tree)


def constrainer(table: Table, mesh: jax.sharding.Mesh) -> Callable[[jax.Array, str], jax.Array]:
    """A function `constrain(x, "BTD")` that pins an activation's placement inside jit."""

    def constrain(x: jax.Array, letters: str) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(letters, x.shape, table, mesh, "activation")))

    return constrain


def placed(local: Any, letters: str, table: Table, mesh: jax.sharding.Mesh) -> jax.Array:
    """A host array on the mesh. `local` is this process's part: the global array has as many times the rows (B) as there are processes."""
    shape = tuple(n * jax.process_count() if c == "B" else n for c, n in zip(letters, local.shape, strict=True))
    place = NamedSharding(mesh, spec(letters, shape, table, mesh, "batch"))
    return jax.make_array_from_process_local_data(place, local, shape)
