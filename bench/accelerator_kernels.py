"""Part a of bench.accelerator: is every kernel right?

Output and gradients of each attention kernel of the platform and of the grouped matmul, in
bfloat16, against the reference in float32 at the highest precision of matmuls, on the same inputs.
The error is the largest of ||x - y|| / ||y|| over output and gradients; of a gradient that is zero
by definition, as of queries that see one key, ||y|| counts as a thousandth of the norm of the
output's gradient. Cases are compiled and run in several threads, the most common ones first.
"""

import concurrent.futures
import functools
import itertools
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench import accelerator_rows
from bench.accelerator_rows import Figures
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
# Tokens, head size, whether documents are kept apart; every pattern at the first before the next.
SHAPES = (
    (2048, 64, False),
    (2048, 128, False),
    (1000, 64, True),
    (999, 128, False),
    (2048, 128, True),
    (1000, 64, False),
    (999, 64, True),
)
TOY_SHAPES = ((300, 64, False), (129, 128, True))
GROUPED_SHAPES = ((4096, 1024, 4096, 8), (1000, 512, 384, 3))  # rows, columns, columns, weights
TOY_GROUPED_SHAPES = ((300, 64, 96, 3),)


class Case(NamedTuple):
    """A pattern and a shape."""

    pattern: schema.Attention
    n_tokens: int
    d_head: int
    has_segments: bool

    def __str__(self):
        sizes = "/".join(map(str, vars(self.pattern).values()))
        documents = ", documents" if self.has_segments else ""
        name = f"{type(self.pattern).__name__} {sizes}".strip()
        return f"{name}, {self.n_tokens} x {self.d_head}{documents}"


def kernel_names(platform: str) -> list[str]:
    """The attention kernels that run on the platform, its own first."""
    names = []
    for name in dispatch.KERNELS:
        try:
            names.append(dispatch.resolve_name(name, platform))
        except ValueError:
            continue
    return sorted(names, key=lambda name: name not in dispatch.PLATFORMS)


def kernels(case: Case, platform: str) -> list[str]:
    """The kernels that compute a case themselves, without another that stands in for them."""
    return [
        name
        for name in kernel_names(platform)
        if name
        == dispatch.select(
            name,
            case.pattern,
            jnp.bfloat16,
            case.d_head,
            has_segments=case.has_segments,
            is_even=case.n_tokens % 2 == 0,
        )[0]
    ]


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


def verdict(errors: list[float]) -> Figures:
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


def compare(fs: dict[str, Callable], reference_f, inputs, dy) -> dict[str, Figures]:
    """Each of fs in bfloat16 against reference_f in float32."""
    widened = jax.tree.map(lambda x: x.astype(jnp.float32), (inputs, dy))
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(functools.partial(output_and_gradients, reference_f))(*widened)
    found = {}
    for name, f in fs.items():
        try:
            y = jax.jit(functools.partial(output_and_gradients, f))(inputs, dy)
            found[name] = verdict(relative_error(y, expected, dy))
        except Exception as error:  # the others are compared all the same
            found[name] = accelerator_rows.failure(error)
    return found


def compare_attention(case: Case, platform: str) -> dict[str, Figures]:
    """The kernels of a case against the reference, on two rows of two heads."""
    n_heads = 4 if isinstance(case.pattern, schema.BlockSparse) else 2
    shape = (2, case.n_tokens, n_heads, case.d_head)
    *inputs, dy = random_normal(case.n_tokens, *[shape] * 4)
    # Documents of 137 tokens, and in the second row of 300.
    starts = jnp.array([[137], [300]])
    segments_BS = jnp.arange(case.n_tokens)[None] // starts if case.has_segments else None

    def attend(f, q, k, v):
        return f(q, k, v, case.pattern, segments_BS)

    fs = {
        f"{name} {case}": functools.partial(attend, functools.partial(dispatch.attend_local, name))
        for name in kernels(case, platform)
    }
    return compare(fs, functools.partial(attend, reference.attend), inputs, dy)


