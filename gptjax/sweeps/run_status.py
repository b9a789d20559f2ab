"""Progress of each point of a sweep, read from its run directory, and the file that describes the
sweep, sweep.json."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

from gptjax.config import legacy, overrides, parse
from gptjax.config.batch_schedule import BatchSchedule
from gptjax.config.schema import Config
from gptjax.config.sweep import Points, Sweep, chain
from gptjax.configs import registry
from gptjax.data import unicode
from gptjax.report import events
from gptjax.runtime import atomic, run_dir
from gptjax.sweeps import points as expansion
from gptjax.sweeps.points import Point

# bytes of metrics.jsonl that are looked at: the last evaluation lies in them, or a little before
TAIL_BYTES = 16_384
FILE_NAME = "sweep.json"
COUNTS = (
    "tokens",
    "seconds",
    "tokens_per_s",
    "skipped_in_row",
)  # of a record, if there: finite, or not numbers that anything can use
MEASUREMENTS = ("loss", "validation_loss", "noise_scale")  # numbers, that may be infinite or NaN
State = Literal["refused", "damaged", "given up", "waiting", "begun", "done"]
ERROR_STATES = ("refused", "damaged", "given up")


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """The progress of one point. state: "begun" if something was measured (it may be running);
    "given up" if it ended on non-finite updates; "damaged" if its record cannot be read. loss: last
    validation loss in nats per token, None before the first. reason: one line, for ERROR_STATES."""

    state: State
    step: int
    n_steps: int
    loss: float | None
    reason: str = ""


def read_status(point: Point, directory: Path) -> RunStatus:
    """Returns the progress of `point`, whose run is below the sweep's directory. A run is done when
    it was evaluated after its last step and that step was saved."""
    if point.config is None:
        return RunStatus("refused", 0, 0, None, point.error)
    run_path, n_steps = directory / point.name, BatchSchedule(point.config).n_steps
    try:
        records = _read_tail(run_path / events.FILE_NAME)
    except (OSError, ValueError) as error:
        return RunStatus("damaged", 0, n_steps, None, one_line(error))
    step = max((record["step"] for record in records), default=0)
    losses = [record for record in records if "validation_loss" in record]
    loss = losses[-1]["validation_loss"] if losses else None
    if (
        losses
        and losses[-1]["step"] == n_steps
        and (run_path / "checkpoints" / str(n_steps)).exists()
    ):
        return RunStatus("done", step, n_steps, loss)
    skipped = records[-1].get("skipped_in_row", 0) if records else 0
    if skipped >= point.config.train.max_nonfinite_steps:
        return RunStatus(
            "given up",
            step,
            n_steps,
            loss,
            f"gave up: {skipped:,.0f} updates in a row were not finite, up to step {step:,}",
        )
    return RunStatus("begun" if records else "waiting", step, n_steps, loss)


def saved_step(point: Point, directory: Path) -> int:
    """Returns the step of a point's newest checkpoint, intact or damaged; 0 if there is none."""
    checkpoints = directory / point.name / "checkpoints"
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def one_line(text: object) -> str:
    """Returns a text as one line of valid Unicode."""
    return " ".join(unicode.replace_surrogates(str(text)).split())


def _read_tail(file: Path) -> list[dict[str, Any]]:
    """Returns the records in the last TAIL_BYTES of metrics.jsonl, without those whose validation
    loss is not finite. A torn last line is ignored. ValueError, naming the file, for any other line
    that is not a record."""
    if not file.exists():
        return []
    with file.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - TAIL_BYTES))
        lines = stream.read().split(b"\n")
    whole_lines = lines[1 if size > TAIL_BYTES else 0 : -1]
    raw_records = [parse.json_object(line, f"{file}, a line near its end,") for line in whole_lines]
    values = [
        {
            name: events.NON_FINITE.get(v, v) if isinstance(v, str) else v
            for name, v in record.items()
        }
        for record in raw_records
    ]
    return [
        record
        for record in values
        if math.isfinite(check(record, str(file)).get("validation_loss", 0))
    ]


def read_records(run_path: Path) -> list[dict[str, Any]]:
    """Returns all records of a run, oldest first. ValueError, naming the file, if it is damaged."""
    try:
        records = events.read(run_path)
    except (OSError, ValueError) as error:
        message = one_line(error)
        raise ValueError(
            message
            if events.FILE_NAME in message
            else f"{run_path / events.FILE_NAME} cannot be read: {message}"
        ) from None
    return [check(record, str(run_path / events.FILE_NAME)) for record in records]


