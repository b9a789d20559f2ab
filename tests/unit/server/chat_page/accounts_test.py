"""Accounts, sessions and the limits of tries to log in."""

import pytest

from gptjax.server.chat_page import accounts, login_limits, sessions
from gptjax.server.chat_page.accounts import User

SECRET = b"s" * 32
ANN = User(1, "ann", 0)


def test_passwords(users):
    table = accounts.Accounts(users)
    ann = table.verify("ann", "annann12")
    assert ann == ANN and table.verify("ann", "annann13") is None
    assert table.verify("nobody", "") is None  # whose hash is of the dummy
    with users.transaction() as connection:
        digests = [row["password"] for row in connection.execute("SELECT * FROM users")]
    assert all(digest.startswith("$argon2id$") for digest in digests)
    assert not table.put("ann", "caf\u00e9 au lait")
    assert table.verify("ann", "annann12") is None
    assert table.verify("ann", "cafe\u0301 au lait") == User(1, "ann", 1)  # another keyboard
    assert table.find(1, 0) is None and table.find(1, 1) == User(1, "ann", 1)
    assert table.verify("bob", "\ud800 no character") is None


def test_a_hash_is_computed_for_an_unknown_name_too(users, monkeypatch):
    table = accounts.Accounts(users)
    verified = []
    monkeypatch.setattr(
        table, "_hasher", type("Fake", (), {"verify": lambda *given: verified.append(given)})()
    )
    assert table.verify("nobody", "x") is None and len(verified) == 1


@pytest.mark.parametrize(
    ("name", "password", "words"),
    [
        ("", "long enough", "is no name"),
        ("a b", "long enough", "is no name"),
        ("a" * 65, "long enough", "is no name"),
        ("eve\n", "long enough", "is no name"),
        ("eve", "short", "has 5 characters: give 8 to 1,000"),
        ("eve", "x" * 1001, "has 1,001 characters"),
    ],
)
def test_accounts_that_are_refused(users, name, password, words):
    with pytest.raises(ValueError, match=words):
        accounts.Accounts(users).put(name, password)
    assert accounts.Accounts(users).count() == 2


def test_cookies():
    cookie = sessions.make_cookie(SECRET, ANN, now=1000.0)
    end = 1000 + sessions.LIFETIME_S
    assert sessions.read_cookie(SECRET, cookie, now=end - 1) == (1, 0)
    assert sessions.read_cookie(SECRET, cookie, now=end) is None
    other = sessions.make_cookie(b"t" * 32, ANN, now=1000.0)
    forged = "2" + cookie[1:]
    csrf = sessions.csrf_token(SECRET, "1.0.9999999999.x")  # no signature of a session
    crossed = f"1.0.9999999999.x.{csrf}"
    for bad in ("", "....", "a.b.c.d.e", "\u00e9" * 300, other, forged, crossed, cookie[:-1]):
        assert sessions.read_cookie(SECRET, bad, now=1001.0) is None


def test_csrf_tokens_are_of_one_session():
    first, second = (sessions.make_cookie(SECRET, ANN) for _ in range(2))
    token = sessions.csrf_token(SECRET, first)
    assert sessions.is_csrf_token(SECRET, first, token)
    for cookie, bad in [(second, token), (first, ""), (first, token.upper()), (first, "\u00e9")]:
        assert not sessions.is_csrf_token(SECRET, cookie, bad)


def test_tries_are_limited_by_name_and_by_address(monkeypatch):
    now = [0.0]
    limits = login_limits.LoginLimits(clock=lambda: now[0])
    waits = [limits.take("ann", f"10.0.0.{i}") for i in range(11)]
    assert waits[:10] == [0] * 10 and waits[10] == 6
    assert limits.take("bob", "10.0.0.1") == 0
    now[0] = 6.0
    assert limits.take("ann", "10.0.0.1") == 0 and limits.take("ann", "10.0.0.1") > 0
    assert [limits.take(f"name{i}", "10.0.0.99") for i in range(31)].index(2) == 30
    monkeypatch.setattr(login_limits, "MAX_BUCKETS", 5)
    for i in range(100):
        limits.take(f"x{i}", f"y{i}")
    assert len(limits._names) <= 50  # what was there before the limit went down shrinks no more
