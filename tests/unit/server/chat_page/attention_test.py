"""The attention of an answer: which tokens, whose conversation, what is refused."""

import base64
import threading

import numpy as np
import pytest

from gptjax.config import safety
from gptjax.server import attention_maps
from gptjax.server.policy_filter import PolicyFilter
from tests import tiny
from tests.fake_generator import FakeGenerator
from tests.unit.server.chat_page.chat_routes_test import answer, begin, error_of, read

N_CTX = 80


@pytest.fixture(scope="module")
def maps():
    return attention_maps.make_maps(tiny.make_peaked_model(n_ctx=N_CTX, n_vocab=257))


@pytest.fixture
def chatting(log_in, maps):
    """Returns (client, conversation, ids of its messages), after two turns."""

    def start(content="one", **options):
        options = {"generator": FakeGenerator(n_ctx=N_CTX), "model": {"attention": maps}} | options
        client = log_in(**options)
        place = begin(client)
        client.post("/chat/settings", json={"system_prompt": "sys", "seed": 7, "token_view": True})
        answer(client, place, content=content)
        answer(client, place, content="two")
        return client, place, [message["id"] for message in read(client, place)]

    return start


@pytest.mark.parametrize("number", [1, 3])
def test_it_is_of_the_prompt_as_the_model_read_it_and_the_answer(chatting, maps, number):
    client, place, messages = chatting()
    client.post("/chat/settings", json={"system_prompt": "sys", "max_tokens": N_CTX})
    body = {"message": messages[number], "layer": 1, "head": 2}
    found = client.post(f"{place}/attention", json=body).json()
    ids = list(b"s:sys|u:one|a:seed 7|u:two|a:seed 7")
    ids = ids[: 20 if number == 1 else None]
    assert "".join(found["tokens"]).encode() == bytes(ids) and found["first"] == 0
    weights = np.frombuffer(base64.b64decode(found["weights"]), "<f4").reshape(len(ids), len(ids))
    np.testing.assert_array_equal(weights, maps.compute(ids, 1, 2).weights_TS)
    assert found["earlier"] == [0] * len(ids)
    mean = client.post(f"{place}/attention", json=body | {"head": None}).json()
    weights = np.frombuffer(base64.b64decode(mean["weights"]), "<f4").reshape(len(ids), len(ids))
    np.testing.assert_array_equal(weights, maps.compute(ids, 1, None).weights_TS)
    session = client.get("/chat/session").json()
    assert session["models"][0]["attention"] == {"n_layers": 2, "n_heads": 4}


def test_the_last_tokens_of_a_long_one(chatting, maps, monkeypatch):
    monkeypatch.setattr(attention_maps, "MAX_TOKENS", 8)
    client, place, messages = chatting()
    body = {"message": messages[3], "layer": 1}
    found = client.post(f"{place}/attention", json=body).json()
    assert "".join(found["tokens"]) == "a:seed 7" and found["first"] == 27
    weights = np.frombuffer(base64.b64decode(found["weights"]), "<f4").reshape(8, 8)
    np.testing.assert_allclose(weights.sum(-1) + found["earlier"], 1, atol=1e-5)


def test_what_a_policy_hid_from_the_model_is_hidden(chatting):
    policy = PolicyFilter(
        safety.Policy(name="t", input=(safety.PersonalData(kinds=("email",), action="mask"),)),
        lambda line: None,
    )
    client, place, messages = chatting("me@example.org", policy=policy)
    body = {"message": messages[1], "layer": 0}
    text = "".join(client.post(f"{place}/attention", json=body).json()["tokens"])
    assert text == "s:sys|u:<email>|a:seed 7"


def test_another_users_conversation_is_not_found(chatting, log_in, maps):
    client, place, messages = chatting()
    body = {"message": messages[1], "layer": 0}
    bob = log_in("bob", model={"attention": maps})
    assert "no such conversation" in error_of(bob.post(f"{place}/attention", json=body), 404)
    own = begin(bob)
    assert error_of(bob.post(f"{own}/attention", json=body), 404)


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"layer": 2}, 400, "layer is 2: give a number from 0 to 1"),
        ({"layer": -1}, 400, "layer"),
        ({"head": 4}, 400, "head is 4: give a number from 0 to 3"),
        ({"layer": "0"}, 400, "layer"),
        ({"message": 999}, 404, "no such answer"),
        ({"message": 1}, 404, "no such answer"),  # the user's
        ({"other": 1}, 400, "Unrecognized request argument"),
    ],
)
def test_what_is_refused(chatting, change, status, words):
    client, place, messages = chatting()
    assert messages[0] == 1
    body = {"message": messages[1], "layer": 0} | change
    assert words in error_of(client.post(f"{place}/attention", json=body), status)


def test_a_model_without_maps(chatting):
    client, place, messages = chatting(model={})
    body = {"message": messages[1], "layer": 0}
    assert "several devices" in error_of(client.post(f"{place}/attention", json=body), 404)
    assert client.get("/chat/session").json()["models"][0]["attention"] is None


def test_one_at_a_time_and_other_requests_go_on(chatting, maps):
    active, most, go_on = [], [], threading.Event()

    def compute(ids, layer, head):
        active.append(None)
        most.append(len(active))
        go_on.wait(5)
        active.pop()
        return maps.compute(ids, layer, head)

    slow = attention_maps.AttentionMaps(2, 4, compute)
    client, place, messages = chatting(model={"attention": slow})
    with client:  # one event loop for all
        body, found = {"message": messages[1], "layer": 0}, []
        threads = [
            threading.Thread(
                target=lambda: found.append(client.post(f"{place}/attention", json=body))
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        while not most:
            pass
        assert client.get("/health").status_code == 200 and not found
        go_on.set()
        for thread in threads:
            thread.join(20)
    assert [response.status_code for response in found] == [200] * 4 and most == [1] * 4
