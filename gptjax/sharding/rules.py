"""Sharding rules: which dimension is sharded over which mesh axes, as three tables per preset,
keyed by the letters of sharding/shapes.py.

`params` and `vectors` shard the state (parameters, and Adam moments, whose leaves have the same
names), `activations` the activations. Model code uses letters and never a mesh axis.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.config import schema
from gptjax.sharding import shapes

Table = dict[str, tuple[str, ...]]


def is_left_to_compiler() -> bool:
    """Whether what is traced here is divided over several devices by the compiler: with a mesh set
    (jax.set_mesh), and outside of shard_map."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return any(n > 1 and kind == jax.sharding.AxisType.Auto for n, kind in axes)


@dataclasses.dataclass(frozen=True)
class Rules:
    """Maps dimension letters to mesh axes; a letter that is not listed is not sharded."""

    params: Table
    activations: Table
    vectors: Table  # 1-D parameters: gathering them costs more than replicating them


# Both presets shard the sequence over context (model/attention/context_parallel.py), which for the
# parameters acts as more of fsdp.
PRESETS = {
    # ZeRO-3: every matrix is sharded along d_model over fsdp and gathered where it is used; the
    # batch is sharded over data and fsdp.
    "fsdp": Rules(
        params={"D": ("fsdp", "context")},
        activations={"B": ("data", "fsdp"), "T": ("context",), "P": ("context",)},
        vectors={},
    ),
    # In addition, Megatron's sharding of heads, MLP and vocabulary over tensor. The residual
    # stream has no heads to shard over tensor and is sharded along its sequence instead
    # (Korthikanti et al. 2205.05198): hence P, a second letter for length, since one axis can
    # shard only one dimension.
    "fsdp_tensor": Rules(
        params={
            "D": ("fsdp", "context"),
            "N": ("tensor",),
            "K": ("tensor",),
            "F": ("tensor",),
            "E": ("tensor",),
            "V": ("tensor",),
        },
        activations={
            "B": ("data", "fsdp"),
            "T": ("context",),
            "P": ("context", "tensor"),
            "N": ("tensor",),
            "F": ("tensor",),
            "E": ("tensor",),
            "V": ("tensor",),
        },
        vectors={"F": ("tensor",)},
    ),
}


def for_config(config: schema.Config, mesh: jax.sharding.Mesh) -> Rules:
    """The preset of a config on a mesh. Key and value heads that tensor does not divide are
    replicated: each device then computes those that its queries need (Sharding.repeat_heads)."""
    preset = PRESETS[config.mesh.sharding]
    if config.model.n_kv_heads % mesh.shape["tensor"] == 0:
        return preset
    params = {letter: axes for letter, axes in preset.params.items() if letter != "K"}
    return dataclasses.replace(preset, params=params)


def spec(
    letters: str, shape: tuple[int, ...], table: Table, mesh: jax.sharding.Mesh, where: str
) -> PartitionSpec:
    """Returns the PartitionSpec of one array, using only axes of more than one device.

    `shape` may have more leading dimensions than letters (stacked layers); those are not sharded.
    where: names the array in errors. Raises ValueError if a size is not divisible by the devices
    along its axes, or if an axis would shard two dimensions.
    """
    letters = "L" * (len(shape) - len(letters)) + letters
    axes = [tuple(a for a in table[c] if mesh.shape[a] > 1) if c in table else () for c in letters]
    used = [a for group in axes for a in group]
    if len(used) != len(set(used)):
        raise ValueError(
            f"{where} {letters}{shape}: its dimensions claim a mesh axis twice: {', '.join(used)}; "
            "change mesh.sharding"
        )
    for letter, size, group in zip(letters, shape, axes, strict=True):
        n = math.prod(mesh.shape[a] for a in group)
        if size % n:
            raise ValueError(
                f"{where} {letters}{shape}: {letter}={size} does not divide over {n} devices of "
                f"mesh {' x '.join(group)}; "
                f"choose mesh sizes that divide {size}"
            )
    return PartitionSpec(
        *(group if len(group) > 1 else group[0] if group else None for group in axes)
    )


