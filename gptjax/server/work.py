"""Work of a request in a thread, which ends when the client goes away or the time is up."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
from starlette.requests import ClientDisconnect, Request

from gptjax.server.openai_errors import timed_out

T = TypeVar("T")


async def run(
    request: Request,
    limiter: anyio.CapacityLimiter,
    limit_s: float,
    function: Callable[..., T],
    *args: object,
) -> T:
    """Calls a function in a thread. limiter: of such threads at a time; its place is taken until
    the function has returned.

    Raises ClientDisconnect if the client goes away, and ApiError (503) when the request has taken
    limit_s seconds: in the queue at once, and otherwise as soon as the function calls
    `check_canceled`. The body of the request must have been read.
    """
    left_s = limit_s - (time.monotonic() - request.state.record.start)
    with anyio.CancelScope(deadline=anyio.current_time() + left_s) as scope:
        watcher = asyncio.ensure_future(_cancel_when_gone(request, scope))
        try:
            return await anyio.to_thread.run_sync(function, *args, limiter=limiter)
        finally:
            is_gone = watcher.done()
            watcher.cancel()
    if is_gone:
        raise ClientDisconnect
    raise timed_out(limit_s)


def check_canceled() -> None:
    """Ends the function that `run` has called in this thread if its result is not wanted any more.
    Does nothing in other threads."""
    with contextlib.suppress(RuntimeError):
        anyio.from_thread.check_cancelled()


async def wait_for_disconnect(request: Request) -> None:
    """Returns when the client has gone. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancel_when_gone(request: Request, scope: anyio.CancelScope) -> None:
    await wait_for_disconnect(request)
    scope.cancel()
