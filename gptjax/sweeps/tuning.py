"""Further points of a sweep, chosen by the results so far: peak learning rates beyond the ones
tried where the best is at an edge, then more seeds of each model at its best peak."""

import collections
import dataclasses
import math
import statistics
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
    with its first seed if the best peak is the lowest or the highest, otherwise the best peak with
    `n_seeds` more seeds. Those that are among `points` are left out.

    The best is the one with the lowest mean over its seeds so far. So a peak that was lucky with
    its first seed gives way, once it has more, to the next, which then gets as many."""
    known = {point.config for point in points}
    new: list[tuple[str, ...]] = []
    for group in group_by_model([point for point in points if not point.holdout]):
        losses: dict[float, list[float]] = collections.defaultdict(list)
        for point in group:
            loss = _loss(point, directory)
            if loss is not None:
                losses[_config(point).train.schedule.peak_lr].append(loss)
        if sum(map(len, losses.values())) < len(group):
            continue
        first_seed = min(_config(point).seed for point in group)
        best = min((statistics.fmean(found), peak) for peak, found in losses.items())[1]
        beyond = _peak_beyond_edge(sorted(losses), best)
        wanted = [(beyond, first_seed)] if beyond is not None else []
        for peak, seed in wanted or [(best, first_seed + n) for n in range(n_seeds + 1)]:
            values = {PEAK_PATH: f"{peak:g}", "seed": f"{seed}"}
            edits = (f"{path}={value}" for path, value in values.items())
            if overrides.override(_config(group[0]), *edits) not in known:
                new.append(_replace(group[0].own, values))
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
