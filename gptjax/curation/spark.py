"""The engine on Apache Spark: the stages' functions on a cluster whose machines share a file
system.

Spark calls the functions that the local engine calls, so that both keep the same documents; it
brings equal keys together by a shuffle, where the local engine sorts. It needs pyspark
(requirements-spark.txt) and Java 17 or later.
"""

import contextlib
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from gptjax.config.curation import FuzzyDuplicates
from gptjax.curation import engine, minhash
from gptjax.runtime import errors

Task = TypeVar("Task")
Outcome = TypeVar("Outcome")


class Spark:
    """An engine of a Spark context. partitions: into how many the tasks and keys are cut."""

    def __init__(self, context: Any, partitions: int):
        self.context, self._partitions = context, partitions

    def map(
        self, fn: Callable[[Task], Outcome], tasks: Sequence[Task], label: str
    ) -> list[Outcome]:
        """As engine.Engine.map."""
        self.context.setJobDescription(label)
        rows = self.context.parallelize(list(tasks), max(1, min(self._partitions, len(tasks))))
        return engine.check_outcomes(rows.map(lambda task: engine.run_task(fn, task)).collect())

    def first_by_key(self, files: Sequence[pathlib.Path]) -> np.ndarray:
        """As engine.Engine.first_by_key."""
        rows = self.context.parallelize(list(files), self._partitions).flatMap(
            lambda file: (((int(a), int(b)), int(number)) for a, b, number in np.load(file))
        )
        firsts = rows.reduceByKey(min, self._partitions)
        later = rows.join(firsts, self._partitions).values().filter(lambda pair: pair[0] != pair[1])
        return np.array(later.collect(), np.int64).reshape(-1, 2)

    def similar_pairs(
        self, stems: Sequence[pathlib.Path], rule: FuzzyDuplicates, label: str
    ) -> np.ndarray:
        """As engine.Engine.similar_pairs."""
        self.context.setJobDescription(label)
        keyed = self.context.parallelize(list(stems), self._partitions).flatMap(_keyed_sketches)
        groups = keyed.groupByKey(self._partitions).values().map(sorted)
        pairs = groups.filter(lambda group: len(group) > 1).flatMap(
            lambda group: _compare_group(group, rule.similarity)
        )
        found = np.array(pairs.distinct(self._partitions).collect(), np.int64).reshape(-1, 2)
        return np.unique(found, axis=0)


def _keyed_sketches(stem: pathlib.Path) -> Iterator[tuple[tuple[int, int], tuple[int, bytes]]]:
    """Yields ((band, key), (number, set)) of every band of every document that has shingles."""
    sketches = minhash.Sketches([stem])
    numbers = sketches.column(0)
    for row in range(len(sketches)):
        shingles = sketches.shingles(row)
        if len(shingles):
            for band, key in enumerate(sketches.keys(row).tolist()):
                yield (band, key), (int(numbers[row]), shingles.tobytes())


def _compare_group(
    group: Sequence[tuple[int, bytes]], least_similarity: float
) -> Iterable[tuple[int, int]]:
    """Yields the pairs of a group that are duplicates."""
    numbers = np.array([number for number, _ in group])
    sets = [np.frombuffer(shingles, np.uint32) for _, shingles in group]
    for pairs in minhash.compare_group(numbers, sets, least_similarity):
        yield from map(tuple, pairs.tolist())


@contextlib.contextmanager
def open_engine(master: str, partitions: int) -> Iterator[Spark]:
    """Opens an engine on the cluster `master`, as local[2] or spark://HOST:PORT. Raises a one-line
    ValueError without Java, or if Spark cannot be started."""
    import pyspark  # pyright: ignore[reportMissingImports]

    home = os.environ["JAVA_HOME"] if "JAVA_HOME" in os.environ else ""
    if not shutil.which("java", path=f"{home}/bin" if home else None):
        raise ValueError(
            "--engine=spark needs Java, which is not found in JAVA_HOME or PATH: install a JRE of "
            "version 17 or later (Debian: openjdk-17-jre-headless), or run the same stages with "
            "--engine=local"
        )
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else any python3 that is found
    settings = pyspark.SparkConf().setMaster(master).setAppName("gptjax.curate")
    settings.set("spark.ui.enabled", "false").set("spark.ui.showConsoleProgress", "false")
    try:
        context = pyspark.SparkContext(conf=settings)
    except Exception as error:  # of the Java side, in many classes
        raise ValueError(f"Spark did not start: {errors.first_line(error)}") from None
    context.setLogLevel("ERROR")
    try:
        yield Spark(context, partitions)
    finally:
        context.stop()
