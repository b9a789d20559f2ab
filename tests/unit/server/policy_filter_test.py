"""Policies of the server: prompts and answers after their filters, in this process."""

import asyncio
import json
import threading

import pytest

from gptjax.config import safety
from gptjax.safety import prompt_classifier
from gptjax.server import generation, policy_filter
from gptjax.server.generation import Piece
from tests import planted
from tests.fake_generator import TOKENIZER, FakeGenerator, events, make_client

CARD = "4111 1111 1111 1111"
FILTERS = (safety.PersonalData(), safety.Credentials(), safety.Secrets(texts=planted.TEXTS))
REFUSE = (safety.PersonalData(action="refuse"),)
LOG = (safety.PersonalData(action="log"),)
ROUTES = {
    "/v1/completions": {"prompt": "hi", "max_tokens": 40},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
}


class Writer(FakeGenerator):
    """Writes the pieces it is given."""

    def __init__(self, parts, finish_reason: generation.FinishReason = "stop"):
        super().__init__()
        self.pieces = [Piece(part, (), 1) for part in parts]
        self.pieces.append(Piece("", (), 1, finish_reason))

    def submit(self, request, on_piece, on_error):
        for piece in self.pieces:
            on_piece(piece)
        return self

    def cancel(self):
        self.cancelled.release()


class Scorer:
    """How harmful a text is: a tenth for each letter x."""

    labels = ("harmful", "harmless")

    def __init__(self):
        self.texts = []

    def __call__(self, texts):
        self.texts += texts
        return [{"harmful": text.count("x") / 10, "harmless": 0.9} for text in texts]


class Names:
    """Jane and Doe are persons. Is not called in an event loop."""

    labels = ("none", "person")

    def __call__(self, pairs):
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        scores = [float(left.endswith(("Jane", "Doe"))) for left, _ in pairs]
        return [{"none": 1 - score, "person": score} for score in scores]


def client(generator=None, lines=None, classifiers=(), **policy):
    write = (lambda line: None) if lines is None else lines.append
    found = policy_filter.PolicyFilter(
        safety.Policy(name="test", **policy), write, classifiers, lambda path: Names()
    )
    return make_client(generator, policy=found)


def classifier(scorer, **changes):
    spec = safety.PromptClassifier(model="runs/x", label="harmful", threshold=0.5, **changes)
    return prompt_classifier.PromptClassifier(spec, scorer)


def post(used, path="/v1/completions", status=200, **body):
    response = used.post(path, json={"model": "tiny", **ROUTES[path], "seed": 7, **body})
    assert response.status_code == status, response.text
    return response


def text_of(choice):
    if "message" in choice or "delta" in choice:
        choice = choice.get("message") or choice["delta"] | {"text": None}
    return choice.get("text") or choice.get("content") or ""


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("kind", planted.SECRETS)
def test_no_character_of_a_secret_leaves_at_any_split(kind, path):
    secret = min(planted.SECRETS[kind], key=len)
    text, expected = f"It is {secret}.", f"It is <{kind}>."
    for parts in [*([text[:cut], text[cut:]] for cut in range(len(text))), list(text)]:
        used = client(Writer(parts), output=FILTERS)
        whole = post(used, path).json()["choices"][0]
        assert (text_of(whole), whole["finish_reason"]) == (expected, "stop")
        pieces = [event["choices"][0] for event in events(post(used, path, stream=True))]
        assert "".join(map(text_of, pieces)) == expected
        assert [piece["finish_reason"] for piece in pieces] == [None] * len(parts) + ["stop"]


@pytest.mark.parametrize("path", ROUTES)
def test_names_that_a_classifier_finds_outside_of_the_event_loop(path):
    words = safety.WordClassifier(model="runs/words")
    text, expected = "Ask Jane Doe.", "Ask <person>."
    for parts in [*([text[:cut], text[cut:]] for cut in range(len(text))), list(text)]:
        used = client(Writer(parts), output=(*FILTERS, words))
        assert text_of(post(used, path).json()["choices"][0]) == expected
        pieces = [event["choices"][0] for event in events(post(used, path, stream=True))]
        assert "".join(map(text_of, pieces)) == expected
    generator = FakeGenerator()
    post(client(generator, input=(words,)), prompt="of Jane, is it?")
    assert TOKENIZER.decode(generator.requests[0].prompt) == "of <person>, is it?"


