"""Part f of bench.accelerator: where the time of a training step goes.

Three steps of a model with dense attention are traced by jax's profiler; the time of the device's
operations is summed by kind, and those that take longest are named. The trace itself is
OUT/trace.xplane.pb, for xprof, if it is not larger than MAX_BYTES.
"""

import collections
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from bench import accelerator_rows, accelerator_train
from bench.accelerator_rows import Recorder
from gptjax.config import schema
from gptjax.report import profile

N_STEPS, N_NAMED = 3, 8
DEFAULT_ROWS = 8
MAX_BYTES = 15 * 2**20
# Kinds by the names of GPU kernels and of XLA's operations; the first that matches.
KINDS = {
    "attention kernels": r"fmha|flash|sdpa|splash|cudnn_generated|attention|mha",
    "matmuls": r"gemm|cutlass|nvjet|cublas|xmma|wgmma|\bdot|dot[._]|convolution|matmul",
    "CUDA graphs": r"graph",
    "communication": r"nccl|all-reduce|all-gather|reduce-scatter|collective",
    "copies": r"memcpy|memset|copy|transpose|dynamic-update|dynamic_update",
    "gather and scatter": r"gather|scatter",
    "elementwise and sums": r"fusion|reduce|loop_|input_|wrapped|broadcast|add|multiply|convert",
}
# Containers of other operations, which are counted themselves.
CONTAINERS = re.compile(r"^(while|call|conditional|jit_|PjitFunction)", re.IGNORECASE)


class Op(NamedTuple):
    """An operation of the device, in nanoseconds."""

    name: str
    start: float
    duration: float


def kind(name: str) -> str:
    """The kind of an operation: a key of KINDS, or "other"."""
    found = (kind for kind, words in KINDS.items() if re.search(words, name, re.IGNORECASE))
    return next(found, "other")


def read_ops(directory: Path) -> list[Op]:
    """The operations of the device in the newest trace under `directory`: kernels of a GPU's
    streams, a TPU's operations, and on a CPU what its threads do for XLA."""
    newest = max(directory.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if ops := list(_ops(jax.profiler.ProfileData.from_file(str(newest)).planes)):
        return ops
    raise RuntimeError("the profiler has recorded no operation of the device")


def _ops(planes) -> Iterator[Op]:
    """The operations of the planes of devices, or of the host where there is no device."""
    planes = list(planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:") and list(plane.lines)]
    for plane in devices or [plane for plane in planes if plane.name.startswith("/host:CPU")]:
        lines = list(plane.lines)
        if devices:  # other lines are sums of these, by module or by step
            streams = [line for line in lines if line.name.startswith("Stream")]
            lines = streams or [line for line in lines if line.name.startswith("XLA Ops")]
        for line in lines:
            for event in line.events:
                is_op = devices or any(key == "hlo_op" for key, _ in event.stats)
                if is_op and not CONTAINERS.match(event.name):
                    yield Op(event.name, event.start_ns, event.duration_ns)


def busy(ops: list[Op]) -> float:
    """Nanoseconds in which at least one of the operations runs."""
    total, end = 0.0, 0.0
    for op in sorted(ops, key=lambda op: op.start):
        total += max(0.0, op.start + op.duration - max(end, op.start))
        end = max(end, op.start + op.duration)
    return total


def summarize(ops: list[Op], n_steps: int) -> list[accelerator_rows.Row]:
    """Rows of the time by kind and of the longest operations, for one step of n_steps: shares of
    the sum over operations; and the time without any, of the whole from the first to the last."""
    kinds = collections.defaultdict[str, float](float)
    names = collections.defaultdict[str, float](float)
    for op in ops:
        kinds[kind(op.name)] += op.duration
        names[re.sub(r"[.\d]+$", "", op.name)] += op.duration
    total = sum(kinds.values())
    span = max(op.start + op.duration for op in ops) - min(op.start for op in ops)
    rows = [
        {"what": "idle, of the whole time", "ns": span - busy(ops), "share": 1 - busy(ops) / span}
    ]
    for prefix, group, n in (("", kinds, None), ("op ", names, N_NAMED)):
        for name, ns in sorted(group.items(), key=lambda item: -item[1])[:n]:
            rows.append({"what": f"{prefix}{name[:120]}", "ns": ns, "share": ns / total})
    return [
        {"what": row["what"], "ms": row["ns"] / n_steps / 1e6, "share": row["share"]}
        for row in rows
    ]


def trace(config: schema.Config, directory: Path) -> None:
    """Writes a trace of N_STEPS steps of a config."""
    program = accelerator_train.prepare(config)
    train_state, profiler = program.state, profile.Profiler(directory, N_STEPS, print)
    for _ in range(N_STEPS + 3):  # of which the third is the first in the trace, and the last none
        profiler.before_step()
        with profiler.span("step"):
            train_state, metrics = program.run(train_state, program.tokens)
        with profiler.span("wait"):
            jax.block_until_ready(metrics)
    profiler.close()


def measure(recorder: Recorder, names: list[str]) -> None:
    """Records the time by kind for the named model, at its best batch size of part c."""
    (name,) = names
    best = recorder.best(accelerator_train.dense_rows(name))
    rows, remat = (best["rows"], best["remat"]) if best else (DEFAULT_ROWS, "none")
    config = accelerator_train.model_config(name, (schema.Dense(),))

    def traced() -> None:
        directory = recorder.work / "trace"
        trace(accelerator_train.at_batch(config, rows, remat), directory)
        for row in summarize(read_ops(directory), N_STEPS):
            recorder.add(f"{name} {row.pop('what')}", rows=rows, remat=remat, **row)
        file = next(directory.rglob("*.xplane.pb"))
        if file.stat().st_size <= MAX_BYTES:
            shutil.copy(file, recorder.out / "trace.xplane.pb")

    recorder.measure([(f"{name} trace", traced)])


if __name__ == "__main__":
    accelerator_rows.run_part(measure)
