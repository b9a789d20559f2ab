"""An application of Ray Serve, with a stand-in for ray: what its replicas answer, and with what
flags. `serve run` with the real one is in docs/guides/serve.md."""

import importlib
import sys
import types

import pytest

pytest.importorskip("starlette", reason="needs requirements-serve.txt")

from starlette import testclient  # noqa: E402

from gptjax import sample, serve  # noqa: E402
from tests import fake_generator  # noqa: E402


@pytest.fixture
def ray_serve(monkeypatch):
    """The module; what is deployed is the class itself."""
    ray = types.ModuleType("ray")
    ray.serve = types.ModuleType("ray.serve")  # type: ignore[attr-defined]

    def deployment(**settings):
        def decorate(cls):
            cls.settings, cls.bind = settings, classmethod(lambda cls: cls)
            return cls

        return decorate

    ray.serve.deployment, ray.serve.ingress = deployment, lambda: lambda cls: cls
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.serve", ray.serve)
    monkeypatch.delitem(sys.modules, "gptjax.launch.ray_serve", raising=False)
    yield importlib.import_module("gptjax.launch.ray_serve")
    sys.modules.pop("gptjax.launch.ray_serve")


def test_a_replica_answers_and_tells_when_its_engine_has_ended(ray_serve, monkeypatch, tmp_path):
    engine = fake_generator.FakeGenerator()
    engine.close = lambda: None
    loaded = types.SimpleNamespace(inference_model=None, tokenizer=None)
    monkeypatch.setattr(sample, "load_model", lambda *args: loaded)
    monkeypatch.setattr(ray_serve.batcher, "Batcher", lambda *args: engine)
    monkeypatch.setattr(serve, "served_model", lambda *args: fake_generator.make_model(engine))
    keys = tmp_path / "keys"
    keys.write_text("ann sk-0123456789abcdef0123456789\n")
    flags = {
        "model": "runs/x",
        "drain": 9,
        "api_keys": str(keys),
        "log_prompts": "true",
        "policy": "mask",
    }
    server = ray_serve.build(flags)
    assert server.settings["graceful_shutdown_timeout_s"] == 9
    assert server.settings["max_ongoing_requests"] >= 256 + 8
    replica = server()
    client = testclient.TestClient(replica.__serve_build_asgi_app__(), "http://localhost")
    assert client.get("/health").status_code == 200
    body = {"model": "tiny", "prompt": "a", "seed": 5}
    assert client.post("/v1/completions", json=body).status_code == 401
    headers = {"Authorization": "Bearer sk-0123456789abcdef0123456789"}
    answer = client.post("/v1/completions", json=body, headers=headers).json()
    assert answer["choices"][0]["text"].startswith("seed 5")
    replica.check_health()
    ended = types.SimpleNamespace(is_running=False)
    monkeypatch.setattr(engine, "stats", lambda: ended)
    with pytest.raises(RuntimeError, match="engine has ended"):
        replica.check_health()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({}, "give model=DIR"),
        ({"model": "m", "users": "u"}, "users: replicas of Ray Serve have none"),
        ({"model": "m", "port": 1}, "port: replicas"),
        ({"model": "m", "policy": "log"}, "give --intervention_log"),
    ],
)
def test_flags_that_a_replica_cannot_have(ray_serve, flags, words):
    with pytest.raises(ValueError, match=words) as error:
        ray_serve.build(flags)
    assert "\n" not in str(error.value)