def check(record: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns the record. ValueError if one of the values that sweeps use is not of a kind that
    training writes."""
    step = parse.member(record, "step", int, where)
    if not 0 <= step < 2**63:
        raise ValueError(f"{where}: 'step' is {parse.quote(step)}; it must be a count")
    for name in (*COUNTS, *MEASUREMENTS):
        value = record.get(name, 0)
        is_number = type(value) in (int, float) and abs(value) < 2**1000 or type(value) is float
        if not is_number or name in COUNTS and not (math.isfinite(value) and value >= 0):
            raise ValueError(
                f"{where}, step {step:,}: {name!r} is {parse.quote(value)}, which is nothing that "
                "training writes; mend that line"
            )
    return record


def write_sweep(
    directory: Path, name: str, sweep: Sweep, recipe: Config, points: list[Point]
) -> None:
    """Writes sweep.json: what the directory holds, with the recipe's config, so that it can be
    reported without the recipe. points: of the sweep, for the names of their directories."""
    directory.mkdir(parents=True, exist_ok=True)
    fields = {field.name: getattr(sweep, field.name) for field in dataclasses.fields(sweep)}
    record = {"name": name} | fields | {"directories": [point.name for point in points]}
    record["config"] = overrides.flatten(recipe)
    atomic.save(directory / FILE_NAME, atomic.json_bytes(record))


def read_sweep(directory: Path) -> tuple[str, Sweep, Config, dict[tuple[str, ...], str]]:
    """Returns (name, sweep, config of its recipe, directories) from a directory's sweep.json.
    directories: own overrides of each point -> name of its directory. Field names of earlier
    versions are translated, names of directories are not. ValueError, naming the file, if there is
    none or it is damaged."""
    path = directory / FILE_NAME
    if not path.is_file():
        raise ValueError(
            f"no sweep is in {directory}: it has no sweep.json; give the directory that "
            "gptjax.sweep made and printed"
        )
    stored, where = parse.read_json(path), str(path)
    # the first version had no holdout, and the next ones no steps
    record = {"holdout": [], "steps": []} | legacy.translate_sweep(stored)
    name, description, recipe = (
        parse.member(record, field, str, where) for field in ("name", "description", "recipe")
    )
    points, holdout = _read_points(record, where)
    if "directories" in record:
        names = _check_texts(record["directories"], where)
    else:  # an earlier version named them by its own overrides
        old_points = chain(*_read_points({"holdout": stored.get("check", [])} | stored, where))
        old_names = expansion.directory_names(old_points)
        names = tuple(old_names[own] for own in old_points)
    if len(names) != len(points) + len(holdout):
        raise ValueError(
            f"{where}: {len(names)} directories for {len(points) + len(holdout)} points; restore "
            "the file, or let the sweep's command write it"
        )
    sweep = Sweep(
        description=description,
        recipe=recipe,
        points=points,
        overrides=_check_texts(parse.member(record, "overrides", list, where), where),
        holdout=holdout,
        steps=_check_texts(record["steps"], where),
    )
    leaves = parse.member(record, "config", dict, where) if "config" in record else None
    try:  # earlier versions did not store the recipe's config
        config = registry.config(recipe) if leaves is None else overrides.unflatten(leaves)
    except ValueError as error:
        raise ValueError(f"{where}: {parse.one_line(str(error), 400)}") from None
    return name, sweep, config, dict(zip(chain(points, holdout), names, strict=True))


def stored_directories(directory: Path) -> dict[tuple[str, ...], str]:
    """Returns the directories of `read_sweep`; {} if there is no sweep.json or it is damaged."""
    try:
        return read_sweep(directory)[3]
    except (OSError, ValueError):
        return {}


def _read_points(record: dict[str, Any], where: str) -> tuple[Points, Points]:
    points, holdout = (
        tuple(_check_texts(own, where) for own in parse.member(record, field, list, where))
        for field in ("points", "holdout")
    )
    return points, holdout


def _check_texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(
            f"{where}: {parse.quote(value)} is no list of texts; restore the file, or "
            "let the sweep's command write it"
        )
    return tuple(value)


def load(directory: Path) -> tuple[str, Sweep, list[Point]]:
    """Returns (name, sweep, points) of a sweep's directory; each point has the config that its run
    was begun with. ValueError, naming the file, if sweep.json is missing or damaged."""
    name, loaded_sweep, recipe, directories = read_sweep(directory)
    try:
        points = expansion.expand(loaded_sweep, recipe, directories)
    except ValueError as error:
        raise ValueError(f"{directory / FILE_NAME}: {error}") from None
    return name, loaded_sweep, [with_saved_config(point, directory) for point in points]


def with_saved_config(point: Point, directory: Path) -> Point:
    """Returns the point with the config that its run was begun with, if there is a run; its recipe
    may have changed since."""
    run_path = directory / point.name
    if not (run_path / "config.json").exists():
        return point
    try:
        return dataclasses.replace(point, config=run_dir.load_config(run_path), error="")
    except (OSError, ValueError) as error:
        return dataclasses.replace(point, config=None, error=one_line(error))


def find_conflict(point: Point, directory: Path) -> str:
    """Returns why the run in the directory of `point` cannot be continued; "" if it can, or if
    there is none."""
    run_path = directory / point.name
    if point.config is None or not (run_path / "config.json").exists():
        return ""
    try:
        lines = run_dir.diff(run_dir.load_config(run_path), point.config)
    except (OSError, ValueError) as error:
        return one_line(error)
    return (
        f"{run_path} holds a run of another config ({'; '.join(lines)}); remove it, or give "
        "another --dir"
        if lines
        else ""
    )
