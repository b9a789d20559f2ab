"""Tests of the chat page need requirements-serve.txt, which `make test` installs."""

import contextlib
import functools
import importlib.util

import pytest

if importlib.util.find_spec("argon2") is None or importlib.util.find_spec("starlette") is None:
    collect_ignore_glob = ["*_test.py"]


@pytest.fixture(autouse=True)
def cheap_hashes(monkeypatch):
    """Argon2 with the least memory: the real one takes a second where the machine is busy."""
    import argon2

    cheap = functools.partial(argon2.PasswordHasher, time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr(argon2, "PasswordHasher", cheap)


@pytest.fixture
def users(tmp_path):
    """A database with the accounts ann and bob, whose passwords are their names twice and 12."""
    from gptjax.server.chat_page import accounts, database

    with contextlib.closing(database.Database(tmp_path / "users.sqlite")) as users:
        for name in ("ann", "bob"):
            accounts.Accounts(users).put(name, f"{name}{name}12")
        yield users


@pytest.fixture
def log_in(users):
    """Returns a client of a user, who is logged in; its headers have the token."""

    def start(name="ann", **options):
        from tests.fake_generator import make_client

        client = make_client(**{"chat": users} | options)
        response = client.post("/chat/login", json={"name": name, "password": f"{name}{name}12"})
        assert response.status_code == 200, response.text
        client.headers["X-CSRF-Token"] = client.get("/chat/session").json()["csrf"]
        return client

    return start
