"""A search of a corpus for n-grams that the same command continues after a kill: its directory, its
parts, and the report that ends it.

The directory has job.json (runtime/job_dir.py), the results and, last of all, report.json. Until
then work/ has a file for each part of the corpus that a pass has finished.
"""

import dataclasses
import hashlib
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

from gptjax.config import data
from gptjax.curation import count_ngrams, ngrams
from gptjax.data.sources import open
from gptjax.report import console
from gptjax.runtime import atomic, checksums, job_dir


@dataclasses.dataclass(frozen=True)
class NgramJob:
    """A corpus, the n-grams to search it for, and the directory of the result. Made by `start`.

    corpus: for the progress bar. workers: processes.
    """

    directory: pathlib.Path
    corpus: str
    hash_set: ngrams.HashSet
    parts: list[count_ngrams.Part]
    workers: int

    @property
    def count_dir(self) -> pathlib.Path:
        """Directory of the first pass: in how many documents each n-gram is."""
        return self.directory / "work" / "count"

    @property
    def clean_dir(self) -> pathlib.Path:
        """Directory of the second pass: what was removed from each part."""
        return self.directory / "work" / "cut"

    @property
    def is_finished(self) -> bool:
        """Whether there is a report."""
        return (self.directory / "report.json").exists()

    def count_documents(self) -> tuple[ngrams.Array, int, int]:
        """Returns (documents with each n-gram, as int64 in the order of hash_set; number of
        documents; number of characters) of the corpus."""
        self.run_parts(count_ngrams.is_counted, count_ngrams.count_part, self.count_dir, "reading")
        return count_ngrams.sum_counts(self.count_dir, self.parts, len(self.hash_set))

    def run_parts(
        self,
        is_done: Callable[[pathlib.Path, count_ngrams.Part], bool],
        part_fn: count_ngrams.PartFn,
        folder: pathlib.Path,
        label: str,
    ) -> None:
        """Runs every part whose result in `folder` is missing or damaged, with a progress bar."""
        todo = [part for part in self.parts if not is_done(folder, part)]
        if todo:
            with console.Console(quiet=False).progress_bar(f"{label} {self.corpus}") as advance:
                count_ngrams.run_parallel(todo, part_fn, folder, self.workers, advance)

    def finish(self, report: dict[str, Any]) -> None:
        """Writes the report and removes the results of the passes."""
        checksums.save(self.directory / "report.json", report)
        shutil.rmtree(self.directory / "work")

    def read_report(self) -> dict[str, Any]:
        """Returns the report of a finished job. Raises a one-line ValueError if it is damaged."""
        return _read_record(self.directory / "report.json")


def start(
    directory: pathlib.Path,
    record: dict[str, Any],
    source: data.Text,
    hashes: ngrams.Array,
    lengths: list[int],
    workers: int,
) -> NgramJob:
    """Starts a job, or continues it with the parts that an earlier start of the same has finished.

    record: what the result depends on, besides the corpus. hashes: the n-grams, sorted and
    distinct; lengths: every n among them. If only files of the corpus have changed since an
    unfinished start, unchanged files are not read again. Raises ValueError if the directory belongs
    to another job, or a file of the corpus cannot be read.
    """
    record = record | {"corpus": open.describe(source), "fingerprint": open.fingerprint(source)}
    is_finished = (directory / "report.json").exists()
    if is_finished:
        job_dir.check_same(directory, _read_record(directory / "job.json"), record)
    else:
        job_dir.check_start(directory, record, "*", print)
    job = NgramJob(
        directory,
        source.path,
        ngrams.HashSet(hashes),
        count_ngrams.split_corpus(source, digest(hashes, lengths)),
        workers,
    )
    if is_finished:
        return job
    for line in open.check(source):
        print(line)
    checksums.save(directory / "job.json", record)
    for folder in (directory, job.count_dir, job.clean_dir):
        folder.mkdir(parents=True, exist_ok=True)
        atomic.remove_partial(folder)
    count_ngrams.save_ngrams(job.count_dir, job.hash_set, lengths)
    return job


def digest(hashes: ngrams.Array, lengths: list[int]) -> str:
    """Returns the SHA-256 of n-grams and of the lengths to search for."""
    return hashlib.sha256(hashes.tobytes() + repr(lengths).encode()).hexdigest()


def _read_record(file: pathlib.Path) -> dict[str, Any]:
    """Returns a record of a finished job. Raises a one-line ValueError if it is damaged."""
    try:
        return checksums.read(file)
    except ValueError as error:
        raise ValueError(f"{error}; delete {file.parent} and run it again") from None
