"""A corpus read in parallel, file by file, for the n-grams of tasks: in how many documents is each?

Memory: 12 to 16 bytes an n-gram, shared by the processes, 8 more in each, and the document in hand;
the corpus' size does not matter. What a file has is kept in a small file of its own, so that a
kill loses the files in hand alone."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gptjax.config import data, find_files
from gptjax.curate import ngrams
from gptjax.data import tokenize
from gptjax.data.sources import open
from gptjax.data.sources.document import Document
from gptjax.runtime import checksums, errors, worker_pool

ProgressFn = Callable[[float], None]  # takes the fraction of a file that is done
PartFn = Callable[
    ["Part", pathlib.Path, ProgressFn], None
]  # does a file; its results are files in the folder


@dataclasses.dataclass(frozen=True)
class Part:
    """A file of the corpus, or a corpus that is no files. size: its share of the work. key: of the
    text and of what is looked for in it, so that a file that has not changed is not read again
    when others have."""

    number: int
    source: open.TextSource
    size: int
    key: str


def split_corpus(source: open.TextSource, ngrams_digest: str) -> list[Part]:
    """ngrams_digest: a digest of what is looked for."""

    def make_part(number: int, source: open.TextSource, size: int) -> Part:
        return Part(
            number,
            source,
            size,
            hashlib.sha256(f"{open.fingerprint(source)} {ngrams_digest}".encode()).hexdigest()[:24],
        )

    if not isinstance(source, data.Text):
        return [make_part(0, source, 1)]
    files = find_files.find(source.path).states.items()
    return [
        make_part(n, data.Text(path=str(file), field=source.field), max(1, state.st_size))
        for n, (file, state) in enumerate(files)
    ]


def save_ngrams(folder: pathlib.Path, hash_set: ngrams.HashSet, lengths: Sequence[int]) -> None:
    """Put n-grams where every process finds them."""
    for name, array in (
        ("hashes", hash_set.hashes),
        ("bits", hash_set.bits),
        ("lengths", np.array(sorted(lengths), np.int64)),
    ):
        tokenize.save_array(folder / f"{name}.npy", array)


def load_ngrams(folder: pathlib.Path) -> tuple[ngrams.HashSet, list[int]]:
    """What `save_ngrams` put there; the processes of a machine share its memory."""
    hashes, bits, lengths = (
        _memory_map(folder / f"{name}.npy") for name in ("hashes", "bits", "lengths")
    )
    return ngrams.HashSet(hashes, bits), lengths.tolist()


def _memory_map(path: pathlib.Path) -> Any:
    empty = path.stat().st_size <= 128  # a header alone, of which no memory can be mapped
    return np.asarray(np.load(path, mmap_mode=None if empty else "r"))


def find_matches(
    batch: list[Document], hash_set: ngrams.HashSet, lengths: Sequence[int]
) -> tuple[ngrams.Words, Any, Any, Any]:
    """(the words of some documents; for each match, in no order: the number of its first word,
    n, which of the known it is)."""
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
    """Write how many documents of a file have each n-gram: those that any has, with their
    counts."""
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
    """The documents of a file, many at once; none of an empty file."""
    if (
        isinstance(part.source, data.Text)
        and find_files.stat_regular(pathlib.Path(part.source.path)).st_size == 0
    ):
        return iter(())
    return tokenize.group_by_length(
        open.documents(part.source), ngrams.CHUNK_CHARS, lambda document: len(document.text)
    )


def result_path(folder: pathlib.Path, part: Part) -> pathlib.Path:
    return folder / f"count-{part.key}.npy"


def is_counted(folder: pathlib.Path, part: Part) -> bool:
    """Is the result of `count_part` there, and whole?"""
    try:
        checksums.read_array(result_path(folder, part))
    except ValueError:
        return False
    return True


def sum_counts(folder: pathlib.Path, parts: list[Part], n_grams: int) -> tuple[Any, int, int]:
    """(how many documents of all files have each n-gram, documents, characters)."""
    counts, n_documents, n_characters = np.zeros(n_grams, np.int64), 0, 0
    for part in parts:
        result = checksums.read_array(result_path(folder, part))
        present, times = np.split(result[2:], 2)
        counts[present] += times
        n_documents, n_characters = n_documents + int(result[0]), n_characters + int(result[1])
    return counts, n_documents, n_characters


# --- processes ------------------------------------------------------------------------------------

_worker_progress: list[Any] = []  # a worker process's array of how far each part is


def run_parallel(
    parts: list[Part], part_fn: PartFn, folder: pathlib.Path, workers: int, advance: ProgressFn
) -> None:
    """part_fn(part, folder, report_progress) for every part, in processes; 1 works in this one.
    ValueError, in one line, for a file's fault."""
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
    """What is wrong in one line, if that is the user's; a bug keeps its trace."""

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
