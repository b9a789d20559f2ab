"""The routes besides completions: models, health, metrics, embeddings; keys, limits and the log."""

import base64
import json
import re
import threading
import time

import numpy as np
import pytest

from gptjax.config import safety
from gptjax.safety import prompt_classifier
from gptjax.server import access_log, api_keys, app, moderations, policy_filter, request_body, work
from gptjax.server.generation import GrammarError
from gptjax.server.grammar import TokenBound
from tests import fake_generator
from tests.fake_generator import NAME, FakeGenerator, make_client

BODY = {"model": "tiny", "prompt": "secret", "seed": 7}
KEYS = "alice sk-aaaaaaaaaaaaaaaa\nbob sk-bbbbbbbbbbbbbbbb requests=2 tokens=20\n"


@pytest.fixture
def keys(tmp_path):
    file = tmp_path / "keys"
    file.write_text(KEYS)
    return api_keys.load(file)


def bearer(letter):
    return {"Authorization": f"Bearer sk-{letter * 16}"}


def error_of(response, status):
    assert response.status_code == status, response.text
    return response.json()["error"]


def test_models():
    client = make_client()
    (model,) = client.get("/v1/models").json()["data"]
    assert model == {
        "id": "tiny",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "gptjax",
        "max_model_len": 64,
    }
    assert client.get("/v1/models/tiny").json() == model
    assert error_of(client.get("/v1/models/a/b"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/answers", 404, "unknown_url"),
        ("GET", "/", 404, "unknown_url"),
        ("GET", "/../../etc/passwd", 404, "unknown_url"),
        ("GET", "/v1/completions", 405, "method_not_supported"),
        ("OPTIONS", "/v1/completions", 405, "method_not_supported"),
        ("DELETE", "/v1/models/tiny", 405, "method_not_supported"),
    ],
)
def test_other_urls_and_methods(method, path, status, code):
    response = make_client().request(method, path, headers={"Origin": "http://evil.example"})
    assert error_of(response, status)["code"] == code
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_embeddings():
    client = make_client()
    body = {"model": "tiny", "input": ["ab", "c"]}
    whole = client.post("/v1/embeddings", json=body).json()
    assert whole["data"] == [
        {"object": "embedding", "index": 0, "embedding": [2.0, 97.0, 0.5]},
        {"object": "embedding", "index": 1, "embedding": [1.0, 99.0, 0.5]},
    ]
    assert whole["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    packed = client.post("/v1/embeddings", json=body | {"encoding_format": "base64"}).json()
    content = base64.b64decode(packed["data"][1]["embedding"])
    assert np.frombuffer(content, "<f4").tolist() == [1.0, 99.0, 0.5]
    missing = make_client(model={"embed": None}).post("/v1/embeddings", json=body)
    assert error_of(missing, 404)["param"] == "model"


def test_a_key_is_needed_except_for_health(keys):
    client = make_client(keys=keys)
    for path in ("/v1/models", "/metrics"):
        for headers in ({}, {"Authorization": "Basic eDp5"}, {"Authorization": "Bearer sk-wrong"}):
            response = client.get(path, headers=headers)
            error = error_of(response, 401)
            assert (error["code"], error["type"]) == ("invalid_api_key", "authentication_error")
            assert response.headers["www-authenticate"] == "Bearer"
            assert "wrong" not in error["message"]
        assert client.get(path, headers=bearer("a")).status_code == 200
    assert client.get("/health").json() == {"status": "ok"}
    assert error_of(client.post("/v1/completions", content=b"{"), 401), "before the body is read"


def test_limits_of_a_key(keys):
    client = make_client(keys=keys)
    first = client.post("/v1/completions", json=BODY, headers=bearer("b"))
    assert first.status_code == 200 and first.json()["usage"]["total_tokens"] == 13
    assert client.post("/v1/completions", json=BODY, headers=bearer("b")).status_code == 200
    response = client.post("/v1/completions", json=BODY, headers=bearer("b"))
    error = error_of(response, 429)
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert 15 < int(response.headers["retry-after"]) <= 30 and "requests" in error["message"]
    assert client.get("/v1/models", headers=bearer("b")).status_code == 200
    for _ in range(5):
        assert client.post("/v1/completions", json=BODY, headers=bearer("a")).status_code == 200


def test_tokens_are_counted_against_the_limit(keys):
    client = make_client(keys=keys)
    key = keys.find("sk-" + "b" * 16)
    key.limits["tokens"].take(15)
    client.post("/v1/completions", json=BODY, headers=bearer("b"))
    response = client.post("/v1/completions", json=BODY, headers=bearer("b"))
    assert "tokens" in error_of(response, 429)["message"]
    assert 20 < int(response.headers["retry-after"]) <= 27  # 8 over the limit and 1, at 20 a minute


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("LocalHost.:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ],
)
def test_a_name_that_was_rebound_to_this_machine(host, status):
    client = make_client(local_only=True)
    assert client.get("/v1/models", headers={"Host": host}).status_code == status
    assert make_client().get("/v1/models", headers={"Host": host}).status_code == 200


def test_a_server_that_drains_takes_no_new_requests():
    client = make_client(load=access_log.Load(is_draining=True))
    for response in (client.get("/health"), client.post("/v1/completions", json=BODY)):
        assert error_of(response, 503)["code"] == "shutting_down"
        assert response.headers["retry-after"] == "5"
    assert client.get("/v1/models").status_code == 200


def test_a_server_that_is_full():
    load = access_log.Load(n_active=app.MAX_ACTIVE)
    response = make_client(load=load).post("/v1/completions", json=BODY)
    assert error_of(response, 503)["code"] == "overloaded"
    assert load.n_active == app.MAX_ACTIVE


def test_bodies_are_held_up_to_a_limit_in_all():
    """And let go of with their requests, also of those that were refused."""
    load = access_log.Load(body_bytes=request_body.MAX_BYTES - 200)
    client = make_client(load=load)
    for _ in range(3):
        assert client.post("/v1/completions", json=BODY).status_code == 200
        long = client.post("/v1/completions", json=BODY | {"prompt": "a" * 300})
        assert error_of(long, 503)["code"] == "overloaded" and long.headers["retry-after"] == "1"
        assert load.body_bytes == request_body.MAX_BYTES - 200


def test_a_request_that_takes_too_long():
    generator = FakeGenerator(gate=threading.Semaphore(0))
    client = make_client(generator, time_limit_s=0.05)
    response = client.post("/v1/completions", json=BODY)
    assert error_of(response, 503)["code"] == "timeout"
    assert response.headers["x-should-retry"] == "false"
    assert generator.cancelled.acquire(timeout=20)
    response = client.post("/v1/completions", json=BODY | {"stream": True})
    assert '"code": "timeout"' in response.text and "[DONE]" not in response.text
    assert generator.cancelled.acquire(timeout=20)


def read_forever(texts):
    for _ in range(2000):
        work.check_canceled()
        time.sleep(0.01)
    raise AssertionError("it was not canceled")


@pytest.mark.parametrize("path", ["embeddings", "moderations", "completions"])
def test_the_time_limit_is_for_what_models_read_too(path):
    read_forever.labels = ("harmful",)
    spec = safety.PromptClassifier(model="runs/x", label="harmful", threshold=0.5)
    classifier = prompt_classifier.PromptClassifier(spec, read_forever)
    policy = policy_filter.PolicyFilter(safety.Policy(name="x"), print, [classifier])
    judge = moderations.ModerationModel("judge", read_forever, ("harmful",), list)
    options = {"moderation": judge} if path == "moderations" else {}
    options |= {"policy": policy} if path == "completions" else {}
    client = make_client(model={"embed": read_forever}, time_limit_s=0.1, **options)
    body = {"moderations": {"input": "a"}, "embeddings": {"model": NAME, "input": "a"}}
    body |= {"completions": BODY}
    for _ in range(2):
        response = client.post(f"/v1/{path}", json=body[path])
        error = error_of(response, 503)
        assert error["code"] == "timeout" and "longer than 0.1 seconds" in error["message"]


@pytest.mark.parametrize("path", ["completions", "chat/completions", "embeddings"])
def test_a_text_that_must_be_too_long_is_not_tokenized(monkeypatch, path):
    """White space may be left out by a template or a tokenizer."""
    client = make_client(FakeGenerator(n_ctx=64), model={"token_bound": TokenBound(4)})
    tokenized, kind = [], type(fake_generator.TOKENIZER)
    encode = kind.encode

    def note(tokenizer, text):
        tokenized.append(text)
        return encode(tokenizer, text)

    monkeypatch.setattr(kind, "encode", note)

    def post(text):
        messages = [{"role": "user", "content": text}]
        given = {"prompt": text} if path == "completions" else {"input": text}
        given = {"messages": messages} if "chat" in path else given
        response = client.post(f"/v1/{path}", json={"model": NAME} | given)
        error = error_of(response, 400)
        assert error["code"] == "context_length_exceeded"
        return "has at least 65 tokens" in error["message"], any(text in one for one in tokenized)

    assert post("a" * 261) == (True, False)
    assert post("a" * 259) == (False, True)
    assert post("a " * 259) == (False, True)


def test_more_answers_than_the_server_holds_are_no_reason_to_try_again():
    generator = FakeGenerator()
    generator.max_generations = 3
    client = make_client(generator)
    assert client.post("/v1/completions", json=BODY | {"n": 3}).status_code == 200
    chat = {"model": NAME, "messages": [{"role": "user", "content": "a"}], "n": 4}
    for response in (
        client.post("/v1/completions", json=BODY | {"n": 4}),
        client.post("/v1/chat/completions", json=chat),
    ):
        error = error_of(response, 400)
        assert error["param"] == "n" and "at most 3" in error["message"]


def test_a_grammar_that_takes_too_long_amid_an_answer():
    generator = FakeGenerator(error=GrammarError("regex", "too many steps"))
    client = make_client(generator)
    body = BODY | {"structured_outputs": {"regex": "a+"}}
    error = error_of(client.post("/v1/completions", json=body), 400)
    assert error["param"] == "structured_outputs" and error["message"] == "regex: too many steps"
    response = client.post("/v1/completions", json=body | {"stream": True})
    assert "regex: too many steps" in response.text and "[DONE]" not in response.text


def test_the_access_log_has_no_prompt_unless_asked(keys):
    lines = []
    client = make_client(lines=lines, keys=keys)
    client.post("/v1/completions?token=x", json=BODY, headers=bearer("a"))
    client.get("/v1/a%0Ab")
    answered, unknown = map(json.loads, lines)
    assert "secret" not in lines[0] and "seed 7" not in lines[0] and "token=x" not in lines[0]
    assert "sk-" not in lines[0] and "\n" not in lines[1]
    expected = {
        "client": "testclient",
        "key": "alice",
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "prompt_tokens": 6,
        "completion_tokens": 7,
    }
    assert {name: answered[name] for name in expected} == expected
    assert 0 <= answered["first_token_seconds"] <= answered["seconds"]
    assert (unknown["status"], unknown["key"]) == (404, None)
    client = make_client(lines=lines, log_prompts=True)
    client.post("/v1/completions", json=BODY)
    assert json.loads(lines[-1])["prompts"] == ["secret"] and "seed 7" not in lines[-1]
    client.post(
        "/v1/chat/completions",
        json={"model": "tiny", "messages": [{"role": "user", "content": "x"}]},
    )
    assert json.loads(lines[-1])["prompts"] == ["u:x|a:"]


def test_metrics():
    client = make_client()
    client.post("/v1/completions", json=BODY)
    client.post("/v1/completions", json={})
    client.get("/v1/nothing/of/the/kind")
    text = client.get("/metrics").text
    values = dict(re.findall(r"^(gptjax\S+) (\S+)$", text, re.M))
    for name, value in {
        "gptjax_slots": 8,
        "gptjax_active_slots": 0,
        "gptjax_queue_depth": 0,
        "gptjax_prompt_tokens_total": 5,
        "gptjax_cached_prompt_tokens_total": 2,
        "gptjax_generated_tokens_total": 7,
        'gptjax_requests_total{route="/v1/completions",status="200"}': 1,
        'gptjax_requests_total{route="/v1/completions",status="400"}': 1,
        'gptjax_requests_total{route="other",status="404"}': 1,
        "gptjax_time_to_first_token_seconds_count": 1,
        "gptjax_time_between_tokens_seconds_count": 6,
    }.items():
        assert float(values[name]) == value, name
    between = float(values["gptjax_time_between_tokens_seconds_sum"])
    first = float(values["gptjax_time_to_first_token_seconds_sum"])
    whole = float(values['gptjax_request_seconds_sum{route="/v1/completions"}'])
    assert 0 < first < whole and first + between <= whole
