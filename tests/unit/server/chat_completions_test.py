"""POST /v1/chat/completions, in this process."""

import json

import pytest

from gptjax.server.generation import Grammar
from tests.fake_generator import END, TOKENIZER, FakeGenerator, events, logprob, make_client

HELLO = [{"role": "user", "content": "hi"}]


def chat(generator=None, status=200, **body):
    content = json.dumps({"model": "tiny", "messages": HELLO, **body})
    headers = {"Content-Type": "application/json"}
    response = make_client(generator).post("/v1/chat/completions", content=content, headers=headers)
    assert response.status_code == status, response.text
    return response.json()


def test_an_answer():
    generator = FakeGenerator()
    whole = chat(generator, seed=7)
    assert whole.pop("id").startswith("chatcmpl-") and whole.pop("created") > 1_700_000_000
    assert whole == {
        "object": "chat.completion",
        "model": "tiny",
        "system_fingerprint": "fp_0123456789abcdef",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "seed 7", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 7, "total_tokens": 14},
    }
    (request,) = generator.requests
    assert TOKENIZER.decode(request.prompt) == "u:hi|a:"
    assert (request.max_tokens, request.end_ids) == (64 - 7, {END, ord("|")})


def test_messages_as_clients_send_them():
    generator = FakeGenerator()
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": parts, "name": None},
        {"role": "assistant", "content": "c", "refusal": None, "annotations": [], "audio": None},
        {"role": "user", "content": "\ud800", "type": "text"},
    ]
    body = {"tools": [], "tool_choice": "none", "store": False, "user": "u", "metadata": {"a": "b"}}
    chat(generator, messages=messages, **body)
    assert TOKENIZER.decode(generator.requests[0].prompt) == "s:d|u:ab|a:c|u:\ufffd|a:"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_length_of_an_answer(name):
    choice = chat(seed=7, **{name: 3})["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("see", "length")
    error = chat(status=400, **{name: 58})["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    long = [{"role": "user", "content": "a" * 59}]
    assert chat(status=400, messages=long)["error"]["code"] == "context_length_exceeded"


def test_logprobs():
    generator = FakeGenerator(lambda request: [*"é".encode(), 97, END])
    whole = chat(generator, logprobs=True, top_logprobs=1)
    whole = whole["choices"][0]["logprobs"]
    top = {"token": "a", "logprob": logprob(97), "bytes": [97]}
    tokens = [("\ufffd", 195, None), ("\ufffd", 169, None), ("a", 97, [97])]
    assert whole["content"] == [
        {"token": text, "logprob": logprob(i), "bytes": shown, "top_logprobs": [top]}
        for text, i, shown in tokens
    ]
    assert generator.requests[0].logprobs == 1 and not generator.requests[0].echo
    chat(generator, logprobs=True)
    chat(generator)
    assert [request.logprobs for request in generator.requests[1:]] == [0, None]
    kept = chat(generator, logprobs=True, ignore_eos=True)["choices"][0]
    assert kept["message"]["content"] == "éa<|endoftext|>" and kept["logprobs"]["content"][3:]


def test_bytes_of_tokens_that_are_parts_of_a_character():
    generator = FakeGenerator(lambda request: [*"é".encode(), 97, END])
    client = make_client(generator, model={"token_bytes": [bytes([i]) for i in range(256)] + [b""]})
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "logprobs": True}
    content = client.post("/v1/chat/completions", json=body).json()["choices"][0]["logprobs"]
    assert [score["bytes"] for score in content["content"]] == [[195], [169], [97]]


def test_a_stream_is_the_answer_in_pieces():
    body = {"model": "tiny", "messages": HELLO, "n": 2, "seed": 7, "logprobs": True, "stream": True}
    whole = chat(**body | {"stream": False})
    pieces = events(make_client().post("/v1/chat/completions", json=body))
    assert {piece["object"] for piece in pieces} == {"chat.completion.chunk"}
    assert len({piece["id"] for piece in pieces}) == 1 and "usage" not in pieces[0]
    for choice in whole["choices"]:
        parts = [p["choices"][0] for p in pieces if p["choices"][0]["index"] == choice["index"]]
        roles = [part["delta"].get("role") for part in parts]
        assert roles == ["assistant"] + [None] * (len(parts) - 1)
        content = "".join(part["delta"].get("content", "") for part in parts)
        assert content == choice["message"]["content"]
        scores = sum((part["logprobs"]["content"] for part in parts), [])
        assert scores == choice["logprobs"]["content"]
        reasons = [part["finish_reason"] for part in parts]
        assert reasons == [None] * (len(parts) - 1) + ["stop"]


@pytest.mark.parametrize(
    ("asked_for", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        (
            {"response_format": {"type": "json_object"}},
            Grammar("json_schema", '{"type": "object"}'),
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "strict": True, "schema": {"type": "array"}},
                }
            },
            Grammar("json_schema", '{"type": "array"}'),
        ),
        ({"structured_outputs": {"regex": "a|b"}}, Grammar("regex", "a|b")),
    ],
)
def test_the_form_of_an_answer(asked_for, grammar):
    generator = FakeGenerator()
    chat(generator, **asked_for)
    assert generator.requests[0].grammar == grammar


def test_a_form_that_the_engine_does_not_take():
    error = chat(status=400, structured_outputs={"regex": "("})["error"]
    assert error["param"] == "structured_outputs" and "no regular expression" in error["message"]


def test_a_template_that_refuses_and_a_model_without_one():
    error = chat(status=400, messages=[{"role": "user", "content": "refuse"}])["error"]
    assert error["param"] == "messages" and "does not take this conversation" in error["message"]
    response = make_client(model={"chat_template": None}).post(
        "/v1/chat/completions", json={"model": "tiny", "messages": HELLO}
    )
    assert response.status_code == 404
    assert "not a chat model" in response.json()["error"]["message"]
