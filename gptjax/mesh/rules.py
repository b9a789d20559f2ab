"""Which dimension lies along which mesh axis: two tables a preset, keyed by the letters of arrays/shapes.py.

`params` places the state (parameters, and Adam's moments, whose leaves have the same names), `activations` what flows. Model code names
letters and never a mesh axis.
"""

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where activations lie: a table on a mesh, or NOWHERE in particular, which leaves it to the compiler."""

    table: Table = dataclasses.field(hash=False)
    mesh: jax.sharding.Mesh | None

    def __call__(self, x: jax.Array, letters: str) -> jax.Array:
        """`x` pinned to its place, inside jit."""
        return x if self.mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, self.spec(letters, x.shape)))

    def spec(self, letters: str, shape: tuple[int, ...]) -> PartitionSpec:
        """The mesh axes of each dimension, for jax.shard_map; all whole when there is no mesh."""
        return PartitionSpec() if self.mesh is None else spec(letters, shape, self.table, self.mesh, "activation")

    def size(self, axis: str) -> int:
        """Devices along a mesh axis; 1 when there is no mesh."""
        return 1 if self.mesh is None else self.mesh.shape[axis]


NOWHERE = Placement({}, None)


def placed(local: Any, letters: str, table: Table, mesh: jax.sharding.Mesh) -> jax.Array:
    """A host array on the mesh. `local` is this process's part: the global array has as many times the rows (B) as there are processes."""
    shape = tuple(n * jax.process_count() if c == "B" else n for c, n in zip(letters, local.shape, strict=True))
    place = NamedSharding(mesh, spec(letters, shape, table, mesh, "batch"))
    return jax.make_array_from_process_local_data(place, local, shape)
