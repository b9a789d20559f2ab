"""Processes meet, compare and take turns; here they are threads of this one."""

import concurrent.futures
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from gptjax.config import overrides, registry
from gptjax.mesh import hosts, meeting
from launch import rehearse

ROOT = Path(__file__).parents[3]


def together(n, act, seconds=20.0, places=None):
    """What act(party) returned, or the ValueError it raised, for each of n processes."""
    port = rehearse.free_port()
    places = places or [(n, process) for process in range(n)]

    def one(given):
        try:
            here = meeting.Place(f"localhost:{port}", *given)
            names, links = meeting.meet(here, seconds)
            with hosts.Hosts(here.process, names, links) as party:
                return act(party)
        except ValueError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(one, places))


def test_values_are_gathered_in_order():
    assert together(4, lambda party: party.gathered({"n": party.process})) == [[{"n": n} for n in range(4)]] * 4


def test_process_0_alone_acts_first():
    done = []
    assert together(3, lambda party: party.first(lambda: done.append(party.process) or 7)) == [7] * 3 and done == [0]


def test_turns_are_taken_process_0_one_of_each_host_the_rest(monkeypatch):
    order = []

    def act(party):
        party._names = ["a", "a", "b", "b", "c"]
        party.in_turn(lambda: order.append(party.process))

    together(5, act)
    assert order[0] == 0 and {*order[1:3]} == {2, 4} and {*order[3:]} == {1, 3}


def test_alone_everything_returns_at_once():
    with hosts.Hosts() as party:
        assert (party.gathered(1), party.first(lambda: 2), party.in_turn(lambda: 3)) == ([1], 2, 3)
        party.agree({"x": 1}, "")


def test_the_one_that_differs_is_named():
    def act(party):
        with pytest.raises(ValueError) as refused:
            party.agree({"jax": "1", "config": {"a": 1, "b": 2 + (party.process == 2)}}, "mend it")
        return str(refused.value)

    said = together(3, act)
    assert len(set(said)) == 1
    assert said[0].startswith("process 2 of 3, on ") and said[0].endswith("has another config than process 0: b is 3 and not 2; mend it")


def test_config_code_and_jax_are_what_must_agree(monkeypatch):
    told = []

    def agree(party, topics, advice, until):
        told.append(topics)
        raise ValueError("before jax is started")

    monkeypatch.setattr(meeting, "meet", lambda here, seconds: (["a"], {}))
    monkeypatch.setattr(hosts.Hosts, "agree", agree)
    c = registry.config("smoke")
    hosts.joined(meeting.Place("localhost:1", 1, 0), c, 1.0)
    assert told == [{"config": overrides.flat(c), "code": hosts.code(), "jax": jax.__version__}]


def test_the_digest_of_code_is_of_names_and_contents(tmp_path, monkeypatch):
    (tmp_path / "mesh").mkdir()
    monkeypatch.setattr(hosts, "__file__", str(tmp_path / "mesh" / "hosts.py"))
    found = []
    for name, text in [("a.py", "x = 1"), ("a.py", "x = 2"), ("mesh/b.py", "x = 2"), ("notes.txt", "x")]:
        (tmp_path / name).write_text(text)
        found.append(hosts.code())
    assert len(set(found)) == 3 and found[2] == found[3]


def test_who_did_not_come_is_named():
    said = together(4, None, seconds=1.0, places=[(4, 0), (4, 2)])
    assert all("of 4 processes 1, 3 did not come to process 0 within 1 s" in str(error) for error in said)


@pytest.mark.parametrize("places", [[(3, 0), (4, 1)], [(3, 0), (3, 1), (3, 1)]], ids=["counts otherwise", "comes twice"])
def test_a_process_that_does_not_fit_is_refused(places):
    said = together(3, None, seconds=5.0, places=places)
    assert all(f"process 1 of {places[1][0]}, on " in str(error) and "expects 3 processes, each once" in str(error) for error in said)


