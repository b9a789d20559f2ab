"""POST /v1/moderations, by a scorer that counts words."""

import json
import threading

import pytest

openai = pytest.importorskip("openai", reason="needs openai, of requirements-dev.txt")

from gptjax.server import api_keys, moderations  # noqa: E402
from tests import fake_generator  # noqa: E402
from tests.fake_generator import TOKENIZER, FakeGenerator, make_client  # noqa: E402

KEYS = "alice sk-aaaaaaaaaaaaaaaa\nbob sk-bbbbbbbbbbbbbbbb tokens=9\n"


class Scorer:
    """A probability of each label for its name in a text."""

    labels = ("fine", "fraud", "violence")

    def __init__(self):
        self.threads, self.texts = [], []

    def __call__(self, texts):
        self.threads.append(threading.current_thread())
        self.texts += texts
        return [{label: 0.1 + 0.4 * text.count(label) for label in self.labels} for text in texts]


def make_model(scorer=None, labels=("fraud", "violence")):
    return moderations.ModerationModel("judge", scorer or Scorer(), labels, TOKENIZER.encode)


def post(status=200, model=None, **body):
    client = make_client(moderation=model or make_model())
    headers = {"Content-Type": "application/json"}
    response = client.post("/v1/moderations", content=json.dumps(body), headers=headers)
    assert response.status_code == status, response.text
    return response.json()


def test_each_text_has_its_own_scores_of_the_harmful_labels_alone():
    answer = post(input=["fraud", "fine fine", "violence, fraud and fraud"])
    assert answer["model"] == "judge" and answer["id"].startswith("modr-")
    assert answer["results"] == [
        {
            "flagged": is_flagged,
            "categories": {"fraud": fraud >= 0.5, "violence": violence >= 0.5},
            "category_scores": {"fraud": fraud, "violence": violence},
        }
        for is_flagged, fraud, violence in [(True, 0.5, 0.1), (False, 0.1, 0.1), (True, 0.9, 0.5)]
    ]


def test_parts_are_one_text():
    parts = [{"type": "text", "text": "fraud"}, {"type": "text", "text": "violence"}]
    scorer = Scorer()
    post(input=parts, model=make_model(scorer))
    post(input="one", model=make_model(scorer))
    post(input=["", "\ud800"], model=make_model(scorer))
    assert scorer.texts == ["fraud\nviolence", "one", "", "\ud800"]


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        ({}, 400, "input", "input is missing"),
        ({"input": []}, 400, "input", "none of the lists empty"),
        ({"input": [1]}, 400, "input", "give a text, a list of texts"),
        ({"input": ["a", {"type": "text", "text": "b"}]}, 400, "input", "give a text, a list of"),
        ({"input": [{"type": "image_url", "image_url": {}}]}, 400, "input", "give a text, a list"),
        ({"input": "a", "stream": True}, 400, "stream", "Unrecognized request argument"),
        ({"input": ["a"] * 129}, 400, "input", "129 texts: give at most 128"),
        ({"input": ["a" * 32_000, "b" * 769]}, 400, "input", "32,769 tokens: give at most 32,768"),
        ({"input": "a", "model": "tiny"}, 404, "model", "texts are moderated by 'judge'"),
    ],
)
def test_what_is_refused(body, status, param, words):
    client = make_client(moderation=make_model())
    response = client.post("/v1/moderations", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert words in error["message"] and "\n" not in error["message"]


def test_without_a_model_it_says_what_to_start():
    response = make_client().post("/v1/moderations", json={"input": "a"})
    assert response.status_code == 404
    assert "start it with --moderation_model=DIR:LABEL" in response.json()["error"]["message"]


def test_texts_are_in_no_log_and_scored_in_a_thread_of_their_own():
    lines, scorer = [], Scorer()
    client = make_client(lines=lines, moderation=make_model(scorer), log_prompts=True)
    assert client.post("/v1/moderations", json={"input": "fraud!"}).status_code == 200
    assert '"prompt_tokens": 6' in lines[0] and "fraud" not in lines[0]
    assert "AnyIO worker thread" in scorer.threads[0].name


def test_the_official_client(tmp_path):
    (tmp_path / "keys").write_text(KEYS)
    options = {"keys": api_keys.load(tmp_path / "keys"), "moderation": make_model()}
    with fake_generator.serve(FakeGenerator(), **options) as (port, _):

        def client(key):
            url = f"http://127.0.0.1:{port}/v1"
            return openai.OpenAI(base_url=url, api_key=key, max_retries=0)

        with client("sk-aaaaaaaaaaaaaaaa") as alice, client("sk-bbbbbbbbbbbbbbbb") as bob:
            first, second = alice.moderations.create(input=["it is fraud", "hello"]).results
            assert (first.flagged, second.flagged) == (True, False)
            assert first.categories.model_extra == {"fraud": True}  # violence is OpenAI's own
            assert first.categories.violence is False
            assert first.category_scores.violence == second.category_scores.violence == 0.1
            bob.moderations.create(input="ten letters", model="judge")
            with pytest.raises(openai.RateLimitError):
                bob.moderations.create(input="a")
            with pytest.raises(openai.AuthenticationError), client("sk-wrong") as other:
                other.moderations.create(input="a")