def test_a_secret_that_the_prompt_begins():
    used = client(Writer([CARD[12:], " it is"]), output=FILTERS)
    whole = post(used, prompt=["a", f"It is {CARD[:12]}"], n=2).json()
    texts = [f"{CARD[12:]} it is"] * 2 + ["<card> it is"] * 2
    assert [choice["text"] for choice in whole["choices"]] == texts


def test_what_is_cut_off_by_the_length_is_filtered_too():
    used = client(Writer(["card ", CARD], "length"), output=FILTERS)
    assert post(used).json()["choices"][0] | {"index": 0} == {
        "text": "card <card>", "index": 0, "logprobs": None, "finish_reason": "length"
    }  # fmt: skip


@pytest.mark.parametrize("path", ROUTES)
def test_a_refusal_ends_its_choice_and_no_other(path):
    def script(request):
        is_first = request.sampling.seed == 7
        return (f"a {CARD} b c d" if is_first else "all is well.").encode()

    used = client(FakeGenerator(script), output=REFUSE)
    for choice, text, reason in zip(
        post(used, path, n=2).json()["choices"],
        ("a ", "all is well."),
        ("content_filter", "length"),
        strict=True,
    ):
        assert (text_of(choice), choice["finish_reason"]) == (text, reason)
    pieces = [event["choices"][0] for event in events(post(used, path, n=2, stream=True))]
    for number, text, reason in ((0, "a ", "content_filter"), (1, "all is well.", "length")):
        parts = [piece for piece in pieces if piece["index"] == number]
        assert "".join(map(text_of, parts)) == text
        reasons = [piece["finish_reason"] for piece in parts]
        assert reasons == [None] * (len(reasons) - 1) + [reason]


def test_a_refusal_frees_the_slot():
    gate = threading.Semaphore(len(CARD) + 3)
    generator = FakeGenerator(lambda request: f"{CARD} is it".encode(), gate=gate)
    assert post(client(generator, output=REFUSE)).json()["choices"][0]["text"] == ""
    assert generator.cancelled.acquire(timeout=20)


def test_the_engine_reads_what_the_filters_of_input_leave():
    generator = FakeGenerator()
    used = client(generator, input=FILTERS)
    post(used, prompt=[f"a {CARD} b", "c"])
    parts = [{"type": "text", "text": f"d {CARD[:9]}"}, {"type": "text", "text": CARD[9:]}]
    messages = [{"role": "system", "content": "e"}, {"role": "user", "content": parts}]
    post(used, "/v1/chat/completions", messages=messages)
    prompts = [TOKENIZER.decode(request.prompt) for request in generator.requests]
    assert prompts == ["a <card> b", "c", "s:e|u:d <card>|a:"]
    body = {"model": "tiny", "input": [f"a {CARD}", "b"]}
    embeddings = used.post("/v1/embeddings", json=body).json()
    assert embeddings["usage"]["prompt_tokens"] == len("a <card>") + 1


