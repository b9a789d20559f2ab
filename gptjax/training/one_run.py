"""The compiled functions of a single run: its training step and its evaluation."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from gptjax.training.context import TrainContext


class OneRun:
    """A training.context.Program of one run, sharded over the mesh of its context."""

    def __init__(
        self,
        context: TrainContext,
        put_on_mesh: Callable,
        eval_fn: Callable[[Any], dict[str, float]],
    ):
        """put_on_mesh(array, letters, n_rows): places a host array on the mesh
        (sharding.rules.put_on_mesh). eval_fn: from parameters to validation metrics,
        validation_loss among them."""
        self._step = make_step_fn(context, put_on_mesh)
        self._evaluate = eval_fn

    def step(self, state: Any, batches: Sequence[dict], guard: Any, progress: Any):
        return self._step(state, batches[0], guard, progress)

    def evaluate(self, state: Any) -> list[dict[str, float]]:
        return [self._evaluate(state.params)]

    def run_state(self, state: Any, index: int) -> Any:
        return state


def make_step_fn(context: TrainContext, put_on_mesh: Callable) -> Callable:
    """Returns advance(state, batch, guard, progress) -> (state, metrics), which donates the state;
    it returns None if a stop was requested before the step was complete.

    By compute.microbatch_loop the whole step is one program with a loop over microbatches, or each
    microbatch is a program of its own."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from gptjax.sharding import xla_options

    step, n_microbatches = context.step, context.batch_schedule.max_rows // context.microbatch_rows
    device = context.mesh.devices.flat[0]
    options = xla_options.options(device, step.model.execution_policy.dtype)
    # A batch ramp may need several microbatches per step even if the full batch is one microbatch.
    has_ramp = context.config.train.batch_ramp is not None
    loop = context.config.compute.microbatch_loop
    is_on_host = loop == "host" or loop == "auto" and device.platform == "cpu"
    if is_on_host and (n_microbatches > 1 or has_ramp):
        return _make_microbatch_fn(context, put_on_mesh, options)
    # Without a ramp the number of microbatches is a constant of the program. With a ramp it is an
    # argument: one program serves all batch sizes of the ramp, and a second one the full batch,
    # whose microbatches may be larger.
    replicated = NamedSharding(context.mesh, PartitionSpec())
    step_fn = jax.jit(
        step, donate_argnums=0, static_argnums=() if has_ramp else 2, compiler_options=options
    )

    def advance(state, batch, guard, progress):
        count = int(batch["count"])
        if has_ramp:
            with jax.transfer_guard_host_to_device("allow"):
                count = jax.make_array_from_callback((), replicated, lambda _: batch["count"])
        return step_fn(state, put_on_mesh(batch["tokens"], "MB1", int(batch["rows"])), count)

    return advance


def _make_microbatch_fn(context: TrainContext, put_on_mesh: Callable, options: Any) -> Callable:
    """Returns the function of make_step_fn that runs one program per microbatch. options: compiler
    options of jax.jit."""
    import jax

    step = context.step
    zero_fn = jax.jit(step.init_accumulator)
    accumulate_fn = jax.jit(step.accumulate, donate_argnums=2, compiler_options=options)
    update_fn = jax.jit(step.update, donate_argnums=0, static_argnums=2)

    def advance(state, batch, guard, progress):
        step_number = jax.device_get(state.step).item() + 1
        count, microbatch_rows = int(batch["count"]), int(batch["rows"])
        accumulator = zero_fn(state.params)
        for i in range(count):
            if guard.may_stop_mid_step:
                return None
            context.processes.heartbeat(f"step {step_number}, microbatch {i + 1} of {count}")
            start_time = time.perf_counter()
            tokens_B1 = put_on_mesh(batch["tokens"][i], "B1", microbatch_rows)
            accumulator = accumulate_fn(state.params, state.step, accumulator, tokens_B1)
            accumulator.count.block_until_ready()
            seconds = time.perf_counter() - start_time
            progress.update_fraction(
                step_number, (i + 1) / count, microbatch_rows * context.config.model.n_ctx / seconds
            )
        return update_fn(state, accumulator, microbatch_rows)

    return advance
