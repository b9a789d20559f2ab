"""POST /v1/completions, in this process."""

import pytest

from gptjax.server import served_model
from tests import fake_generator
from tests.fake_generator import END, FakeGenerator, events, logprob, make_client


def complete(generator=None, status=200, **body):
    response = make_client(generator).post(
        "/v1/completions", json={"model": "tiny", "prompt": "ab", **body}
    )
    assert response.status_code == status, response.text
    return response.json()


def test_a_completion():
    generator = FakeGenerator()
    whole = complete(generator, seed=7)
    assert whole.pop("id").startswith("cmpl-") and whole.pop("created") > 1_700_000_000
    choice = {"text": "seed 7", "index": 0, "logprobs": None, "finish_reason": "stop"}
    assert whole == {
        "object": "text_completion",
        "model": "tiny",
        "system_fingerprint": "fp_0123456789abcdef",
        "choices": [choice],
        "usage": {"prompt_tokens": 2, "completion_tokens": 7, "total_tokens": 9},
    }
    (request,) = generator.requests
    assert (request.prompt, request.max_tokens, request.end_ids) == ((97, 98), 16, {END})
    assert complete(seed=7, max_tokens=3)["choices"][0] == choice | {
        "text": "see",
        "finish_reason": "length",
    }
    assert complete(seed=7, stop=[" ", "x"])["choices"][0]["text"] == "seed"


def test_settings_reach_the_engine():
    generator = FakeGenerator()
    settings = {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "presence_penalty": -1,
        "frequency_penalty": 1.5,
        "repetition_penalty": 1.2,
        "seed": 5,
    }
    complete(generator, **settings, logit_bias={"97": -100}, ignore_eos=True, best_of=1, stop=None)
    sampling = generator.requests[0].sampling
    assert {name: getattr(sampling, name) for name in settings} == settings
    assert sampling.logit_bias == {97: -100} and generator.requests[0].end_ids == frozenset()
    complete(generator, top_k=-1, structured_outputs={"regex": "a+"})
    assert generator.requests[1].sampling.top_k == 0
    assert generator.requests[1].grammar.source == "a+"


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("é", [(195, 169)]),
        (["a", ""], [(97,), (256,)]),
        ([97, 256], [(97, 256)]),
        ([[1], [2, 3]], [(1,), (2, 3)]),
        ("\ud800", [tuple("\ufffd".encode())]),
    ],
)
def test_prompts_are_texts_or_ids_one_or_several(prompt, ids):
    generator = FakeGenerator()
    client = make_client(generator)
    body = fake_generator.json.dumps({"model": "tiny", "prompt": prompt, "n": 2, "seed": 3})
    response = client.post(
        "/v1/completions", content=body, headers={"Content-Type": "application/json"}
    ).json()
    assert [request.prompt for request in generator.requests] == [x for x in ids for _ in "12"]
    assert [choice["index"] for choice in response["choices"]] == list(range(2 * len(ids)))
    assert response["usage"]["prompt_tokens"] == sum(map(len, ids))


def test_the_first_of_n_choices_is_the_one_without_n():
    texts = [choice["text"] for choice in complete(n=3, seed=7)["choices"]]
    assert texts[0] == complete(seed=7)["choices"][0]["text"] == "seed 7"
    assert len(set(texts)) == 3 and texts == [c["text"] for c in complete(n=3, seed=7)["choices"]]
    assert complete()["choices"] != complete()["choices"], "a seed is drawn"
    for seed in (7, 2**32, 2**63 - 1):
        assert served_model.choice_seed(seed, 0) == seed
        assert 0 <= served_model.choice_seed(-seed, 0) < 2**64
        assert len({served_model.choice_seed(seed, number) for number in range(64)}) == 64


