"""Malformed requests: each is refused with a 4xx that has a param and one clear line, never 500."""

import copy
import json
import random

import pytest

from gptjax.server import request_body
from tests.fake_generator import FakeGenerator, make_client

BODIES = {
    "completions": {"model": "tiny", "prompt": "ab"},
    "chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]},
    "embeddings": {"model": "tiny", "input": "ab"},
}
JSON = {"Content-Type": "application/json"}


class Missing:
    """In place of a value: the field is left out."""

    def __repr__(self) -> str:
        return "missing"


MISSING = Missing()
CASES = [
    # route, field, value, param if another than the field
    *[("completions", "prompt", x) for x in (MISSING, None, 5, True, {}, [], [[]], ["a", 1])],
    *[("completions", "prompt", x) for x in ([True], [1.5], [[1], []], [-1], [257], [10**30])],
    *[("completions", "prompt", x) for x in ([None], [[97], [98.0]], ["a"] * 129, "a" * 65)],
    *[("completions", "model", x) for x in (MISSING, 5, "gpt-4", "", "\ud800")],
    *[("completions", "max_tokens", x) for x in (-1, 1.0, "5", True, 2**63, 10**4000)],
    *[("completions", "temperature", x) for x in (-0.1, 2.1, "1", True, 10**400, [1])],
    *[("completions", "top_p", x) for x in (0, 1.1, -1)],
    *[("completions", "top_k", x) for x in (-2, 1.5, False)],
    *[("completions", "min_p", x) for x in (-0.1, 2)],
    *[("completions", "n", x) for x in (0, 129, 1.5, "2")],
    *[("completions", "best_of", x) for x in (2, True, 1.0)],
    *[("completions", "suffix", x) for x in ("", "x")],
    *[("completions", "logprobs", x) for x in (-1, 21, True)],
    *[("completions", "echo", x) for x in (1, "true")],
    *[("completions", "stream", x) for x in (1, "true", [])],
    *[("completions", "stop", x) for x in ("", [""], 5, ["a"] * 17, "a" * 257, [1], "\ud800")],
    *[("completions", "seed", x) for x in (1.5, "1", 2**63, -(2**63) - 1, True)],
    *[("completions", "presence_penalty", x) for x in (-2.1, "0")],
    *[("completions", "frequency_penalty", x) for x in (2.1, None.__class__.__name__)],
    *[("completions", "repetition_penalty", x) for x in (0, -1, 1e-45)],
    *[("completions", "logit_bias", x) for x in ([], {"a": 1}, {"1": 101}, {"257": 1}, {"1": "x"})],
    *[("completions", "logit_bias", x) for x in ({"²": 1}, {str(i): 1 for i in range(301)})],
    *[("completions", "ignore_eos", x) for x in (0, "no")],
    *[("completions", "user", x) for x in (5, {})],
    *[("completions", "metadata", x) for x in ([], {"a": 1})],
    *[("completions", x, 1) for x in ("use_beam_search", "temprature", "", "messages")],
    ("completions", "stream_options", {"include_usage": True}),
    ("completions", "response_format", "json"),
    ("completions", "response_format", {}, "response_format.type"),
    ("completions", "response_format", {"type": "xml"}, "response_format.type"),
    *[("chat/completions", "messages", x) for x in (MISSING, [], {}, "hi", 5)],
    *[("chat/completions", "messages", x, "messages[0]") for x in (["hi"], [None], [[]])],
    ("chat/completions", "messages", [{}], "messages[0].role"),
    ("chat/completions", "messages", [{"role": "user"}], "messages[0].content"),
    *[
        ("chat/completions", "messages", [{"role": x, "content": "hi"}], "messages[0].role")
        for x in ("tool", "User", 5, "\ud800")
    ],
    *[
        ("chat/completions", "messages", [{"role": "user", "content": x}], "messages[0].content")
        for x in (5, {}, [], None)
    ],
    (
        "chat/completions",
        "messages",
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        "messages[0].content[0].type",
    ),
    (
        "chat/completions",
        "messages",
        [{"role": "user", "content": "x", "tool_calls": [{}]}],
        "messages[0].tool_calls",
    ),
    *[("chat/completions", "max_tokens", x) for x in (0, -1, True)],
    *[("chat/completions", "logprobs", x) for x in (1, 5)],
    *[("chat/completions", "top_logprobs", x) for x in (5, 21, -1)],
    *[("chat/completions", "tools", x) for x in ([{}], {}, "x")],
    *[("chat/completions", "tool_choice", x) for x in ("required", {})],
    *[
        ("chat/completions", x, "x")
        for x in ("audio", "functions", "reasoning_effort", "verbosity")
    ],
    ("chat/completions", "store", True),
    ("chat/completions", "modalities", ["audio"]),
    ("chat/completions", "prompt", "x"),
    ("chat/completions", "response_format", {"type": "json_schema"}, "response_format.json_schema"),
    (
        "chat/completions",
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "x", "schema": []}},
        "response_format.json_schema.schema",
    ),
    *[("embeddings", "input", x) for x in (MISSING, [], 5, [300], "a" * 65, ["a"] * 2049)],
    *[("embeddings", "encoding_format", x) for x in ("hex", 5)],
    ("embeddings", "dimensions", 8),
]


