"""What a sweep shows while it runs."""

import collections
import time

from gptjax.config import sweep
from gptjax.sweeps import display, local, standing


def test_a_line_counts_and_names_the_best():
    there = {
        "a": standing.Standing("done", 40, 40, 3.2),
        "b": standing.Standing("done", 40, 40, 3.1),
        "c": standing.Standing("begun", 10, 40, 2.0),
        "d": standing.Standing("refused", 0, 0, None),
    }
    states = {"a": "done", "b": "done", "c": "begun", "d": "refused"}
    progress = local.Progress(collections.deque(), seconds=[30.0, 50.0])
    said = display.summary(there, states, progress, 1)
    assert said == "2 done, 1 waiting, 1 failed, best 3.1000 b, 0 s left"


def test_the_time_left_is_that_of_points_done_or_of_those_that_run():
    point, other = sweep.planned(sweep.Sweep(about="?", recipe="smoke", points=sweep.seeds(2)))
    running = local.Running(point, None, time.monotonic() - 10)  # pyright: ignore[reportArgumentType]
    progress = local.Progress(collections.deque([other]), running={local.slots(1, None)[0]: running})
    there = {point.name: standing.Standing("waiting", 0, 40, None)}
    assert display.seconds_left(there, progress, 1) is None
    there = {point.name: standing.Standing("begun", 10, 40, None)}  # a quarter in 10 s: 40 s each
    assert abs(display.seconds_left(there, progress, 1) - 70) < 1
    running.first = 5  # of the ten: so 80 s each
    assert abs(display.seconds_left(there, progress, 1) - 140) < 1
    progress.seconds.append(20.0)
    assert abs(display.seconds_left(there, progress, 1) - 35) < 1


def test_where_there_is_little_room_what_tells_most_is_shown():
    states = {"a": "done", "b": "waiting", "c": "running", "d": "failed"}
    assert display._shown(states, 2) == ["c", "d"] and display._shown(states, 9) == ["a", "b", "c", "d"]


def test_lines_where_there_is_no_terminal(tmp_path, capsys):
    points = sweep.planned(sweep.Sweep(about="?", recipe="smoke", points=(("seed=0",), ("model.n_layers=0",))))
    with display.Display(points, tmp_path, 1) as board:
        board.show(progress := local.Progress(collections.deque(points[:1])))
        progress.waiting.clear()
        progress.failed["seed=0"] = "killed"
        board.show(progress)  # too soon: it is said in the end
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["refused  n_layers=0  (0 done, 1 waiting, 1 failed)", "failed   seed=0  (0 done, 2 failed)"]