def test_process_0_that_is_not_there_is_said_in_time():
    port = rehearse.free_port()
    with pytest.raises(ValueError, match=rf"process 1 did not reach process 0 at localhost, port {port - 1}, within 0.5 s .*refused"):
        meeting.meet(meeting.Place(f"localhost:{port}", 2, 1), 0.5)


def test_a_port_in_use_is_said():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"process 0 cannot listen on port {port}, .*give another port"):
            meeting.meet(meeting.Place(f"localhost:{port + 1}", 2, 0), 0.5)


def greeting(nonce="", **said):
    """What a process 1 of 2 says first, with other words."""
    known = {"process": 1, "processes": 2, "host": "x", "proof": meeting.Place("", 2, 1, nonce=nonce).proof(1)}
    return json.dumps({name: value for name, value in (known | said).items() if value is not None}).encode() + b"\n"


STRANGERS = {
    "garbage": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "not UTF-8": b"\xff\xfe\x00\n",
    "a list": b"[1,2]\n",
    "deeply nested": b"[" * 60_000 + b"\n",
    "a number of 10,000 digits": b"1" * 10_000 + b"\n",
    "without proof": greeting(proof=None),
    "an impostor": greeting(),
    "an impostor with another word": greeting("guessed"),
    "of another count": greeting(processes=3),
    "text": greeting("secret", process="1"),
    "a list for a number": greeting("secret", process=[1]),
    "null for a number": greeting("secret", process=None),
    "1.5": greeting("secret", process=1.5),
    "true": greeting("secret", process=True),
    "-1": greeting("secret", process=-1),
    "10^30": greeting("secret", processes=10**30),
    "a host of numbers": greeting("secret", host=7),
    "more than is asked": greeting("secret", config={}),
    "proof of another process": greeting("secret", process=0),
    "a proof that is no text": greeting("secret", proof=3),
    "an odd proof": greeting("secret", proof="\udc80\u00e9"),
    "two lines": greeting("secret") * 2,
    "silence": b"",
    "no line end": b"x",
    "a flood": b"x" * 2**20,
}


def met(port, process, nonce="secret", seconds=20.0):
    return meeting.meet(meeting.Place(f"localhost:{port}", 2, process, nonce=nonce), seconds)


def call(port):
    """A connection to process 0, which may not listen yet."""
    while True:
        try:
            return socket.create_connection(("localhost", port - 1), 5.0)
        except ConnectionRefusedError:
            time.sleep(0.01)


@pytest.mark.parametrize("said", STRANGERS.values(), ids=list(STRANGERS))
def test_a_stranger_is_told_nothing_and_does_not_disturb(said):
    """100 of each at once, still there when the honest process comes, which waits for none of them."""
    port = rehearse.free_port()
    with concurrent.futures.ThreadPoolExecutor(2) as pool, contextlib.ExitStack() as opened:
        first = pool.submit(met, port, 0)
        strangers = [opened.enter_context(call(port)) for _ in range(100 if len(said) < 1000 else 2)]
        for stranger in strangers:
            with contextlib.suppress(OSError):  # it has been turned away
                stranger.sendall(said)
        second = pool.submit(met, port, 1)
        assert first.result()[0] == second.result()[0] == [socket.gethostname()] * 2
        for stranger in strangers:
            with contextlib.suppress(OSError):
                assert stranger.recv(10) == b""
        first.result()[1][1].close()
        second.result()[1][0].close()


def test_slow_words_do_not_outlast_the_patience(monkeypatch):
    monkeypatch.setattr(meeting, "PATIENCE", 0.2)
    port = rehearse.free_port()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(met, port, 0, seconds=1.5)
        with call(port) as stranger, pytest.raises(OSError):
            for _ in range(100):
                stranger.sendall(b" ")
                time.sleep(0.02)
        assert not first.done()
        with pytest.raises(ValueError, match="of 2 processes 1 did not come to process 0 within 1.5 s"):
            first.result()


