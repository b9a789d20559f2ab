"""Several points of a sweep trained as one program, by jax.vmap over the seed and over the numbers
that the step only multiplies with.

It serves models so small that starting and compiling each run takes longer than training it. Each
point becomes an ordinary run in a directory of its own; its loss curve equals that of a separate
run up to float32 rounding."""

import collections
import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.config.batch_schedule import BatchSchedule
from gptjax.config.schema import Config
from gptjax.report import console
from gptjax.runtime import errors
from gptjax.sweeps import local_runner, run_status
from gptjax.sweeps.points import Point
from gptjax.training import loop, microbatches, pretraining, resume
from gptjax.training.context import TrainContext
from gptjax.training.open_run import OpenRun, open_run

VARYING_FIELDS = (  # config fields that may differ between the points of one program
    "seed",
    "train.schedule.peak_lr",
    "train.schedule.final_fraction",
    "train.optimizer.b1",
    "train.optimizer.b2",
    "train.optimizer.eps",
    "train.optimizer.weight_decay",
)


def batchable_groups(
    points: Sequence[Point], max_size: int, saved_step: Callable[[Point], int]
) -> list[list[Point]]:
    """Groups points that one program can train, at most `max_size` per group: their configs are
    equal except for VARYING_FIELDS, and saved_step(point), the step of the newest checkpoint (0 if
    none), is the same. ValueError if max_size is below 1."""
    if max_size < 1:
        raise ValueError(
            f"--vmap={max_size}: give how many points one program may train, 1 or more"
        )
    by_program: dict[tuple[Config, int], list[Point]] = collections.defaultdict(list)
    for point in points:
        assert point.config is not None
        shared = replace_unchecked(point.config, dict.fromkeys(varying_values(point.config), 0))
        by_program[shared, saved_step(point)].append(point)
    return [
        group[first : first + max_size]
        for group in by_program.values()
        for first in range(0, len(group), max_size)
    ]


def varying_values(config: Config) -> dict[str, float]:
    """Returns path -> value for those VARYING_FIELDS that this config has."""
    values = {}
    for path in VARYING_FIELDS:
        with contextlib.suppress(AttributeError):  # a schedule without final_fraction
            values[path] = functools.reduce(getattr, path.split("."), config)
    return values


def replace_unchecked(record: Any, values: dict[str, Any]) -> Any:
    """Returns a copy of a config record with `values` (path -> value) set. They are not validated,
    so they may be traced jax arrays."""
    result = copy.copy(record)
    for path, value in values.items():
        name, _, rest = path.partition(".")
        object.__setattr__(
            result, name, replace_unchecked(getattr(result, name), {rest: value}) if rest else value
        )
    return result


def train_groups(
    points: Sequence[Point], directory: Path, max_size: int, say: Callable[[str], None]
) -> bool:
    """Trains the unfinished points in groups, each as one program, one group after another. Points
    that are alone in their group are left out. Returns False if a signal stopped it. say: takes
    lines with the names of the points in training."""
    unfinished = [
        p
        for p in points
        if p.config is not None
        and run_status.read_status(p, directory).state in ("waiting", "begun")
        and not run_status.find_conflict(p, directory)
    ]
    groups = batchable_groups(
        unfinished, max_size, lambda point: run_status.saved_step(point, directory)
    )
    groups = [group for group in groups if len(group) > 1]
    if groups:
        from gptjax.sharding import xla_options

        xla_options.configure_runtime()
    for number, group in enumerate(groups, 1):
        names = ", ".join(point.name for point in group)
        say(f"{number} of {len(groups)} groups: {names}")
        try:
            if not train_vmapped(group, directory, console.Console(quiet=False)):
                return False
        except (OSError, ValueError) as error:
            status, line = errors.classify_error(error)
            if status != 2:
                raise
            say(f"not as one program, but one by one: {line}")
    return True


def train_vmapped(points: Sequence[Point], directory: Path, out: Any) -> bool:
    """Trains the points of one group from the step at which they stand. Returns False if a signal
    stopped them; each then has a checkpoint of the same step, from which the group or each point by
    itself can continue.

    directory: of the sweep. out: a report.console.Console. ValueError if the points cannot be
    trained as one program, for example because a damaged checkpoint puts one at another step."""
    import jax

    from gptjax.distributed.processes import ProcessGroup
    from gptjax.report import profile
    from gptjax.sharding import device_mesh

    processes, objective = ProcessGroup(), pretraining.PretrainingObjective()
    requests = []
    for point in points:
        assert point.config is not None
        local_runner.make_run_dir(directory / point.name)
        requests.append(resume.Request(directory / point.name, point.config))
    mesh = device_mesh.make_mesh(requests[0].config.mesh, jax.devices()[:1])
    with contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(open_run(request, None, processes, out)) for request in requests
        ]
        configs = [run.request.config for run in runs]
        with contextlib.ExitStack() as new_data, jax.set_mesh(mesh):
            for run in runs:
                new_data.enter_context(run.remove_new_data(processes))
            datasets = [run.open_dataset(objective, processes, out.print) for run in runs]
            platform = jax.devices()[0].platform
            steps = [
                objective.build_step(config, platform, mesh, dataset)
                for config, dataset in zip(configs, datasets, strict=True)
            ]
            program = VmappedRuns(configs, steps[0], datasets[0])
            resume_points, state = program.restore(runs, datasets, mesh)
        for run, resume_point, dataset in zip(runs, resume_points, datasets, strict=True):
            run.begin_record(resume_point, dataset, processes)
        contexts = [
            TrainContext(
                config=config,
                directory=run.request.directory,
                mesh=mesh,
                resume_point=resume_point,
                dataset=dataset,
                step=step,
                checkpoints=run.checkpoints,
                bucket_sync=run.bucket_sync,
                out=out,
                processes=processes,
                profiler=profile.Profiler(directory, 0, out.print),
                objective=objective,
                name=point.name,
            )
            for point, run, config, resume_point, dataset, step in zip(
                points, runs, configs, resume_points, datasets, steps, strict=True
            )
        ]
        for context in contexts:
            for note in context.resume_point.notes:
                context.warn(note)
        if resume_points[0].step:
            out.print(f"continuing from step {resume_points[0].step:,}")
        with jax.set_mesh(mesh), processes.watchdog(configs[0].loop.hang_seconds):
            return loop.TrainLoop(contexts, program, state).run() != "stopped"


