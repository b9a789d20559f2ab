"""The server on a socket: clients that vanish, do not read, send too much, or nothing; draining."""

import asyncio
import contextlib
import itertools
import json
import signal
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from gptjax.server import access_log, answer, generation_stream, http_server
from tests import fake_generator
from tests.fake_generator import END, FakeGenerator

WAIT_S = 20


def post(port, path="/v1/completions", **body):
    """A connection with a request sent."""
    content = json.dumps({"model": "tiny", "prompt": "a", "seed": 7, **body}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return send(port, head.encode() + content)


def send(port, content=b""):
    connection = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
    connection.sendall(content)
    return connection


def wait_until(condition):
    while not condition():
        time.sleep(0.001)


def read(connection):
    """(status, body) of the answer, up to the end of the connection."""
    content = b""
    with connection, contextlib.suppress(ConnectionResetError):
        while more := connection.recv(1 << 16):
            content += more
    head, _, body = content.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_vanishes_frees_its_slot(stream):
    gate = threading.Semaphore(0)
    generator = FakeGenerator(gate=gate)
    lines = []
    with fake_generator.serve(generator, lines=lines) as (port, server):
        with post(port, stream=stream, n=2) as connection:
            if stream:
                gate.release()
                assert b"HTTP/1.1 200" in connection.recv(1 << 12)
            else:
                wait_until(lambda: len(generator.requests) == 2)
        for _ in range(2):
            assert generator.cancelled.acquire(timeout=WAIT_S)
        wait_until(lambda: server._load.n_active == 0)
    assert json.loads(lines[0])["status"] == (200 if stream else 499)


def test_a_client_that_vanishes_while_its_request_is_submitted(monkeypatch):
    """The engine may take its time: what was submitted too late is cancelled, too."""
    entered, gone = threading.Event(), threading.Event()
    generator = FakeGenerator(gate=threading.Semaphore(0))
    original = generator.submit

    def submit(*given):
        entered.set()
        assert gone.wait(WAIT_S)
        return original(*given)

    monkeypatch.setattr(generator, "submit", submit)
    with fake_generator.serve(generator) as (port, server):
        with post(port):
            assert entered.wait(WAIT_S)
        wait_until(lambda: server._load.n_active == 0)
        gone.set()
        assert generator.cancelled.acquire(timeout=WAIT_S)


def test_a_reader_that_is_too_slow_is_cut_off(monkeypatch):
    """The generation ends when so much is unread that the queue is full; memory is bounded."""
    monkeypatch.setattr(generation_stream, "MAX_PENDING_PIECES", 4)
    generator = FakeGenerator(lambda request: itertools.repeat(120), n_ctx=10**7)
    with fake_generator.serve(generator) as (port, _):
        with post(port, stream=True, max_tokens=10**6) as connection:
            assert generator.cancelled.acquire(timeout=WAIT_S)
            status, body = read(connection)
    assert status == 200 and b"read it faster" in body and b"[DONE]" not in body


def test_a_body_of_100_mb_is_refused_while_it_is_sent():
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    with fake_generator.serve(FakeGenerator()) as (port, _):
        with send(port, head.encode()) as connection:
            for _ in range(100):
                connection.sendall(chunk)
            connection.sendall(b"0\r\n\r\n")
            answer = connection.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 413") and b"8,388,608 bytes" in answer


def test_a_body_that_goes_on_after_its_refusal_is_cut_off(monkeypatch):
    monkeypatch.setattr(http_server, "LINGER_S", 0.05)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"
    with fake_generator.serve(FakeGenerator()) as (port, _):
        status, body = read(send(port, head))
    assert status == 415 and b"give application/json" in body


@pytest.mark.parametrize("content", [b"", b"POST /v1/compl", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_a_connection_that_sends_no_request_is_closed(monkeypatch, content):
    monkeypatch.setattr(http_server, "HEADER_S", 0.05)
    with fake_generator.serve(FakeGenerator()) as (port, _):
        with send(port, content) as connection:
            assert connection.recv(100) == b""


@pytest.mark.parametrize("host", [b"[::1", b"a b", b"\xff", b"x" * 1000])
@pytest.mark.parametrize("path", [b"/v1/models/x", b"/nothing/"])
def test_odd_hosts(host, path):
    content = b"GET " + path + b" HTTP/1.1\r\nConnection: close\r\nHost: " + host + b"\r\n\r\n"
    with fake_generator.serve(FakeGenerator(), local_only=True) as (port, _):
        status, body = read(send(port, content))
    assert status in (400, 403, 404) and json.loads(body)["error"]["message"].isprintable()


@pytest.mark.parametrize(
    "content",
    [
        b"\x16\x03\x01 this is TLS\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 40_000,
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 10_000,
    ],
    ids=["no HTTP", "a long header", "many headers"],
)
def test_what_is_no_request(content):
    with fake_generator.serve(FakeGenerator()) as (port, _):
        status, body = read(send(port, content))
    assert status == 400 and json.loads(body)["error"]["type"] == "invalid_request_error"


def test_a_drain_lets_answers_end_and_takes_no_new_ones():
    gate = threading.Semaphore(0)
    with fake_generator.serve(FakeGenerator(gate=gate)) as (port, server):
        running = post(port, stream=True)
        gate.release()
        assert b"HTTP/1.1 200" in running.recv(1 << 12)
        assert not asyncio.run(server.on_tick(1))
        server.handle_exit(signal.SIGTERM)
        assert not asyncio.run(server.on_tick(1)), "an answer runs"
        status, body = read(post(port))
        assert status == 503 and json.loads(body)["error"]["code"] == "shutting_down"
        gate.release(10)
        content = b""
        while more := running.recv(1 << 16):
            content += more
        assert content.rstrip().endswith(b"data: [DONE]\n\n\r\n0")
        running.close()
        wait_until(lambda: asyncio.run(server.on_tick(1)))


def test_a_stream_that_the_end_of_a_drain_cuts_has_an_error_and_an_end():
    generator = FakeGenerator(lambda request: [97, 97, END], gate=threading.Semaphore(1))
    with fake_generator.serve(generator, drain_s=0.0) as (port, server):
        connection = post(port, stream=True)
        content = connection.recv(1 << 12)
        assert b"HTTP/1.1 200" in content
        server.handle_exit(signal.SIGTERM)
        while more := connection.recv(1 << 16):
            content += more
        connection.close()
    assert b'"code": "shutting_down"' in content and content.endswith(b"0\r\n\r\n")


def test_a_stream_that_was_not_begun_when_the_drain_ends_is_answered_as_any_request():
    sent = []

    async def main():
        async def send(message):
            sent.append(message["type"])
            if len(sent) == 1:
                await asyncio.Event().wait()

        async def no_events():
            yield b""

        stream = SimpleNamespace(deadline=time.monotonic() + WAIT_S, cancel=lambda: None)
        scope = {"type": "http", "state": {"record": access_log.RequestRecord(0.0)}}
        task = asyncio.ensure_future(
            answer.EventStream(no_events(), stream)(scope, asyncio.Event().wait, send)
        )
        while not sent:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert sent == ["http.response.start"]


def test_a_drain_has_an_end():
    generator = FakeGenerator(lambda request: [97, END], gate=threading.Semaphore(0))
    with fake_generator.serve(generator, drain_s=0.0) as (port, server):
        connection = post(port)
        wait_until(lambda: generator.requests)
        server.handle_exit(signal.SIGTERM)
        assert generator.cancelled.acquire(timeout=WAIT_S)
        status, body = read(connection)
    assert status == 503 and json.loads(body)["error"]["code"] == "shutting_down"
