"""The whole training step of a config, as train runs it, compiled for chips that are not here. Nothing is allocated."""

import dataclasses
import math
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from gptjax.ahead import hlo
from gptjax.config import command, count, schema
from gptjax.config.batches import Batches
from gptjax.config.figures import in_bytes
from gptjax.learn import state, step
from gptjax.mesh import devices, rules, topology, xla
from gptjax.model import gpt

END_OF_TEXT = 0  # of a tokenizer that plan does not need: any id compiles to the same program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """A step at the full batch. Bytes are of one chip; `peak` is the compiler's, which reuses what is free, or arguments and temporaries
    together where it gives none."""

    config: schema.Config
    target: topology.Topology
    mesh: jax.sharding.Mesh
    microbatch_rows: int
    arguments: int
    temporaries: int
    peak: int
    seconds: float  # to compile
    program: hlo.Program

    @property
    def n_microbatches(self) -> int:
        return self.config.batch_rows // self.microbatch_rows

    @property
    def limit(self) -> int:
        """Bytes of memory that a program may use."""
        return self.target.chip.hbm_bytes


def step_of(config: schema.Config, target: topology.Topology) -> Compiled:
    """Raises ValueError where the mesh does not fit model, batch or chips, or the compiler is not installed; MemoryError, with advice,
    where the state alone is too large or the compiler refuses the program for its size."""
    if why := too_small(config, target):
        raise MemoryError(why)
    mesh = devices.mesh(config.mesh, target.devices())
    rules.check(config, mesh)
    rows = microbatch(config, mesh, target)
    began = time.perf_counter()
    try:
        with topology.disable_cache():
            _, executable, _ = program(config, mesh, target.platform, rows)
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        raise MemoryError(f"does not fit, says the compiler: {command.first_line(error)}; {advice(config, target)}") from error
    memory: Any = executable.memory_analysis()
    both = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return Compiled(
        config=config,
        target=target,
        mesh=mesh,
        microbatch_rows=rows,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=memory.peak_memory_in_bytes or both,
        seconds=time.perf_counter() - began,
        program=hlo.Program(executable.as_text() or ""),
    )


def program(
    config: schema.Config, mesh: jax.sharding.Mesh, platform: str, rows: int
) -> tuple[step.Step, jax.stages.Compiled, jax.ShapeDtypeStruct]:
    """(the step, the program of its full batch in microbatches of `rows`, the tokens that it takes), compiled for a mesh of devices, which
    may be absent."""
    with jax.set_mesh(mesh):
        built = step.build(config, platform, mesh, END_OF_TEXT)
        now = state.abstract(config, built.model, built.tx, mesh)
        shape = (config.batch_rows // rows, rows, config.model.n_ctx + 1)
        tokens = jax.ShapeDtypeStruct(shape, np.int32, sharding=NamedSharding(mesh, built.model.place.spec("MB1", shape)))
        options = xla.options(mesh.devices.flat[0])
        traced = jax.jit(built, donate_argnums=0, static_argnums=2, compiler_options=options).trace(now, tokens, shape[0])
        return built, traced.lower(lowering_platforms=(platform,)).compile(), tokens


def out_of_memory(error: Exception) -> bool:
    """Whether a compiler or a device says so."""
    return any(words in str(error) for words in ("RESOURCE_EXHAUSTED", "Out of memory", "Ran out of memory"))


def too_small(config: schema.Config, target: topology.Topology) -> str:
    """Why this cannot fit, whatever the mesh: "" if the state alone would."""
    over = count.state_bytes(config.model) // target.n_devices - target.chip.hbm_bytes
    if over <= 0:
        return ""
    return f"the state of {config.name} alone is {in_bytes(over)} over the memory of each chip of {target}; {advice(config, target)}"


def advice(config: schema.Config, target: topology.Topology) -> str:
    """The smallest slice of the family that should do, by config/count.py: state, two copies of the gradients, and a row."""
    row = count.activation_bytes(config, 1, "bfloat16", scores=False) // (max(1, config.mesh.tensor) * max(1, config.mesh.context))
    for name in topology.sizes(target.family):
        size = topology.topology(name)
        if 20 * count.padded_parameters(config.model) // size.n_devices + row <= 0.9 * size.chip.hbm_bytes:
            larger = size.n_devices > target.n_devices
            return f"the smallest {target.family} that should do: {name}" if larger else "change mesh or compute.remat"
    return f"no {target.family} slice is large enough: give several, as in 2x{name}"


def microbatch(config: schema.Config, mesh: jax.sharding.Mesh, target: topology.Topology) -> int:
    """Rows of a microbatch at the full batch: train.microbatch_rows, or as many as train would take on such chips. ValueError if the batch
    does not split over the mesh."""
    table = rules.PRESETS[config.mesh.sharding].activations
    full = dataclasses.replace(config, train=dataclasses.replace(config.train, ramp=None, steps=None))
    batches = Batches(full, math.prod(mesh.shape[axis] for axis in table["B"]))
    if config.train.microbatch_rows:
        return config.train.microbatch_rows
    parts = mesh.size // mesh.shape["data"]
    room = count.room(config.model, target.chip.hbm_bytes, count.state_bytes(config.model) // parts, parts)
    fitting = step.rows_that_fit(config, gpt.manner(config.compute, target.platform), mesh, batches.shards, room)
    return batches.largest_microbatch(fitting)