def test_echo_with_logprobs():
    """The tokens of prompt and answer, the end token's too, as lm-evaluation-harness takes them."""
    generator = FakeGenerator(lambda request: [*"ã".encode(), END])
    choice = complete(generator, prompt="é", echo=True, logprobs=2, max_tokens=3)["choices"][0]
    assert choice["text"] == "éã" and choice["finish_reason"] == "stop"
    values, ids = choice["logprobs"], [*"éã".encode(), END]
    assert values["tokens"] == ["\ufffd"] * 4 + ["<|endoftext|>"]
    assert values["token_logprobs"] == [None, *map(logprob, ids[1:])]
    assert values["text_offset"] == [0, 0, 1, 1, 2]
    assert values["top_logprobs"][0] is None
    assert values["top_logprobs"][1] == {"a": logprob(97), "b": logprob(98), "\ufffd": logprob(169)}
    scored = complete(FakeGenerator(), prompt="ab", echo=True, logprobs=0, max_tokens=0)
    assert scored["choices"][0]["text"] == "ab" and scored["usage"]["completion_tokens"] == 0
    assert scored["choices"][0]["logprobs"]["token_logprobs"] == [None, logprob(98)]
    nothing = complete(FakeGenerator(), prompt="ab", logprobs=0, max_tokens=0)["choices"][0]
    assert nothing["text"] == "" and nothing["logprobs"]["token_logprobs"] == []
    assert complete(FakeGenerator(), echo=True, seed=7)["choices"][0]["text"] == "abseed 7"


def test_a_stream_is_the_answer_in_pieces():
    body = {"prompt": ["a", "b"], "n": 2, "seed": 7, "echo": True, "logprobs": 1}
    whole = complete(**body)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    stream = make_client().post("/v1/completions", json={"model": "tiny", **body, **options})
    assert stream.headers["content-type"].startswith("text/event-stream")
    *pieces, last = events(stream)
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert {piece["object"] for piece in pieces} == {"text_completion"}
    assert {piece["usage"] for piece in pieces} == {None}
    for choice in whole["choices"]:
        parts = [p["choices"][0] for p in pieces if p["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        for name, values in choice["logprobs"].items():
            assert sum((part["logprobs"][name] for part in parts), []) == values, name
        assert [part["finish_reason"] for part in parts[:-1]] == [None] * (len(parts) - 1)
        assert parts[-1]["finish_reason"] == choice["finish_reason"]


def test_usage_of_every_event():
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": "tiny", "prompt": "a", "seed": 7, "stream": True, "stream_options": options}
    counts = [
        event["usage"]["completion_tokens"]
        for event in events(make_client().post("/v1/completions", json=body))
    ]
    assert counts == [1, 2, 3, 4, 5, 6, 7, 7]


def test_a_long_prompt_is_refused_and_never_cut():
    generator = FakeGenerator(n_ctx=10)
    assert complete(generator, prompt="a" * 7, max_tokens=3)["usage"]["prompt_tokens"] == 7
    for prompt, n in [("a" * 8, 3), ("a" * 11, 0), (["a", "a" * 8], 3)]:
        error = complete(generator, 400, prompt=prompt, max_tokens=n)["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
        assert "10 tokens" in error["message"]
    assert len(generator.requests) == 1


def test_all_generations_of_a_request_or_none():
    generator = FakeGenerator(max_live=2, gate=fake_generator.threading.Semaphore(0))
    response = make_client(generator).post(
        "/v1/completions", json={"model": "tiny", "prompt": "a", "n": 3}
    )
    assert response.status_code == 503 and response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "overloaded"
    for _ in range(2):
        assert generator.cancelled.acquire(timeout=20)


def test_an_engine_that_fails():
    response = make_client(FakeGenerator(error=RuntimeError("boom"))).post(
        "/v1/completions", json={"model": "tiny", "prompt": "a"}
    )
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (500, "server_error")
    assert "boom" not in error["message"]
    response = make_client(FakeGenerator(error=RuntimeError("boom"))).post(
        "/v1/completions", json={"model": "tiny", "prompt": "a", "stream": True}
    )
    (event,) = response.text.strip().split("\n\n")
    assert '"type": "server_error"' in event and "boom" not in event
