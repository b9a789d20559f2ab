"""How long a compiled step will take at best, from what its compiler says, what it sends, and what
the chips can do. No figure here was measured on a chip: they rank programs, and bound them from
below.

On TPU: the compiler's cycles; kernels, which carry none, by the products of the blocks that they
visit, at KERNEL_SHARE of peak; what is sent, by the links that a group of chips has. On GPU, whose
compiler estimates nothing: the larger of products at peak and memory traffic.
"""

import collections
import dataclasses
import math
from typing import Any

import jax
import numpy as np

from gptjax.aot import compile, hlo_cost
from gptjax.config import count, schema
from gptjax.model.attention import tpu_splash
from gptjax.sharding import topology

# of peak: what flash attention kernels are known to reach on long rows; an assumption
KERNEL_SHARE = 0.5
LANES = 128  # a head is padded to this in the matrix unit
UNKNOWN_NETWORK = 6.25e9  # bytes/s a chip between slices, where it is not published: v5p's


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """What one kind of exchange along one part of the mesh costs a chip in a step."""

    kind: str
    axes: str  # of the mesh
    n_devices: int
    times: int
    n_bytes: float  # that a chip sends
    seconds: float
    asynchronous: bool  # may hide behind computation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds of a step and their parts."""

    floor: float  # the model's FLOPs at peak: nothing can be quicker
    compute: float
    kernels: float
    traffic: tuple[Traffic, ...]

    @property
    def exposed(self) -> float:
        """Of sending: what is synchronous, and of the rest what is longer than all that could
        hide it."""
        hideable = sum(t.seconds for t in self.traffic if t.asynchronous)
        return sum(t.seconds for t in self.traffic if not t.asynchronous) + max(
            0.0, hideable - self.compute - self.kernels
        )

    @property
    def step(self) -> float:
        return self.compute + self.kernels + self.exposed

    @property
    def mfu(self) -> float:
        return self.floor / self.step


def estimate(compiled: compile.CompiledStep) -> Estimate:
    """AssertionError if an estimate came out below the floor: then the program was misread."""
    chip, config = compiled.target.chip, compiled.config
    tokens = config.train.batch_tokens / compiled.mesh.size
    floor = count.train_flops_per_token(config.model) * tokens / chip.flops
    if compiled.target.platform == "cuda":
        products = count.hardware_flops_per_token(config) * tokens / chip.flops
        compute, kernels = (
            max(products, compiled.program.bytes_accessed() / chip.hbm_bandwidth),
            0.0,
        )
    else:
        assert chip.clock is not None, chip.kinds
        compute, kernels = compiled.program.cycles() / chip.clock, kernel_seconds(compiled)
    result = Estimate(floor=floor, compute=compute, kernels=kernels, traffic=traffic(compiled))
    assert compute + kernels >= floor, (
        f"an estimate of {compute + kernels:.3g} s is below the floor of {floor:.3g} s"
    )
    return result


# --- attention kernels ----------------------------------------------------------------------------


def kernel_seconds(compiled: compile.CompiledStep) -> float:
    """Of splash attention, forward twice where it is not kept: 2 products of a block forward, 4 for
    dk and dv or 5 with dq, 3 for dq. None where the program has no kernels, as with attention
    dropout: then attention is in the cycles. On sequences that are cut, those of whole ones
    shared equally."""
    config, model = compiled.config, compiled.config.model
    if not compiled.program.kernel_counts():
        return 0.0
    forward = 1 if "attention" in config.compute.saved_names else 2
    flops = 0.0
    for pattern in model.attention:
        visited_pairs = tpu_splash.pairs_by_kernel(pattern, model.n_ctx)
        products = {"forward": 2 * forward, "dkv": 4 if "dq" in visited_pairs else 5, "dq": 3}
        flops += (
            sum(products[kind] * 2 * pairs for kind, pairs in visited_pairs.items())
            * -(-model.d_head // LANES)
            * LANES
        )
    heads = model.n_periods * config.batch_rows * model.n_heads / compiled.mesh.size
    return flops * heads / compiled.target.chip.flops / KERNEL_SHARE


# --- what is sent ---------------------------------------------------------------------------------


def traffic(compiled: compile.CompiledStep) -> tuple[Traffic, ...]:
    """By kind, part of the mesh, and whether it may hide; longest first."""
    sums: dict[tuple, list[float]] = collections.defaultdict(lambda: [0, 0.0, 0.0])
    for collective in compiled.program.collectives():
        axes = group_axes(collective.group, compiled.mesh) if collective.group else "slices"
        total = sums[
            collective.kind,
            axes,
            len(collective.group) or compiled.target.slices,
            collective.asynchronous,
        ]
        total[0] += collective.times
        total[1] += collective.times * collective.bytes_sent
        total[2] += (
            collective.times
            * collective.bytes_sent
            / bandwidth(collective, compiled.mesh, compiled.target)
        )
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
    """The mesh axes in which the devices of a group differ."""
    coordinates = np.array(np.unravel_index(group, mesh.devices.shape))
    return " x ".join(
        axis
        for axis, row in zip(mesh.axis_names, coordinates, strict=True)
        if len(set(row.tolist())) > 1
    )


def bandwidth(
    collective: hlo_cost.Collective, mesh: jax.sharding.Mesh, target: topology.Topology
) -> float:
    """Bytes/s that a chip can send to its group. A torus has two links in each dimension that the
    group fills, if it closes to a ring, one if it does not; a permute goes over one. Between
    slices or hosts, the network."""
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
    """Of the whole run, the ramp's tokens at the same speed."""
    return estimate.step * config.train.total_tokens / config.train.batch_tokens / 86400


def summarize(compiled: compile.CompiledStep, estimate: Estimate) -> dict[str, Any]:
    """Every figure by name, in plain units."""
    config, chip = compiled.config, compiled.target.chip
    excess = max(compiled.peak_bytes - compiled.memory_limit, 0)
    return {
        "config": config.name,
        "topology": str(compiled.target),
        "chips": compiled.mesh.size,
        "mesh": {axis: n for axis, n in compiled.mesh.shape.items() if n > 1},
        "sharding": config.mesh.sharding,
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
        "kernel_runs": compiled.program.kernel_counts(),
        "kernel_seconds": estimate.kernels,
        "traffic": [dataclasses.asdict(row) for row in estimate.traffic],
        "sent_bytes": math.fsum(row.n_bytes for row in estimate.traffic),
        "exposed_seconds": estimate.exposed,
        "step_seconds": estimate.step,
        "mfu": estimate.mfu,
        "days": run_days(estimate, config),
    }
