"""Answers that are stopped, or whose client vanishes, over real connections."""

import asyncio
import contextlib
import http.client
import json
import sqlite3
import threading
import time
import types

import anyio
import pytest

from gptjax.server import access_log
from gptjax.server.chat_page import answers, conversations
from tests.fake_generator import FakeGenerator, serve

JSON = {"Content-Type": "application/json"}


class Client:
    """A user at a port, with a connection for each request. stack: closes them."""

    def __init__(self, port, stack):
        self.port, self.stack, self.headers = port, stack, dict(JSON)
        self.connections = []
        response = self.request("POST", "/chat/login", {"name": "ann", "password": "annann12"})
        self.headers["Cookie"] = response.headers["Set-Cookie"].partition(";")[0]
        self.headers["X-CSRF-Token"] = self.json("GET", "/chat/session")["csrf"]
        self.place = "/chat/conversations/" + self.json("POST", "/chat/conversations", {})["id"]

    def request(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        self.stack.enter_context(contextlib.closing(connection))
        self.connections.append(connection)
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, self.headers)
        return self.stack.enter_context(connection.getresponse())

    def json(self, method, path, body=None):
        return json.loads(self.request(method, path, body).read())

    def answer(self, content="x"):
        return self.request("POST", f"{self.place}/answer", {"model": "tiny", "content": content})


@pytest.fixture
def running(users):
    """Yields (client, generator, the response of an answer of which two tokens have come)."""
    gate = threading.Semaphore(2)
    generator = FakeGenerator(lambda request: b"ab" * 1000, n_ctx=5000, gate=gate)
    with serve(generator, chat=users) as (port, _), contextlib.ExitStack() as stack:
        client = Client(port, stack)
        response = client.answer()
        for _ in range(6):  # the ids, two tokens, and the lines between them
            response.readline()
        yield client, generator, response


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_stop(running):
    client, generator, response = running
    assert client.request("POST", f"{client.place}/stop", {}).status == 200
    events = response.read().decode().split("\n\n")
    assert events[-2] == "data: [DONE]" and '"finish_reason": "stop"' in events[-3]
    assert generator.cancelled.acquire(timeout=20)
    answer = client.json("GET", client.place)["messages"][1]
    assert (answer["content"], answer["finish_reason"]) == ("ab", "stopped")
    generator.script = lambda request: b"z|"
    generator.gate = None
    assert client.answer().status == 200  # at once: the conversation is free


def test_a_client_that_vanishes(running):
    client, generator, response = running
    response.close()
    client.connections[-1].close()
    assert generator.cancelled.acquire(timeout=20)
    wait_for(lambda: client.json("GET", client.place)["messages"][1]["finish_reason"])
    answer = client.json("GET", client.place)["messages"][1]
    assert (answer["content"], answer["finish_reason"]) == ("ab", "interrupted")
    wait_for(lambda: client.answer().status == 200)


def test_no_store_holds_up_the_event_loop(running, monkeypatch):
    client, generator, response = running
    save, on_loop = conversations.Conversations.save_answer, []

    def note(*args):
        with contextlib.suppress(RuntimeError):
            on_loop.append(asyncio.get_running_loop())
        save(*args)

    monkeypatch.setattr(conversations.Conversations, "save_answer", note)
    response.close()
    client.connections[-1].close()
    wait_for(lambda: client.json("GET", client.place)["messages"][1]["finish_reason"])
    assert on_loop == []


def test_an_answer_is_stored_though_its_request_is_canceled():
    class Stored:
        closed = False

        async def pieces(self):
            await anyio.sleep_forever()
            yield

        def close(self):
            self.closed = True

    stored, ends, form = Stored(), [], types.SimpleNamespace(head={}, event_kind="")
    stream = types.SimpleNamespace(cancel=lambda: None)
    connection = {"type": "http", "state": {"record": access_log.RequestRecord(0.0)}}

    async def leave():
        stream.deadline = asyncio.get_running_loop().time() + 1000
        response = answers.AnswerStream(form, stream, stored, {}, lambda: ends.append(1))
        with anyio.CancelScope() as scope:

            async def send(message):
                scope.cancel()

            await response(connection, anyio.sleep_forever, send)

    asyncio.run(leave())
    assert stored.closed and ends == [1]


def test_an_end_that_could_not_be_stored_is_stored_after_all(users, monkeypatch):
    save, refused = conversations.Conversations.save_answer, []

    def fail_once(table, number, content, finish_reason, tokens):
        if finish_reason and not refused:
            refused.append(finish_reason)
            raise sqlite3.OperationalError("database is locked")
        save(table, number, content, finish_reason, tokens)

    monkeypatch.setattr(conversations.Conversations, "save_answer", fail_once)
    generator = FakeGenerator(lambda request: b"whole|")
    with serve(generator, chat=users) as (port, _), contextlib.ExitStack() as stack:
        client = Client(port, stack)
        with pytest.raises(http.client.IncompleteRead):
            client.answer().read()
        wait_for(lambda: client.json("GET", client.place)["messages"][1]["finish_reason"])
        answer = client.json("GET", client.place)["messages"][1]
        assert refused == [answer["finish_reason"]] == ["stop"] and answer["content"] == "whole"


def test_one_answer_at_a_time_in_a_conversation(running):
    client, generator, response = running
    second = client.answer()
    assert second.status == 409 and b"stop it first" in second.read()
    assert len(client.json("GET", client.place)["messages"]) == 2


def test_an_answer_is_stored_while_it_is_written(running, monkeypatch, users):
    client, generator, response = running
    monkeypatch.setattr(answers, "SAVE_S", 0.0)
    generator.gate.release()
    wait_for(lambda: client.json("GET", client.place)["messages"][1]["content"] == "aba")
    assert client.json("GET", client.place)["messages"][1]["finish_reason"] is None


def test_deleting_a_conversation_ends_its_answer(running):
    client, generator, response = running
    assert client.request("DELETE", client.place).status == 200
    assert response.read().decode().endswith("data: [DONE]\n\n")
    assert generator.cancelled.acquire(timeout=20)
    assert client.request("GET", client.place).status == 404


def test_a_user_has_few_answers_at_a_time(running):
    client, generator, response = running
    open_responses = [response]
    for _ in range(4):
        client.place = "/chat/conversations/" + client.json("POST", "/chat/conversations", {})["id"]
        open_responses.append(client.answer())
    assert [r.status for r in open_responses] == [200] * 4 + [429]
    assert client.json("DELETE", "/chat/data") == {}
    for _ in range(4):
        assert generator.cancelled.acquire(timeout=20)


def test_an_engine_that_fails_is_an_error_in_the_stream(users):
    generator = FakeGenerator(error=ValueError("of the engine"))
    with serve(generator, chat=users) as (port, _), contextlib.ExitStack() as stack:
        client = Client(port, stack)
        with pytest.raises(http.client.IncompleteRead) as caught:
            client.answer().read()
        content = caught.value.partial
        assert b'{"error"' in content and b"of the engine" not in content
        answer = client.json("GET", client.place)["messages"][1]
        assert answer["finish_reason"] == "interrupted"


def test_what_was_being_written_when_the_server_ended_is_interrupted(users):
    table = conversations.Conversations(users)
    place = table.create(1)
    table.begin_turn(1, place, conversations.Turn(replaces=None, content="x", files=[]))
    assert table.read(1, place)[1].finish_reason is None
    assert conversations.Conversations(users).read(1, place)[1].finish_reason == "interrupted"
