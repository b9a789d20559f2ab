"""Matmul of rows with one of several weights each: the rows are sorted by weight, so that each
weight has a group of them."""

import functools

import jax
import jax.numpy as jnp

from gptjax.sharding import rules
from gptjax.sharding.shapes import shaped

MAX_BLOCK = 128  # rows
# Tiles of the TPU kernels: with more columns they would exceed the 16 MiB of vector memory that a
# kernel may use on most chips.
TILE_ROWS, TILE_COLUMNS = 512, 768


@shaped
def grouped_matmul(x_RD: jax.Array, weight_EDG: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Returns (R, G): the first sizes_E[0] rows times weight_EDG[0], the next sizes_E[1] times
    weight_EDG[1], and so on; 0 for rows after the last group. Differentiable in x and weight.

    On TPU by jax's kernels for this; elsewhere by a loop over blocks of rows. jax.lax.ragged_dot is
    neither: XLA computes it, or its gradient, as E masked matmuls of all rows on most devices.
    """
    if rules.is_left_to_compiler():  # which does not partition a TPU kernel
        return multiply_blocks(x_RD, weight_EDG, sizes_E)
    return jax.lax.platform_dependent(
        x_RD, weight_EDG, sizes_E, tpu=multiply_by_kernels, default=multiply_blocks
    )


# --- TPU ------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def multiply_by_kernels(
    x_RD: jax.Array, weight_EDG: jax.Array, sizes_E: jax.Array, interpret: bool = False
) -> jax.Array:
    """`grouped_matmul` by jax's kernels for TPUs. interpret: run on CPU, slowly, for tests."""
    return _multiply(x_RD, weight_EDG, sizes_E, False, interpret)


def _kernels_forward(x_RD, weight_EDG, sizes_E, interpret):
    return multiply_by_kernels(x_RD, weight_EDG, sizes_E, interpret), (x_RD, weight_EDG, sizes_E)


def _kernels_backward(interpret, residuals, dy_RG):
    x_RD, weight_EDG, sizes_E = residuals
    dx_RD = _multiply(dy_RG, weight_EDG, sizes_E, True, interpret)
    return dx_RD, _weight_gradient(x_RD, dy_RG, sizes_E, interpret), None


multiply_by_kernels.defvjp(_kernels_forward, _kernels_backward)


def _multiply(x_RD, weight, sizes_E, transpose, interpret):
    """Rows times the weights (E, D, G), or their transposes, of their groups."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

    n_columns = weight.shape[1 if transpose else 2]
    tiles = TILE_ROWS, min(TILE_COLUMNS, x_RD.shape[1]), min(TILE_COLUMNS, n_columns)
    with jax.numpy_dtype_promotion("standard"):  # which jax's own code needs
        y = gmm(
            _pad_rows(x_RD),
            weight,
            sizes_E,
            x_RD.dtype,
            tiles,
            transpose_rhs=transpose,
            interpret=interpret,
        )
    # The kernel leaves what it finds in memory in rows after the last group.
    has_group_R = jnp.arange(x_RD.shape[0]) < jnp.sum(sizes_E)
    return jnp.where(has_group_R[:, None], y[: x_RD.shape[0]], 0)


def _weight_gradient(x_RD, dy_RG, sizes_E, interpret):
    """(E, D, G): for each group its rows of x, transposed, times its rows of dy."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    x_RD, dy_RG = _pad_rows(x_RD), _pad_rows(dy_RG)
    tiles = TILE_ROWS, min(TILE_COLUMNS, x_RD.shape[1]), min(TILE_COLUMNS, dy_RG.shape[1])
    with jax.numpy_dtype_promotion("standard"):
        return tgmm(x_RD.T, dy_RG, sizes_E, x_RD.dtype, tiles, interpret=interpret)


def _pad_rows(x_RD):
    """The rows and zeros, to whole tiles."""
    return jnp.pad(x_RD, ((0, -x_RD.shape[0] % TILE_ROWS), (0, 0)))


# --- CPU and GPU ----------------------------------------------------------------------------------


@jax.custom_vjp
def multiply_blocks(x_RD: jax.Array, weight_EDG: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """`grouped_matmul`, each group padded to a multiple of a block of rows, block by block."""
    blocks = _Blocks(x_RD.shape[0], sizes_E)

    def multiply(_, block):
        expert, x_bD = block
        return None, x_bD @ weight_EDG[expert]

    _, y = jax.lax.scan(multiply, None, (blocks.experts, blocks.pad(x_RD)))
    return blocks.unpad(y)


def _forward(x_RD, weight_EDG, sizes_E):
    return multiply_blocks(x_RD, weight_EDG, sizes_E), (x_RD, weight_EDG, sizes_E)


def _backward(residuals, dy_RG):
    x_RD, weight_EDG, sizes_E = residuals
    blocks = _Blocks(x_RD.shape[0], sizes_E)

    def add(dweight_EDG, block):  # in place: a gradient of `multiply` would add E matrices a block
        expert, x_bD, dy_bG = block
        product = jnp.matmul(x_bD.T, dy_bG, preferred_element_type=jnp.float32)
        return dweight_EDG.at[expert].add(product), None

    zeros = jnp.zeros(weight_EDG.shape, jnp.float32)
    dweight_EDG, _ = jax.lax.scan(add, zeros, (blocks.experts, blocks.pad(x_RD), blocks.pad(dy_RG)))
    dx_RD = multiply_blocks(dy_RG, weight_EDG.swapaxes(1, 2), sizes_E)
    return dx_RD, dweight_EDG.astype(weight_EDG.dtype), None


multiply_blocks.defvjp(_forward, _backward)


class _Blocks:
    """Blocks of rows such that no block has rows of two groups. experts: the group of each."""

    def __init__(self, n_rows: int, sizes_E: jax.Array):
        E = sizes_E.shape[0]
        # The largest power of 2 that is at most the mean group, so that padding at most doubles.
        self.rows = min(MAX_BLOCK, 2 ** max(0, (n_rows // E).bit_length() - 1))
        self.number = min(n_rows, n_rows // self.rows + E)  # as many as there may be
        blocks_E = -(-sizes_E // self.rows)
        ends_E, row_ends_E = jnp.cumsum(blocks_E), jnp.cumsum(sizes_E)
        search = functools.partial(jnp.searchsorted, side="right")
        self.experts = jnp.minimum(search(ends_E, jnp.arange(self.number)), E - 1)
        rows_R = jnp.arange(n_rows)
        group_R = search(row_ends_E, rows_R)
        group_R, is_last_R = jnp.minimum(group_R, E - 1), group_R == E
        first_R = ((ends_E - blocks_E) * self.rows - (row_ends_E - sizes_E))[group_R]
        # Rows after the last group have no place.
        self._places_R = jnp.where(is_last_R, self.number * self.rows, first_R + rows_R)

    def pad(self, x_RD: jax.Array) -> jax.Array:
        """The rows in blocks, (blocks, rows, D), zero where a block has fewer."""
        zeros = jnp.zeros((self.number * self.rows, x_RD.shape[1]), x_RD.dtype)
        padded = zeros.at[self._places_R].set(x_RD, mode="drop")
        return padded.reshape(self.number, self.rows, -1)

    def unpad(self, y: jax.Array) -> jax.Array:
        """Inverse of `pad`; 0 for rows without a place."""
        flat = y.reshape(self.number * self.rows, -1)
        return jnp.take(flat, self._places_R, axis=0, mode="fill", fill_value=0)
