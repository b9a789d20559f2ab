"""Progress of a running sweep: a live table on a terminal, otherwise a line when a point starts,
ends or fails."""

import time
from pathlib import Path

from gptjax.report import console
from gptjax.sweeps import local_runner, run_status
from gptjax.sweeps.points import Point

REFRESH_SECONDS = 1.0  # seconds between two looks at the run directories
STATE_STYLES = {
    "running": "cyan",
    "done": "green",
    "failed": "red",
    "refused": "red",
    "damaged": "red",
    "given up": "red",
    "begun": "yellow",
    "waiting": "dim",
}


class LiveTable:
    """A context manager that shows the progress of a sweep; `show` may be called often."""

    def __init__(self, points: list[Point], directory: Path, n_parts: int):
        import rich.live

        self._points, self._directory, self._n_parts = points, directory, n_parts
        self._terminal = console.stdout_console()
        self._live = (
            rich.live.Live(console=self._terminal, auto_refresh=False)
            if self._terminal.is_terminal
            else None
        )
        self._last_update, self._last_states = 0.0, {point.name: "waiting" for point in points}
        self._progress: local_runner.Progress | None = None

    def __enter__(self):
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error):
        if self._progress is not None:  # as it was left
            self._last_update = 0.0
            self.show(self._progress)
        if self._live is not None:
            self._live.stop()

    def show(self, progress: local_runner.Progress) -> None:
        self._progress = progress
        has_new_points = any(
            self._last_states[running_point.point.name] != "running"
            for running_point in progress.active.values()
        )
        if not has_new_points and time.monotonic() - self._last_update < REFRESH_SECONDS:
            return
        self._last_update = time.monotonic()
        statuses = {
            point.name: run_status.read_status(point, self._directory) for point in self._points
        }
        states = {name: _display_state(name, status, progress) for name, status in statuses.items()}
        if self._live is not None:
            self._live.update(self._render(statuses, states, progress), refresh=True)
        else:
            for name, state in states.items():
                if state != self._last_states[name] and state in (
                    "running",
                    "done",
                    "failed",
                    *run_status.ERROR_STATES,
                ):
                    line = (
                        f"{state:8} {name}{_format_loss(statuses[name])}  "
                        f"({summarize(statuses, states, progress, self._n_parts)})"
                    )
                    self._terminal.print(line, soft_wrap=True)
        self._last_states = states

    def _render(
        self,
        statuses: dict[str, run_status.RunStatus],
        states: dict[str, str],
        progress: local_runner.Progress,
    ):
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for name in _visible_points(states, n_rows=max(4, self._terminal.height - 6)):
            status, state = statuses[name], states[name]
            bar = f"{status.step:,} of {status.n_steps:,}" if status.n_steps else ""
            note = progress.failures[name] if name in progress.failures else _format_loss(status)
            table.add_row(
                Text(state, STATE_STYLES[state]),
                Text(name, overflow="ellipsis", no_wrap=True),
                bar,
                Text(note, overflow="ellipsis", no_wrap=True),
            )
        return Group(Text(summarize(statuses, states, progress, self._n_parts), "bold"), table)


def summarize(
    statuses: dict[str, run_status.RunStatus],
    states: dict[str, str],
    progress: local_runner.Progress,
    n_parts: int,
) -> str:
    """Returns one line: the number of points in each state, the best finished point, and the time
    left."""
    counts = {
        state: sum(shown_state in kinds for shown_state in states.values())
        for state, kinds in SUMMARY_STATES.items()
    }
    parts = [f"{n} {state}" for state, n in counts.items() if n or state == "done"]
    losses = {
        name: status.loss
        for name, status in statuses.items()
        if states[name] == "done" and status.loss is not None
    }
    if losses:
        best = min(losses, key=lambda name: losses[name])
        parts.append(f"best {losses[best]:.4f} {best}")
    remaining = seconds_left(statuses, progress, n_parts)
    if remaining is not None:
        parts.append(f"{console.human_duration(remaining)} left")
    return ", ".join(parts)


SUMMARY_STATES = {
    "done": ("done",),
    "running": ("running",),
    "waiting": ("waiting", "begun"),
    "failed": ("failed", *run_status.ERROR_STATES),
}


def seconds_left(
    statuses: dict[str, run_status.RunStatus], progress: local_runner.Progress, n_parts: int
) -> float | None:
    """Estimates the time left, as if every point took as long as the finished ones, or as the
    running ones are going to take; None as long as nothing is known."""
    durations = progress.point_seconds or [
        total
        for r in progress.active.values()
        if (total := r.total_seconds(statuses[r.point.name])) is not None
    ]
    if not durations:
        return None
    active_statuses = [statuses[r.point.name] for r in progress.active.values()]
    remaining = len(progress.queue) + sum(
        1 - status.step / status.n_steps for status in active_statuses
    )
    return remaining * sum(durations) / len(durations) / n_parts


def _display_state(name: str, status: run_status.RunStatus, progress: local_runner.Progress) -> str:
    if any(running_point.point.name == name for running_point in progress.active.values()):
        return "running"
    return (
        "failed"
        if name in progress.failures and status.state not in run_status.ERROR_STATES
        else status.state
    )


def _visible_points(states: dict[str, str], n_rows: int) -> list[str]:
    """All points if they fit, else the most informative ones, in their order."""
    ranks = {"running": 0, "failed": 1, "begun": 2, "waiting": 3, "done": 4} | dict.fromkeys(
        run_status.ERROR_STATES, 1
    )
    visible = sorted(states, key=lambda name: ranks[states[name]])[:n_rows]
    return [name for name in states if name in visible]


def _format_loss(status: run_status.RunStatus) -> str:
    return "" if status.loss is None else f"  loss {status.loss:.4f}"