def test_without_a_word_who_knows_the_greeting_passes():
    port = rehearse.free_port()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(met, port, 0, nonce="")
        with call(port) as stranger:
            stranger.sendall(greeting(host="evil\x1b[31m"))
            names, links = first.result()
            assert names == [socket.gethostname(), "evil\\x1b[31m"]
            links[1].close()


def test_a_process_of_another_run_is_turned_away(monkeypatch):
    monkeypatch.setattr(meeting, "RETRY", 0.3)
    port = rehearse.free_port()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(met, port, 0, seconds=1.0)
        call(port).close()
        with pytest.raises(
            ValueError, match="process 0 at localhost, port .* or it is another run's, and GPTJAX_NONCE is not the same there"
        ):
            met(port, 1, nonce="another", seconds=1.0)
        with pytest.raises(ValueError, match="processes 1 did not come"):
            first.result()


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\n", b'{"names": ["a", "b"]}\n', b'{"names": ["a", "b"], "proof": "x"}\n', b"x" * 10**6]
)
def test_another_service_in_process_0s_place_is_said(said, monkeypatch):
    monkeypatch.setattr(meeting, "RETRY", 0.0)
    with socket.create_server(("", 0)) as server, concurrent.futures.ThreadPoolExecutor(1) as pool:
        port = server.getsockname()[1] + 1

        def serve():
            with server.accept()[0] as connection, contextlib.suppress(OSError):
                connection.sendall(said)
                connection.recv(1)

        serving = pool.submit(serve)
        with pytest.raises(
            ValueError, match=r"(?s)^process 0 at localhost, port \d+, ended|^what answers as process 0 at .* is not process 0"
        ):
            met(port, 1, seconds=1.0)
        serving.result()


def test_a_process_that_came_and_says_nothing_is_not_waited_for_without_limit():
    port = rehearse.free_port()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(met, port, 0)
        names, links = met(port, 1)
        party = hosts.Hosts(0, *first.result())
        with pytest.raises(ValueError, match="process 1 of 2, on .*, came, and has said nothing since; --join_seconds waits longer"):
            party.gathered(1, until=time.monotonic() + 0.2)
        links[0].send(value=2, goodbye=True)
        assert party.gathered(1) == [1, 2]
        links[0].part()
        links[0].close()


