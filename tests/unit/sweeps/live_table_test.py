"""What a sweep shows while it runs."""

import collections
import time

from gptjax.config import sweep
from gptjax.sweeps import live_table, local_runner, run_status
from tests.outcomes import expand


def test_a_line_counts_and_names_the_best():
    there = {
        "a": run_status.RunStatus("done", 40, 40, 3.2),
        "b": run_status.RunStatus("done", 40, 40, 3.1),
        "c": run_status.RunStatus("begun", 10, 40, 2.0),
        "d": run_status.RunStatus("refused", 0, 0, None),
    }
    states = {"a": "done", "b": "done", "c": "begun", "d": "refused"}
    progress = local_runner.Progress(collections.deque(), point_seconds=[30.0, 50.0])
    said = live_table.summarize(there, states, progress, 1)
    assert said == "2 done, 1 waiting, 1 failed, best 3.1000 b, 0 s left"


def test_the_time_left_is_that_of_points_done_or_of_those_that_run():
    point, other = expand(sweep.Sweep(description="?", recipe="smoke", points=sweep.seeds(2)))
    running = local_runner.RunningPoint(point, None, time.monotonic() - 10)  # pyright: ignore[reportArgumentType]
    progress = local_runner.Progress(
        collections.deque([other]), active={local_runner.make_slots(1, None)[0]: running}
    )
    there = {point.name: run_status.RunStatus("waiting", 0, 40, None)}
    assert live_table.seconds_left(there, progress, 1) is None
    there = {
        point.name: run_status.RunStatus("begun", 10, 40, None)
    }  # a quarter in 10 s: 40 s each
    assert abs(live_table.seconds_left(there, progress, 1) - 70) < 1
    running.first_step = 5  # of the ten: so 80 s each
    assert abs(live_table.seconds_left(there, progress, 1) - 140) < 1
    progress.point_seconds.append(20.0)
    assert abs(live_table.seconds_left(there, progress, 1) - 35) < 1


def test_where_there_is_little_room_what_tells_most_is_shown():
    states = {"a": "done", "b": "waiting", "c": "running", "d": "failed"}
    assert live_table._visible_points(states, 2) == ["c", "d"] and live_table._visible_points(
        states, 9
    ) == ["a", "b", "c", "d"]


def test_lines_where_there_is_no_terminal(tmp_path, capsys):
    points = expand(
        sweep.Sweep(description="?", recipe="smoke", points=(("seed=0",), ("model.n_layers=0",)))
    )
    with live_table.LiveTable(points, tmp_path, 1) as board:
        board.show(progress := local_runner.Progress(collections.deque(points[:1])))
        progress.queue.clear()
        progress.failures["seed=0"] = "killed"
        board.show(progress)  # too soon: it is said in the end
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "refused  n_layers=0  (0 done, 1 waiting, 1 failed)",
        "failed   seed=0  (0 done, 2 failed)",
    ]
