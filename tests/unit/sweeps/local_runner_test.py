"""Processes that stand in for training: what is started, tried again, given up, stopped."""

import collections
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from gptjax.config import sweep
from gptjax.runtime import child
from gptjax.sweeps import local_runner, run_status
from tests.outcomes import expand

CHECKOUT = Path(__file__).parents[3]

DONE = """
import json, os, pathlib, sys
there = pathlib.Path(next(a.partition("=")[2] for a in sys.argv if a.startswith("--run_dir=")))
(there / "data.json").write_text("{}")
with (there / "starts").open("a") as file: file.write("x")
(there / "group").write_text(str(os.getpgid(0)))
(there / "cores").write_text(json.dumps(sorted(os.sched_getaffinity(0))))
(there / "compiled").write_text(os.environ["JAX_COMPILATION_CACHE_DIR"])
(there / "metrics.jsonl").write_text(json.dumps({"step": 40, "validation_loss": 3.0}) + "\\n")
(there / "checkpoints/40").mkdir(parents=True, exist_ok=True)
"""
DIES_ONCE = DONE.replace(
    '(there / "metrics',
    "\nif (there / 'starts').read_text() == 'x': os.kill(os.getpid(), 9)\n(there / \"metrics",
)
REFUSED = DONE.split('(there / "metrics')[0] + "\nprint('error: no such thing'); sys.exit(2)"
WAITS = (
    DONE.split('(there / "metrics')[0]
    + "\nimport time\nprint('waiting', flush=True); time.sleep(60)"
)

GIVES_UP = DONE.replace(
    '(there / "metrics',
    """
if there.name == "seed=0":
    lines = [{"step": n, "skipped_in_row": max(0, n - 2)} for n in range(1, 13)]
    (there / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
    sys.exit(3)
(there / "metrics""",
)


