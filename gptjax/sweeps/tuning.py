"""Further points of a sweep, chosen by the results so far: peak learning rates beyond the ones
tried where the best is at an edge, then more seeds of each model at its best peak."""

import collections
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from gptjax.config import overrides
from gptjax.config.schema import Config
from gptjax.config.sweep import Points
from gptjax.sweeps import run_status
from gptjax.sweeps.points import Point

PEAK_PATH = "train.schedule.peak_lr"
MAX_PEAKS = 8  # of a model, including those at which the search ends


def group_by_model(points: Sequence[Point]) -> list[list[Point]]:
    """Groups points whose configs differ only in seed and peak learning rate, in the order of their
    first points; those without a config are left out."""
    groups: dict[Config, list[Point]] = collections.defaultdict(list)
    for point in points:
        if point.config is not None:
            config = dataclasses.replace(point.config, seed=0)
            groups[overrides.override(config, f"{PEAK_PATH}=1")].append(point)
    return list(groups.values())


def further_points(points: Sequence[Point], directory: Path, n_seeds: int) -> Points:
    """Returns the points to train next: for each model whose points so far have ended, another peak
    if the best of those tried with its first seed is the lowest or the highest, otherwise the best
    peak with `n_seeds` more seeds. Those that are among `points` are left out."""
    known = {point.config for point in points}
    new: list[tuple[str, ...]] = []
    for group in group_by_model([point for point in points if not point.holdout]):
        first_seed = min(_config(point).seed for point in group)
        searched = {_peak(p): p for p in group if _config(p).seed == first_seed}
        losses = {
            peak: loss
            for peak, point in searched.items()
            if (loss := _loss(point, directory)) is not None
        }
        if len(losses) < len(searched):
            continue
        best = min((loss, peak) for peak, loss in losses.items())[1]
        beyond = _peak_beyond_edge(sorted(losses), best)
        wanted = [(beyond, first_seed)] if beyond is not None else []
        wanted = wanted or [(best, first_seed + n) for n in range(1, n_seeds + 1)]
        for peak, seed in wanted:
            own = _replace(searched[best].own, {PEAK_PATH: f"{peak:g}", "seed": f"{seed}"})
            config = overrides.override(
                _config(searched[best]), f"{PEAK_PATH}={peak:g}", f"seed={seed}"
            )
            if config not in known:
                new.append(own)
    return tuple(new)


def _peak_beyond_edge(peaks: list[float], best: float) -> float | None:
    """The next peak after the lowest or the highest if that is the best; None if it is neither, or
    if there are too few peaks to know their distance, or enough."""
    if not 2 <= len(peaks) < MAX_PEAKS:
        return None
    nearest = {peaks[0]: peaks[1], peaks[-1]: peaks[-2]}
    return float(f"{best**2 / nearest[best]:.3g}") if best in nearest else None


def _loss(point: Point, directory: Path) -> float | None:
    """The final loss of a point, infinite if it gave up; None if it has not ended."""
    status = run_status.read_status(point, directory)
    if status.state == "given up":
        return math.inf
    return status.loss if status.state == "done" else None


def _replace(own: tuple[str, ...], values: dict[str, str]) -> tuple[str, ...]:
    """The overrides with these values, in place where they have the path."""
    kept = {path: value for path, _, value in (edit.partition("=") for edit in own)} | values
    return tuple(f"{path}={value}" for path, value in kept.items())


def _config(point: Point) -> Config:
    assert point.config is not None
    return point.config


def _peak(point: Point) -> float:
    return _config(point).train.schedule.peak_lr
