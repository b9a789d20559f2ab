"""Processes compare and take turns, here as threads of this one; and how they end, each as a
process of its own."""

import concurrent.futures
import queue
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from gptjax.config import overrides
from gptjax.configs import registry
from gptjax.distributed import cluster, processes, rendezvous
from gptjax.launch import rehearse

ROOT = Path(__file__).parents[3]


def together(n, act):
    """What act(party) returned or raised in each of n processes. An error must not leave
    ProcessGroup, which would end this process."""
    port = rehearse.free_port()

    def one(process):
        names, links = rendezvous.connect(
            cluster.ProcessInfo(f"localhost:{port}", n, process), 20.0
        )
        with processes.ProcessGroup(process, names, links) as party:
            try:
                return act(party)
            except (Exception, pytest.fail.Exception) as error:
                return error

    with concurrent.futures.ThreadPoolExecutor(n) as pool:
        return list(pool.map(one, range(n)))


def test_values_are_gathered_in_order():
    assert (
        together(4, lambda party: party.all_gather({"n": party.process_id}))
        == [[{"n": n} for n in range(4)]] * 4
    )


def test_process_0_alone_acts_first():
    done = []
    assert together(
        3, lambda party: party.broadcast_from_zero(lambda: done.append(party.process_id) or 7)
    ) == [7] * 3 and done == [0]


def test_zero_first_runs_process_0_then_one_per_host_then_the_rest(monkeypatch):
    order = []

    def act(party):
        party._host_names = ["a", "a", "b", "b", "c"]
        party.zero_first(lambda: order.append(party.process_id))

    together(5, act)
    assert order[0] == 0 and {*order[1:3]} == {2, 4} and {*order[3:]} == {1, 3}


def test_alone_everything_returns_at_once():
    with processes.ProcessGroup() as party:
        assert (
            party.all_gather(1),
            party.broadcast_from_zero(lambda: 2),
            party.zero_first(lambda: 3),
        ) == ([1], 2, 3)
        party.assert_equal({"x": 1}, "")


def test_the_process_that_differs_is_named():
    said = together(
        3,
        lambda party: party.assert_equal(
            {"jax": "1", "config": {"a": 1, "b": 2 + (party.process_id == 2)}}, "mend it"
        ),
    )
    assert [type(error) for error in said] == [processes.Disagreement] * 3 and len(
        {str(error) for error in said}
    ) == 1
    assert str(said[0]).startswith("process 2 of 3, on ")
    assert str(said[0]).endswith("has another config than process 0: b is 3 and not 2; mend it")


@pytest.mark.parametrize("values", [5, None, [], [1], {"a": 1}])
def test_malformed_messages_of_process_0_count_as_its_death(values, monkeypatch):
    link = SimpleNamespace(
        start_reader=lambda *heard: None, send=lambda **said: None, values=queue.SimpleQueue()
    )
    link.values.put(values)
    party, ends = processes.ProcessGroup(1, ["a", "b"], {0: link}), []
    monkeypatch.setattr(
        party, "_abort_all", lambda status, line: [ends.append((status, line)), 1 / 0]
    )
    with pytest.raises(ZeroDivisionError):
        party.all_gather(3)
    assert [status for status, _ in ends] == [
        processes.EXIT_LOST
    ] and "process 0 of 2, on a, died without a message" in ends[0][1]


def test_config_code_and_jax_must_agree(monkeypatch):
    calls = []

    def assert_equal(party, topics, advice, deadline):
        calls.append(topics)
        raise ValueError("before jax is started")

    monkeypatch.setattr(rendezvous, "connect", lambda here, seconds: (["a"], {}))
    monkeypatch.setattr(processes.ProcessGroup, "assert_equal", assert_equal)
    c = registry.config("smoke")
    processes.initialize(cluster.ProcessInfo("localhost:1", 1, 0), c, 1.0)
    assert calls == [
        {"config": overrides.flatten(c), "code": processes.source_digest(), "jax": jax.__version__}
    ]


def test_the_source_digest_covers_names_and_contents(tmp_path):
    (tmp_path / "mesh").mkdir()
    found = []
    for name, text in [
        ("a.py", "x = 1"),
        ("a.py", "x = 2"),
        ("mesh/b.py", "x = 2"),
        ("notes.txt", "x"),
    ]:
        (tmp_path / name).write_text(text)
        found.append(processes.source_digest(tmp_path))
    assert len(set(found)) == 3 and found[2] == found[3]


# --- how they end: in processes of their own ------------------------------------------------------

ONE = """
import sys
from gptjax.distributed import cluster, processes, rendezvous
here = cluster.ProcessInfo(f"localhost:{sys.argv[1]}", 3, int(sys.argv[2]))
with processes.ProcessGroup(here.process_id, *rendezvous.connect(here, 20.0)) as party:
    party.heartbeat("step 7")
    party.all_gather(None)  # all are in step 7
    ACT
"""


