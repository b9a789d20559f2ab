"""curl against a server in a thread, with the flags that people give it."""

import json
import shutil
import subprocess

import pytest

from gptjax.server import api_keys
from tests import fake_generator
from tests.fake_generator import FakeGenerator

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
KEY = "sk-aaaaaaaaaaaaaaaa"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"alice {KEY}\n")
    with fake_generator.serve(FakeGenerator(), keys=api_keys.load(file)) as (port, _):
        yield f"http://127.0.0.1:{port}/v1"


def curl(*arguments, key=KEY):
    """(what it wrote, its exit status)."""
    command = ["curl", "--silent", "--show-error", "--max-time", "20", *arguments]
    command += ["-H", "Content-Type: application/json", "-H", f"Authorization: Bearer {key}"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert ran.stderr == "" or ran.returncode, ran.stderr
    return ran.stdout, ran.returncode


def test_a_completion(url):
    body = {"model": "tiny", "prompt": "The history of", "max_tokens": 20, "seed": 1}
    out, status = curl(f"{url}/completions", "-d", json.dumps(body))
    whole = json.loads(out)
    assert status == 0 and whole["choices"][0]["text"] == "seed 1"
    assert whole["usage"]["prompt_tokens"] == 14


def test_a_long_body_for_which_curl_asks_first(url):
    """With more than a megabyte curl sends Expect: 100-continue."""
    body = json.dumps({"model": "tiny", "prompt": "x" * 2_000_000})
    command = ["curl", "--silent", "--max-time", "20", "-d", "@-", f"{url}/completions"]
    command += ["-H", "Content-Type: application/json", "-H", f"Authorization: Bearer {KEY}"]
    command += ["-H", "Expect: 100-continue"]
    ran = subprocess.run(command, input=body, capture_output=True, text=True, timeout=30)
    assert "maximum context length is 64 tokens" in json.loads(ran.stdout)["error"]["message"]


def test_a_stream(url):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "seed": 3}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    out, status = curl("--no-buffer", f"{url}/chat/completions", "-d", json.dumps(body))
    events = [line.removeprefix("data: ") for line in out.splitlines() if line]
    assert status == 0 and events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta["content"] for delta in deltas if "content" in delta) == "seed 3"
    assert chunks[-1]["usage"]["completion_tokens"] == 7  # with the end


@pytest.mark.parametrize(
    ("body", "key", "status", "param"),
    [
        ("{", KEY, 400, "body"),
        ('{"model": "tiny", "prompt": "a", "n": 0}', KEY, 400, "n"),
        ('{"model": "other", "prompt": "a"}', KEY, 404, "model"),
        ('{"model": "tiny", "prompt": "a"}', "sk-wrong", 401, None),
    ],
)
def test_errors(url, body, key, status, param):
    out, code = curl("--write-out", "\n%{http_code}", f"{url}/completions", "-d", body, key=key)
    error, _, answered = out.rpartition("\n")
    assert code == 0 and int(answered) == status
    error = json.loads(error)["error"]
    assert error["param"] == param and error["type"] and "\n" not in error["message"]
    _, code = curl("--fail", f"{url}/completions", "-d", body, key=key)
    assert code == 22  # as scripts notice it
