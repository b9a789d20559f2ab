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


def test_flags_as_yaml_and_the_command_line_have_them(ray_serve):
    flags = {"model": "m", "slots": 1, "time_limit": 1.0, "drain": "1", "policy": "log"}
    flags |= {"log-prompts": True, "allow_unauthenticated": False, "context": None}
    args = ray_serve.parse_flags(flags | {"set": ["a.b=1", "c.d=x y"]})
    assert (args.slots, args.time_limit, args.drain, args.policy) == (1, 1.0, 1.0, "log")
    assert args.log_prompts is True and args.allow_unauthenticated is False
    assert args.context is None and args.assignments == ["a.b=1", "c.d=x y"]
    args = ray_serve.parse_flags({"model": "m", "allow_unauthenticated": "true", "set": "a.b=1"})
    assert args.allow_unauthenticated is True and args.assignments == ["a.b=1"]
    args = ray_serve.parse_flags(
        {"model": "m", "served_model_name": "true", "log_prompts": "false"}
    )
    assert args.served_model_name == "true" and args.log_prompts is False


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({}, "give model=DIR"),
        ({"model": "m", "users": "u"}, "users: replicas of Ray Serve have none"),
        ({"model": "m", "port": 1}, "port: replicas"),
        ({"model": "m", "intervention-log": "x"}, "intervention_log: replicas"),
        ({"model": "m", "slots": True}, "--slots"),
        ({"model": "m", "slots": [1, 2]}, "--slots"),
        ({"model": "m", "slotz": 1}, "did you mean --slots"),
        ({"model": "m", "log_prompts": 1}, "log_prompts: 1: give true or false"),
        ({"model": "m", "policy": "lag"}, "lag"),
    ],
)
def test_flags_that_a_replica_cannot_have(ray_serve, flags, words):
    with pytest.raises(ValueError, match=words) as error:
        ray_serve.build(flags)
    assert "\n" not in str(error.value)
