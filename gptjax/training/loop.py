"""The training loop, of any objective. `train` reads in chapters: mesh, data, state, loop."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from gptjax.config import count, overrides
from gptjax.config.batch_schedule import BatchSchedule
from gptjax.config.schema import Config
from gptjax.runtime import errors
from gptjax.training import resume

# of a microbatch on CPU: more is no faster there, and its progress would show after minutes
CPU_MICROBATCH_TOKENS = 4096


class Objective(Protocol):
    """What is learnt: all in which pre-training and fine-tuning differ."""

    def open_dataset(self, config: Config, directory: Path, log: Callable[[str], None]) -> Any:
        """What the run reads, open; what is not prepared yet is, below `directory`. As
        data.loader.Dataset."""
        ...

    def build_step(self, config: Config, platform: str, mesh: Any, dataset: Any) -> Any:
        """The training.step.TrainStep."""
        ...

    def init_state(self, config: Config, step: Any, mesh: Any, dataset: Any, out: Any) -> Any:
        """The state before the first step, on the mesh. Where jax's mesh is set."""
        ...

    def make_eval_fn(
        self, context: "TrainContext", put_on_mesh: Callable
    ) -> Callable[[Any], dict[str, float]]:
        """What the held-out data say of parameters: validation_loss, and more."""
        ...

    def generate_samples(
        self, context: "TrainContext", state: Any, step: int, is_last: bool
    ) -> list[str]:
        """What to show of the state, for people; `is_last`: at the end of the run."""
        ...


@dataclasses.dataclass
class TrainContext:
    """What the loop works with: made once, by `train`."""

    config: Config
    directory: Path
    mesh: Any
    resume_point: resume.ResumePoint
    dataset: Any  # data.loader.Dataset
    step: Any  # training.step.TrainStep
    checkpoints: Any  # training.checkpoint.CheckpointManager
    bucket_sync: Any  # report.sync.BucketSync
    out: Any  # report.console.Console
    processes: Any  # distributed.processes.ProcessGroup
    profiler: Any  # report.profile.Profiler
    objective: Objective
    warnings: set[str] = dataclasses.field(default_factory=set)  # that were told

    @property
    def batch_schedule(self) -> BatchSchedule:
        return self.resume_point.plan

    @property
    def max_microbatch_rows(self) -> int:
        """Of a microbatch, over all processes; BatchSchedule.microbatch has what each step takes
        of it."""
        return self.resume_point.max_microbatch_rows

    @property
    def microbatch_rows(self) -> int:
        """Rows of the last batch's microbatches."""
        return self.batch_schedule.largest_microbatch(self.max_microbatch_rows)

    def try_optional(self, description: str, fn: Callable[[], Any]) -> None:
        """fn(), which the training does not need: what goes wrong with it is told, once, and the
        training goes on."""
        try:
            fn()
        except Exception as error:
            if description not in self.warnings:
                self.warnings.add(description)
                self.out.warn(
                    f"{description}: {errors.classify_error(error)[1]}; the training goes on"
                )