class VmappedRuns:
    """A training.context.Program of K runs, whose TrainStates are stacked along a first axis of
    length K on one device."""

    def __init__(self, configs: Sequence[Config], step: Any, dataset: Any):
        """configs: equal except for VARYING_FIELDS. step: the training.step.TrainStep of the first;
        dataset: its data.loader.Dataset, whose validation rows are those of all."""
        import jax
        import jax.numpy as jnp

        from gptjax.sharding import xla_options
        from gptjax.training import optimizer
        from gptjax.training import step as training_step

        first = configs[0]
        self._configs, self._train_step = configs, step
        self._values_K = {
            path: jnp.array([varying_values(config)[path] for config in configs])
            for path in varying_values(first)
        }
        self._schedule = BatchSchedule(first)
        self._microbatch_rows = self._schedule.largest_microbatch(
            first.train.microbatch_rows
            or max(1, microbatches.CPU_MICROBATCH_TOKENS // first.model.n_ctx)
        )
        self._validation_rows = dataset.validation_rows(first.loop.eval_rows)
        self._bytes_per_token = dataset.validation_bytes_per_token

        def make_step(values):
            """Returns the TrainStep of one run; values: traced scalars of VARYING_FIELDS."""
            config = replace_unchecked(first, values)
            return training_step.TrainStep(
                config, step.model, optimizer.adamw(config.train.optimizer), step.end_of_text
            )

        options = xla_options.options(jax.devices()[0])
        self._make_step = make_step
        self._step = jax.jit(
            jax.vmap(
                lambda values, state, tokens_MBT, count: make_step(values)(
                    state, tokens_MBT, count
                ),
                in_axes=(0, 0, 0, None),
            ),
            donate_argnums=1,
            compiler_options=options,
        )
        self._nll = jax.jit(
            jax.vmap(
                lambda params, tokens_BT, weights_BT: step.nll(params, tokens_BT, weights_BT),
                in_axes=(0, None, None),
            ),
            compiler_options=options,
        )
        self._take_run = jax.jit(
            lambda state, index: jax.tree.map(
                lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), state
            )
        )

    def restore(
        self, runs: Sequence[OpenRun], datasets: Sequence[Any], mesh: Any
    ) -> tuple[list[resume.ResumePoint], Any]:
        """Returns the resume point of each run and the stacked state: of their newest intact
        checkpoints, or initialized if no run has one. ValueError if the runs are at different
        steps or have microbatches of different sizes."""
        import jax
        import jax.numpy as jnp

        from gptjax.distributed.processes import ProcessGroup
        from gptjax.training import state

        model, tx = self._train_step.model, self._train_step.tx
        if not any(run.continues for run in runs):
            init_state = jax.jit(
                jax.vmap(lambda values: state.init_state(self._make_step(values).config, model, tx))
            )
            resume_point = resume.ResumePoint(0, None, self._schedule, self._microbatch_rows)
            return [resume_point for _ in runs], init_state(self._values_K)
        if not all(run.continues for run in runs):
            raise ValueError("some points have a checkpoint and others have none")
        restored = [
            resume.restore_run(
                run.request,
                run.checkpoints,
                state.abstract_state(config, model, tx, mesh),
                dataset,
                1,
                ProcessGroup(),
            )
            for run, config, dataset in zip(runs, self._configs, datasets, strict=True)
        ]
        positions = {(point.step, point.max_microbatch_rows) for point in restored}
        if len(positions) > 1:
            described = ", ".join(
                f"step {step:,} with microbatches of {rows}" for step, rows in sorted(positions)
            )
            raise ValueError(f"the points are at different steps: {described}")
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[p.state for p in restored])
        return [dataclasses.replace(point, state=None) for point in restored], stacked

    def step(self, state: Any, batches: Sequence[dict], guard: Any, progress: Any):
        import jax

        tokens_KMBT = jax.device_put(np.stack([batch["tokens"] for batch in batches]))
        count = jax.device_put(batches[0]["count"])
        return self._step(self._values_K, state, tokens_KMBT, count)

    def evaluate(self, state: Any) -> list[dict[str, float]]:
        import jax

        from gptjax.training import metrics

        losses_K = metrics.mean_nll(
            self._nll,
            state.params,
            self._validation_rows,
            self._microbatch_rows,
            lambda rows, letters: jax.device_put(rows),
        )
        return [metrics.loss_metrics(loss, self._bytes_per_token) for loss in losses_K.tolist()]

    def run_state(self, state: Any, index: int) -> Any:
        import jax

        return self._take_run(state, jax.device_put(np.int32(index)))
