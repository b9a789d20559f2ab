"""What a sweep is: one recipe at many points, each a few `path=value` edits of it.

    Sweep(recipe="nano", points=grid(each("model.attention", "Dense()", "(Banded(window=64),
    Dense())"), seeds(5)), about="...")

Points whose configs differ in `seed` alone are one arm; the first point's arm is the baseline that
the others are compared with.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import math
import re
from collections.abc import Iterable
from typing import Any

from gptjax.config import count, overrides
from gptjax.config.batch_schedule import BatchSchedule
from gptjax.config.record import record
from gptjax.config.schema import Config

MAX_POINTS = 10_000  # points: more is a slip
Points = tuple[tuple[str, ...], ...]  # for each point, its edits


def each(path: str, *values: Any) -> Points:
    """A point for each value: numbers, text of the grammar, or records."""
    return tuple((f"{path}={value}",) for value in values)


def seeds(n: int) -> Points:
    """Seeds 0 to n - 1: of the initial parameters, the order of the data, dropout."""
    return each("seed", *range(n))


def grid(*axes: Points) -> Points:
    """Every combination of one point of each axis; the last axis varies first. ValueError for
    more than MAX_POINTS."""
    if math.prod(len(axis) for axis in axes) > MAX_POINTS:
        raise ValueError(
            f"axes of {' x '.join(f'{len(axis):,}' for axis in axes)} points: a sweep has at most "
            f"{MAX_POINTS:,}; give fewer values"
        )
    return tuple(tuple(itertools.chain(*combination)) for combination in itertools.product(*axes))


def zip_axes(*axes: Points) -> Points:
    """The first points of all axes, then the second ones ... ValueError if they are not equally
    many."""
    if len({len(axis) for axis in axes}) > 1:
        raise ValueError(
            f"axes that vary together have {', '.join(str(len(axis)) for axis in axes)} points: "
            "give equally many"
        )
    return tuple(tuple(itertools.chain(*combination)) for combination in zip(*axes, strict=True))


def chain(*axes: Points) -> Points:
    """The points of one axis after those of another."""
    return tuple(itertools.chain(*axes))


@record
class Sweep:
    """A recipe at many points."""

    about: str
    """The question that it answers, a sentence."""
    recipe: str
    """Name of the config that its points vary."""
    points: Points
    """Of each point, its `path=value` edits."""
    sets: tuple[str, ...] = ()
    """Edits of all points."""
    check: Points = ()
    """Points that scaling laws are not fitted to, but predict; trained after the others."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep. name: its directory's. config: None if the edits were refused, for the
    reason `error`. holdout: whether it is of Sweep.check."""

    name: str
    edits: tuple[str, ...]
    config: Config | None
    error: str = ""
    holdout: bool = False

    @property
    def arguments(self) -> list[str]:
        """Of gptjax.train, besides --config and --run."""
        return [part for edit in self.edits for part in ("--set", edit)]


def expand(sweep: Sweep, recipe: Config) -> list[Point]:
    """Every point with its config; recipe: that of sweep.recipe. A point that cannot be is kept
    with its refusal. ValueError for a sweep of no points, and two points that are the same run."""
    if not sweep.points:
        raise ValueError(
            f"the sweep of {sweep.recipe} has no points: give each axis a value or more"
        )
    points, all_points = [], chain(sweep.points, sweep.check)
    if len(all_points) > MAX_POINTS:
        raise ValueError(
            f"a sweep of {len(all_points):,} points: it has at most {MAX_POINTS:,}; give fewer "
            "values"
        )
    for number, (name, edits) in enumerate(
        zip(_directory_names(all_points), all_points, strict=True)
    ):
        holdout = number >= len(sweep.points)
        try:
            config = overrides.override(recipe, *sweep.sets, *edits)
            BatchSchedule(config)
            points.append(Point(name, (*sweep.sets, *edits), config, holdout=holdout))
        except ValueError as error:
            points.append(
                Point(name, (*sweep.sets, *edits), None, " ".join(str(error).split()), holdout)
            )
    first: dict[Config, Point] = {}
    for point in points:
        if point.config is not None and first.setdefault(point.config, point) is not point:
            labels_of_pair = [
                " ".join(other.edits) or sweep.recipe for other in (first[point.config], point)
            ]
            raise ValueError(
                f"{labels_of_pair[0]} and {labels_of_pair[1]} are the same run: leave one of them "
                "out"
            )
    return points


def _directory_names(points: Points) -> list[str]:
    """Of directories: the last words of the paths with their values; as long as that is clear and
    not too long, else with a digest. Of a point's own edits alone, so that a sweep that has
    grown finds what it has done."""
    names = [
        ",".join(_short_label(edit) for edit in _drop_schedule_lengths(edits)) or "recipe"
        for edits in points
    ]
    counts = collections.Counter(names)
    digests = [hashlib.sha256(repr(edits).encode()).hexdigest()[:8] for edits in points]
    return [
        name if counts[name] == 1 and len(name) <= 80 else f"{name[:70]}-{digest}"
        for name, digest in zip(names, digests, strict=True)
    ]


def _drop_schedule_lengths(edits: tuple[str, ...]) -> list[str]:
    """All but the schedule's lengths where the run's own is given."""
    sets_total = any(edit.startswith("train.total_tokens=") for edit in edits)
    return [
        edit
        for edit in edits
        if not (sets_total and re.match(r"train\.schedule\.\w+_tokens=", edit))
    ]


def _short_label(edit: str) -> str:
    """Plain letters, since the name is a directory's."""
    path, _, value = edit.partition("=")
    last, value = (
        re.sub(r"[^A-Za-z0-9.+_-]+", "-", text)
        for text in (path.strip().split(".")[-1], value.strip(" ()"))
    )
    return f"{last}={value.replace('_', '-').rstrip('-')}"


