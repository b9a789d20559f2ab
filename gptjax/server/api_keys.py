"""API keys of a file, and what each may ask for in a minute.

One key a line: NAME KEY, then `requests=N` and `tokens=N` a minute where it is limited. Empty lines
and those that begin with # are skipped:

    alice sk-4f0c0e5bb1b54c0a
    bob   sk-9d7b3b0f5e9a4b5e requests=60 tokens=100000
"""

import dataclasses
import hashlib
import hmac
import ipaddress
import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gptjax.config import parse

MIN_KEY_CHARS = 16  # a shorter key could be guessed
KEY = re.compile(r"[!-~]+")
LIMITS = ("requests", "tokens")


class TokenBucket:
    """A limit per minute: it holds at most a minute's worth and fills at a steady rate. It may be
    overdrawn by what is counted afterwards, and is then closed until that is made up for."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic):
        self.per_minute, self._clock = per_minute, clock
        self._level, self._time = float(per_minute), clock()

    def wait_s(self) -> int:
        """Seconds until one may be taken, rounded up; 0: now."""
        self._fill()
        return max(0, math.ceil((1 - self._level) * 60 / self.per_minute))

    def take(self, n: int = 1) -> None:
        """Takes n, whether they are there or not."""
        self._fill()
        self._level -= n

    def _fill(self) -> None:
        now = self._clock()
        level = self._level + (now - self._time) * self.per_minute / 60
        self._level, self._time = min(float(self.per_minute), level), now


@dataclasses.dataclass(frozen=True, eq=False)
class ApiKey:
    """A key. digest: SHA-256. limits: of requests and of tokens a minute."""

    name: str
    digest: bytes
    limits: dict[str, TokenBucket]

    def wait_s(self) -> tuple[int, str]:
        """Seconds until the key may be used, and which limit that is."""
        waits = [(bucket.wait_s(), name) for name, bucket in self.limits.items()]
        return max(waits, default=(0, ""))

    def take(self, name: str, n: int = 1) -> None:
        """Counts n against the limit of that name, if there is one."""
        if name in self.limits:
            self.limits[name].take(n)


class ApiKeys:
    """Keys to look up."""

    def __init__(self, keys: Sequence[ApiKey]):
        self._keys = tuple(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, secret: str) -> ApiKey | None:
        """Returns the key. How long it takes shows nothing of the keys: digests are compared, each
        in constant time, and all of them."""
        digest, found = _digest(secret), None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def load(file: Path) -> ApiKeys:
    """Reads a file of keys. Raises ValueError, with the line but never the key, for one that is
    malformed, and for a file without keys."""
    keys: list[ApiKey] = []
    for number, line in enumerate(parse.read_text(file).splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            key = _parse(line.split(), f"{file}, line {number}")
            for other in keys:
                if key.name == other.name or key.digest == other.digest:
                    raise ValueError(
                        f"{file}, line {number}: {key.name!r} has the name or the key of "
                        f"{other.name!r}: give each its own"
                    )
            keys.append(key)
    if not keys:
        raise ValueError(f"{file} has no keys: write lines of NAME KEY")
    return ApiKeys(keys)


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parse(words: list[str], where: str) -> ApiKey:
    if len(words) < 2:
        raise ValueError(f"{where} has no key: write NAME KEY [requests=N] [tokens=N]")
    name, secret, *rest = words
    if not KEY.fullmatch(secret) or len(secret) < MIN_KEY_CHARS:
        raise ValueError(
            f"{where}: the key of {parse.quote(name)} is too short or not ASCII: give at least "
            f"{MIN_KEY_CHARS} characters, as `openssl rand -hex 16` writes them"
        )
    limits = {}
    for word in rest:
        kind, _, text = word.partition("=")
        if kind not in LIMITS or kind in limits or not re.fullmatch(r"[1-9]\d{0,11}", text):
            raise ValueError(
                f"{where}: {parse.quote(word)} is no limit: write requests=N or tokens=N, a minute"
            )
        limits[kind] = TokenBucket(int(text))
    return ApiKey(name, _digest(secret), limits)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="surrogateescape")).digest()
