"""Several points of a sweep trained as one program: vmap over the seed and over what is a factor in
the step, for models so small that starting and compiling each by itself takes longer than training
it. Each comes out as an ordinary run in its own directory, its loss curve that of a run by
itself to a rounding of float32."""

import collections
import contextlib
import copy
import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gptjax.config.batch_schedule import BatchSchedule
from gptjax.config.schema import Config
from gptjax.config.sweep import Point
from gptjax.runtime import errors, lock
from gptjax.training import loop, pretraining, resume

VARYING_FIELDS = (  # fields that may differ: numbers that the step multiplies with
    "seed",
    "train.schedule.peak_lr",
    "train.schedule.final_fraction",
    "train.optimizer.b1",
    "train.optimizer.b2",
    "train.optimizer.eps",
    "train.optimizer.weight_decay",
)


def batchable_groups(points: Sequence[Point], max_size: int) -> list[list[Point]]:
    """The points in groups of at most `max_size` that one program can train: equal but for
    VARYING_FIELDS. ValueError if `most` is not above 0."""
    if max_size < 1:
        raise ValueError(
            f"--together={max_size}: give how many points one program may train, 1 or more"
        )
    by_config: dict[Config, list[Point]] = collections.defaultdict(list)
    for point in points:
        assert point.config is not None
        by_config[
            replace_unchecked(point.config, dict.fromkeys(varying_values(point.config), 0))
        ].append(point)
    return [
        group[first : first + max_size]
        for group in by_config.values()
        for first in range(0, len(group), max_size)
    ]


def varying_values(config: Config) -> dict[str, float]:
    """path of VARYING_FIELDS -> its value, of those that this config has."""
    values = {}
    for path in VARYING_FIELDS:
        with contextlib.suppress(AttributeError):  # a schedule without a floor
            values[path] = functools.reduce(getattr, path.split("."), config)
    return values


def replace_unchecked(record: Any, values: dict[str, Any]) -> Any:
    """The record with other values at some paths, not validated: they may be what jax traces."""
    result = copy.copy(record)
    for path, value in values.items():
        name, _, rest = path.partition(".")
        object.__setattr__(
            result, name, replace_unchecked(getattr(result, name), {rest: value}) if rest else value
        )
    return result