def points(n=2):
    return expand(sweep.Sweep(description="?", recipe="smoke", points=sweep.seeds(n)))


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Runs another program in place of gptjax.train."""

    def put(source):
        program = tmp_path / "program.py"
        program.write_text(textwrap.dedent(source))
        real = subprocess.Popen
        monkeypatch.setattr(
            subprocess,
            "Popen",
            lambda command, **more: real([*command[:3], str(program), *command[5:]], **more),
        )

    return put


def ran(directory, n=2, jobs=1, retries=1, show=lambda progress: None):
    return local_runner.run(
        "smoke", points(n), directory, local_runner.make_slots(jobs, None), retries, show
    )


def test_every_point_is_run_once_and_not_again(stand_in, tmp_path):
    stand_in(DONE)
    progress, through = ran(tmp_path)
    assert through and not progress.failures and len(progress.point_seconds) == 2
    assert all(run_status.read_status(point, tmp_path).state == "done" for point in points())
    assert (tmp_path / "seed=0/group").read_text() != str(
        os.getpgid(0)
    )  # the terminal's Ctrl-C must not reach it twice
    progress, through = ran(tmp_path)
    assert through and not progress.point_seconds
    assert (tmp_path / "seed=0/starts").read_text() == "x"
    assert (
        (tmp_path / "seed=0/data").resolve()
        == (tmp_path / "seed=1/data").resolve()
        == tmp_path / "data"
    )


def test_points_share_what_is_compiled_unless_told_otherwise(stand_in, tmp_path, monkeypatch):
    monkeypatch.delenv(local_runner.COMPILE_CACHE_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    stand_in(DONE)
    ran(Path("mine"))
    assert [(tmp_path / f"mine/seed={seed}/compiled").read_text() for seed in (0, 1)] == [
        str(tmp_path / "mine/compiled")
    ] * 2
    monkeypatch.setenv(local_runner.COMPILE_CACHE_VARIABLE, "/theirs")
    ran(Path("other"), n=1)
    assert (tmp_path / "other/seed=0/compiled").read_text() == "/theirs"


def test_a_point_that_dies_is_tried_again_and_one_that_is_refused_is_not(stand_in, tmp_path):
    stand_in(DIES_ONCE)
    progress, _ = ran(tmp_path / "dies")
    assert not progress.failures and (tmp_path / "dies/seed=0/starts").read_text() == "xx"
    progress, _ = ran(tmp_path / "never", retries=0)
    assert "killed by signal 9" in progress.failures["seed=0"]
    stand_in(REFUSED)
    progress, through = ran(tmp_path / "refused")
    assert through and progress.failures == {"seed=0": "no such thing", "seed=1": "no such thing"}
    assert (tmp_path / "refused/seed=0/starts").read_text() == "x"


def test_a_point_that_gave_up_or_is_damaged_is_not_begun_again_and_the_others_go_on(
    stand_in, tmp_path
):
    stand_in(GIVES_UP)
    progress, through = ran(tmp_path)
    why = "gave up: 10 updates in a row were not finite, up to step 12"
    assert (
        through
        and progress.failures == {"seed=0": why}
        and run_status.read_status(points()[1], tmp_path).state == "done"
    )
    (tmp_path / "seed=1/metrics.jsonl").write_text('{"step": "40"}\n')
    progress, through = ran(tmp_path, n=3)
    assert (
        through
        and progress.failures["seed=0"] == why
        and f"{tmp_path}/seed=1/metrics.jsonl: 'step' is '40'" in progress.failures["seed=1"]
    )
    assert [(tmp_path / f"seed={seed}/starts").read_text() for seed in range(3)] == ["x", "x", "x"]


def test_a_point_that_cannot_begin_is_told_and_the_others_go_on(stand_in, tmp_path):
    stand_in(DONE)
    (tmp_path / "seed=0").write_text("in the way")
    progress, through = ran(tmp_path)
    assert through and progress.failures == {
        "seed=0": f"cannot begin: {tmp_path}/seed=0: File exists"
    }
    assert run_status.read_status(points()[1], tmp_path).state == "done"
    assert (
        local_runner.failure_reason(tmp_path / "no log", -9)
        == f"killed by signal 9: it said nothing; {tmp_path}/no log has all"
    )


PARENT = """
import pathlib, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored, and rightly stay so
from gptjax.config import sweep
from gptjax.sweeps import local_runner
from tests.outcomes import expand
import subprocess
real = subprocess.Popen
subprocess.Popen = lambda command, **more: real([*command[:3], sys.argv[2], *command[5:]], **more)
points = expand(sweep.Sweep(description="?", recipe="smoke", points=sweep.seeds(1)))
local_runner.run("smoke", points, pathlib.Path(sys.argv[1]), local_runner.make_slots(1, None), 0, lambda progress: None)
"""  # noqa: E501
HEEDS = WAITS.replace(
    "import time",
    "import signal, time\nsignal.signal(signal.SIGTERM, lambda *_: ((there / 'saved').touch(), "
    "sys.exit()))",
)
NEVER_HEEDS = WAITS.replace(
    "import time", "import signal, time\nsignal.signal(signal.SIGTERM, lambda *_: None)"
)


def alive(process_id):
    try:
        return "zombie" not in Path(f"/proc/{process_id}/status").read_text()
    except FileNotFoundError:
        return False


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_points_end_with_their_sweep_even_if_it_is_killed(tmp_path):
    """By kill -9 at once; by a terminal that closes with the order to stop, as by Ctrl-C."""
    for number, program in ((signal.SIGKILL, NEVER_HEEDS), (signal.SIGHUP, HEEDS)):
        there = tmp_path / number.name
        there.mkdir()
        (there / "program.py").write_text(textwrap.dedent(program))
        began = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(there), str(there / "program.py")], cwd=CHECKOUT
        )
        assert until(
            lambda there=there: (
                "waiting" in (there / "seed=0/log.txt").read_text()
                if (there / "seed=0/log.txt").exists()
                else False
            )
        )
        (point,) = [
            int(p) for p in Path(f"/proc/{began.pid}/task/{began.pid}/children").read_text().split()
        ]
        assert alive(point)
        began.send_signal(number)
        assert until(lambda point=point: not alive(point)), number
        began.wait(20)
        assert (there / "seed=0/saved").exists() == (number == signal.SIGHUP)


def test_a_bound_program_elsewhere_than_on_linux(tmp_path):
    """By a thread that looks for the parent: the one that started it is gone before it begins,
    or while it runs."""
    (tmp_path / "waits.py").write_text(
        "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
    )
    other = (
        "import sys; sys.platform = 'darwin'; from gptjax.runtime import child; "
        "child.main(int(sys.argv[1]), ['-m', 'waits'])"
    )
    parent = (
        f"import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', {other!r}, "
        "str(os.getpid())]).wait()"
    )
    environment = os.environ | {"PYTHONPATH": f"{CHECKOUT}:{tmp_path}"}
    began = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, env=environment, text=True
    )
    point = int(began.stdout.readline())
    assert alive(point)
    began.kill()
    assert until(lambda: not alive(point))
    began.communicate()
    late = subprocess.run(
        [sys.executable, child.__file__, "1", "-c", "print('runs')"],
        env=environment,
        capture_output=True,
    )
    assert (late.returncode, late.stdout) == (1, b"")


def test_points_at_a_time_share_the_cores(stand_in, tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core")
    stand_in(DONE.replace('(there / "metrics', '\nimport time; time.sleep(1)\n(there / "metrics'))
    most = []
    ran(tmp_path, jobs=2, show=lambda progress: most.append(len(progress.active)))
    found = [json.loads((tmp_path / f"seed={i}/cores").read_text()) for i in range(2)]
    assert sorted(found[0] + found[1]) == cores and max(most) == 2
    with pytest.raises(ValueError, match=f"--jobs=999: give 1 to {len(cores)}"):
        local_runner.make_slots(999, None)


def test_each_gets_its_devices():
    parts = local_runner.make_slots(1, 4)
    assert parts[0].environment == {
        "CUDA_VISIBLE_DEVICES": "0,1,2,3",
        "TPU_VISIBLE_CHIPS": "0,1,2,3",
    }
    assert local_runner.make_slots(1, None)[0].environment == {}


def test_points_of_the_same_data_wait_for_the_first_to_prepare_it(tmp_path):
    first, second = points()
    progress = local_runner.Progress(collections.deque([second]))
    progress.active[local_runner.make_slots(1, None)[0]] = local_runner.RunningPoint(
        first, None, 0.0
    )  # pyright: ignore[reportArgumentType]
    assert local_runner._next_point(progress, tmp_path) is None
    (tmp_path / first.name).mkdir()
    (tmp_path / first.name / "data.json").write_text("{}")
    assert local_runner._next_point(progress, tmp_path) is second


@pytest.fixture
def heeds_ctrl_c():
    """As in a terminal. Where tests run in the background, SIGINT is ignored, and a sweep leaves
    it so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_stops_every_run_and_begins_no_other(stand_in, tmp_path, heeds_ctrl_c):
    stand_in(WAITS)
    began = time.monotonic()

    def interrupt():
        while not (tmp_path / "seed=0/cores").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    progress, through = ran(tmp_path, retries=0)
    assert not through and time.monotonic() - began < 50 and not progress.failures
    assert [point.name for point in progress.queue] == ["seed=1", "seed=0"] and not (
        tmp_path / "seed=1"
    ).exists()


def test_why_a_process_ended(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("said\nerror: it is so\nmore\n")
    assert local_runner.failure_reason(log, 2) == "it is so"
    log.write_text("Traceback\nKeyError: 3\n")
    assert local_runner.failure_reason(log, 1) == f"ended with 1: KeyError: 3; {log} has all"