@pytest.mark.parametrize(
    "said", [b"[]\n", b'{"x": 1}\n', b'{"value": 1}\n', b'{"end": 3, "status": "x"}\n', b"\xff\n", b"1" * 6000 + b"\n"]
)
def test_nonsense_from_a_process_that_came_is_as_if_it_had_gone(said):
    with socket.create_server(("localhost", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours = server.accept()[0]
    link, gone = meeting.Link(ours), threading.Event()
    link.follow(lambda status, line: pytest.fail("not an end"), gone.set)
    theirs.sendall(said)
    assert gone.wait(10)
    link.close()
    theirs.close()


# --- who is there --------------------------------------------------------------------------------------------------------


@pytest.fixture
def bare(monkeypatch):
    for name in ("GPTJAX_NONCE", "JAX_COORDINATOR_ADDRESS", "KUBERNETES_SERVICE_HOST", "SLURM_JOB_ID", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_flags_are_taken_and_nothing_is_alone(bare):
    assert meeting.place("h:80", 4, 3, 1.0) == meeting.Place("h:80", 4, 3)
    assert meeting.place(None, None, None, 1.0) is None
    assert meeting.place("h:80", 1, None, 1.0) is None
    bare.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")  # a pod by itself
    assert meeting.place(None, None, None, 1.0) is None


@pytest.mark.parametrize(
    "given,said",
    [
        (("h:80", None, 1), "--coordinator=h:80 --process=1: give --coordinator, --processes and --process"),
        (("h", 2, 1), "--coordinator=h: give HOST:PORT"),
        (("h:1", 2, 1), "--coordinator=h:1: give HOST:PORT"),
        (("h:80", 2, 2), "--process=2: with --processes=2 give one from 0 to 1"),
        (("h:80", 2, -1), "--process=-1: with --processes=2 give one from 0 to 1"),
        (("h:80", 10**12, 2), "give one from 0 to 99999"),
        (("h:\u0663\u0663", 2, 1), "give HOST:PORT"),
        (("h:" + "9" * 5000, 2, 1), "give HOST:PORT"),
        (("h o:80", 2, 1), "give HOST:PORT"),
        (("a..b:80", 2, 1), "give HOST:PORT"),
        (("a" * 70 + ":80", 2, 1), "give HOST:PORT"),
        (("\udc80\n:80", 2, 1), "give HOST:PORT"),
    ],
)
def test_half_of_it_is_refused(bare, given, said):
    with pytest.raises(ValueError) as refused:
        meeting.place(*given, 1.0)
    assert said in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 300


def test_odd_words_of_a_cluster_are_one_line(bare):
    for name, value in {"JOB_ID": "7", "STEP_NODELIST": "node[03-04]", "NTASKS": "many", "PROCID": "9", "LOCALID": "1"}.items():
        bare.setenv(f"SLURM_{name}", value)
    with pytest.raises(ValueError, match="jax found a cluster here but not its processes .*many"):
        meeting.place(None, None, None, 1.0)


def test_the_launchers_word_is_taken_from_the_environment(bare):
    bare.setenv(meeting.NONCE, "word")
    assert meeting.place("h:80", 4, 3, 1.0) == meeting.Place("h:80", 4, 3, nonce="word")
    assert meeting.place("[::1]:80", 4, 3, 1.0).proof(3) != meeting.Place("h:80", 4, 3).proof(3)


def test_slurm_is_found(bare):
    for name, value in {"JOB_ID": "7", "STEP_NODELIST": "node[03-04]", "NTASKS": "16", "PROCID": "9", "LOCALID": "1"}.items():
        bare.setenv(f"SLURM_{name}", value)
    assert meeting.place(None, None, None, 1.0) == meeting.Place("node03:61447", 16, 9, [1])
    bare.setenv("SLURM_NTASKS", "1")
    assert meeting.place(None, None, None, 1.0) is None


def test_tpu_slices_on_gke_are_found(bare):
    from jax._src.clusters import cloud_tpu_cluster

    bare.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    bare.setattr("jax._src.clusters.cluster.running_in_cloud_tpu_vm", True)
    there = {"TPU_WORKER_HOSTNAMES": "x,y", "TPU_WORKER_ID": "1"}
    slices = {"MEGASCALE_COORDINATOR_ADDRESS": "localhost", "MEGASCALE_NUM_SLICES": "3", "MEGASCALE_SLICE_ID": "2"}
    for name, value in (there | slices).items():
        bare.setenv(name, value)
    assert meeting.place(None, None, None, 5.0) == meeting.Place("localhost:8482", 6, 5)


# --- how they end: in processes of their own ------------------------------------------------------------------------------

ONE = """
import sys
from gptjax.mesh import hosts, meeting
here = meeting.Place(f"localhost:{sys.argv[1]}", 3, int(sys.argv[2]))
with hosts.Hosts(here.process, *meeting.meet(here, 20.0)) as party:
    party.doing("step 7")
    party.gathered(None)  # all are in step 7
    ACT
"""


def ended(act):
    port = rehearse.free_port()
    commands = [[sys.executable, "-c", ONE.replace("ACT", act), str(port), str(process)] for process in range(3)]
    workers = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for command in commands]
    return [(worker.communicate(timeout=60)[1], worker.returncode) for worker in workers]


def test_a_refusal_of_one_is_the_line_of_all():
    act = 'if party.process == 2: raise FileNotFoundError(2, "No such file", "x.txt")\n    party.gathered(None)'
    (said, status), *others = ended(act)
    assert others == [(said, status)] * 2 and status == 2
    assert said.startswith("error: process 2 of 3, on ") and said.endswith("ended in step 7: x.txt: No such file\n")


def test_a_process_that_gloo_waited_for_in_vain_is_a_line_and_no_trace():
    act = 'party_late = RuntimeError("DEADLINE_EXCEEDED: Gloo all-reduce failed: Timed out waiting 30000ms\\nmore")\n'
    act += "    hosts.GRACE = 0.1\n    if party.process == 2: raise party_late\n    party.gathered(None)"
    (said, status), *others = ended(act)
    assert others == [(said, status)] * 2 and status == hosts.LOST and said.count("\n") == 1
    assert "ended in step 7: the processes lost each other, or one was too late (RuntimeError: DEADLINE_EXCEEDED: Gloo" in said


def test_a_death_is_told_to_all():
    said = ended("import os, signal\n    if party.process == 2: os.kill(os.getpid(), signal.SIGKILL)\n    party.gathered(None)")
    assert [status for _, status in said] == [hosts.LOST, hosts.LOST, -9]
    assert (
        said[0][0] == said[1][0]
        and "process 2 of 3, on " in said[0][0]
        and "is gone without a word, when process 0 was in step 7" in said[0][0]
    )


def test_a_hang_is_told_to_all():
    said = ended("import time\n    if party.process == 1:\n        with party.watched(0.5): time.sleep(100)\n    party.gathered(None)")
    assert [status for _, status in said] == [hosts.LOST] * 3
    assert all("process 1 of 3, on " in text and "has not moved for 0.5 s (loop.hang_seconds) in step 7" in text for text, _ in said)


def test_time_in_which_a_process_was_stopped_is_no_hang():
    """The watch looks every 10 s. What it sleeps beyond that, the process slept too; nobody moved since 3."""
    since = 3.0
    for before, now in ((10, 20.1), (20.1, 30.0), (30.0, 43.5)):  # a busy machine: 33.5 s since then, as they are
        since = hosts.counted(since, before, now, every=10)
    assert since == 3.0
    since = hosts.counted(since, before=43.5, now=1053.5, every=10)  # stopped for 1,000 s
    assert since == 1003.0 and 1053.5 - since == 50.5
    since = hosts.counted(1053.4, before=1043.5, now=1053.5, every=10)  # it moved at once when it went on, before the watch woke
    assert since == 1053.4
    assert hosts.counted(1053.4, before=53.5, now=1053.5, every=10) == 1053.5  # never later than now, so that a hang is still found


def test_a_watch_that_slept_does_not_end_the_program_and_one_that_waited_does(monkeypatch):
    """A clock of its own: each wake-up of the watch is given with its time."""
    party, ended, times = hosts.Hosts(), [], iter([0.0, 1.0, 2.0, 900.0, 901.0, 902.0, 903.0, 904.0, 905.0])
    monkeypatch.setattr(hosts, "time", SimpleNamespace(monotonic=lambda: next(times)))
    monkeypatch.setattr(hosts.faulthandler, "dump_traceback", lambda: None)
    monkeypatch.setattr(party, "_finish", lambda status, line: [ended.append((status, line)), 1 / 0])
    threads: list = []
    event = SimpleNamespace(wait=lambda seconds: False, set=lambda: None)
    thread = lambda target, args, **more: SimpleNamespace(start=lambda: threads.append((target, args)))  # noqa: E731
    monkeypatch.setattr(hosts, "threading", SimpleNamespace(Event=lambda: event, Thread=thread))
    with party.watched(4.0):
        ((watch, args),) = threads
        with pytest.raises(ZeroDivisionError):
            watch(*args)
    ((status, line),) = ended
    assert status == hosts.LOST and "has not moved for 4 s" in line and next(times) == 903.0  # 899 s of it were slept