def run_tokens(config: Config) -> int:
    """That a run reads: those of the steps that it takes, which train.steps, a ramp and the last
    batch's size decide with total_tokens."""
    batches = BatchSchedule(config)
    return batches.tokens(batches.n_steps)


def run_flops(config: Config) -> float:
    """Of a run to its end, by the model's formula."""
    return count.train_flops_per_token(config.model) * run_tokens(config)


# --- arms -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Arm:
    """Points that differ in their seed alone. label: where the arm's config differs from those
    of others, as `path=value`."""

    label: str
    points: tuple[Point, ...]

    @property
    def config(self) -> Config:
        """That of its first seed."""
        config = self.points[0].config
        assert config is not None
        return config


def arms(points: list[Point]) -> list[Arm]:
    """The arms of those points that could be, in the order of their first points."""
    by_config: dict[Config, list[Point]] = {}
    for point in points:
        if point.config is not None:
            by_config.setdefault(dataclasses.replace(point.config, seed=0), []).append(point)
    return [
        Arm(label or "recipe", tuple(points))
        for label, points in zip(labels(list(by_config)), by_config.values(), strict=True)
    ]


def labels(configs: list[Config]) -> list[str]:
    """Where each config differs from the others, as `path=value`; what does not change the model or
    follows from the rest is left out where that still tells them apart."""
    paths = list(
        dict.fromkeys(
            line.partition(":")[0]
            for config in configs
            for line in overrides.diff(configs[0], config)
        )
    )
    paths = [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]
    values = {
        path: [functools.reduce(getattr, path.split("."), config) for config in configs]
        for path in paths
    }
    for path in _redundant_paths(values):
        del values[path]
    return [
        ", ".join(
            f"{_shortest_suffix(path, values)}={column[i]}" for path, column in values.items()
        )
        for i in range(len(configs))
    ]


def _redundant_paths(values: dict[str, list[Any]]) -> list[str]:
    """Of the paths of lengths in tokens, and of how a run is computed, those that tell no
    configs apart which other paths do not."""

    def n_distinct(paths: list[str]) -> int:
        return (
            len(
                {
                    repr([values[path][i] for path in paths])
                    for i in range(len(next(iter(values.values()))))
                }
            )
            if values
            else 0
        )

    def is_runtime_only(path: str) -> bool:
        return path.startswith(("loop.", "compute.", "mesh.", "train.microbatch_rows"))

    lengths = [path for path in values if path.endswith("_tokens") and path != "train.batch_tokens"]
    informative = [path for path in values if path not in lengths and not is_runtime_only(path)]
    redundant = []
    for path in (
        *sorted(lengths, key="train.total_tokens".__ne__),
        *filter(is_runtime_only, values),
    ):
        if n_distinct([*informative, path]) > n_distinct(informative):
            informative.append(path)
        else:
            redundant.append(path)
    return redundant


def _shortest_suffix(path: str, paths: Iterable[str]) -> str:
    """The shortest end of the path that no other of them has."""
    parts = path.split(".")
    for n in range(1, len(parts)):
        end = ".".join(parts[-n:])
        if sum(other == end or other.endswith(f".{end}") for other in paths) == 1:
            return end
    return path