def masked_matmul(sizes_E, x_RD, weight_EDG):
    """grouped_matmul's definition: all rows times each weight, of which the group's rows count."""
    ends = jnp.cumsum(sizes_E)
    group_R = jnp.searchsorted(ends, jnp.arange(x_RD.shape[0]), side="right")
    parts = [
        jnp.where((group_R == e)[:, None], x_RD @ weight_DG, 0)
        for e, weight_DG in enumerate(weight_EDG)
    ]
    return sum(parts[1:], parts[0])


def grouped_title(shape: tuple[int, int, int, int]) -> str:
    """The name of a case of the grouped matmul."""
    return "grouped matmul {} x {} x {}, {} weights".format(*shape)


def compare_grouped(shape: tuple[int, int, int, int]) -> dict[str, Figures]:
    """The grouped matmul; the second group is empty, and some rows are in none."""
    R, D, G, E = shape
    x_RD, weight_EDG, dy_RG = random_normal(R, (R, D), (E, D, G), (R, G))
    share = (R - R // 10) // (E - 1)
    sizes_E = jnp.array([0 if e == 1 else share for e in range(E)], jnp.int32)

    def multiply(x_RD, weight_EDG):
        return grouped_matmul.grouped_matmul(x_RD, weight_EDG, sizes_E)

    masked = functools.partial(masked_matmul, sizes_E)
    return compare({grouped_title(shape): multiply}, masked, [x_RD, weight_EDG], dy_RG)


def measure(recorder: accelerator_rows.Recorder, names: list[str]) -> None:
    """Records a row for each kernel on each case, or only for the first of the cases `names`.

    A kernel that breaks the process's hold on the device makes the cases after it fail, too. Those
    that failed so are computed again, each in a process of its own, which replaces this one."""
    platform = jax.devices()[0].platform
    shapes = TOY_SHAPES if recorder.is_toy else SHAPES
    grouped = TOY_GROUPED_SHAPES if recorder.is_toy else GROUPED_SHAPES
    cases = [Case(pattern, *shape) for shape, pattern in itertools.product(shapes, PATTERNS)]
    work: list[tuple[str, Callable[[], dict[str, Figures]]]] = [
        (str(case), functools.partial(compare_attention, case, platform)) for case in cases
    ]
    products = [(grouped_title(n), functools.partial(compare_grouped, n)) for n in grouped]
    work[len(PATTERNS) : len(PATTERNS)] = products
    if names:
        work = [(what, compute) for what, compute in work if what == names[0]]
    broken = compute_all(recorder, work)
    if rest := names[1:] or (broken if not names else []):
        # The last --seconds counts.
        arguments = [
            *sys.argv[1 : len(sys.argv) - len(names)],
            f"--seconds={recorder.seconds_left}",
        ]
        module = ["-m", "bench.accelerator_kernels"]
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *module, *arguments, *rest])


def compute_all(
    recorder: accelerator_rows.Recorder, work: list[tuple[str, Callable[[], dict[str, Figures]]]]
) -> list[str]:
    """Records the rows of each case as soon as they are known, in several threads; ends the process
    when the time is over. Returns the cases that failed by an error of CUDA."""

    def compute_case(what: str, compute: Callable[[], dict[str, Figures]]) -> dict[str, Figures]:
        print(f"{what} ...", flush=True)
        return compute()

    pool = concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    futures = {pool.submit(compute_case, *case): case[0] for case in work}
    waits, broken = dict(futures), []
    try:
        for future in concurrent.futures.as_completed(futures, max(0.0, recorder.seconds_left)):
            what = waits.pop(future)
            try:
                found = future.result()
            except Exception as error:
                found = {what: accelerator_rows.failure(error)}
            if any("CUDA" in figures.get("note", "") for figures in found.values()):
                broken.append(what)
            for name, figures in found.items():
                recorder.add(name, **figures)
    except TimeoutError:
        recorder.leave_out(waits.values())
        sys.stdout.flush()
        os._exit(0)  # no thread that compiles can be stopped
    return broken


if __name__ == "__main__":
    accelerator_rows.run_part(measure)
