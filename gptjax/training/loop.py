"""The training loop, for any objective, and for one run or several that share one program."""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from gptjax.config import count
from gptjax.config.batch_schedule import BatchSchedule
from gptjax.config.chat import Conversations, Preferences, Rankings
from gptjax.config.rlhf import Rlhf
from gptjax.training import resume
from gptjax.training.context import Objective, Program, TrainContext
from gptjax.training.microbatches import microbatch_limit, row_tokens, sequences_per_row
from gptjax.training.open_run import open_run

# "finished": every step was taken; "stopped": by a signal, with a checkpoint; "gave up": too many
# non-finite updates in a row
Outcome = Literal["finished", "stopped", "gave up"]
EXIT_STATUS: dict[Outcome, int] = {"finished": 0, "stopped": 0, "gave up": 3}
SECONDS_BETWEEN_DRAWINGS = 10  # of loss.png; half a second each


def train(
    request: resume.Request,
    bucket: str | None,
    processes: Any,
    n_profile_steps: int,
    objective: Objective,
) -> int:
    """Trains the requested run, from its newest checkpoint if it has one; returns the exit status.

    bucket: URL that checkpoints and copies of the record go to; None: the run's directory.
    processes: a distributed.processes.ProcessGroup. n_profile_steps: number of steps to trace.
    ValueError, in one line, for what a user can correct; the directory is then unchanged."""
    import jax

    from gptjax.model import float8
    from gptjax.report import console, profile
    from gptjax.sharding import device_mesh, rules, xla_options
    from gptjax.training import run_summary

    # --- mesh
    xla_options.configure_runtime(request.config.compute)
    mesh = device_mesh.make_mesh(request.config.mesh)
    rules.check(request.config, mesh)
    float8.check(request.config.compute)
    device_mesh.check_state_fits(request.config.model, mesh)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    out = console.Console(quiet=processes.process_id != 0)
    with open_run(request, bucket, processes, out) as run:
        config, directory = run.request.config, request.directory
        batch_schedule = None if run.continues else BatchSchedule(config, shards)
        with run.remove_new_data(processes):
            # --- data
            dataset = run.open_dataset(objective, processes, out.print)

            # --- state: of the newest intact checkpoint, or initialized
            train_step = objective.build_step(config, jax.devices()[0].platform, mesh, dataset)
            with jax.set_mesh(mesh):
                if batch_schedule is None:
                    resume_point = run.restore(train_step, mesh, dataset, shards, processes)
                else:
                    init_state = objective.init_state(config, train_step, mesh, dataset, out)
                    policy = train_step.model.execution_policy
                    limit = microbatch_limit(config, mesh, policy, shards, processes)
                    resume_point = resume.ResumePoint(0, init_state, batch_schedule, limit)

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
        run.begin_record(resume_point, dataset, processes)
        with jax.set_mesh(mesh):
            context = TrainContext(
                config,
                directory,
                mesh,
                resume_point,
                dataset,
                train_step,
                run.checkpoints,
                run.bucket_sync,
                out,
                processes,
                profiler,
                objective,
            )
            run_summary.print_summary(context)
            with processes.watchdog(config.loop.hang_seconds):
                return train_loop(context)


def train_loop(context: TrainContext) -> int:
    """Takes the remaining steps of a run; returns the exit status."""
    from gptjax.sharding import rules

    table = rules.PRESETS[context.config.mesh.sharding].activations

    def put_on_mesh(rows, letters, n_rows=None):
        return rules.put_on_mesh(rows, letters, table, context.mesh, n_rows)

    program = context.objective.make_program(context, put_on_mesh)
    loop = TrainLoop([context], program, context.resume_point.state)
    outcome = loop.run()
    if outcome == "finished":
        context.out.print(
            f"the run lies in {context.directory}: {picture_name(context)}, metrics.jsonl, "
            "checkpoints"
        )
        match context.config.task:
            case None | Rlhf(text="plain") | Preferences(text="plain"):
                context.out.print(f"python -m gptjax.sample --model={context.directory}")
            case Conversations() | Preferences() | Rlhf(text="chat"):
                context.out.print(f"python -m gptjax.chat --model={context.directory}")
            case Rankings():
                context.out.print(
                    f"python -m gptjax.reward --model={context.directory} --score=FILE"
                )
    elif outcome == "stopped":
        context.out.print(f"stopped at step {loop.step:,}; the same command continues")
    return EXIT_STATUS[outcome]


class TooManyNonFiniteSteps(Exception):
    """No run is left whose updates are finite."""


