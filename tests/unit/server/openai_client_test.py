"""The official client `openai` against a server in a thread."""

import pytest

openai = pytest.importorskip("openai", reason="needs openai, of requirements-dev.txt")

from gptjax.server import api_keys  # noqa: E402
from tests import fake_generator  # noqa: E402
from tests.fake_generator import FakeGenerator, logprob  # noqa: E402

HELLO = [{"role": "user", "content": "hi"}]
KEYS = "alice sk-aaaaaaaaaaaaaaaa\nbob sk-bbbbbbbbbbbbbbbb requests=1\n"


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(KEYS)
    with fake_generator.serve(FakeGenerator(), keys=api_keys.load(file)) as (port, _):
        yield port


@pytest.fixture
def connect(port):
    clients = []

    def connect(key="sk-aaaaaaaaaaaaaaaa", **options):
        url = f"http://127.0.0.1:{port}/v1"
        clients.append(openai.OpenAI(base_url=url, api_key=key, max_retries=0, **options))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


def test_models(connect):
    assert [model.id for model in connect().models.list()] == ["tiny"]
    assert connect().models.retrieve("tiny").owned_by == "gptjax"


def test_completions(connect):
    answer = connect().completions.create(
        model="tiny", prompt=["a", "b"], n=2, seed=7, logprobs=1, echo=True, stop=" "
    )
    assert [choice.text for choice in answer.choices][::2] == ["aseed", "bseed"]
    assert answer.choices[0].logprobs.token_logprobs[:2] == [None, logprob(ord("s"))]
    assert answer.usage.prompt_tokens == 2


def test_chat(connect):
    answer = connect().chat.completions.create(
        model="tiny", messages=HELLO, n=2, seed=7, logprobs=True, top_logprobs=2
    )
    first = answer.choices[0]
    assert (first.message.content, first.finish_reason) == ("seed 7", "stop")
    assert [token.token for token in first.logprobs.content] == list("seed 7")
    assert len(first.logprobs.content[0].top_logprobs) == 2
    assert len(answer.choices) == 2 and answer.system_fingerprint.startswith("fp_")


def test_streams(connect):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = connect().chat.completions.create(
        model="tiny", messages=HELLO, seed=7, **options
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "seed 7"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert (last.choices, last.usage.completion_tokens) == ([], 7)
    pieces = connect().completions.create(model="tiny", prompt="a", seed=7, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == "seed 7"


def test_embeddings(connect):
    answer = connect().embeddings.create(model="tiny", input=["ab", "c"])  # base64, by default
    assert [item.embedding for item in answer.data] == [[2.0, 97.0, 0.5], [1.0, 99.0, 0.5]]


def test_errors(connect):
    client = connect()
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="a", temperature=3)
    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=100)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-4", prompt="a")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError) as caught:
        connect("sk-wrong").models.list()
    assert caught.value.code == "invalid_api_key"
    limited = connect("sk-bbbbbbbbbbbbbbbb")
    limited.completions.create(model="tiny", prompt="a")
    with pytest.raises(openai.RateLimitError) as caught:
        limited.completions.create(model="tiny", prompt="a")
    assert 50 < int(caught.value.response.headers["retry-after"]) <= 60


def test_errors_within_a_stream():
    generator = FakeGenerator(error=RuntimeError("boom"))
    with fake_generator.serve(generator) as (port, _):
        url = f"http://127.0.0.1:{port}/v1"
        with openai.OpenAI(base_url=url, api_key="x", max_retries=0) as client:
            stream = client.completions.create(model="tiny", prompt="a", stream=True)
            with pytest.raises(openai.APIError, match="had an error while answering"):
                list(stream)
            with pytest.raises(openai.InternalServerError):
                client.completions.create(model="tiny", prompt="a")
