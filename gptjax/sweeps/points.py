"""Expansion of a sweep: its points with their configs and directories, and the arms they form."""

import collections
import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from gptjax.config import count, overrides
from gptjax.config.batch_schedule import BatchSchedule
from gptjax.config.schema import Config
from gptjax.config.sweep import MAX_POINTS, Points, Sweep, chain

# own overrides of a point -> the name of the directory that its run was begun in
Directories = Mapping[tuple[str, ...], str]


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep.

    name: of its directory. own: its overrides besides those of the whole sweep. overrides: all of
    them. config: None if the overrides were refused, for the reason `error`. holdout: whether it is
    one of Sweep.holdout."""

    name: str
    own: tuple[str, ...]
    overrides: tuple[str, ...]
    config: Config | None
    error: str = ""
    holdout: bool = False

    @property
    def arguments(self) -> list[str]:
        """Arguments of gptjax.train, besides --config and --run_dir."""
        return [part for override in self.overrides for part in ("--set", override)]


def expand(sweep: Sweep, recipe: Config, directories: Directories | None = None) -> list[Point]:
    """Returns every point with its config; a point with invalid overrides has an error instead.
    recipe: the config that sweep.recipe names. directories: names of runs that were begun, which
    are kept. ValueError for no points, too many points, or two points that are the same run."""
    if not sweep.points:
        raise ValueError(
            f"the sweep of {sweep.recipe} has no points: give each axis a value or more"
        )
    points, all_points = [], chain(sweep.points, sweep.holdout)
    if len(all_points) > MAX_POINTS:
        raise ValueError(
            f"a sweep of {len(all_points):,} points: it has at most {MAX_POINTS:,}; give fewer "
            "values"
        )
    names = directory_names(all_points) | dict(directories or {})
    for number, own in enumerate(all_points):
        config, error, combined = None, "", (*sweep.overrides, *own)
        try:
            config = overrides.override(recipe, *combined)
            BatchSchedule(config)
        except ValueError as refusal:
            config, error = None, " ".join(str(refusal).split())
        points.append(Point(names[own], own, combined, config, error, number >= len(sweep.points)))
    first: dict[Config, Point] = {}
    for point in points:
        if point.config is not None and first.setdefault(point.config, point) is not point:
            pair = [" ".join(p.overrides) or sweep.recipe for p in (first[point.config], point)]
            raise ValueError(f"{pair[0]} and {pair[1]} are the same run: leave one of them out")
    return points


def directory_names(points: Points) -> dict[tuple[str, ...], str]:
    """Returns point -> name of its directory: the last words of its paths with their values, and a
    digest where that is ambiguous or longer than 80 characters. It depends on the point's own
    overrides alone, so that a sweep to which values are added finds its finished runs."""
    labels = {
        own: ",".join(_short_label(text) for text in _drop_schedule_lengths(own)) or "recipe"
        for own in points
    }
    counts = collections.Counter(labels.values())
    digests = {own: hashlib.sha256(repr(own).encode()).hexdigest()[:8] for own in points}
    return {
        own: label if counts[label] == 1 and len(label) <= 80 else f"{label[:70]}-{digests[own]}"
        for own, label in labels.items()
    }


def _drop_schedule_lengths(own: tuple[str, ...]) -> list[str]:
    """Leaves out the lengths of the schedule if the run's length is given."""
    sets_total = any(text.startswith("train.total_tokens=") for text in own)
    return [
        text for text in own if not (sets_total and re.match(r"train\.schedule\.\w+_tokens=", text))
    ]


def _short_label(override: str) -> str:
    """Returns `field=value` in characters that a directory's name may have."""
    path, _, value = override.partition("=")
    last, value = (
        re.sub(r"[^A-Za-z0-9.+_-]+", "-", text)
        for text in (path.strip().split(".")[-1], value.strip(" ()"))
    )
    return f"{last}={value.replace('_', '-').rstrip('-')}"


def run_tokens(config: Config) -> int:
    """Returns the tokens that a run trains on, as its number of steps and its batch ramp give
    them; train.total_tokens is rounded up to whole batches."""
    schedule = BatchSchedule(config)
    return schedule.tokens(schedule.n_steps)


def run_flops(config: Config) -> float:
    """Returns the training FLOPs of a whole run, as config/count.py counts them."""
    return count.train_flops_per_token(config.model) * run_tokens(config)


# --- arms -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Arm:
    """Points that differ only in their seed. label: the fields in which the arm's config differs
    from those of the other arms, as `path=value`."""

    label: str
    points: tuple[Point, ...]

    @property
    def config(self) -> Config:
        """The config of its first seed."""
        config = self.points[0].config
        assert config is not None
        return config


def arms(points: list[Point]) -> list[Arm]:
    """Returns the arms of the points that have a config, in the order of their first points."""
    by_config: dict[Config, list[Point]] = {}
    for point in points:
        if point.config is not None:
            by_config.setdefault(dataclasses.replace(point.config, seed=0), []).append(point)
    return [
        Arm(label or "recipe", tuple(points))
        for label, points in zip(labels(list(by_config)), by_config.values(), strict=True)
    ]


def labels(configs: list[Config]) -> list[str]:
    """Returns for each config the fields in which it differs from the others, as `path=value`.
    Fields that do not change the model, and lengths that follow from other fields, are left out
    if the labels stay distinct without them."""
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
    """Returns the paths of lengths in tokens, and of settings that only affect how a run is
    computed, that are not needed to distinguish the configs."""

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
    """Returns the shortest suffix of `path` that no other path has."""
    parts = path.split(".")
    for n in range(1, len(parts)):
        end = ".".join(parts[-n:])
        if sum(other == end or other.endswith(f".{end}") for other in paths) == 1:
            return end
    return path
