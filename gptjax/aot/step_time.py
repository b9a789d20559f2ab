"""Time of a compiled step, from the compiler's output, its communication, and the chips'
specifications. No step of gptjax was measured on a chip: the constants come from steps of TPUs
that others published (bench/published_steps.py).

TPU: CYCLE_SHARE of the compiler's cycle estimates; kernels, which have none, by their matmuls at
KERNEL_SHARE of peak, those of attention by the blocks that they visit; communication by the links
of each group of chips. Gathers of rows and sorts, which experts need, have no cycles and count as
nothing.
GPU, where the compiler estimates nothing: matmuls at peak or memory traffic, whichever is longer, a
lower bound.
"""

import collections
import dataclasses
import math
from typing import Any

import jax
import numpy as np

from gptjax.aot import compile, hlo_cost
from gptjax.config import count, schema
from gptjax.model.attention import context_parallel, tpu_splash
from gptjax.sharding import topology

# Fitted to half of the published steps (docs/results/accelerators.md): the time of what has cycles,
# as a share of those; the share of peak that kernels reach; and the share of asynchronous
# communication that computation hides.
CYCLE_SHARE, KERNEL_SHARE, HIDDEN_SHARE = 0.95, 0.9, 1.0
# Measured / predicted of the other half: the least and the most.
RATIOS = 0.82, 1.13
LANES = 128  # the matrix unit pads heads to a multiple of this
UNKNOWN_NETWORK = 6.25e9  # bytes/s per chip between slices if unpublished: v5p's


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """Cost per chip and step of one kind of collective along some mesh axes."""

    kind: str
    axes: str  # of the mesh
    n_devices: int
    times: int
    n_bytes: float  # sent by a chip
    seconds: float
    asynchronous: bool  # may overlap with computation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimated seconds of a step and its parts."""

    floor: float  # the model's FLOPs at peak
    compute: float
    recomputed: float = 0.0  # of compute: what libtpu repeats since the memory does not hold it
    kernels: float
    traffic: tuple[Traffic, ...]

    @property
    def exposed(self) -> float:
        """Communication that does not overlap: what is synchronous; of the rest what HIDDEN_SHARE
        leaves, and at least what exceeds the computation that could hide it.
        """
        hideable = sum(t.seconds for t in self.traffic if t.asynchronous)
        return sum(t.seconds for t in self.traffic if not t.asynchronous) + max(
            (1 - HIDDEN_SHARE) * hideable, hideable - self.compute - self.kernels
        )

    @property
    def step(self) -> float:
        """Seconds of the whole step."""
        return self.compute + self.kernels + self.exposed

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization."""
        return self.floor / self.step


def estimate(compiled: compile.CompiledStep) -> Estimate:
    """Estimates the time of a compiled step. Raises AssertionError if it is below the floor, which
    means that the program was misread.
    """
    chip, config = compiled.target.chip, compiled.config
    tokens = config.train.batch_tokens / compiled.mesh.size
    floor = count.train_flops_per_token(config.model) * tokens / chip.flops
    # chip.flops is of bfloat16; products of 8 bits take half the time at least.
    speedup = 2 if config.compute.matmul_dtype == "float8" else 1
    if compiled.target.platform == "cuda":
        products = count.hardware_flops_per_token(config) * tokens / chip.flops / speedup
        compute = max(products, compiled.program.bytes_accessed() / chip.hbm_bandwidth)
        recomputed = kernels = 0.0
        shortest = compute
    else:
        assert chip.clock is not None, chip.kinds
        compute, recomputed = (
            CYCLE_SHARE * compiled.program.cycles(name) / chip.clock
            for name in ("", hlo_cost.COMPILER_REMAT)
        )
        kernels = kernel_seconds(compiled)
        shortest = compute / CYCLE_SHARE + kernels * KERNEL_SHARE
    result = Estimate(
        floor=floor,
        compute=compute,
        recomputed=recomputed,
        kernels=kernels,
        traffic=traffic(compiled.program, compiled.mesh, compiled.target),
    )
    assert shortest >= floor / speedup, f"{shortest:.3g} s are below the floor of {floor:.3g} s"
    return result


# --- kernels --------------------------------------------------------------------------------------


def kernel_seconds(compiled: compile.CompiledStep) -> float:
    """Seconds of all kernels."""
    flops = attention_flops(compiled) + compiled.program.grouped_matmul_flops()
    return flops / compiled.target.chip.flops / KERNEL_SHARE


def attention_flops(compiled: compile.CompiledStep) -> float:
    """FLOPs of splash attention on one chip; 0 if the program has no such kernels, as with
    attention dropout, where the cycles include attention.

    Matmuls per visited block: 2 forward (twice if the forward pass is recomputed), 4 for dk and dv
    or 5 including dq, 3 for dq. Context parallelism is taken to share the work of whole sequences
    equally.
    """
    config = compiled.config
    if not any("splash" in name for name in compiled.program.kernel_counts()):
        return 0.0
    forward = 1 if "attention" in config.compute.saved_names else 2
    flops = row_attention_flops(config.model, config.model.n_ctx, forward, has_backward=True)
    return flops * config.batch_rows / compiled.mesh.size


def row_attention_flops(
    model: schema.Model, n_tokens: int, forward: int, has_backward: bool
) -> float:
    """FLOPs of splash attention for a row of n_tokens, whose forward pass runs `forward` times."""
    flops = 0.0
    for pattern, n_layers in count.layer_counts(model).items():
        pairs = tpu_splash.pairs_by_kernel(pattern, n_tokens)
        products = {"forward": 2 * forward}
        if has_backward:
            products |= {"dkv": 4 if "dq" in pairs else 5, "dq": 3}
        flops += n_layers * sum(2 * n * pairs.get(kind, 0) for kind, n in products.items())
    return flops * -(-model.d_head // LANES) * LANES * model.n_heads


# --- communication --------------------------------------------------------------------------------


def traffic(
    program: hlo_cost.Program, mesh: jax.sharding.Mesh, target: topology.Topology
) -> tuple[Traffic, ...]:
    """Sums communication by kind, mesh axes and whether it may overlap; longest first."""
    sums: dict[tuple, list[float]] = collections.defaultdict(lambda: [0, 0.0, 0.0])
    for collective in program.collectives():
        axes = group_axes(collective.group, mesh) if collective.group else "slices"
        total = sums[
            collective.kind, axes, len(collective.group) or target.slices, collective.asynchronous
        ]
        total[0] += collective.times
        total[1] += collective.times * collective.bytes_sent
        total[2] += collective.times * collective.bytes_sent / bandwidth(collective, mesh, target)
    rows = [
        Traffic(
            kind=kind,
            axes=axes,
            n_devices=n,
            times=int(times),
            n_bytes=n_bytes,
            seconds=seconds,
            asynchronous=asynchronous,
        )
        for (kind, axes, n, asynchronous), (times, n_bytes, seconds) in sums.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.seconds))


def group_axes(group: tuple[int, ...], mesh: jax.sharding.Mesh) -> str:
    """The mesh axes along which the devices of a group differ."""
    coordinates = np.array(np.unravel_index(group, mesh.devices.shape))
    return " x ".join(
        axis
        for axis, row in zip(mesh.axis_names, coordinates, strict=True)
        if len(set(row.tolist())) > 1
    )


def bandwidth(
    collective: hlo_cost.Collective, mesh: jax.sharding.Mesh, target: topology.Topology
) -> float:
    """Bytes/s that a chip can send to its group.

    On a torus, each dimension that the group spans counts two links if it closes to a ring, else
    one; a permute uses one link. Between slices or hosts, the network.
    """
    chip, devices = target.chip, [mesh.devices.flat[i] for i in collective.group]
    if target.platform == "cuda":
        return (
            chip.link_bandwidth
            if len({d.process_index for d in devices}) == 1
            else chip.network_bandwidth or UNKNOWN_NETWORK
        )
    if not collective.group:
        return chip.network_bandwidth or UNKNOWN_NETWORK
    link = chip.link_bandwidth / chip.links
    if collective.kind == "collective-permute":
        return link
    coordinates = np.array([d.coords for d in devices])
    n_links, rings = 0, topology.wraparound(target.layout)
    for dimension, n in enumerate(target.layout):
        extent = len(set(coordinates[:, dimension].tolist()))
        n_links += 0 if extent == 1 else 2 if extent == n and rings[dimension] else 1
    return link * max(n_links, 1)


def run_days(estimate: Estimate, config: schema.Config) -> float:
    """Days of the whole run, taking the batch ramp at the same speed."""
    return estimate.step * config.train.total_tokens / config.train.batch_tokens / 86400


def summarize(compiled: compile.CompiledStep, estimate: Estimate) -> dict[str, Any]:
    """All results by name, in plain units."""
    config, chip = compiled.config, compiled.target.chip
    excess = max(compiled.peak_bytes - compiled.memory_limit, 0)
    return {
        "config": config.name,
        "topology": str(compiled.target),
        "chips": compiled.mesh.size,
        "mesh": {axis: n for axis, n in compiled.mesh.shape.items() if n > 1},
        "sharding": config.mesh.sharding,
        "context_exchange": context_parallel.choose_exchange(config, compiled.mesh, 2)
        if compiled.mesh.shape["context"] > 1
        else None,
        "remat": config.compute.remat,
        "tokens_per_step": config.train.batch_tokens,
        "microbatches": compiled.n_microbatches,
        "microbatch_rows": compiled.microbatch_rows,
        "compile_seconds": compiled.compile_seconds,
        "argument_bytes": compiled.argument_bytes,
        "temporary_bytes": compiled.temporary_bytes,
        "peak_bytes": compiled.peak_bytes,
        "memory_bytes": chip.hbm_bytes,
        "fits": excess == 0,
        "over_bytes": excess,
        "advice": compile.suggest_slice(config, compiled.target) if excess else None,
        "flops_per_chip": estimate.floor * chip.flops,
        "floor_seconds": estimate.floor,
        "compute_by": "cycles" if compiled.target.platform == "tpu" else "roofline",
        "compute_seconds": estimate.compute,
        "recomputed_seconds": estimate.recomputed,
        "kernel_runs": compiled.program.kernel_counts(),
        "kernel_seconds": estimate.kernels,
        "traffic": [dataclasses.asdict(row) for row in estimate.traffic],
        "sent_bytes": math.fsum(row.n_bytes for row in estimate.traffic),
        "exposed_seconds": estimate.exposed,
        "step_seconds": estimate.step,
        "step_interval": [ratio * estimate.step for ratio in RATIOS]
        if compiled.target.platform == "tpu" and config.compute.matmul_dtype == "auto"
        else None,  # no published step is like it
        "mfu": estimate.mfu,
        "days": run_days(estimate, config),
    }