@pytest.fixture(scope="module")
def client():
    return make_client(FakeGenerator())


def check(response, param=None):
    """The error of a refusal that a client can do something with."""
    assert 400 <= response.status_code < 500, response.text
    (error,) = response.json().values()
    assert sorted(error) == ["code", "message", "param", "type"]
    message = error["message"]
    assert 10 < len(message) <= 2000 and message.isprintable(), message
    assert not any(word in message for word in ("Traceback", "pydantic", "Input should")), message
    assert error["type"] == "invalid_request_error" and error["param"], error
    if param is not None:
        assert error["param"] == param
    return error


def post(client, route, body):
    content = body if isinstance(body, bytes) else json.dumps(body)
    return client.post(f"/v1/{route}", content=content, headers=JSON)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[:2]}-{case[2]!r:.30}")
def test_one_wrong_field(client, case):
    route, field, value, *param = case
    body = dict(BODIES[route])
    if value is MISSING:
        del body[field]
    else:
        body[field] = value
    error = check(post(client, route, body), *param or [field or "body"])
    if field == "model" and isinstance(value, str):
        assert error["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"model": "tiny", "prompt": "a",}', "not JSON"),
        (b"[]", "give an object"),
        (b'"x"', "give an object"),
        (b"null", "give an object"),
        (b"1" * 5000, "too many digits"),
        (b'{"model": "tiny", "prompt": "a", "temperature": NaN}', "NaN"),
        (b'{"model": "tiny", "prompt": "a", "temperature": -Infinity}', "Infinity"),
        (b'{"model": "tiny", "prompt": "a", "temperature": 1e999}', "temperature"),
        (b'{"model": "tiny", "prompt": "a", "prompt": "b"}', "twice"),
        (b'{"model": "tiny", "prompt": "a", "\\ud800": 1}', "surrogate"),
        (b'{"model": "tiny", "prompt": "\xff"}', "not UTF-8"),
        (b'{"model": "tiny", "prompt": "a\x00"}', "zero byte"),
        ('{"model": "tiny", "prompt": "a"}'.encode("utf-16"), "not text"),
        (b"[" * 100_000, "within each other"),
        (b'{"a":' * 100_000, "within each other"),
        (b'{"prompt":' + b"[" * 70 + b"]" * 70 + b"}", "within each other"),
    ],
    ids=lambda x: f"{x!r:.25}",
)
def test_bodies_that_are_no_request(client, content, words):
    assert words in check(post(client, "completions", content))["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": ""}, 415),
        (JSON | {"Content-Encoding": "gzip"}, 415),
        (JSON | {"Content-Length": str(10**8)}, 413),
        (JSON | {"Content-Length": "9" * 30}, 413),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
    ],
)
def test_headers(client, headers, status):
    body = json.dumps(BODIES["completions"])
    response = client.post("/v1/completions", content=body, headers=headers)
    assert response.status_code == status
    if status != 200:
        check(response)


def test_a_body_of_100_mb_is_refused_before_it_has_come(client):
    sent = 0

    def chunks():
        nonlocal sent
        for _ in range(100):
            sent += 1 << 20
            yield b" " * (1 << 20)

    response = client.post("/v1/completions", content=chunks(), headers=JSON)
    assert check(response, "body") and response.status_code == 413
    assert request_body.MAX_BODY_BYTES < sent


VALUES = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 1.5, -0.0, 1e308, "", "x", "\ud800"),
    *("a" * 3000, [], [[]], [0], [None], ["a"], {}, {"a": 1}, {"type": "text"}, [{}], [[[1]]]),
]


def mutate(rng: random.Random, value, depth: int = 0):
    """The value with one place changed."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name, value = rng.choice(list(value)), dict(value)
        change = rng.random()
        if change < 0.15:
            del value[name]
        elif change < 0.3:
            value[rng.choice(["x", "\ud83d", "", "role", "n" * 300])] = rng.choice(VALUES)
        else:
            value[name] = mutate(rng, value[name], depth + 1)
        return value
    if isinstance(value, list) and value and rng.random() < 0.7:
        value = list(value)
        place = rng.randrange(len(value))
        value[place] = mutate(rng, value[place], depth + 1)
        return value
    return copy.deepcopy(rng.choice(VALUES))


FULL = {
    "temperature": 1,
    "top_p": 1,
    "n": 1,
    "stop": ["x"],
    "seed": 1,
    "logit_bias": {"5": 1},
    "stream": False,
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
    "user": "u",
}


def test_500_mutated_bodies(client):
    """Taken, or refused like the others; and most are refused."""
    rng, n_refused = random.Random(20), 0
    for number in range(500):
        route = rng.choice(list(BODIES))
        body = BODIES[route] | (FULL if route != "embeddings" else {})
        for _ in range(rng.choice([1, 1, 2, 4])):
            body = mutate(rng, body)
        content = json.dumps(body).encode()
        if number % 5 == 0:
            place = rng.randrange(len(content))
            content = content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :]
        response = post(client, route, content)
        if response.status_code != 200:
            n_refused += 1
            check(response)
    assert 300 < n_refused < 500
