"""Uploads of a sweep's runs to Weights & Biases, from the files that they have written. Training
itself needs neither the package nor a network."""

import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gptjax.config import overrides
from gptjax.runtime import errors
from gptjax.sweeps import run_status
from gptjax.sweeps.points import Point


def log_runs(
    name: str, points: Sequence[Point], directory: Path, project: str, log: Callable[[str], None]
) -> int:
    """Uploads each run that has measured something to `project`, in the group `name`; returns their
    number. Repeating it adds what is new: a run's id is derived from its config, and steps that
    were uploaded are skipped. With WANDB_MODE=offline the runs are written to DIR/wandb, for `wandb
    sync`. ValueError if the package is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise ValueError(
            "sending runs to Weights & Biases needs the package wandb: "
            f"{errors.install_hint('cloud')}"
        )
    wandb: Any = importlib.import_module("wandb")
    n = 0
    for point in points:
        try:
            records = run_status.read_records(directory / point.name)
        except ValueError as error:
            log(f"{point.name}: {error}")
            continue
        if point.config is None or not records:
            log(f"{point.name}: {point.error or 'nothing to send'}")
            continue
        run = wandb.init(
            project=project,
            group=name,
            name=point.name,
            id=f"{name}-{overrides.digest(point.config)}",
            config=overrides.flatten(point.config),
            dir=directory,
            resume="allow",
        )
        first, by_step = run.step, {}
        for record in records:  # an evaluation's line has the step of a training's
            values = {
                key: value
                for key, value in record.items()
                if not isinstance(value, float) or math.isfinite(value)
            }
            by_step.setdefault(values.pop("step"), {}).update(values)
        for step in sorted(step for step in by_step if step >= first):
            run.log(by_step[step], step=step)
        run.summary["state"] = run_status.read_status(point, directory).state
        run.finish()
        log(
            f"{point.name}: steps {first:,} to {max(by_step):,}"
            if first <= max(by_step)
            else f"{point.name}: all was there"
        )
        n += 1
    return n
