"""What a sweep is: one recipe at many points, each a few `path=value` overrides of it.

    Sweep(
        recipe="nano",
        points=grid(each("model.attention", "Dense()", "(Banded(window=64), Dense())"), seeds(5)),
        description="what does local attention cost?",
    )

Points whose configs differ only in `seed` form an arm. The arm of the first point is the baseline
that the others are compared with. sweeps/points.py turns a Sweep into runs.
"""

import itertools
import math
from typing import Any

from gptjax.config.record import record

MAX_POINTS = 10_000  # of a sweep: a larger number is a mistake
Points = tuple[tuple[str, ...], ...]  # for each point, its overrides


def each(path: str, *values: Any) -> Points:
    """Returns one point for each value of a config field. values: numbers, records, or text in the
    grammar of config/values.py."""
    return tuple((f"{path}={value}",) for value in values)


def seeds(n: int) -> Points:
    """Returns n points with seeds 0 to n - 1, which decide the initial parameters, the order of the
    data, and dropout."""
    return each("seed", *range(n))


def parse_axis(text: str) -> Points:
    """Parses the text of --grid, PATH=VALUE|VALUE|..., into the axis of those values."""
    path, equals, values = text.partition("=")
    if not equals or not all(value.strip() for value in values.split("|")):
        raise ValueError(
            f"--grid {text}: give a path and its values, for example "
            "train.schedule.peak_lr=1e-3|3e-3"
        )
    return each(path.strip(), *(value.strip() for value in values.split("|")))


def grid(*axes: Points) -> Points:
    """Returns every combination of one point from each axis; the last axis varies fastest.
    ValueError for more than MAX_POINTS."""
    if math.prod(len(axis) for axis in axes) > MAX_POINTS:
        raise ValueError(
            f"axes of {' x '.join(f'{len(axis):,}' for axis in axes)} points: a sweep has at most "
            f"{MAX_POINTS:,}; give fewer values"
        )
    return tuple(tuple(itertools.chain(*combination)) for combination in itertools.product(*axes))


def zip_axes(*axes: Points) -> Points:
    """Combines the first points of all axes, then their second points, and so on. ValueError if
    the axes have different lengths."""
    if len({len(axis) for axis in axes}) > 1:
        raise ValueError(
            f"axes that vary together have {', '.join(str(len(axis)) for axis in axes)} points: "
            "give equally many"
        )
    return tuple(tuple(itertools.chain(*combination)) for combination in zip(*axes, strict=True))


def chain(*axes: Points) -> Points:
    """Concatenates axes."""
    return tuple(itertools.chain(*axes))


@record
class Sweep:
    """A recipe at many points."""

    description: str
    """The question that the sweep answers, in one sentence."""
    recipe: str
    """Name of the config that is varied, or FILE.py:NAME."""
    points: Points
    """The overrides of each point."""
    overrides: tuple[str, ...] = ()
    """Overrides of all points."""
    holdout: Points = ()
    """Points that scaling laws predict instead of being fitted to; they are trained last."""
    steps: tuple[str, ...] = ()
    """Names of the models in the order of their first points, each one change after the one before
    it; points of one model differ in seed and peak learning rate. The report then compares each
    with the one before it. (): the models are no such steps."""
