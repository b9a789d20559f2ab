"""How far each point of a sweep is, from what lies in its run directory; and the record of the sweep, sweep.json."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from gptjax.config import overrides, run
from gptjax.config.batches import Batches
from gptjax.config.sweep import Point, Sweep
from gptjax.data import saving
from gptjax.report import events

TAIL = 16_384  # bytes of metrics.jsonl that are looked at: the last evaluation lies in them, or a little before
State = Literal["refused", "waiting", "begun", "done"]


@dataclasses.dataclass(frozen=True)
class Standing:
    """state: "begun" has measured something, and may be running. loss: the last validation loss; None: there is none yet."""

    state: State
    step: int
    n_steps: int
    loss: float | None


def standing(point: Point, directory: Path) -> Standing:
    """Of the run of `point` below the sweep's directory. Done is a run that was evaluated after its last step, and saved."""
    if point.config is None:
        return Standing("refused", 0, 0, None)
    there, n_steps = directory / point.name, Batches(point.config).n_steps
    records = _last(there / events.NAME)
    step = max((record["step"] for record in records), default=0)
    losses = [record for record in records if "validation_loss" in record]
    over = bool(losses) and losses[-1]["step"] == n_steps and (there / "checkpoints" / str(n_steps)).exists()
    state = "done" if over else "begun" if records else "waiting"
    return Standing(state, step, n_steps, losses[-1]["validation_loss"] if losses else None)


def _last(file: Path) -> list[dict[str, Any]]:
    """The whole lines among the last TAIL bytes."""
    if not file.exists():
        return []
    with file.open("rb") as opened:
        size = opened.seek(0, 2)
        opened.seek(max(0, size - TAIL))
        lines = opened.read().decode(errors="replace").split("\n")
    whole = lines[1 if size > TAIL else 0 : -1]  # what follows the last line end was torn, or is nothing
    return [record for record in map(json.loads, whole) if not isinstance(record.get("validation_loss"), str)]


def write(directory: Path, name: str, sweep: Sweep) -> None:
    """sweep.json: what the directory holds, so that it can be reported without configs/."""
    directory.mkdir(parents=True, exist_ok=True)
    record = {"name": name} | {field.name: getattr(sweep, field.name) for field in dataclasses.fields(sweep)}
    saving.save(directory / "sweep.json", (json.dumps(record, indent=1) + "\n").encode())


def read(directory: Path) -> tuple[str, Sweep]:
    """(name, sweep) of a directory. ValueError if there is none."""
    path = directory / "sweep.json"
    if not path.is_file():
        raise ValueError(f"no sweep is in {directory}: it has no sweep.json; give the directory that gptjax.sweep made and printed")
    record = json.loads(path.read_text())
    points, check = (tuple(tuple(edits) for edits in record.get(name, ())) for name in ("points", "check"))  # older ones have no check
    return record["name"], Sweep(about=record["about"], recipe=record["recipe"], points=points, sets=tuple(record["sets"]), check=check)


def recorded(point: Point, directory: Path) -> Point:
    """The point with the config that its run was begun with, where there is one: a recipe may have changed since."""
    there = directory / point.name
    return dataclasses.replace(point, config=run.config(there), refusal="") if (there / "config.json").exists() else point


def claim(point: Point, directory: Path) -> str:
    """Why the run that lies where `point` would go cannot be continued; "" if it can, or if there is none."""
    there = directory / point.name
    if point.config is None or not (there / "config.json").exists():
        return ""
    lines = [line for line in overrides.difference(run.config(there), point.config) if not line.startswith(run.FREE)]
    return f"{there} holds a run of another config ({'; '.join(lines)}); remove it, or give another --dir" if lines else ""
