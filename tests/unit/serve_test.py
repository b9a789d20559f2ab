"""python -m gptjax.serve: its flags, and a server by it that SIGTERM ends."""

import contextlib
import io
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import types
import urllib.error
import urllib.request

import pytest

pytest.importorskip("starlette", reason="needs requirements-serve.txt")

from gptjax import sample, serve  # noqa: E402
from gptjax.server.chat_page import accounts, database, page  # noqa: E402

PROGRAM = """
import sys, types
from gptjax import sample, serve
from gptjax.server import batcher
from tests import fake_generator
class Batcher(fake_generator.FakeGenerator):
    def __init__(self, lm, tokenizer, n_slots, capacity, max_queue):
        super().__init__(n_ctx=capacity, max_live=n_slots + max_queue)
    def close(self):
        print("closed", flush=True)
batcher.Batcher = Batcher
model = types.SimpleNamespace(
    config=types.SimpleNamespace(name="tiny"), description="step 3", digest="0" * 16,
    mesh=types.SimpleNamespace(size=1),
    tokenizer=fake_generator.TOKENIZER, chat_template=fake_generator.Template(),
    inference_model=types.SimpleNamespace(model=types.SimpleNamespace(
        config=types.SimpleNamespace(n_ctx=64, n_layers=2, n_heads=4))))
sample.load_model = lambda *given: model
serve.main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--host=0.0.0.0"], "--host=0.0.0.0 lets others than this machine in: give --api_keys"),
        (["--host=example.org"], "lets others than this machine in"),
        (["--api_keys=keys", "--allow_unauthenticated"], "exclude each other"),
        (["--api_keys=missing"], "missing cannot be read"),
        (["--api_keys=keys"], "line 1 has no key"),
        (["--policy=none"], "none"),
        (["--policy=log"], "--policy=log only records what it finds: give --intervention_log"),
        (["--intervention_log=found"], "--policy=off searches for nothing"),
        (["--policy=mask", "--intervention_log=missing/found"], "cannot be written"),
        (["--users=missing"], "--users=missing is not there: make it by python -m gptjax.serve"),
        (["--users=empty"], "--users=empty has no account: add one"),
        (["--users=keys"], "keys is no file of the chat page"),
        (["--add_user=ann"], "--add_user needs the file of accounts: give --users=FILE"),
        (["--host=192.0.2.1", "--allow_unauthenticated"], "give an address of this machine"),
    ],
)
def test_what_is_refused_before_the_model_is_read(flags, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("keys").write_text("alice")
    pathlib.Path("empty").touch()
    monkeypatch.setattr(sample, "load_model", lambda *given: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=words) as caught:
        serve.main(["--model=x", "--port=0", *flags])
    assert "\n" not in str(caught.value)


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port={port}: Address already in use"):
            serve.bind("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "keys", "is_open", "allowed"),
    [
        ("127.0.0.1", None, False, True),
        ("localhost", None, False, True),
        ("0.0.0.0", None, False, False),
        ("0.0.0.0", "keys", False, True),
        ("0.0.0.0", None, True, True),
    ],
)
def test_who_may_be_let_in(host, keys, is_open, allowed):
    args = types.SimpleNamespace(host=host, api_keys=keys, allow_unauthenticated=is_open)
    if allowed:
        return serve.check_args(args)
    with pytest.raises(ValueError):
        serve.check_args(args)


def test_accounts(tmp_path, monkeypatch, capsys):
    file = tmp_path / "users"
    flags = [f"--users={file}", "--add_user=ann"]
    for text, words in [("a password\n", "ann is added"), ("another one\n", "of ann is changed")]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        serve.main(flags)
        assert words in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(ValueError, match="the password has 0 characters"):
        serve.main(flags)
    terminal = types.SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    typed = iter(["one password", "one passwort"])
    monkeypatch.setattr(serve.getpass, "getpass", lambda prompt: next(typed))
    with pytest.raises(ValueError, match="the two passwords differ"):
        serve.main(flags)
    with contextlib.closing(database.Database(file)) as users:
        assert accounts.Accounts(users).verify("ann", "another one")
    with pytest.raises(ValueError, match="give --model=DIR"):
        serve.main([])


def test_the_chat_page_of_the_program(program, tmp_path):
    file = tmp_path / "users"
    with contextlib.closing(database.Database(file)) as users:
        accounts.Accounts(users).put("ann", "a password")
    _, url = program(f"--users={file}")
    with urllib.request.urlopen(url, timeout=60) as response:
        assert response.read() == page.FILE.read_bytes()


@pytest.fixture
def program():
    """A function: flags -> (process, URL) of the program, with an engine of scripted tokens."""
    running = []

    def start(*flags):
        root = pathlib.Path(__file__).parents[2]
        command = [sys.executable, "-c", PROGRAM, "--model=x", "--port=0", "--context=64", *flags]
        environment = os.environ | {"PYTHONPATH": str(root)}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        running.append(process)
        for line in process.stdout:
            if "http://" in line:
                return process, line.split()[-1]
        raise AssertionError("it ended")

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def post(url, **headers):
    body = json.dumps({"model": "gpt", "prompt": "secret", "seed": 7}).encode()
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(f"{url}/completions", body, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["choices"][0]["text"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_a_signal_ends(program, number):
    process, url = program("--served_model_name=gpt", "--log_prompts")
    assert url.startswith("http://127.0.0.1:") and url.endswith("/v1")
    assert post(url) == "seed 7"
    process.send_signal(number)
    assert process.wait(60) == 0
    line, closed = process.stdout.read().splitlines()
    assert json.loads(line)["prompts"] == ["secret"] and closed == "closed"


POLICY = """
from gptjax.config.safety import Policy, Secrets
own = Policy(name="own", output=(Secrets(texts=("seed 7",)),))
"""


def test_a_server_with_a_policy(program, tmp_path):
    log, recipe = tmp_path / "found.jsonl", tmp_path / "my.py"
    recipe.write_text(POLICY)
    flags = (f"--policy={recipe}:own", f"--intervention_log={log}", "--served_model_name=gpt")
    _, url = program(*flags)
    assert post(url) == post(url) == "<secret>"
    first, second = map(json.loads, log.read_text().splitlines())
    assert first["request"].startswith("req_") and first["digest"] == second["digest"]
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_server_for_others_needs_keys(program, tmp_path):
    file = tmp_path / "keys"
    file.write_text("alice sk-aaaaaaaaaaaaaaaa")
    process, url = program("--host=0.0.0.0", f"--api_keys={file}", "--served_model_name=gpt")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        post(url)
    assert post(url, Authorization="Bearer sk-aaaaaaaaaaaaaaaa") == "seed 7"
    assert process.poll() is None


@pytest.mark.parametrize("size", [1, 2])
def test_other_programs_of_the_model_run_on_one_device_alone(size):
    """With the engine's collectives at the same time, those of several could wait for ever."""
    config = types.SimpleNamespace(n_ctx=64, n_layers=2, n_heads=4)
    loaded = types.SimpleNamespace(
        config=types.SimpleNamespace(name="tiny"),
        digest="0" * 16,
        mesh=types.SimpleNamespace(size=size),
        tokenizer=None,
        chat_template=None,
        inference_model=types.SimpleNamespace(model=types.SimpleNamespace(config=config)),
    )
    args = types.SimpleNamespace(users=None, served_model_name=None)
    model = serve.served_model(args, loaded, None)  # type: ignore[arg-type]
    assert (model.embed is not None) == (model.attention is not None) == (size == 1)
