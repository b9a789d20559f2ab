"""How often one may try to log in: a limit per name and one per address."""

import collections
import time
from collections.abc import Callable

from gptjax.server.api_keys import TokenBucket

NAME_TRIES, ADDRESS_TRIES = 10, 30  # a minute
MAX_BUCKETS = 10_000  # of each kind: the one that was used longest ago makes room


class LoginLimits:
    """Counts tries to log in."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._names: collections.OrderedDict[str, TokenBucket] = collections.OrderedDict()
        self._addresses: collections.OrderedDict[str, TokenBucket] = collections.OrderedDict()

    def take(self, name: str, address: str) -> int:
        """Counts a try. Returns 0 if it is allowed, else in how many seconds the next one is."""
        by_name = self._bucket(self._names, name, NAME_TRIES)
        by_address = self._bucket(self._addresses, address, ADDRESS_TRIES)
        wait_s = max(by_name.wait_s(), by_address.wait_s())
        if not wait_s:
            by_name.take()
            by_address.take()
        return wait_s

    def _bucket(
        self, buckets: collections.OrderedDict[str, TokenBucket], key: str, per_minute: int
    ) -> TokenBucket:
        if key not in buckets:
            buckets[key] = TokenBucket(per_minute, self._clock)
            if len(buckets) > MAX_BUCKETS:
                buckets.popitem(last=False)
        buckets.move_to_end(key)
        return buckets[key]