def train(
    request: resume.Request,
    bucket: str | None,
    processes: Any,
    n_profile_steps: int,
    objective: Objective,
) -> int:
    """Train as asked for from where the run stands, with the processes of `processes`;
    `n_profile_steps` are traced. bucket: where checkpoints go, and copies of the record.
    ValueError, in one line, for what a user can mend: then the directory is as it was."""
    import jax

    from gptjax.report import console, events, profile, sync
    from gptjax.sharding import device_mesh, rules, xla_options
    from gptjax.training import checkpoint, run_summary, state

    config, directory = request.config, request.directory

    # --- mesh
    xla_options.configure_runtime()
    mesh = device_mesh.make_mesh(config.mesh)
    rules.check(config, mesh)
    device_mesh.check_state_fits(config.model, mesh)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    out = console.Console(quiet=processes.process_id != 0)
    bucket_sync = sync.BucketSync(directory, bucket)
    checkpoint_dir = directory / "checkpoints" if bucket is None else f"{bucket}/checkpoints"
    with (
        resume.hold_lock(directory, bucket is None, processes, out.warn),
        checkpoint.CheckpointManager(
            checkpoint_dir, config.loop.keep_last, config.loop.every_keep, out.warn, processes
        ) as checkpoints,
    ):
        _, continues, leaves = processes.broadcast_from_zero(
            lambda: [bucket_sync.download(), *resume.find_run(request, checkpoints, out.warn)]
        )
        config = overrides.unflatten(leaves)
        request = dataclasses.replace(request, config=config)
        batch_schedule = None if continues else BatchSchedule(config, shards)
        with resume.remove_new_data(directory / "data", continues and processes.process_id == 0):
            # --- data
            processes.heartbeat("the preparation of its data")
            dataset = processes.zero_first(
                lambda: objective.open_dataset(config, directory / "data", out.print)
            )
            processes.assert_equal(
                {"text": dataset.digest()},
                "prepare it once with python -m gptjax.prepare, and give the shards to all",
            )

            # --- state: of the newest good checkpoint, else as the learning begins
            train_step = objective.build_step(config, jax.devices()[0].platform, mesh, dataset)
            with jax.set_mesh(mesh):
                if batch_schedule is None:
                    abstract_state = state.abstract_state(
                        config, train_step.model, train_step.tx, mesh
                    )
                    resume_point = resume.restore_run(
                        request, checkpoints, abstract_state, dataset, shards, processes
                    )
                else:
                    init_state = objective.init_state(config, train_step, mesh, dataset, out)
                    resume_point = resume.ResumePoint(
                        0,
                        init_state,
                        batch_schedule,
                        microbatch_limit(
                            config, mesh, train_step.model.execution_policy, shards, processes
                        ),
                    )

        # --- nothing has been written until here
        profiler = profile.Profiler(
            directory / "profile", n_profile_steps if processes.process_id == 0 else 0, out.print
        )
        if resume_point.step > resume_point.plan.n_steps:
            out.print(
                f"already at step {resume_point.step:,}, and asked for "
                f"{resume_point.plan.n_steps:,}: nothing to do, and nothing is changed"
            )
            profiler.close()
            return 0
        checkpoints.prepare()
        if processes.process_id == 0:
            if resume_point.record_bytes is None:
                events.move_aside(directory, resume_point.step)
            resume.write_description(directory, config, dataset)
        with jax.set_mesh(mesh):
            context = TrainContext(
                config,
                directory,
                mesh,
                resume_point,
                dataset,
                train_step,
                checkpoints,
                bucket_sync,
                out,
                processes,
                profiler,
                objective,
            )
            out.print_table(config.name, run_summary.summarize(context))
            for note in (*resume_point.notes, *run_summary.warnings(context)):
                out.warn(note)
            if resume_point.step == resume_point.plan.n_steps:
                out.print(f"the run is finished: all of its {resume_point.step:,} steps are done")
            elif resume_point.step:
                out.print(
                    f"continuing from step {resume_point.step:,} of {resume_point.plan.n_steps:,}"
                )
            with processes.watchdog(config.loop.hang_seconds):
                return train_loop(context)