def train_vmapped(
    points: Sequence[Point],
    directory: Path,
    log: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> bool:
    """Train the points, which are a group and of which none has begun, from their first step;
    whether they came to their end: should_stop() is asked after each step, and a checkpoint of all
    is then saved, from which each goes on by itself. A point of too many updates in a row that
    are not finite has come to its end, as in training by itself: nothing more is measured or
    saved of it, and the others go on."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from gptjax.report import events, loss_plot
    from gptjax.sharding import device_mesh, xla_options
    from gptjax.training import checkpoint, optimizer, state, step

    configs = [point.config for point in points if point.config is not None]
    first, K = configs[0], len(points)
    mesh = device_mesh.make_mesh(first.mesh, jax.devices()[:1])
    batch_schedule, objective = BatchSchedule(first), pretraining.PretrainingObjective()
    runs = [directory / point.name for point in points]
    datasets = [objective.open_dataset(config, directory / "data", log) for config in configs]
    base_step: step.TrainStep = objective.build_step(
        first, jax.devices()[0].platform, mesh, datasets[0]
    )
    microbatch_rows = batch_schedule.largest_microbatch(
        first.train.microbatch_rows or max(1, loop.CPU_MICROBATCH_TOKENS // first.model.n_ctx)
    )
    values_K = {
        path: jnp.array([varying_values(config)[path] for config in configs])
        for path in varying_values(first)
    }
    options = xla_options.options(jax.devices()[0])

    def make_step(values):
        """The step of a point whose numbers are traced."""
        config = replace_unchecked(first, values)
        return step.TrainStep(
            config, base_step.model, optimizer.adamw(config.train.optimizer), base_step.end_of_text
        )

    def advance(values, train_states, tokens_MBT, count):
        return make_step(values)(train_states, tokens_MBT, count)

    def sum_nll(params, tokens_BT, weights_BT):
        return base_step.nll(params, tokens_BT, weights_BT)

    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        managers = []
        for run_path, config in zip(runs, configs, strict=True):
            stack.enter_context(lock.hold(run_path, "run directory", log))
            manager = checkpoint.CheckpointManager(
                run_path / "checkpoints", first.loop.keep_last, first.loop.every_keep, log
            )
            managers.append(stack.enter_context(manager))
            if resume.find_run(resume.Request(run_path, config), manager, log)[0]:
                raise ValueError(
                    f"{run_path} holds a run that has begun: the same command goes on with it by "
                    "itself"
                )
        for run_path, config, dataset in zip(runs, configs, datasets, strict=True):
            resume.write_description(run_path, config, dataset)
        train_states = jax.jit(
            jax.vmap(
                lambda values: state.init_state(
                    make_step(values).config, base_step.model, base_step.tx
                )
            )
        )(values_K)
        run_step = jax.jit(
            jax.vmap(advance, in_axes=(0, 0, 0, None)), donate_argnums=1, compiler_options=options
        )
        run_nll = jax.jit(jax.vmap(sum_nll, in_axes=(0, None, None)), compiler_options=options)
        validation_rows, bytes_per_token = (
            datasets[0].validation_rows(first.loop.eval_rows),
            datasets[0].validation_bytes_per_token,
        )
        batch_iterators = [dataset.batches(batch_schedule, microbatch_rows) for dataset in datasets]
        logs = [stack.enter_context(events.Events(run_path, 0, warn=log)) for run_path in runs]

        active = list(range(K))  # the others have given up

        def evaluate(step_number):
            totals = np.zeros(K)
            for start in range(0, len(validation_rows), microbatch_rows):
                part = validation_rows[start : start + microbatch_rows]
                padding = ((0, microbatch_rows - len(part)), (0, 0))
                weights = np.pad(np.ones((len(part), first.model.n_ctx), np.float32), padding)
                totals += np.asarray(
                    run_nll(train_states.params, np.pad(part, padding), weights), float
                )
            losses = totals / (len(validation_rows) * first.model.n_ctx)
            for events_log, loss in [(logs[number], losses[number]) for number in active]:
                bits = loss / math.log(2) / bytes_per_token
                values = {
                    "validation_loss": loss,
                    "perplexity": math.exp(min(loss, 700)),
                    "bits_per_byte": bits,
                }
                events_log.write(
                    step_number, values | {"tokens": batch_schedule.tokens(step_number)}
                )

        def save(step_number):
            for number in active:
                metadata = resume.metadata(
                    configs[number],
                    batch_schedule,
                    microbatch_rows,
                    datasets[number],
                    logs[number].seal(step_number),
                )
                managers[number].save(
                    step_number,
                    jax.tree.map(lambda x: x[number], train_states),  # noqa: B023
                    metadata,
                )

        for step_number in range(1, batch_schedule.n_steps + 1):
            start_time, batches = (
                time.perf_counter(),
                [next(batch_iterator) for batch_iterator in batch_iterators],
            )
            tokens = np.stack([batch["tokens"] for batch in batches])
            train_states, step_metrics = run_step(
                values_K, train_states, tokens, batches[0]["count"]
            )
            step_metrics = {name: np.asarray(values) for name, values in step_metrics.items()}
            seconds = time.perf_counter() - start_time
            speed = batch_schedule.rows(step_number - 1) * first.model.n_ctx / seconds
            for number in list(active):
                values = {
                    name: column[number].item()
                    for name, column in step_metrics.items()
                    if name != "noise_scale" or batch_schedule.max_rows != microbatch_rows
                }
                logs[number].write(
                    step_number,
                    values
                    | {
                        "tokens": batch_schedule.tokens(step_number),
                        "seconds": seconds,
                        "tokens_per_s": speed,
                    },
                )
                if values["skipped_in_row"] >= first.train.max_nonfinite_steps:
                    active.remove(number)
                    log(
                        f"{points[number].name}: {values['skipped_in_row']} updates in a row were "
                        "not finite, up to step "
                        f"{step_number:,}: given up"
                    )
            is_stopping, is_last = (
                should_stop(),
                step_number == batch_schedule.n_steps or not active,
            )
            if step_number % first.loop.every_eval == 0 or is_last:
                evaluate(step_number)
            if step_number % first.loop.every_save == 0 or is_last or is_stopping:
                save(step_number)
            if step_number % first.loop.every_log == 0 or is_last:
                mean = float(np.mean(step_metrics["loss"][active])) if active else math.nan
                log(
                    f"{len(active)} points, step {step_number:,} of {batch_schedule.n_steps:,}: "
                    f"mean loss {mean:.4f}"
                )
            if is_stopping or is_last:
                break
    for run_path in runs:
        try:
            loss_plot.draw(run_path)
        except Exception as error:
            log(f"loss.png of {run_path} is not drawn: {errors.classify_error(error)[1]}")
    return is_last
