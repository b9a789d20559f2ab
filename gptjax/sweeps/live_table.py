"""A sweep while it runs: on a terminal a live table, elsewhere a line when a point begins, ends or fails."""

import time
from pathlib import Path

from gptjax.config.sweep import Point
from gptjax.report import console
from gptjax.sweeps import local_runner, run_status

EVERY = 1.0  # seconds between two looks at the run directories
MARKS = {
    "running": "cyan",
    "done": "green",
    "failed": "red",
    "refused": "red",
    "damaged": "red",
    "given up": "red",
    "begun": "yellow",
    "waiting": "dim",
}


class Display:
    """A context manager; `show` is called often."""

    def __init__(self, points: list[Point], directory: Path, n_parts: int):
        import rich.live

        self._points, self._directory, self._n_parts = points, directory, n_parts
        self._terminal = console.standard()
        self._live = rich.live.Live(console=self._terminal, auto_refresh=False) if self._terminal.is_terminal else None
        self._looked, self._before = 0.0, {point.name: "waiting" for point in points}
        self._progress: local_runner.Progress | None = None

    def __enter__(self):
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error):
        if self._progress is not None:  # as it was left
            self._looked = 0.0
            self.show(self._progress)
        if self._live is not None:
            self._live.stop()

    def show(self, progress: local_runner.Progress) -> None:
        self._progress = progress
        changed = any(self._before[running.point.name] != "running" for running in progress.running.values())
        if not changed and time.monotonic() - self._looked < EVERY:
            return
        self._looked = time.monotonic()
        there = {point.name: run_status.standing(point, self._directory) for point in self._points}
        states = {name: _state(name, one, progress) for name, one in there.items()}
        if self._live is not None:
            self._live.update(self._table(there, states, progress), refresh=True)
        else:
            for name, state in states.items():
                if state != self._before[name] and state in ("running", "done", "failed", *run_status.FAULTS):
                    line = f"{state:8} {name}{_loss(there[name])}  ({summary(there, states, progress, self._n_parts)})"
                    self._terminal.print(line, soft_wrap=True)
        self._before = states

    def _table(self, there: dict[str, run_status.Standing], states: dict[str, str], progress: local_runner.Progress):
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for name in _shown(states, room=max(4, self._terminal.height - 6)):
            one, state = there[name], states[name]
            bar = f"{one.step:,} of {one.n_steps:,}" if one.n_steps else ""
            said = progress.failed[name] if name in progress.failed else _loss(one)
            table.add_row(
                Text(state, MARKS[state]), Text(name, overflow="ellipsis", no_wrap=True), bar, Text(said, overflow="ellipsis", no_wrap=True)
            )
        return Group(Text(summary(there, states, progress, self._n_parts), "bold"), table)


def summary(there: dict[str, run_status.Standing], states: dict[str, str], progress: local_runner.Progress, n_parts: int) -> str:
    """One line: how many points are what, the best of those that are done, and the time left."""
    counts = {state: sum(found in kinds for found in states.values()) for state, kinds in COUNTED.items()}
    said = [f"{n} {state}" for state, n in counts.items() if n or state == "done"]
    losses = {name: one.loss for name, one in there.items() if states[name] == "done" and one.loss is not None}
    if losses:
        best = min(losses, key=lambda name: losses[name])
        said.append(f"best {losses[best]:.4f} {best}")
    left = seconds_left(there, progress, n_parts)
    if left is not None:
        said.append(f"{console.duration(left)} left")
    return ", ".join(said)


COUNTED = {"done": ("done",), "running": ("running",), "waiting": ("waiting", "begun"), "failed": ("failed", *run_status.FAULTS)}


def seconds_left(there: dict[str, run_status.Standing], progress: local_runner.Progress, n_parts: int) -> float | None:
    """As if every point took as long as those that are done have, or as those that run will; None while nothing is known."""
    expected = progress.seconds or [whole for r in progress.running.values() if (whole := r.whole(there[r.point.name])) is not None]
    if not expected:
        return None
    running = [there[r.point.name] for r in progress.running.values()]
    left = len(progress.waiting) + sum(1 - one.step / one.n_steps for one in running)
    return left * sum(expected) / len(expected) / n_parts


def _state(name: str, one: run_status.Standing, progress: local_runner.Progress) -> str:
    if any(running.point.name == name for running in progress.running.values()):
        return "running"
    return "failed" if name in progress.failed and one.state not in run_status.FAULTS else one.state


def _shown(states: dict[str, str], room: int) -> list[str]:
    """All points if there is room, else those that tell most, in their order."""
    ranks = {"running": 0, "failed": 1, "begun": 2, "waiting": 3, "done": 4} | dict.fromkeys(run_status.FAULTS, 1)
    telling = sorted(states, key=lambda name: ranks[states[name]])[:room]
    return [name for name in states if name in telling]


def _loss(one: run_status.Standing) -> str:
    return "" if one.loss is None else f"  loss {one.loss:.4f}"
