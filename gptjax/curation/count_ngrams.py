"""Counts in how many documents of a corpus each n-gram of the evaluation tasks occurs, reading the
corpus in parallel, file by file.

Memory: 12 to 16 bytes per n-gram, shared by the processes, 8 more in each, and the current
document; independent of the corpus' size. The result of each file is stored in a small file of its
own, so that a kill loses only the files in progress.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gptjax.config import data, find_files
from gptjax.curation import ngrams
from gptjax.data import tokenize
from gptjax.data.sources import open
from gptjax.data.sources.document import Document
from gptjax.runtime import atomic, checksums, errors, worker_pool

ProgressFn = Callable[[float], None]  # takes the fraction of a file that is done
# Processes a part; its results are files in the folder.
PartFn = Callable[["Part", pathlib.Path, ProgressFn], None]


@dataclasses.dataclass(frozen=True)
class Part:
    """A file of the corpus. number: from 0, in the order of the files. size: bytes, at least 1.
    key: identifies the text and the n-grams searched for, so that unchanged files are not read
    again when others have changed.
    """

    number: int
    source: data.Text
    size: int
    key: str


def split_corpus(source: data.Text, ngrams_digest: str) -> list[Part]:
    """Splits a corpus into its files. ngrams_digest: a digest of the n-grams searched for."""
    parts = []
    for number, (file, state) in enumerate(find_files.find(source.path).states.items()):
        part_source = data.Text(path=str(file), field=source.field)
        key = hashlib.sha256(f"{open.fingerprint(part_source)} {ngrams_digest}".encode())
        parts.append(Part(number, part_source, max(1, state.st_size), key.hexdigest()[:24]))
    return parts


def save_ngrams(folder: pathlib.Path, hash_set: ngrams.HashSet, lengths: Sequence[int]) -> None:
    """Saves n-grams in files that every worker process opens."""
    for name, array in (
        ("hashes", hash_set.hashes),
        ("bits", hash_set.bits),
        ("lengths", np.array(sorted(lengths), np.int64)),
    ):
        atomic.save(folder / f"{name}.npy", checksums.npy_bytes(array))


def load_ngrams(folder: pathlib.Path) -> tuple[ngrams.HashSet, list[int]]:
    """Opens the files of `save_ngrams`, memory-mapped, so that processes share them."""
    hashes, bits, lengths = (
        _memory_map(folder / f"{name}.npy") for name in ("hashes", "bits", "lengths")
    )
    return ngrams.HashSet(hashes, bits), lengths.tolist()


def _memory_map(path: pathlib.Path) -> Any:
    empty = path.stat().st_size <= 128  # only a header, which cannot be memory-mapped
    return np.asarray(np.load(path, mmap_mode=None if empty else "r"))


def find_matches(
    batch: list[Document], hash_set: ngrams.HashSet, lengths: Sequence[int]
) -> tuple[ngrams.Words, Any, Any, Any]:
    """Returns (the words of some documents; for each match, in no particular order: index of its
    first word, n, index of the n-gram).
    """
    words = ngrams.hash_words([document.text for document in batch])
    columns = []
    for n, hashes, first in ngrams.hash_ngrams(words, lengths):
        hits, number = hash_set.lookup(hashes)
        columns.append((first[hits], np.full(len(hits), n), number))
    firsts, ns, numbers = (
        (np.concatenate(column) for column in zip(*columns, strict=True))
        if columns
        else (np.zeros(0, np.int64),) * 3
    )
    return words, firsts, ns, numbers


def count_part(part: Part, folder: pathlib.Path, report_progress: ProgressFn) -> None:
    """Counts the documents of a file that contain each n-gram, and saves the nonzero counts."""
    hash_set, lengths = load_ngrams(folder)
    counts = np.zeros(len(hash_set), np.int64)
    n_documents = n_characters = 0
    for batch in read_batches(part):
        words, firsts, _, numbers = find_matches(batch, hash_set, lengths)
        pairs = np.unique(words.texts[firsts] * max(1, len(hash_set)) + numbers)
        np.add.at(counts, pairs % max(1, len(hash_set)), 1)
        n_documents += len(batch)
        n_characters += sum(len(document.text) for document in batch)
        report_progress(batch[-1].progress)
    present = np.flatnonzero(counts)
    checksums.save_array(
        result_path(folder, part),
        np.concatenate([[n_documents, n_characters], present, counts[present]]),
    )


def read_batches(part: Part) -> Iterator[list[Document]]:
    """Yields the documents of a file in batches; nothing for an empty file."""
    if find_files.stat_regular(pathlib.Path(part.source.path)).st_size == 0:
        return iter(())
    return tokenize.group_by_length(
        open.documents(part.source), ngrams.CHUNK_CHARS, lambda document: len(document.text)
    )


def result_path(folder: pathlib.Path, part: Part) -> pathlib.Path:
    """File with the counts of a part."""
    return folder / f"count-{part.key}.npy"


def is_counted(folder: pathlib.Path, part: Part) -> bool:
    """Whether the result of `count_part` exists and is intact."""
    try:
        checksums.read_array(result_path(folder, part))
    except ValueError:
        return False
    return True


def sum_counts(folder: pathlib.Path, parts: list[Part], n_grams: int) -> tuple[Any, int, int]:
    """Returns (documents of all files with each n-gram, number of documents, number of
    characters).
    """
    counts, n_documents, n_characters = np.zeros(n_grams, np.int64), 0, 0
    for part in parts:
        result = checksums.read_array(result_path(folder, part))
        present, times = np.split(result[2:], 2)
        counts[present] += times
        n_documents, n_characters = n_documents + int(result[0]), n_characters + int(result[1])
    return counts, n_documents, n_characters


# --- processes ------------------------------------------------------------------------------------

_worker_progress: list[Any] = []  # in a worker process: the shared array of progress by part


def run_parallel(
    parts: list[Part], part_fn: PartFn, folder: pathlib.Path, workers: int, advance: ProgressFn
) -> None:
    """Runs part_fn(part, folder, report_progress) for every part in `workers` processes; with 1, in
    this one. Raises a one-line ValueError for an error in a file.
    """
    total = sum(part.size for part in parts)
    done_size = 0.0
    if workers == 1 or len(parts) < 2:
        for part in parts:
            part_fn(
                part,
                folder,
                lambda done, part=part, done_size=done_size: advance(
                    (done_size + done * part.size) / total
                ),
            )
            done_size += part.size
        return
    import concurrent.futures
    import multiprocessing

    progress = multiprocessing.get_context("spawn").Array("d", len(parts))
    with worker_pool.executor(min(workers, len(parts)), _init_worker, (progress,)) as executor:
        pending = {
            executor.submit(_run_part, part_fn, n, part, folder) for n, part in enumerate(parts)
        }
        while pending:
            done, pending = concurrent.futures.wait(
                pending, timeout=0.5, return_when=concurrent.futures.FIRST_COMPLETED
            )
            advance(
                sum(part.size * share for part, share in zip(parts, progress[:], strict=True))
                / total
            )
            for line in filter(None, (future.result() for future in done)):
                raise ValueError(line)


def _init_worker(progress: Any) -> None:
    _worker_progress[:] = [progress]


def _run_part(part_fn: PartFn, index: int, part: Part, folder: pathlib.Path) -> str | None:
    """Runs one part in a worker; returns a user's error as one line, and raises a bug with its
    trace.
    """

    def report_progress(done: float) -> None:
        _worker_progress[0][index] = done

    try:
        part_fn(part, folder, report_progress)
    except (ValueError, OSError) as error:
        status, line = errors.classify_error(error)
        if status != 2:
            raise
        return line
    report_progress(1.0)
    return None
