import contextlib
import os
import pathlib
import signal

import numpy as np
import pytest

from gptjax.curation import engine


def local(workers):
    return engine.Local(workers, lambda label: contextlib.nullcontext(lambda done: None))


def double_even(n):
    if n == 3:
        raise ValueError("three is odd")
    if n == 5:
        raise FileNotFoundError(2, "No such file or directory", "five.txt")
    return 2 * n


def kill_at_three(n):
    if n == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def fail(n):
    raise KeyError(n)


@pytest.mark.parametrize("workers", [1, 2])
def test_outcomes_are_in_the_order_of_the_tasks(workers):
    assert local(workers).map(double_even, [8, 2, 4], "x") == [16, 4, 8]
    assert local(workers).map(double_even, [], "x") == []


@pytest.mark.parametrize("workers", [1, 2])
def test_after_a_failure_the_others_go_on_and_it_is_named(workers, tmp_path):
    with pytest.raises(ValueError) as error:
        local(workers).map(double_even, [1, 3, 5, 7], "x")
    line = str(error.value)
    assert "\n" not in line and line.startswith("2 of 4 failed, the others are finished: ")
    assert "3: three is odd" in line and "five.txt" in line


def test_a_bug_keeps_its_trace():
    with pytest.raises(KeyError):
        local(1).map(fail, [1], "x")


def test_a_killed_worker_is_named_with_its_task():
    with pytest.raises(ValueError, match="a worker process was killed.* at (0 or )?3(;| or )"):
        local(2).map(kill_at_three, [0, 3], "x")


def test_the_first_of_each_key_is_the_smallest_number(tmp_path):
    rng = np.random.default_rng(0)
    rows = np.stack([rng.integers(4, size=60), rng.integers(3, size=60), rng.permutation(60)], 1)
    files = []
    for n in range(3):
        files.append(pathlib.Path(tmp_path / f"{n}.npy"))
        np.save(files[-1], rows[20 * n : 20 * n + 20])
    found = dict(local(1).first_by_key(files).tolist())
    for a, b, number in rows.tolist():
        first = min(c for x, y, c in rows.tolist() if (x, y) == (a, b))
        assert found.get(number, number) == first
    assert len(found) == 60 - len({(a, b) for a, b, _ in rows.tolist()})
