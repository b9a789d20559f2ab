"""Pool of worker processes that end with their parent; a killed worker is a one-line error."""

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any


@contextlib.contextmanager
def executor(
    workers: int, initializer: Callable[..., None], shared: tuple[Any, ...]
) -> Iterator[ProcessPoolExecutor]:
    """Context manager for a pool of `workers` processes, each of which first calls
    initializer(*shared).

    Spawned, not forked, because this process may have jax threads. Raises ValueError if a worker is
    killed; any error drops the tasks that have not started.
    """
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
                "a worker process was killed, perhaps for lack of memory; finished work is kept: "
                "run it again, with fewer --workers"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _initialize(initializer: Callable[..., None], shared: tuple[Any, ...]) -> None:
    """Sets up a worker: Ctrl-C is left to the parent, and the worker ends with it even if that is
    killed.
    """
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