def shardings(tree: Any, rules: Rules, mesh: jax.sharding.Mesh) -> Any:
    """Returns a NamedSharding for each leaf of `tree` (arrays or ShapeDtypeStructs), from the
    letters of the last name in its path. Leaves without letters (counts, scalars) are replicated.
    """

    def leaf_sharding(path, leaf):
        names = [
            k.key if isinstance(k, jax.tree_util.DictKey) else k.name
            for k in path
            if hasattr(k, "key") or hasattr(k, "name")
        ]
        letters = shapes.letters(str(names[-1])) if names else ""
        table = rules.params if len(letters) > 1 else rules.vectors
        return NamedSharding(
            mesh,
            spec(letters, leaf.shape, table, mesh, jax.tree_util.keystr(path))
            if letters
            else PartitionSpec(),
        )

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


@dataclasses.dataclass(frozen=True)
class Sharding:
    """Shards activations and parameters by the tables of a preset on a mesh; UNSHARDED leaves
    sharding to the compiler.
    """

    rules: Rules = dataclasses.field(hash=False)
    mesh: jax.sharding.Mesh | None
    context_exchange: str = "gather"  # or "ring": model/attention/context_parallel.py

    def __call__(self, x: jax.Array, letters: str) -> jax.Array:
        """Constrains the sharding of activation `x`, inside jit."""
        return (
            x
            if self.mesh is None
            else jax.lax.with_sharding_constraint(
                x, NamedSharding(self.mesh, self.spec(letters, x.shape))
            )
        )

    def of_rows(self) -> "Sharding":
        """The sharding of generated text, whose length does not divide over devices: of rows and
        heads alone, with parameters that are gathered but for their shards over tensor. UNSHARDED
        on a single device."""
        if self.mesh is None or self.mesh.size == 1:
            return UNSHARDED
        params, activations = (
            {letter: axes for letter, axes in table.items() if letter not in "DTP"}
            for table in (self.rules.params, self.rules.activations)
        )
        return Sharding(Rules(params, activations, self.rules.vectors), self.mesh)

    def repeat_heads(self, x_BTNH: jax.Array) -> jax.Array:
        """Keys or values with at least one head for each device along the axis that shards heads;
        `x` itself if it has as many."""
        n, heads = self.n_shards("N"), x_BTNH.shape[2]
        return x_BTNH if heads % n == 0 else jnp.repeat(x_BTNH, n // heads, axis=2)

    def shard_gradient(self, x: jax.Array, letters: str) -> jax.Array:
        """Returns `x` and constrains the sharding of its gradient."""

        @jax.custom_vjp
        def identity(x):
            return x

        identity.defvjp(lambda x: (x, None), lambda _, g: (self(g, letters),))
        return identity(x)

    def matmul_gathered(
        self, fn: Callable, x: jax.Array, weight: jax.Array, letters: str
    ) -> jax.Array:
        """Returns fn(x, weight) with the parameter all-gathered over all axes but tensor.

        It is gathered again for the backward pass (unless layers are unrolled), and its gradient is
        sharded like the parameter. Without this, libtpu may pass shards around and sum narrow
        products instead, which takes nearly twice as long if a chip has many rows.
        """
        if (mesh := self.mesh) is None:
            return fn(x, weight)
        param_sharding = NamedSharding(mesh, self.spec(letters, weight.shape, self.rules.params))

        @jax.custom_vjp
        def gather(w):
            return self(w, letters)

        gather.defvjp(
            lambda w: (gather(w), None),
            lambda _, g: (jax.lax.with_sharding_constraint(g, param_sharding),),
        )
        return jax.checkpoint(lambda x, w: fn(x, gather(w)), prevent_cse=False)(x, weight)

    def shard_like_params(self, tree: Any) -> Any:
        """Constrains each leaf of a tree (parameters, gradients, moments or the whole state) to its
        sharding in the state, inside jit.

        The gradient of a constrained leaf is constrained too, so it is reduce-scattered and no
        device holds the whole sum.
        """
        return (
            tree
            if self.mesh is None
            else jax.lax.with_sharding_constraint(tree, shardings(tree, self.rules, self.mesh))
        )

    def spec(
        self, letters: str, shape: tuple[int, ...], table: Table | None = None
    ) -> PartitionSpec:
        """Returns the PartitionSpec of an activation, or by another table, for `shard_map`;
        unsharded if there is no mesh.
        """
        table = self.rules.activations if table is None else table
        return (
            PartitionSpec()
            if self.mesh is None
            else spec(letters, shape, table, self.mesh, "array")
        )

    def shard_map(self, fn: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """Returns jax.shard_map of `fn` over the whole mesh, or `fn` itself if there is only one
        device.

        check_vma is off because it supports neither Pallas kernels nor sums over no axis.
        """
        if self.mesh is None or self.mesh.size == 1:
            return fn
        return jax.shard_map(
            fn, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )

    def axes(self, letter: str, table: Table | None = None) -> tuple[str, ...]:
        """Mesh axes of more than one device that shard this dimension of an activation or, with
        table=rules.params, of a parameter.
        """
        table = self.rules.activations if table is None else table
        return (
            tuple(axis for axis in table[letter] if self.axis_size(axis) > 1)
            if letter in table
            else ()
        )

    def n_shards(self, letters: str) -> int:
        """Number of shards of an activation with these dimensions."""
        return math.prod(self.axis_size(axis) for letter in letters for axis in self.axes(letter))

    def reduce_scatter_grad(self, partial: jax.Array, letters: str) -> jax.Array:
        """Inside jax.shard_map: reduces the gradient of a parameter over devices, given each
        device's sum over its own rows and positions (B and T).

        Each device receives its shard of the sum, as laid out by `shard_like_params`; no device
        holds the whole.
        """
        sum_axes = [*self.axes("B"), *self.axes("T")]
        for dimension, letter in enumerate(letters):
            for axis in self.axes(letter, self.rules.params):
                if axis in sum_axes:
                    partial = jax.lax.psum_scatter(
                        partial, axis, scatter_dimension=dimension, tiled=True
                    )
                    sum_axes.remove(axis)
        return jax.lax.psum(partial, tuple(sum_axes))

    def gather_param(self, shard: jax.Array, letters: str, letter: str) -> jax.Array:
        """Inside jax.shard_map: gathers a dimension of a parameter, given each device's shard. Its
        gradient is reduced as by `reduce_scatter_grad`."""
        axes = self.axes(letter, self.rules.params)
        dimension = letters.index(letter)
        return jax.lax.all_gather(shard, axes, axis=dimension, tiled=True) if axes else shard

    def axis_size(self, axis: str) -> int:
        """Number of devices along a mesh axis; 1 if there is no mesh."""
        return 1 if self.mesh is None else self.mesh.shape[axis]


UNSHARDED = Sharding(Rules({}, {}, {}), None)


def local_rows(n_rows: int, table: Table, mesh: jax.sharding.Mesh) -> list[int]:
    """Indices of the n_rows batch rows that the devices of this process hold, in order. If tensor
    or context spans processes, several processes hold the same row.
    """
    sharding = NamedSharding(mesh, spec("B", (n_rows,), table, mesh, "batch"))
    indices = sharding.addressable_devices_indices_map((n_rows,)).values()
    return sorted(
        {row for index in indices if index is not None for row in range(n_rows)[index[0]]}
    )


def put_on_mesh(
    host: np.ndarray, letters: str, table: Table, mesh: jax.sharding.Mesh, n_rows: int | None = None
) -> jax.Array:
    """Transfers a host array to the mesh.

    `host` is the same whole array on every process or, with n_rows given, the rows of a batch of
    n_rows that `local_rows` returns for this process.
    """
    dimension, local = letters.index("B"), range(host.shape[letters.index("B")])
    if n_rows is not None:
        local = local_rows(n_rows, table, mesh)
        assert len(local) == host.shape[dimension], (len(local), host.shape)
    shape = tuple(
        n_rows if n_rows is not None and c == "B" else n
        for c, n in zip(letters, host.shape, strict=True)
    )
    sharding = NamedSharding(mesh, spec(letters, shape, table, mesh, "batch"))

    def read_shard(index):
        rows = range(shape[dimension])[index[dimension]]
        start = local.index(rows[0])
        return host[(*index[:dimension], slice(start, start + len(rows)), *index[dimension + 1 :])]

    # The loop's transfer guard forbids implicit transfers; this one is intended.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_callback(shape, sharding, read_shard)


# The config field behind each dimension letter.
CONFIG_FIELDS = {
    "D": "model.d_model",
    "N": "model.n_heads",
    "F": "the MLP's d_ff",
    "E": "model.mlp.n_experts",
    "V": "the padded model.n_vocab",
    "T": "model.n_ctx",
}


def check(config: schema.Config, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError, naming the fields to change, if the preset does not use one of the mesh's
    axes or an axis does not divide the model's sizes.
    """
    model, preset = config.model, PRESETS[config.mesh.sharding]
    mlp = model.mlp
    sizes = {"E": mlp.n_experts} if isinstance(mlp, schema.Experts) else {"F": model.d_ff}
    sizes |= {
        "D": model.d_model,
        "N": model.n_heads,
        "V": model.n_vocab_padded,
        "T": model.n_ctx,
        "P": model.n_ctx,
    }
    tables = (preset.params, preset.activations)
    for axis, n in mesh.shape.items():
        if n > 1 and not any(axis in axes for table in tables for axes in table.values()):
            others = [
                name
                for name, other in PRESETS.items()
                if any(axis in axes for axes in other.activations.values())
            ]
            raise ValueError(
                f"mesh.{axis}={n}, but mesh.sharding={config.mesh.sharding} does not use it; set "
                f"it to 1, or sharding={others[0]}"
            )
    for letter, axes in (item for table in tables for item in table.items() if item[0] in sizes):
        used = [axis for axis in axes if mesh.shape[axis] > 1]
        n, size = math.prod(mesh.shape[axis] for axis in used), sizes[letter]
        if size % n:
            choices = ", ".join(str(m) for m in range(1, min(size, mesh.size) + 1) if size % m == 0)
            fields = " x ".join(f"mesh.{axis}" for axis in used)
            raise ValueError(
                f"{fields} = {n} does not divide {CONFIG_FIELDS[letter.replace('P', 'T')]} = "
                f"{size:,}; choose one of {choices}"
            )
    n, heads = mesh.shape["tensor"], model.n_kv_heads
    if heads % n and n % heads:
        raise ValueError(
            f"mesh.tensor={n} neither divides model.heads.n_kv_heads={heads} nor is a multiple of "
            "it: choose one that does"
        )
    if isinstance(mlp, schema.Experts) and mlp.capacity is not None and mesh.shape["context"] > 1:
        raise ValueError(
            f"mesh.context={mesh.shape['context']} divides a row among devices, but the capacity "
            "of experts counts the tokens of a row; set model.mlp.capacity=None or mesh.context=1"
        )
    for pattern in model.attention:
        match pattern:
            case schema.BlockSparse(stride=stride) if n > 1 and model.n_heads // n % stride:
                raise ValueError(
                    f"mesh.tensor={n} leaves {model.n_heads // n} heads to a device, not a "
                    f"multiple of the stride of {stride} by which BlockSparse differs by head"
                )
