"""Files of API keys, and their limits."""

import hmac

import pytest

from gptjax.server import api_keys

GOOD = "# who\n\nalice sk-aaaaaaaaaaaaaaaa\n  bob\tsk-bbbbbbbbbbbbbbbb tokens=30 requests=6\n"


def load(tmp_path, text):
    file = tmp_path / "keys"
    file.write_text(text)
    return api_keys.load(file)


def test_keys_of_a_file(tmp_path, monkeypatch):
    keys = load(tmp_path, GOOD)
    compared = []
    original = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(a) or original(a, b))
    alice, bob = keys.find("sk-aaaaaaaaaaaaaaaa"), keys.find("sk-bbbbbbbbbbbbbbbb")
    assert alice is not None and bob is not None
    assert (alice.name, alice.limits, bob.name) == ("alice", {}, "bob")
    assert {name: bucket.per_minute for name, bucket in bob.limits.items()} == {
        "tokens": 30,
        "requests": 6,
    }
    for wrong in ("", "sk-", "sk-aaaaaaaaaaaaaaa", "sk-aaaaaaaaaaaaaaaaa", "é", "\udcff"):
        assert keys.find(wrong) is None
    assert len(compared) == 8 * 2, "every key is compared, also after the one that is found"
    assert all(len(digest) == 32 for digest in compared)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no keys"),
        ("# alice sk-aaaaaaaaaaaaaaaa", "no keys"),
        ("alice", "line 1 has no key"),
        ("alice sk-short", "too short"),
        ("alice sk-aaaaaaaaaaaaaaaé", "not ASCII"),
        ("alice sk-aaaaaaaaaaaaaaaa\n\nalice sk-bbbbbbbbbbbbbbbb", "line 3"),
        ("alice sk-aaaaaaaaaaaaaaaa\nbob sk-aaaaaaaaaaaaaaaa", "line 2"),
        ("alice sk-aaaaaaaaaaaaaaaa request=5", "'request=5' is no limit"),
        ("alice sk-aaaaaaaaaaaaaaaa requests=0", "no limit"),
        ("alice sk-aaaaaaaaaaaaaaaa requests=1.5", "no limit"),
        ("alice sk-aaaaaaaaaaaaaaaa requests=5 requests=6", "no limit"),
    ],
)
def test_malformed_files(tmp_path, text, words):
    with pytest.raises(ValueError, match=words) as caught:
        load(tmp_path, text)
    assert "sk-a" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_bucket_fills_at_a_steady_rate_and_may_be_overdrawn():
    now = 100.0
    bucket = api_keys.TokenBucket(6, lambda: now)
    for _ in range(6):
        assert bucket.wait_s() == 0
        bucket.take()
    assert bucket.wait_s() == 10
    now += 9.5
    assert bucket.wait_s() == 1
    now += 0.5
    assert bucket.wait_s() == 0
    bucket.take(13)
    assert bucket.wait_s() == 130
    now += 10_000
    for _ in range(6):
        assert bucket.wait_s() == 0, "no more than a minute's worth"
        bucket.take()
    assert bucket.wait_s() == 10


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_loopback(host, is_loopback):
    assert api_keys.is_loopback(host) is is_loopback
