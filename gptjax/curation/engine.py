"""Engines: where the work on parts is done. The local one is a pool of worker processes; that of
spark.py runs the same functions on a cluster.

An engine maps a function over tasks, and brings rows with equal keys together. What is computed of
them is in functions that both engines call, so that both keep the same documents.
"""

import concurrent.futures
import concurrent.futures.process
import contextlib
import multiprocessing
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from gptjax.config.curation import FuzzyDuplicates
from gptjax.curation import minhash
from gptjax.runtime import errors, worker_pool

Task = TypeVar("Task")
Outcome = TypeVar("Outcome")
Progress = Callable[[float], None]  # takes the fraction that is done
MAX_FAILURES = 3  # named in an error


class Engine(Protocol):
    """What the stages need of an engine."""

    def map(
        self, fn: Callable[[Task], Outcome], tasks: Sequence[Task], label: str
    ) -> list[Outcome]:
        """Returns fn(task) of every task, in order. label: of the progress bar. str(task) names a
        task in errors. After an error of a task the others go on; then a one-line ValueError names
        those that failed."""
        ...

    def first_by_key(self, files: Sequence[pathlib.Path]) -> np.ndarray:
        """Returns (number, number of the first row with the same key), int64 of shape (n, 2), of
        all rows but the first of each key. files: .npy with rows (key, key, number) of int64."""
        ...

    def similar_pairs(
        self, stems: Sequence[pathlib.Path], rule: FuzzyDuplicates, label: str
    ) -> np.ndarray:
        """Returns the pairs of numbers, smaller first, int64 of shape (n, 2), of documents that
        agree in a band and are similar. stems: of `minhash.save_sketches`."""
        ...


class Local:
    """Worker processes of this machine; with one worker, this process. progress_bar: makes a
    progress bar of a label, as report.console.Console's.
    """

    def __init__(
        self,
        workers: int,
        progress_bar: Callable[[str], contextlib.AbstractContextManager[Progress]],
    ):
        self.workers, self._progress_bar = workers, progress_bar

    def map(
        self, fn: Callable[[Task], Outcome], tasks: Sequence[Task], label: str
    ) -> list[Outcome]:
        """As Engine.map."""
        outcomes: list[Any] = []
        if tasks:
            with self._progress_bar(label) as advance:
                outcomes = self._map(fn, tasks, advance)
        return check_outcomes(outcomes)

    def _map(
        self, fn: Callable[[Task], Outcome], tasks: Sequence[Task], advance: Progress
    ) -> list[Any]:
        workers = min(self.workers, len(tasks))
        outcomes: list[Any] = [None] * len(tasks)
        if workers == 1:
            for index, task in enumerate(tasks):
                outcomes[index] = run_task(fn, task)
                advance((index + 1) / len(tasks))
            return outcomes
        # 1: in progress, 2: finished; shared, so that it is known what a killed worker was doing
        states = multiprocessing.get_context("spawn").Array("b", len(tasks), lock=False)
        with worker_pool.executor(workers, _init_worker, (states,)) as pool:
            pending = {
                pool.submit(_run_in_worker, fn, task, index): index
                for index, task in enumerate(tasks)
            }
            try:
                for n, future in enumerate(concurrent.futures.as_completed(pending)):
                    outcomes[pending[future]] = future.result()
                    advance((n + 1) / len(tasks))
            except concurrent.futures.process.BrokenProcessPool:
                names = [str(task) for task, state in zip(tasks, states, strict=True) if state == 1]
                raise ValueError(
                    f"a worker process was killed, perhaps for lack of memory, at "
                    f"{' or '.join(names[:MAX_FAILURES]) or 'its start'}; finished work is kept: "
                    "run it again, with fewer --workers"
                ) from None
        return outcomes

    def first_by_key(self, files: Sequence[pathlib.Path]) -> np.ndarray:
        """As Engine.first_by_key."""
        rows = np.concatenate([np.load(file) for file in files])
        rows = rows[np.lexsort(rows.T[::-1])]  # by key, then by number
        is_first = np.ones(len(rows), bool)
        is_first[1:] = (rows[1:, :2] != rows[:-1, :2]).any(1)
        firsts = rows[is_first, 2][np.cumsum(is_first) - 1]
        return np.stack([rows[:, 2], firsts], 1)[~is_first]

    def similar_pairs(
        self, stems: Sequence[pathlib.Path], rule: FuzzyDuplicates, label: str
    ) -> np.ndarray:
        """As Engine.similar_pairs."""
        tasks = [minhash.BandTask(tuple(stems), band, rule) for band in range(rule.bands)]
        return np.unique(np.concatenate(self.map(minhash.compare_band, tasks, label)), axis=0)


_states: list[Any] = []  # in a worker process: the shared array of states


def _init_worker(states: Any) -> None:
    _states[:] = [states]


def _run_in_worker(fn: Callable[[Any], Any], task: Any, index: int) -> Any:
    _states[0][index] = 1
    outcome = run_task(fn, task)
    _states[0][index] = 2
    return outcome


class Failure(str):
    """A user's error at a task, as one line."""


def run_task(fn: Callable[[Task], Outcome], task: Task) -> Outcome | Failure:
    """Returns fn(task), or an error that a user can cause as a Failure; raises a bug."""
    try:
        return fn(task)
    except (ValueError, OSError, ImportError) as error:
        status, line = errors.classify_error(error)
        if status != 2:
            raise
        return Failure(f"{task}: {line}" if str(task) not in line else line)


def check_outcomes(outcomes: Sequence[Any]) -> list[Any]:
    """Returns the outcomes. Raises a one-line ValueError if there are Failures."""
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    if failures:
        more = f"; and {len(failures) - MAX_FAILURES:,} more" * (len(failures) > MAX_FAILURES)
        raise ValueError(
            f"{len(failures):,} of {len(outcomes):,} failed, the others are finished: "
            f"{'; '.join(failures[:MAX_FAILURES])}{more}"
        )
    return list(outcomes)
