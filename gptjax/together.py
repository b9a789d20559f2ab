"""Several points of a sweep trained as one program: vmap over the seed and over what is a factor in the step, for models so small that
starting and compiling each by itself takes longer than training it. Each comes out as an ordinary run in its own directory, its loss curve
that of a run by itself to a rounding of float32."""

import collections
import contextlib
import copy
import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gptjax import pretraining, train
from gptjax.config import command
from gptjax.config.batch_schedule import Batches
from gptjax.config.schema import Config
from gptjax.config.sweep import Point
from gptjax.runtime import lock
from gptjax.training import resume

VARYING = (  # fields that may differ: numbers that the step multiplies with
    "seed",
    "train.schedule.peak",
    "train.schedule.floor",
    "train.optimizer.b1",
    "train.optimizer.b2",
    "train.optimizer.eps",
    "train.optimizer.weight_decay",
)


def groups(points: Sequence[Point], most: int) -> list[list[Point]]:
    """The points in groups of at most `most` that one program can train: equal but for VARYING. ValueError if `most` is not above 0."""
    if most < 1:
        raise ValueError(f"--together={most}: give how many points one program may train, 1 or more")
    alike: dict[Config, list[Point]] = collections.defaultdict(list)
    for point in points:
        assert point.config is not None
        alike[substituted(point.config, dict.fromkeys(numbers(point.config), 0))].append(point)
    return [same[first : first + most] for same in alike.values() for first in range(0, len(same), most)]


def numbers(config: Config) -> dict[str, float]:
    """VARYING path -> its value, of those that this config has."""
    found = {}
    for path in VARYING:
        with contextlib.suppress(AttributeError):  # a schedule without a floor
            found[path] = functools.reduce(getattr, path.split("."), config)
    return found


def substituted(record: Any, values: dict[str, Any]) -> Any:
    """The record with other values at some paths, not validated: they may be what jax traces."""
    made = copy.copy(record)
    for path, value in values.items():
        name, _, rest = path.partition(".")
        object.__setattr__(made, name, substituted(getattr(made, name), {rest: value}) if rest else value)
    return made


def trained(points: Sequence[Point], directory: Path, say: Callable[[str], None], stop: Callable[[], bool]) -> bool:
    """Train the points, which are a group and of which none has begun, from their first step; whether they came to their end: stop() is
    asked after each step, and a checkpoint of all is then saved, from which each goes on by itself. A point of too many updates in a row
    that are not finite has come to its end, as in training by itself: nothing more is measured or saved of it, and the others go on."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from gptjax.report import events, loss_plot
    from gptjax.sharding import device_mesh, xla_options
    from gptjax.training import checkpoint, optimizer, state, step

    configs = [point.config for point in points if point.config is not None]
    first, K = configs[0], len(points)
    mesh = device_mesh.mesh(first.mesh, jax.devices()[:1])
    batches, learning = Batches(first), pretraining.Pretraining()
    runs = [directory / point.name for point in points]
    readings = [learning.reading(config, directory / "data", say) for config in configs]
    built: step.Step = learning.step(first, jax.devices()[0].platform, mesh, readings[0])
    limit = batches.largest_microbatch(first.train.microbatch_rows or max(1, train.CPU_TOKENS // first.model.n_ctx))
    varying = {path: jnp.array([numbers(config)[path] for config in configs]) for path in numbers(first)}
    options = xla_options.options(jax.devices()[0])

    def its(values):
        """The step of a point whose numbers are traced."""
        config = substituted(first, values)
        return step.Step(config, built.model, optimizer.adamw(config.train.optimizer), built.end_of_text)

    def advance(values, now, tokens_MBT, count):
        return its(values)(now, tokens_MBT, count)

    def summed(params, tokens_BT, weights_BT):
        return built.nll(params, tokens_BT, weights_BT)

    with jax.set_mesh(mesh), contextlib.ExitStack() as open_:
        saves = []
        for there, config in zip(runs, configs, strict=True):
            open_.enter_context(lock.hold(there, "run directory", say))
            made = checkpoint.Checkpoints(there / "checkpoints", first.loop.keep_last, first.loop.every_keep, say)
            saves.append(open_.enter_context(made))
            if resume.find_run(resume.Request(there, config), made, say)[0]:
                raise ValueError(f"{there} holds a run that has begun: the same command goes on with it by itself")
        for there, config, reading in zip(runs, configs, readings, strict=True):
            resume.write_description(there, config, reading)
        now = jax.jit(jax.vmap(lambda values: state.initial(its(values).config, built.model, built.tx)))(varying)
        run_step = jax.jit(jax.vmap(advance, in_axes=(0, 0, 0, None)), donate_argnums=1, compiler_options=options)
        run_nll = jax.jit(jax.vmap(summed, in_axes=(0, None, None)), compiler_options=options)
        held_out, per_token = readings[0].validation(first.loop.eval_rows), readings[0].validation_bytes_per_token
        feeds = [reading.batches(batches, limit) for reading in readings]
        logs = [open_.enter_context(events.Events(there, 0, warn=say)) for there in runs]

        active = list(range(K))  # the others have given up

        def evaluate(at):
            totals = np.zeros(K)
            for start in range(0, len(held_out), limit):
                part = held_out[start : start + limit]
                missing = ((0, limit - len(part)), (0, 0))
                weights = np.pad(np.ones((len(part), first.model.n_ctx), np.float32), missing)
                totals += np.asarray(run_nll(now.params, np.pad(part, missing), weights), float)
            losses = totals / (len(held_out) * first.model.n_ctx)
            for log, loss in [(logs[number], losses[number]) for number in active]:
                bits = loss / math.log(2) / per_token
                values = {"validation_loss": loss, "perplexity": math.exp(min(loss, 700)), "bits_per_byte": bits}
                log.write(at, values | {"tokens": batches.tokens(at)})

        def save(at):
            for number in active:
                about = resume.about(configs[number], batches, limit, readings[number], logs[number].seal(at))
                saves[number].save(at, jax.tree.map(lambda x: x[number], now), about)  # noqa: B023

        for at in range(1, batches.n_steps + 1):
            began, parts = time.perf_counter(), [next(feed) for feed in feeds]
            tokens = np.stack([part["tokens"] for part in parts])
            now, found = run_step(varying, now, tokens, parts[0]["count"])
            found = {name: np.asarray(values) for name, values in found.items()}
            seconds = time.perf_counter() - began
            speed = batches.rows(at - 1) * first.model.n_ctx / seconds
            for number in list(active):
                values = {
                    name: column[number].item() for name, column in found.items() if name != "noise_scale" or batches.max_rows != limit
                }
                logs[number].write(at, values | {"tokens": batches.tokens(at), "seconds": seconds, "tokens_per_s": speed})
                if values["skipped_in_row"] >= first.train.skips_allowed:
                    active.remove(number)
                    say(f"{points[number].name}: {values['skipped_in_row']} updates in a row were not finite, up to step {at:,}: given up")
            stopping, last = stop(), at == batches.n_steps or not active
            if at % first.loop.every_eval == 0 or last:
                evaluate(at)
            if at % first.loop.every_save == 0 or last or stopping:
                save(at)
            if at % first.loop.every_log == 0 or last:
                mean = float(np.mean(found["loss"][active])) if active else math.nan
                say(f"{len(active)} points, step {at:,} of {batches.n_steps:,}: mean loss {mean:.4f}")
            if stopping or last:
                break
    for there in runs:
        try:
            loss_plot.loss_curve(there)
        except Exception as error:
            say(f"loss.png of {there} is not drawn: {command.verdict(error)[1]}")
    return last
