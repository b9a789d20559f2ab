"""Work in threads that ends with its request, and keeps its place until it has ended."""

import asyncio
import threading
import time
from types import SimpleNamespace

import anyio
import pytest
from starlette.requests import ClientDisconnect

from gptjax.server import work
from gptjax.server.openai_errors import ApiError

WAIT_S = 20


class Client:
    """A request whose client goes away when `gone` is set."""

    def __init__(self):
        self.gone = asyncio.Event()
        self.state = SimpleNamespace(record=SimpleNamespace(start=time.monotonic()))

    async def receive(self):
        await self.gone.wait()
        return {"type": "http.disconnect"}


def until_canceled(ended: threading.Event):
    try:
        for _ in range(100 * WAIT_S):
            work.check_canceled()
            threading.Event().wait(0.01)
    finally:
        ended.set()


def test_work_ends_when_the_client_goes_away():
    async def main():
        client, ended, limiter = Client(), threading.Event(), anyio.CapacityLimiter(1)
        running = asyncio.ensure_future(work.run(client, limiter, 60, until_canceled, ended))
        await asyncio.sleep(0.05)
        waiting = asyncio.ensure_future(work.run(client, limiter, 60, pytest.fail))
        await asyncio.sleep(0.05)
        assert limiter.borrowed_tokens == 1 and not ended.is_set()
        client.gone.set()
        for one in (running, waiting):
            with pytest.raises(ClientDisconnect):
                await one
        assert ended.is_set() and limiter.borrowed_tokens == 0

    asyncio.run(main())


def test_a_place_is_taken_until_the_function_has_returned():
    async def main():
        client, limiter, go_on = Client(), anyio.CapacityLimiter(1), threading.Event()
        running = asyncio.ensure_future(work.run(client, limiter, 60, go_on.wait, WAIT_S))
        await asyncio.sleep(0.05)
        client.gone.set()
        await asyncio.sleep(0.05)
        assert limiter.borrowed_tokens == 1 and not running.done()
        go_on.set()
        await asyncio.wait([running])
        assert limiter.borrowed_tokens == 0

    asyncio.run(main())


def test_work_has_a_time_limit_and_its_result_and_errors_are_given():
    async def main():
        limiter = anyio.CapacityLimiter(1)
        ended = threading.Event()
        with pytest.raises(ApiError) as caught:
            await work.run(Client(), limiter, 0.05, until_canceled, ended)
        assert (caught.value.status, caught.value.code) == (503, "timeout") and ended.is_set()
        assert await work.run(Client(), limiter, 60, pow, 2, 5) == 32
        with pytest.raises(ZeroDivisionError):
            await work.run(Client(), limiter, 60, divmod, 1, 0)

    asyncio.run(main())
    work.check_canceled()  # of no effect outside