def test_a_prompt_that_is_refused():
    lines, generator = [], FakeGenerator()
    used = client(generator, lines, input=REFUSE)
    for path, body, param in [
        ("/v1/completions", {"prompt": CARD}, "prompt"),
        ("/v1/completions", {"prompt": ["a", CARD]}, "prompt[1]"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": CARD}]}, "messages[0]"),
    ]:
        response = post(used, path, 400, **body)
        error = response.json()["error"]
        assert (error["code"], error["param"]) == ("content_filter", param)
        assert "a payment card number" in error["message"] and "1111" not in response.text
        line = json.loads(lines.pop())
        assert (line["request"], line["param"]) == (response.headers["x-request-id"], param)
    error = post(used, status=400, prompt=CARD * 9).json()["error"]
    assert error["code"] == "context_length_exceeded", "before it is searched"
    assert generator.requests == lines == []


def test_interventions_have_the_request_and_nothing_of_the_text():
    lines = []
    used = client(Writer(["a", f" {CARD}", " and b@example.com"]), lines, input=LOG, output=FILTERS)
    response = post(used, prompt=f"{CARD}!", n=2)
    found = [json.loads(line) for line in lines]
    assert {line["request"] for line in found} == {response.headers["x-request-id"]}
    first, *rest = found
    assert (first["side"], first["param"], first["action"]) == ("input", "prompt", "log")
    answers = [(line["side"], line["choice"], line["kind"], line["action"]) for line in rest]
    assert sorted(answers) == [
        ("output", number, kind, "mask") for number in (0, 1) for kind in ("card", "email")
    ]
    assert all("number" in line["reason"] or "address" in line["reason"] for line in found)
    assert first["digest"] in {line["digest"] for line in rest}  # of the same card
    assert not any("1111" in line or "example" in line for line in lines)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"logprobs": 0}, "logprobs"),
        ("/v1/completions", {"echo": True}, "echo"),
        ("/v1/completions", {"prompt": [1, 2]}, "prompt"),
        ("/v1/completions", {"prompt": [[1], [2]]}, "prompt"),
        ("/v1/chat/completions", {"logprobs": True}, "logprobs"),
    ],
)
def test_what_would_go_past_the_filters(path, body, param):
    for action in ("mask", "refuse"):
        used = client(output=(*LOG, safety.Credentials(action=action)))
        error = post(used, path, 400, **body).json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", param)
        assert error["message"].startswith(f"{param} would go past the filters of this server's")
    post(client(output=LOG), path, **body)
    input_only = client(input=FILTERS)
    post(input_only, path, 400 if param == "prompt" else 200, **body)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "form",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}},
        {"structured_outputs": {"regex": r"jane\\u0040example\.com"}},
    ],
)
def test_a_form_that_the_filters_may_break(path, form):
    (param,) = form
    for action in ("mask", "refuse"):
        used = client(output=(*LOG, safety.Credentials(action=action)))
        error = post(used, path, 400, **form).json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", param)
        assert error["message"].startswith(f"{param} states a form, which the filters of this")
        post(used, path, response_format={"type": "text"})
    post(client(input=FILTERS, output=LOG), path, **form)


def test_ids_of_texts_to_embed_go_past_the_filters_of_input():
    body = {"model": "tiny", "input": [1, 2]}
    assert client(input=LOG).post("/v1/embeddings", json=body).status_code == 400
    assert client(output=FILTERS).post("/v1/embeddings", json=body).status_code == 200


def messages(*contents):
    roles = ("system", "user", "assistant", "user", "developer")
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "x" * 5}, "prompt"),
        ("/v1/completions", {"prompt": ["fine", "x" * 5]}, "prompt[1]"),
        ("/v1/chat/completions", {"messages": messages("s", "u", "a", "x" * 5)}, "messages[3]"),
        ("/v1/chat/completions", {"messages": messages("s", "x" * 5, "", "u")}, "messages[1]"),
        ("/v1/chat/completions", {"messages": messages("x" * 5, "u")}, "messages[0]"),
        ("/v1/chat/completions", {"messages": messages("", "", "", "", "xxxxx")}, "messages[4]"),
    ],
)
def test_a_prompt_that_a_classifier_takes_for_harmful(path, body, param):
    generator, lines = FakeGenerator(), []
    used = client(generator, lines, [classifier(Scorer())])
    response = post(used, path, 400, **body)
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("content_filter", param)
    assert error["message"].startswith(f"{param} is taken for harmful, which the policy of this")
    assert generator.requests == [] and "xxxxx" not in response.text
    (line,) = map(json.loads, lines)
    assert line.pop("reason").startswith("a classifier takes it for harmful")
    assert line == {
        "request": response.headers["x-request-id"], "side": "input", "param": param,
        "kind": "harmful", "action": "refuse", "score": 0.5, "threshold": 0.5,
    }  # fmt: skip


def test_what_a_classifier_lets_pass_and_does_not_read():
    lines, scorer = [], Scorer()
    used = client(None, lines, [classifier(scorer)], input=(safety.PersonalData(),))
    chat = messages("s", f"xxxx {CARD}", "x" * 9)
    post(used, "/v1/chat/completions", messages=chat)
    assert scorer.texts == ["s", "xxxx <card>"], "after the filters, without the assistant"
    assert [json.loads(line)["kind"] for line in lines] == ["card"]
    used = client(None, lines, [classifier(scorer, action="log")])
    post(used, prompt="x" * 5)
    assert json.loads(lines[-1])["action"] == "log" and len(lines) == 2
    assert used.post("/v1/embeddings", json={"model": "tiny", "input": [1]}).status_code == 200
    for prompt in ([1, 2], [[1], [2]]):
        error = post(used, status=400, prompt=prompt).json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", "prompt")
