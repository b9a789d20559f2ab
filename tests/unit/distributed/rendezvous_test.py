"""Processes find each other, here as threads of this one, and are not disturbed by strangers."""

import concurrent.futures
import contextlib
import json
import socket
import threading
import time

import pytest

from gptjax.distributed import cluster, processes, rendezvous
from gptjax.launch import rehearse


def refusals(places, seconds):
    """The ValueErrors of processes that are told these (processes, process)."""
    port = rehearse.free_port()

    def one(place):
        with pytest.raises(ValueError) as caught:
            rendezvous.connect(cluster.ProcessInfo(f"localhost:{port}", *place), seconds)
        return str(caught.value)

    with concurrent.futures.ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(one, places))


def test_missing_processes_are_named():
    errors = refusals([(4, 0), (4, 2)], seconds=1.0)
    assert all(
        "of 4 processes 1, 3 did not connect to process 0 within 1 s" in line for line in errors
    )


@pytest.mark.parametrize(
    "places", [[(3, 0), (4, 1)], [(3, 0), (3, 1), (3, 1)]], ids=["counts otherwise", "comes twice"]
)
def test_a_process_that_does_not_fit_is_refused(places):
    errors = refusals(places, seconds=5.0)
    assert all(
        f"process 1 of {places[1][0]}, on " in line and "expects 3 processes, each once" in line
        for line in errors
    )


def test_a_missing_process_0_is_reported_in_time():
    port = rehearse.free_port()
    with pytest.raises(
        ValueError,
        match=(
            rf"process 1 did not reach process 0 at localhost, port {port - 1}, within 0.5 s "
            r".*refused"
        ),
    ):
        rendezvous.connect(cluster.ProcessInfo(f"localhost:{port}", 2, 1), 0.5)


def test_a_port_in_use_is_a_one_line_error():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ValueError, match=f"process 0 cannot listen on port {port}, .*give another port"
        ):
            rendezvous.connect(cluster.ProcessInfo(f"localhost:{port + 1}", 2, 0), 0.5)


def greeting(nonce="", **changes):
    """What a process 1 of 2 says first, with other words."""
    known = {
        "process": 1,
        "processes": 2,
        "host": "x",
        "proof": cluster.ProcessInfo("", 2, 1, nonce=nonce).proof(1),
    }
    return (
        json.dumps(
            {name: value for name, value in (known | changes).items() if value is not None}
        ).encode()
        + b"\n"
    )


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


def meet(port, process, nonce="secret", seconds=20.0):
    return rendezvous.connect(
        cluster.ProcessInfo(f"localhost:{port}", 2, process, nonce=nonce), seconds
    )


def call(port):
    """A connection to process 0, which may not listen yet."""
    while True:
        try:
            return socket.create_connection(("localhost", port - 1), 5.0)
        except ConnectionRefusedError:
            time.sleep(0.01)


@pytest.mark.parametrize("message", STRANGERS.values(), ids=list(STRANGERS))
def test_a_stranger_gets_no_reply_and_does_not_disturb(message):
    """100 of each at once, still there when the honest process comes, which waits for none of
    them."""
    port = rehearse.free_port()
    with concurrent.futures.ThreadPoolExecutor(2) as pool, contextlib.ExitStack() as opened:
        first = pool.submit(meet, port, 0)
        strangers = [
            opened.enter_context(call(port)) for _ in range(100 if len(message) < 1000 else 2)
        ]
        for stranger in strangers:
            with contextlib.suppress(OSError):  # it has been turned away
                stranger.sendall(message)
        second = pool.submit(meet, port, 1)
        assert first.result()[0] == second.result()[0] == [socket.gethostname()] * 2
        for stranger in strangers:
            with contextlib.suppress(OSError):
                assert stranger.recv(10) == b""
        first.result()[1][1].close()
        second.result()[1][0].close()


def test_a_slow_greeting_is_dropped_after_the_timeout(monkeypatch):
    monkeypatch.setattr(rendezvous, "HELLO_TIMEOUT", 0.2)
    port = rehearse.free_port()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(meet, port, 0, seconds=1.5)
        with call(port) as stranger, pytest.raises(OSError):
            for _ in range(100):
                stranger.sendall(b" ")
                time.sleep(0.02)
        assert not first.done()
        with pytest.raises(
            ValueError, match="of 2 processes 1 did not connect to process 0 within 1.5 s"
        ):
            first.result()


def test_without_a_nonce_anyone_who_knows_the_protocol_is_accepted():
    port = rehearse.free_port()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(meet, port, 0, nonce="")
        with call(port) as stranger:
            stranger.sendall(greeting(host="evil\x1b[31m"))
            names, links = first.result()
            assert names == [socket.gethostname(), "evil\\x1b[31m"]
            links[1].close()


def test_a_process_of_another_run_is_rejected(monkeypatch):
    monkeypatch.setattr(rendezvous, "RETRY_SECONDS", 0.3)
    port = rehearse.free_port()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(meet, port, 0, seconds=1.0)
        call(port).close()
        with pytest.raises(
            ValueError,
            match=(
                "process 0 at localhost, port .* or it belongs to another run and its "
                "GPTJAX_NONCE differs"
            ),
        ):
            meet(port, 1, nonce="another", seconds=1.0)
        with pytest.raises(ValueError, match="processes 1 did not connect"):
            first.result()


@pytest.mark.parametrize(
    "message",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b'{"names": ["a", "b"]}\n',
        b'{"names": ["a", "b"], "proof": "x"}\n',
        b"x" * 10**6,
    ],
)
def test_another_service_in_place_of_process_0_is_reported(message, monkeypatch):
    monkeypatch.setattr(rendezvous, "RETRY_SECONDS", 0.0)
    with socket.create_server(("", 0)) as server, concurrent.futures.ThreadPoolExecutor(1) as pool:
        port = server.getsockname()[1] + 1

        def serve():
            with server.accept()[0] as connection, contextlib.suppress(OSError):
                connection.sendall(message)
                connection.recv(1)

        serving = pool.submit(serve)
        with pytest.raises(
            ValueError,
            match=(
                r"(?s)^process 0 at localhost, port \d+, ended|"
                r"^the program that answers as process 0 at .* "
                r"is not process 0"
            ),
        ):
            meet(port, 1, seconds=1.0)
        serving.result()


@pytest.mark.parametrize(
    "message",
    [
        b"[]\n",
        b'{"x": 1}\n',
        b'{"value": 1}\n',
        b'{"end": 3, "status": "x"}\n',
        b"\xff\n",
        b"1" * 6000 + b"\n",
    ],
)
def test_malformed_messages_of_a_process_count_as_its_death(message):
    with socket.create_server(("localhost", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours = server.accept()[0]
    link, gone = rendezvous.Connection(ours), threading.Event()
    link.start_reader(lambda status, line: pytest.fail("not an end"), gone.set)
    theirs.sendall(message)
    assert gone.wait(10)
    link.close()
    theirs.close()


def test_a_silent_process_is_not_awaited_forever():
    port = rehearse.free_port()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(meet, port, 0)
        names, links = meet(port, 1)
        party = processes.ProcessGroup(0, *first.result())
        with pytest.raises(
            ValueError,
            match=(
                "process 1 of 2, on .*, connected but has not answered since; wait longer with "
                "--initialization_timeout"
            ),
        ):
            party.all_gather(1, deadline=time.monotonic() + 0.2)
        links[0].send(value=2, goodbye=True)
        assert party.all_gather(1) == [1, 2]
        links[0].shutdown()
        links[0].close()
