"""Part a of bench.accelerator: is every kernel right?

Output and gradients of each attention kernel of the platform and of the grouped matmul, in
bfloat16, against the reference in float32 at the highest precision of matmuls, on the same inputs.
The error is the largest of ||x - y|| / ||y|| over output and gradients; of a gradient that is zero
by definition, as of the scores of a window of one key, ||y|| is at least a thousandth of the norm
of the output's gradient. Programs are compiled in threads, in the order in which they run.
"""

import concurrent.futures
import functools
import itertools
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench import accelerator_rows
from gptjax.config import schema
from gptjax.model import grouped_matmul
from gptjax.model.attention import dispatch, reference

TOLERANCE = 2e-2  # bfloat16 operands give 2e-3 to 1e-2
PATTERNS = (
    schema.Dense(),
    schema.Banded(window=256),
    schema.Strided(stride=128),
    schema.Fixed(block=128, summary=8),
    schema.Banded(window=1),
    schema.BlockSparse(block=64, local_blocks=4, stride=4),
)
# Tokens, head size, whether documents are kept apart: of every pattern, the first row first.
SHAPES = (
    (2048, 64, False),
    (2048, 128, False),
    (1000, 64, True),
    (999, 128, False),
    (2048, 128, True),
    (1000, 64, False),
    (999, 64, True),
)
TOY_SHAPES = ((256, 64, False), (129, 128, True))
GROUPED_SHAPES = ((4096, 1024, 4096, 8), (1000, 512, 384, 3))  # rows, columns, columns, weights
TOY_GROUPED_SHAPES = ((300, 64, 96, 3),)


class Case(NamedTuple):
    """An attention kernel on a pattern and a shape."""

    kernel: str
    pattern: schema.Attention
    n_tokens: int
    d_head: int
    has_segments: bool

    def __str__(self):
        documents = ", documents" if self.has_segments else ""
        return f"{self.kernel} {self.pattern} T {self.n_tokens}, head {self.d_head}{documents}"


def kernel_names(platform: str) -> list[str]:
    """The attention kernels that run on the platform, its own first."""
    names = []
    for name in dispatch.KERNELS:
        try:
            names.append(dispatch.resolve_name(name, platform))
        except ValueError:
            continue
    return sorted(names, key=lambda name: name not in dispatch.PLATFORMS)


def cases(platform: str, shapes) -> list[Case]:
    """All cases that a kernel computes itself, without another that stands in for it."""
    found = []
    for (n_tokens, d_head, has_segments), pattern in itertools.product(shapes, PATTERNS):
        for kernel in kernel_names(platform):
            selected, _ = dispatch.select(
                kernel,
                pattern,
                jnp.bfloat16,
                d_head,
                has_segments=has_segments,
                is_even=n_tokens % 2 == 0,
            )
            if selected == kernel:
                found.append(Case(kernel, pattern, n_tokens, d_head, has_segments))
    return found


def output_and_gradients(f, inputs, dy):
    """f(*inputs), and the gradients of all inputs for that of the output."""
    y, pull = jax.vjp(f, *inputs)
    return (y, *pull(dy))


def relative_error(found, expected, dy) -> list[float]:
    """||x - y|| / ||y|| of each pair; NaN if an element is not finite."""
    least = 1e-3 * np.linalg.norm(np.asarray(dy, np.float64))
    errors = []
    for x, y in zip(found, expected, strict=True):
        x, y = (np.asarray(array.astype(jnp.float32), np.float64) for array in (x, y))
        errors.append(float(np.linalg.norm(x - y) / max(np.linalg.norm(y), least)))
    return errors


def verdict(errors: list[float]) -> accelerator_rows.Figures:
    """The row of a comparison."""
    is_right = all(error < TOLERANCE for error in errors)  # false for NaN
    worst = max(errors, key=lambda error: (error != error, error))
    return {"error": worst, "errors": errors, "verdict": "ok" if is_right else "WRONG"}


def random_normal(seed: int, *shapes):
    """Arrays of normal numbers that bfloat16 holds exactly."""
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [
        jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True)
    ]


def compare(f, reference_f, inputs, dy) -> accelerator_rows.Figures:
    """f in bfloat16 against reference_f in float32; both are compiled first."""
    run = jax.jit(functools.partial(output_and_gradients, f)).lower(inputs, dy).compile()
    widened = jax.tree.map(lambda x: x.astype(jnp.float32), (inputs, dy))
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(functools.partial(output_and_gradients, reference_f))(*widened)
    return verdict(relative_error(run(inputs, dy), expected, dy))


def compare_attention(case: Case) -> accelerator_rows.Figures:
    """An attention kernel against the reference, on two rows of two heads."""
    shape = (
        2,
        case.n_tokens,
        4 if isinstance(case.pattern, schema.BlockSparse) else 2,
        case.d_head,
    )
    *inputs, dy = random_normal(case.n_tokens, *[shape] * 4)
    # Documents of 137 tokens, and in the second row of 300.
    starts = jnp.array([[137], [300]])
    segments_BS = jnp.arange(case.n_tokens)[None] // starts if case.has_segments else None

    def attend(f, q, k, v):
        return f(q, k, v, case.pattern, segments_BS)

    return compare(
        functools.partial(attend, functools.partial(dispatch.attend_local, case.kernel)),
        functools.partial(attend, reference.attend),
        inputs,
        dy,
    )


def masked_matmul(sizes_E, x_RD, weight_EDG):
    """grouped_matmul's definition: all rows times each weight, of which the group's rows count."""
    ends = jnp.cumsum(sizes_E)
    group_R = jnp.searchsorted(ends, jnp.arange(x_RD.shape[0]), side="right")
    parts = [
        jnp.where((group_R == e)[:, None], x_RD @ weight_DG, 0)
        for e, weight_DG in enumerate(weight_EDG)
    ]
    return sum(parts[1:], parts[0])


def compare_grouped(shape: tuple[int, int, int, int]) -> accelerator_rows.Figures:
    """The grouped matmul; the second group is empty, and some rows are in none."""
    R, D, G, E = shape
    x_RD, weight_EDG, dy_RG = random_normal(R, (R, D), (E, D, G), (R, G))
    share = (R - R // 10) // (E - 1)
    sizes_E = jnp.array([0 if e == 1 else share for e in range(E)], jnp.int32)

    def multiply(x_RD, weight_EDG):
        return grouped_matmul.grouped_matmul(x_RD, weight_EDG, sizes_E)

    masked = functools.partial(masked_matmul, sizes_E)
    return compare(multiply, masked, [x_RD, weight_EDG], dy_RG)


def measure(recorder: accelerator_rows.Recorder, _: list[str]) -> None:
    """Records a row for each case."""
    grouped = TOY_GROUPED_SHAPES if recorder.is_toy else GROUPED_SHAPES
    attention = cases(jax.devices()[0].platform, TOY_SHAPES if recorder.is_toy else SHAPES)
    work = [(str(case), functools.partial(compare_attention, case)) for case in attention]
    n_first = sum(case[2:] == attention[0][2:] for case in attention)
    work[n_first:n_first] = [
        (f"grouped matmul {shape}", functools.partial(compare_grouped, shape)) for shape in grouped
    ]
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        futures = [(what, pool.submit(compute).result) for what, compute in work]
        recorder.measure(futures)
        pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    accelerator_rows.run_part(measure)
