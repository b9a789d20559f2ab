"""Compiles the whole training step of a config, as train runs it, for chips that are not present.
Nothing is allocated.
"""

import dataclasses
import math
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from gptjax.aot import hlo_cost
from gptjax.config import count, schema
from gptjax.config.batch_schedule import BatchSchedule
from gptjax.model import gpt
from gptjax.runtime import errors
from gptjax.runtime.units import human_bytes
from gptjax.sharding import device_mesh, rules, topology, xla_options
from gptjax.training import state, step

END_OF_TEXT = 0  # the tokenizer is not needed, since any id compiles to the same program


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledStep:
    """A compiled step at the full batch size. Bytes are per chip; `peak_bytes` is the compiler's,
    which reuses free memory, or the sum of arguments and temporaries if it gives none.
    """

    config: schema.Config
    target: topology.Topology
    mesh: jax.sharding.Mesh
    microbatch_rows: int
    argument_bytes: int
    temporary_bytes: int
    peak_bytes: int
    compile_seconds: float
    program: hlo_cost.Program

    @property
    def n_microbatches(self) -> int:
        """Microbatches per step."""
        return self.config.batch_rows // self.microbatch_rows

    @property
    def memory_limit(self) -> int:
        """Bytes of memory that a program may use on one chip."""
        return self.target.chip.hbm_bytes


def compile_step(config: schema.Config, target: topology.Topology) -> CompiledStep:
    """Compiles the training step of a config for a topology.

    Raises ValueError if the mesh does not fit model, batch or chips, or the compiler is not
    installed; MemoryError, with advice, if the state alone is too large or the compiler rejects the
    program for its size.
    """
    if reason := state_too_large(config, target):
        raise MemoryError(reason)
    mesh = device_mesh.make_mesh(config.mesh, target.devices())
    rules.check(config, mesh)
    rows = choose_microbatch_rows(config, mesh, target)
    start_time = time.perf_counter()
    try:
        with topology.disable_cache():
            _, executable, _ = compile_program(config, mesh, target.platform, rows)
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(
            f"does not fit, says the compiler: {errors.first_line(error)}; "
            f"{suggest_slice(config, target)}"
        ) from error
    memory_stats: Any = executable.memory_analysis()
    total_bytes = memory_stats.argument_size_in_bytes + memory_stats.temp_size_in_bytes
    return CompiledStep(
        config=config,
        target=target,
        mesh=mesh,
        microbatch_rows=rows,
        argument_bytes=memory_stats.argument_size_in_bytes,
        temporary_bytes=memory_stats.temp_size_in_bytes,
        peak_bytes=memory_stats.peak_memory_in_bytes or total_bytes,
        compile_seconds=time.perf_counter() - start_time,
        program=hlo_cost.Program(executable.as_text() or ""),
    )


def compile_program(
    config: schema.Config, mesh: jax.sharding.Mesh, platform: str, rows: int
) -> tuple[step.TrainStep, jax.stages.Compiled, jax.ShapeDtypeStruct]:
    """Returns (the step, its compiled program for the full batch in microbatches of `rows`, the
    abstract tokens that it takes), for a mesh of devices that need not be present.
    """
    with jax.set_mesh(mesh):
        train_step = step.build(config, platform, mesh, END_OF_TEXT)
        abstract_state = state.abstract_state(config, train_step.model, train_step.tx, mesh)
        shape = (config.batch_rows // rows, rows, config.model.n_ctx + 1)
        tokens = jax.ShapeDtypeStruct(
            shape,
            np.int32,
            sharding=NamedSharding(mesh, train_step.model.sharding.spec("MB1", shape)),
        )
        options = xla_options.options(mesh.devices.flat[0])
        traced = jax.jit(
            train_step, donate_argnums=0, static_argnums=2, compiler_options=options
        ).trace(abstract_state, tokens, shape[0])
        return train_step, traced.lower(lowering_platforms=(platform,)).compile(), tokens


def is_out_of_memory(error: Exception) -> bool:
    """Whether the error reports a lack of memory."""
    return any(
        words in str(error)
        for words in ("RESOURCE_EXHAUSTED", "Out of memory", "Ran out of memory")
    )


def state_too_large(config: schema.Config, target: topology.Topology) -> str:
    """Returns why the config cannot fit on any mesh, or "" if its state alone would."""
    excess = count.state_bytes(config.model) // target.n_devices - target.chip.hbm_bytes
    if excess <= 0:
        return ""
    over = (
        f"the state of {config.name} alone is {human_bytes(excess)} over the memory of each chip "
        f"of {target}"
    )
    return f"{over}; {suggest_slice(config, target)}"


def suggest_slice(config: schema.Config, target: topology.Topology) -> str:
    """Suggests the smallest slice of the family that should suffice by config/count.py: state, two
    copies of the gradients, and a row.
    """
    row = count.activation_bytes(config, 1, "bfloat16", scores=False) // (
        max(1, config.mesh.tensor) * max(1, config.mesh.context)
    )
    for name in topology.slice_layouts(target.family):
        size = topology.from_name(name)
        if (
            20 * count.padded_parameters(config.model) // size.n_devices + row
            <= 0.9 * size.chip.hbm_bytes
        ):
            is_larger = size.n_devices > target.n_devices
            return (
                f"the smallest {target.family} that should do: {name}"
                if is_larger
                else "change mesh or compute.remat"
            )
    return f"no {target.family} slice is large enough: give several, as in 2x{name}"


def choose_microbatch_rows(
    config: schema.Config, mesh: jax.sharding.Mesh, target: topology.Topology
) -> int:
    """Rows of a microbatch at the full batch size: train.microbatch_rows, or as many as train would
    use on such chips. Raises ValueError if the batch does not split over the mesh.
    """
    table = rules.PRESETS[config.mesh.sharding].activations
    full_config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, batch_ramp=None, steps=None)
    )
    batch_schedule = BatchSchedule(full_config, math.prod(mesh.shape[axis] for axis in table["B"]))
    if config.train.microbatch_rows:
        return config.train.microbatch_rows
    n_shards = mesh.size // mesh.shape["data"]
    activation_bytes = count.activation_budget(
        config.model, target.chip.hbm_bytes, count.state_bytes(config.model) // n_shards, n_shards
    )
    max_rows = step.max_microbatch_rows(
        config,
        gpt.execution_policy(config.compute, target.platform),
        mesh,
        batch_schedule.shards,
        activation_bytes,
    )
    return batch_schedule.largest_microbatch(max_rows)