def ended(act):
    port = rehearse.free_port()
    commands = [
        [sys.executable, "-c", ONE.replace("ACT", act), str(port), str(process)]
        for process in range(3)
    ]
    workers = [
        subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    return [(worker.communicate(timeout=60)[1], worker.returncode) for worker in workers]


def test_a_refusal_by_one_process_ends_all_with_its_line():
    act = (
        'if party.process_id == 2: raise FileNotFoundError(2, "No such file", "x.txt")\n    '
        "party.all_gather(None)"
    )
    (said, status), *others = ended(act)
    assert others == [(said, status)] * 2 and status == 2
    assert said.startswith("error: process 2 of 3, on ") and said.endswith(
        "ended in step 7: x.txt: No such file\n"
    )


def test_a_gloo_timeout_is_a_line_without_a_trace():
    act = (
        'party_late = RuntimeError("DEADLINE_EXCEEDED: Gloo all-reduce failed: Timed out waiting '
        '30000ms\\nmore")\n'
    )
    act += (
        "    processes.GRACE_SECONDS = 0.1\n    if party.process_id == 2: raise party_late\n    "
        "party.all_gather(None)"
    )
    (said, status), *others = ended(act)
    assert (
        others == [(said, status)] * 2 and status == processes.EXIT_LOST and said.count("\n") == 1
    )
    assert (
        "ended in step 7: the processes lost contact, or one was too late (RuntimeError: "
        "DEADLINE_EXCEEDED: Gloo" in said
    )


def test_a_death_ends_all_with_one_line():
    said = ended(
        "import os, signal\n    if party.process_id == 2: os.kill(os.getpid(), signal.SIGKILL)\n   "
        " party.all_gather(None)"
    )
    assert [status for _, status in said] == [processes.EXIT_LOST, processes.EXIT_LOST, -9]
    assert (
        said[0][0] == said[1][0]
        and "process 2 of 3, on " in said[0][0]
        and "died without a message, while process 0 was in step 7" in said[0][0]
    )


def test_a_hang_ends_all_with_one_line():
    act = (
        "import time\n    if party.process_id == 1:\n        with party.watchdog(0.5): "
        "time.sleep(100)\n    party.all_gather(None)"
    )
    said = ended(act)
    assert [status for _, status in said] == [processes.EXIT_LOST] * 3
    assert all(
        "process 1 of 3, on " in text
        and "has made no progress for 0.5 s (loop.hang_seconds) in step 7" in text
        for text, _ in said
    )


def test_a_stopped_process_is_not_a_hang():
    """The watch looks every 10 s. What it sleeps beyond that, the process slept too; nobody
    moved since 3."""
    since = 3.0
    for before, now in (
        (10, 20.1),
        (20.1, 30.0),
        (30.0, 43.5),
    ):  # a busy machine: 33.5 s since then, as they are
        since = processes.skip_pause(since, before, now, interval=10)
    assert since == 3.0
    since = processes.skip_pause(since, before=43.5, now=1053.5, interval=10)  # stopped for 1,000 s
    assert since == 1003.0 and 1053.5 - since == 50.5
    since = processes.skip_pause(
        1053.4, before=1043.5, now=1053.5, interval=10
    )  # it moved at once when it went on, before the watch woke
    assert since == 1053.4
    since = processes.skip_pause(1053.4, before=53.5, now=1053.5, interval=10)
    assert since == 1053.5  # never later than now, so that a hang is still found


def test_a_watchdog_ignores_sleep_but_not_a_hang(monkeypatch):
    """A clock of its own: each wake-up of the watch is given with its time."""
    party, ended, times = (
        processes.ProcessGroup(),
        [],
        iter([0.0, 1.0, 2.0, 900.0, 901.0, 902.0, 903.0, 904.0, 905.0]),
    )
    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=lambda: next(times)))
    monkeypatch.setattr(processes.faulthandler, "dump_traceback", lambda: None)
    monkeypatch.setattr(
        party, "_abort_all", lambda status, line: [ended.append((status, line)), 1 / 0]
    )
    threads: list = []
    event = SimpleNamespace(wait=lambda seconds: False, set=lambda: None)
    thread = lambda target, args, **more: SimpleNamespace(  # noqa: E731
        start=lambda: threads.append((target, args))
    )
    monkeypatch.setattr(processes, "threading", SimpleNamespace(Event=lambda: event, Thread=thread))
    with party.watchdog(4.0):
        ((watch, args),) = threads
        with pytest.raises(ZeroDivisionError):
            watch(*args)
    ((status, line),) = ended
    assert (
        status == processes.EXIT_LOST
        and "has made no progress for 4 s" in line
        and next(times) == 903.0
    )  # 899 s of it were slept