class TrainLoop:
    """The steps of one run, or of several runs that one program computes and that stand at the
    same step of the same batch schedule.

    For each step n, in this order: evaluate state n, sample from it, save it, read the next batch,
    dispatch step n + 1, report step n. So a state is saved after its metrics are written, and
    only reporting waits for the device. A run with too many non-finite updates in a row is
    abandoned: nothing more of it is written, and the other runs go on."""

    def __init__(self, contexts: Sequence[TrainContext], program: Program, state: Any):
        """contexts: one per run; mesh, processes, console and profiler of the first are used for
        all. state: what `program` takes, at the step of the contexts' resume points."""
        from gptjax.sharding import xla_options

        self._contexts, self._program, self._state = contexts, program, state
        self._first = contexts[0]
        self._schedule = self._first.batch_schedule
        self._active = list(range(len(contexts)))  # runs that were not abandoned
        self.step = start = self._first.resume_point.step
        # The steps that are evaluated and saved. The state of a resumed run is, but if its record
        # was lost, its metrics were lost too.
        has_record = all(context.resume_point.record_bytes is not None for context in contexts)
        self._settled_step = self._saved_step = start if has_record else None
        # (step, metrics, time at which it ended) of the last dispatched step until it is reported;
        # the time is known only where dispatching waits for the result
        self._pending: tuple[int, dict, float | None] | None = None
        self._is_synchronous = not xla_options.dispatches_asynchronously(
            self._first.config.compute, self._first.mesh
        )
        self._clock = time.perf_counter()
        self._draw_time = time.monotonic()  # of loss.png

    def run(self) -> Outcome:
        """Takes all remaining steps, or those until a signal asks for a stop."""
        import jax

        from gptjax.distributed import preemption

        first = self._first
        with contextlib.ExitStack() as stack:
            guard = stack.enter_context(
                preemption.PreemptionGuard(first.out.warn, first.processes, first.mesh)
            )
            self._logs = [stack.enter_context(open_record(context)) for context in self._contexts]
            self._progress = stack.enter_context(
                first.out.training_display(
                    self._schedule.n_steps, self.step, first.config.loop.every_log
                )
            )
            stack.enter_context(jax.transfer_guard("disallow"))
            stack.callback(first.profiler.close)
            for context, log in zip(self._contexts, self._logs, strict=True):
                for note in context.resume_point.notes:
                    log.write(self.step, {"note": note})
            try:
                is_last = self._take_steps(guard)
            except TooManyNonFiniteSteps:
                return "gave up"
        for index in self._active:
            context = self._contexts[index]
            context.checkpoints.wait()
            self._copy_record(context)
        if is_last:
            self._sample(is_last=True)
        return "finished" if is_last else "stopped"

    def _take_steps(self, guard: Any) -> bool:
        """Takes steps until the last one (True) or until `guard` asks for a stop (False)."""
        import jax

        first, loop, profiler = self._first, self._first.config.loop, self._first.profiler
        batch_iterators = [iterate_batches(context) for context in self._contexts]
        while True:
            is_last = self.step == self._schedule.n_steps
            # read once: a signal that arrives later waits for the next step
            is_ending = guard.should_stop() or is_last
            if self.step != self._settled_step:
                if self.step % loop.every_eval == 0 or is_last:
                    self._report()
                    self._evaluate()
                if loop.every_sample and not is_last and self.step % loop.every_sample == 0:
                    self._sample(is_last=False)
            self._settled_step = self.step
            # Also if a signal broke off the next step.
            if (self.step % loop.every_save == 0 or is_ending) and self.step != self._saved_step:
                self._report()
                self._save(is_ending)
                self._saved_step = self.step
            if self._pending is None:  # evaluating and saving do not count as time of a step
                self._clock = time.perf_counter()
            if is_ending:
                return is_last
            first.processes.heartbeat(f"step {self.step + 1:,}")
            guard.vote()
            profiler.before_step()
            with profiler.span("data"):
                batches = [next(iterator) for iterator in batch_iterators]
            with profiler.span("step"):
                outputs = self._program.step(self._state, batches, guard, self._progress)
            if outputs is not None:
                self._state, metrics = outputs
                self.step += 1
                if self._is_synchronous:
                    jax.block_until_ready(metrics)
                end_time = time.perf_counter() if self._is_synchronous else None
                self._report()
                self._pending = self.step, metrics, end_time

    def _report(self) -> None:
        """Writes and shows the metrics of the step that was dispatched last, if that is still to be
        done. TooManyNonFiniteSteps if no run is left after it."""
        import jax

        from gptjax.training import metrics

        if self._pending is None:
            return
        config, profiler = self._first.config, self._first.profiler
        with profiler.span("wait"):
            step, columns = self._pending[0], jax.device_get(self._pending[1])
        end_time = self._pending[2] or time.perf_counter()
        self._pending, seconds, self._clock = None, end_time - self._clock, end_time
        if self._schedule.max_rows == self._first.microbatch_rows:
            columns.pop("noise_scale", None)  # its estimate needs gradients of two batch sizes
        speed = self._schedule.rows(step - 1) * row_tokens(config) / seconds  # of each run
        shared = {"tokens": self._schedule.tokens(step), "seconds": seconds, "tokens_per_s": speed}
        flops = count.train_flops_per_token(config.model) * sequences_per_row(config)
        mfu = metrics.mfu(flops, speed * len(self._contexts), self._first.mesh.devices.ravel())
        if mfu is not None and not isinstance(config.task, Rlhf):  # whose sampling is not counted
            shared["mfu"] = mfu
        values = {
            index: {name: np.ravel(column)[index].item() for name, column in columns.items()}
            | shared
            for index in self._active
        }
        with profiler.span("log"):
            self._write(step, values)
        for index, run_values in values.items():
            skipped = run_values["skipped_in_row"]
            if skipped >= self._contexts[index].config.train.max_nonfinite_steps:
                self._abandon(index, step, skipped)
        if not self._active:
            raise TooManyNonFiniteSteps

    def _evaluate(self) -> None:
        self._first.processes.heartbeat(f"the evaluation of step {self.step:,}")
        metrics, tokens = self._program.evaluate(self._state), self._schedule.tokens(self.step)
        self._write(
            self.step, {index: metrics[index] | {"tokens": tokens} for index in self._active}
        )

    def _write(self, step: int, values: dict[int, dict[str, Any]]) -> None:
        """Writes the metrics of each run to its record, and shows their means."""
        for index, run_values in values.items():
            self._logs[index].write(step, run_values)
        self._progress.update(step, mean_values(list(values.values())))

    def _sample(self, is_last: bool) -> None:
        """Shows samples of the first run that was not abandoned."""
        import jax

        context = self._contexts[self._active[0]]
        run_state = self._program.run_state(self._state, self._active[0])
        # Prompts are placed on one device, from which they go to all of the mesh.
        with jax.transfer_guard_device_to_device("allow"):
            texts = context.objective.generate_samples(context, run_state, self.step, is_last)
        titles = [f"{context.name}: sample {i} of {len(texts)}" for i in range(1, len(texts) + 1)]
        context.out.print_samples(texts, titles if context.name else None)

    def _save(self, is_ending: bool) -> None:
        draws = is_ending or time.monotonic() > self._draw_time + SECONDS_BETWEEN_DRAWINGS
        if draws:
            self._draw_time = time.monotonic()
        self._first.processes.heartbeat(f"the checkpoint of step {self.step:,}")
        for index in self._active:
            context = self._contexts[index]
            record = self._logs[index].seal(self.step)
            self._copy_record(context)
            metadata = resume.metadata(
                context.config,
                context.batch_schedule,
                context.max_microbatch_rows,
                context.dataset,
                record,
                context.dataset.position(self.step),
            )
            run_state = self._program.run_state(self._state, index)
            context.checkpoints.save(self.step, run_state, metadata)
            if draws and context.processes.process_id == 0:
                context.try_optional(
                    f"{picture_name(context)} is not drawn",
                    lambda: draw_picture(context),  # noqa: B023
                )

    def _abandon(self, index: int, step: int, skipped: int) -> None:
        """Stops a run whose last `skipped` updates were not finite."""
        context = self._contexts[index]
        self._active.remove(index)
        context.warn(f"{skipped} updates in a row were not finite, up to step {step:,}: stopping")
        context.checkpoints.wait()
        steps = context.checkpoints.steps()
        context.warn(
            f"the last good checkpoint is of step {steps[-1]:,}"
            if steps
            else "there is no checkpoint yet"
        )

    def _copy_record(self, context: TrainContext) -> None:
        if context.processes.process_id == 0:
            context.try_optional("the record is not copied", context.bucket_sync.upload)


