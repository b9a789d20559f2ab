"""Worker processes: each ends with its parent, and one that is killed is a line."""

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any


@contextlib.contextmanager
def executor(
    workers: int, initializer: Callable[..., None], shared: tuple[Any, ...]
) -> Iterator[ProcessPoolExecutor]:
    """So many processes, each of which calls initializer(*shared) first. Spawned, not forked: this
    process may run jax's threads.
    ValueError if one is killed; what was asked for and not begun is dropped at any error."""
    import concurrent.futures.process
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, context, initializer=_initialize, initargs=(initializer, shared)
    ) as pool:
        try:
            yield pool
        except concurrent.futures.process.BrokenProcessPool:
            raise ValueError(
                "a worker process was killed, perhaps for want of memory; what is finished is "
                "kept: run it again, with fewer --workers"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _initialize(initializer: Callable[..., None], shared: tuple[Any, ...]) -> None:
    """Ctrl-C is for the parent, and a worker ends with it even if that was killed."""
    import multiprocessing
    import multiprocessing.connection
    import signal
    import threading

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch_parent, daemon=True).start()
    initializer(*shared)