def microbatch_limit(
    config: Config, mesh: Any, execution_policy: Any, shards: int, processes: Any
) -> int:
    """The most rows of a microbatch of a run that begins: as asked for, or what fits the devices
    of all processes."""
    import jax

    from gptjax.training import step

    min_free_bytes = min(processes.all_gather(free_device_memory(config, mesh)))
    if config.train.microbatch_rows is not None:
        return config.train.microbatch_rows
    max_rows = step.max_microbatch_rows(config, execution_policy, mesh, shards, min_free_bytes)
    if jax.devices()[0].platform == "cpu":
        max_rows = min(max_rows, CPU_MICROBATCH_TOKENS // config.model.n_ctx)
    return max(1, max_rows // sequences_per_row(config))


def free_device_memory(config: Config, mesh: Any) -> int:
    """Bytes that one device has for activations: what is free now, with the state in place, less
    two copies of the gradients. On CPU half of what the machine has available, shared by the
    devices that are simulated on it."""
    import psutil

    n_shards = mesh.size // mesh.shape["data"]
    stats = mesh.local_devices[0].memory_stats()
    if stats is None:
        return (
            psutil.virtual_memory().available // 2 // len(mesh.local_devices)
            - 2 * count.gradient_bytes(config.model) // n_shards
        )
    return count.activation_budget(
        config.model, stats["bytes_limit"], stats["bytes_in_use"], n_shards
    )


def sequences_per_row(config: Config) -> int:
    """Of a row: one, but for tasks that read several for an example."""
    return 1 if config.task is None else config.task.n_sequences


class TooManyNonFiniteSteps(Exception):
    """(step, updates in a row that were not finite)."""


def make_step_fn(context: TrainContext, put_on_mesh: Callable) -> Callable:
    """advance(state, batch, guard, progress) -> (state, metrics), or None if asked to stop before
    the step was whole; it consumes the state.

    One program a step, microbatches within it; but on CPU one a microbatch, since a step of half a
    million tokens takes an hour there:
    so progress shows, Ctrl-C works, and XLA's slow loop bodies are avoided."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from gptjax.sharding import xla_options

    step, n_microbatches = context.step, context.batch_schedule.max_rows // context.microbatch_rows
    processes = context.processes
    platform = context.mesh.devices.flat[0].platform
    options = xla_options.options(context.mesh.devices.flat[0])
    # while it lasts a batch may have many microbatches, though the full one has not
    ramp = context.config.train.batch_ramp is not None
    if platform != "cpu" or (n_microbatches == 1 and not ramp):
        # Without a ramp the count is a constant of the program, with one it is an argument: one
        # program serves the whole ramp, and one the full batch, whose microbatches may be larger.
        replicated = NamedSharding(context.mesh, PartitionSpec())
        step_fn = jax.jit(
            step, donate_argnums=0, static_argnums=() if ramp else 2, compiler_options=options
        )

        def advance(state, batch, guard, progress):
            count = int(batch["count"])
            if ramp:
                with jax.transfer_guard("allow"):
                    count = jax.make_array_from_callback((), replicated, lambda _: batch["count"])
            return step_fn(state, put_on_mesh(batch["tokens"], "MB1", int(batch["rows"])), count)

        return advance

    zero_fn, accumulate_fn = (
        jax.jit(step.init_accumulator),
        jax.jit(step.accumulate, donate_argnums=2, compiler_options=options),
    )
    update_fn = jax.jit(step.update, donate_argnums=0, static_argnums=2)

    def advance_by_microbatch(state, batch, guard, progress):
        step_number, count, accumulator = (
            jax.device_get(state.step).item() + 1,
            int(batch["count"]),
            zero_fn(state.params),
        )
        microbatch_rows = int(batch["rows"])
        for i in range(count):
            if guard.may_stop_mid_step:
                return None
            processes.heartbeat(f"step {step_number}, microbatch {i + 1} of {count}")
            start_time = time.perf_counter()
            accumulator = accumulate_fn(
                state.params,
                state.step,
                accumulator,
                put_on_mesh(batch["tokens"][i], "B1", microbatch_rows),
            )
            accumulator.count.block_until_ready()
            progress.update_fraction(
                step_number,
                (i + 1) / count,
                microbatch_rows * context.config.model.n_ctx / (time.perf_counter() - start_time),
            )
        return update_fn(state, accumulator, microbatch_rows)

    return advance_by_microbatch


def train_loop(context: TrainContext) -> int:
    """Steps resume_point.step .. n_steps. For each n, in this order: evaluate state n, save state
    n, next batch, step, report step n - 1.
    So what was saved was reported before, and nothing but reporting waits for the device."""
    import jax

    from gptjax.distributed import preemption
    from gptjax.report import events, loss_plot
    from gptjax.sharding import rules
    from gptjax.training import metrics

    config, out, processes, batch_schedule, dataset = (
        context.config,
        context.out,
        context.processes,
        context.batch_schedule,
        context.dataset,
    )
    activations = rules.PRESETS[config.mesh.sharding].activations
    state, start = context.resume_point.state, context.resume_point.step
    flops = count.train_flops_per_token(config.model) * sequences_per_row(config)
    # and when it ended, where dispatching waits for that, as on CPU
    pending: tuple[int, dict, float | None] | None = None
    is_synchronous, clock = context.mesh.devices.flat[0].platform == "cpu", time.perf_counter()

    def put_on_mesh(rows, letters, n_rows=None):
        return rules.put_on_mesh(rows, letters, activations, context.mesh, n_rows)

    def report():
        """Write and show the step that was dispatched last, once."""
        nonlocal pending, clock
        if pending is None:
            return
        with context.profiler.span("wait"):
            step, values = (
                pending[0],
                {name: value.item() for name, value in jax.device_get(pending[1]).items()},
            )
        end_time = pending[2] or time.perf_counter()
        pending, seconds, clock = None, end_time - clock, end_time
        if batch_schedule.max_rows == context.microbatch_rows:
            del values["noise_scale"]  # needs gradients of two batch sizes
        speed = batch_schedule.rows(step - 1) * config.model.n_ctx / seconds
        values |= {"tokens": batch_schedule.tokens(step), "seconds": seconds, "tokens_per_s": speed}
        mfu = metrics.mfu(flops, speed, context.mesh.devices.ravel())
        values |= {} if mfu is None else {"mfu": mfu}
        with context.profiler.span("log"):
            log.write(step, values)
            progress.update(step, values)
        if values["skipped_in_row"] >= config.train.max_nonfinite_steps:
            raise TooManyNonFiniteSteps(step, values["skipped_in_row"])

    def evaluate(step):
        values = eval_fn(state.params) | {"tokens": batch_schedule.tokens(step)}
        log.write(step, values)
        progress.update(step, values)

    advance, eval_fn = (
        make_step_fn(context, put_on_mesh),
        context.objective.make_eval_fn(context, put_on_mesh),
    )
    batch_iterator = dataset.batches(
        batch_schedule,
        context.max_microbatch_rows,
        start,
        lambda n_rows: rules.local_rows(n_rows, activations, context.mesh),
    )
    # last_saved: the step that was evaluated and saved, as a restored state was before; what was
    # measured of it may be lost
    step, last_saved = start, start if context.resume_point.record_bytes is not None else None
    log = events.NullEvents()
    if processes.process_id == 0:
        log = events.Events(
            context.directory,
            start + 1 if start else 0,
            context.resume_point.record_bytes or 0,
            out.warn,
        )
    with preemption.PreemptionGuard(out.warn, processes, context.mesh) as guard, log:
        with (
            out.training_display(batch_schedule.n_steps, start, config.loop.every_log) as progress,
            jax.transfer_guard("disallow"),
        ):
            try:
                for note in context.resume_point.notes:
                    log.write(start, {"note": note})
                while True:
                    is_last = step == batch_schedule.n_steps
                    # asked once: a signal that comes after this waits for the next step
                    is_ending = guard.should_stop() or is_last
                    if step != last_saved and (step % config.loop.every_eval == 0 or is_last):
                        report()
                        processes.heartbeat(f"the evaluation of step {step:,}")
                        evaluate(step)
                    if (
                        step != last_saved
                        and not is_last
                        and config.loop.every_sample
                        and step % config.loop.every_sample == 0
                    ):
                        out.print_samples(
                            context.objective.generate_samples(context, state, step, False)
                        )
                    if step != last_saved and (step % config.loop.every_save == 0 or is_ending):
                        report()
                        processes.heartbeat(f"the checkpoint of step {step:,}")
                        record = log.seal(step)
                        if processes.process_id == 0:
                            context.try_optional(
                                "the record is not copied", context.bucket_sync.upload
                            )
                        metadata = resume.metadata(
                            config, batch_schedule, context.max_microbatch_rows, dataset, record
                        )
                        context.checkpoints.save(step, state, metadata)
                        if processes.process_id == 0:
                            context.try_optional(
                                "loss.png is not drawn", lambda: loss_plot.draw(context.directory)
                            )
                    last_saved = step
                    # evaluating and saving are no part of a step's time
                    clock = clock if pending else time.perf_counter()
                    if is_ending:
                        break
                    processes.heartbeat(f"step {step + 1:,}")
                    guard.vote()
                    context.profiler.before_step()
                    with context.profiler.span("data"):
                        batch = next(batch_iterator)
                    with context.profiler.span("step"):
                        outputs = advance(state, batch, guard, progress)
                    if outputs is not None:
                        state, step, end_time = (
                            outputs[0],
                            step + 1,
                            time.perf_counter() if is_synchronous else None,
                        )
                        report()
                        pending = step, outputs[1], end_time
            except TooManyNonFiniteSteps as error:
                out.warn(
                    f"{error.args[1]} updates in a row were not finite, up to step "
                    f"{error.args[0]:,}: stopping"
                )
                context.checkpoints.wait()
                steps = context.checkpoints.steps()
                out.warn(
                    f"the last good checkpoint is of step {steps[-1]:,}"
                    if steps
                    else "there is no checkpoint yet"
                )
                return 3
            finally:
                context.profiler.close()
    context.checkpoints.wait()
    if processes.process_id == 0:
        context.try_optional("the record is not copied", context.bucket_sync.upload)
    if is_last:
        out.print_samples(context.objective.generate_samples(context, state, step, True))
        sample_hint = (
            f"; python -m gptjax.sample --run={context.directory}" if config.task is None else ""
        )
        out.print(
            f"the run lies in {context.directory}: loss.png, metrics.jsonl, "
            f"checkpoints{sample_hint}"
        )
    else:
        out.print(f"stopped at step {step:,}; the same command continues")
    return 0