def picture_name(context: TrainContext) -> str:
    """The name of the picture that `draw_picture` draws."""
    return "reward.png" if isinstance(context.config.task, Rlhf) else "loss.png"


def draw_picture(context: TrainContext) -> None:
    """Draws the picture of a run."""
    from gptjax.report import loss_plot, reward_plot

    match context.config.task:
        case Rlhf():
            reward_plot.draw(context.directory)
        case _:
            loss_plot.draw(context.directory)


def open_record(context: TrainContext) -> Any:
    """Returns the report.events.Events of a run on process 0, a NullEvents on others."""
    from gptjax.report import events

    if context.processes.process_id != 0:
        return events.NullEvents()
    start, record_bytes = context.resume_point.step, context.resume_point.record_bytes
    return events.Events(
        context.directory, start + 1 if start else 0, record_bytes or 0, context.out.warn
    )


def iterate_batches(context: TrainContext) -> Iterator[dict[str, np.ndarray]]:
    """Returns the batches from the resume point on, of which this process reads its own rows."""
    from gptjax.sharding import rules

    table = rules.PRESETS[context.config.mesh.sharding].activations
    return context.dataset.batches(
        context.batch_schedule,
        context.max_microbatch_rows,
        context.resume_point.step,
        lambda n_rows: rules.local_rows(n_rows, table, context.mesh),
    )


def mean_values(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the mean over runs of each metric, without values that are not finite (NaN if none
    is); of one run its metrics as they are."""
    if len(values) == 1:
        return values[0]
    columns = {name: [run_values[name] for run_values in values] for name in values[0]}
    finite = {name: [x for x in column if math.isfinite(x)] for name, column in columns.items()}
    return {name: sum(xs) / len(xs) if xs else math.nan for name, xs in finite.items()}
