"""A corpus read in parallel, file by file, for the n-grams of tasks: in how many documents is each?

Memory: 12 to 16 bytes an n-gram, shared by the processes, 8 more in each, and the document in hand; the corpus' size does not matter. What
a file has is kept in a small file of its own, so that a kill loses the files in hand alone."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gptjax.config import command, data, find_files
from gptjax.curate import ngrams
from gptjax.data import tokenize
from gptjax.data.sources import open
from gptjax.data.sources.document import Document
from gptjax.runtime import checksums, worker_pool

Tell = Callable[[float], None]  # takes the fraction of a file that is done
Work = Callable[["Part", pathlib.Path, Tell], None]  # does a file; its results are files in the folder


@dataclasses.dataclass(frozen=True)
class Part:
    """A file of the corpus, or a corpus that is no files. size: its share of the work. key: of the text and of what is looked for in it, so
    that a file that has not changed is not read again when others have."""

    number: int
    source: open.Untokenised
    size: int
    key: str


def parts(source: open.Untokenised, sought: str) -> list[Part]:
    """sought: a digest of what is looked for."""

    def part(number: int, source: open.Untokenised, size: int) -> Part:
        return Part(number, source, size, hashlib.sha256(f"{open.fingerprint(source)} {sought}".encode()).hexdigest()[:24])

    if not isinstance(source, data.Text):
        return [part(0, source, 1)]
    files = find_files.find(source.path).states.items()
    return [part(n, data.Text(path=str(file), field=source.field), max(1, state.st_size)) for n, (file, state) in enumerate(files)]


def save(folder: pathlib.Path, known: ngrams.Known, lengths: Sequence[int]) -> None:
    """Put n-grams where every process finds them."""
    for name, array in (("hashes", known.hashes), ("bits", known.bits), ("lengths", np.array(sorted(lengths), np.int64))):
        tokenize.save_array(folder / f"{name}.npy", array)


def opened(folder: pathlib.Path) -> tuple[ngrams.Known, list[int]]:
    """What `save` put there; the processes of a machine share its memory."""
    hashes, bits, lengths = (_mapped(folder / f"{name}.npy") for name in ("hashes", "bits", "lengths"))
    return ngrams.Known(hashes, bits), lengths.tolist()


def _mapped(path: pathlib.Path) -> Any:
    empty = path.stat().st_size <= 128  # a header alone, of which no memory can be mapped
    return np.asarray(np.load(path, mmap_mode=None if empty else "r"))


def matches(batch: list[Document], known: ngrams.Known, lengths: Sequence[int]) -> tuple[ngrams.Words, Any, Any, Any]:
    """(the words of some documents; for each match, in no order: the number of its first word, n, which of the known it is)."""
    found = ngrams.words([document.text for document in batch])
    each = []
    for n, hashes, first in ngrams.grams(found, lengths):
        at, number = known.found(hashes)
        each.append((first[at], np.full(len(at), n), number))
    firsts, ns, numbers = (np.concatenate(column) for column in zip(*each, strict=True)) if each else (np.zeros(0, np.int64),) * 3
    return found, firsts, ns, numbers


def counted(part: Part, folder: pathlib.Path, tell: Tell) -> None:
    """Write how many documents of a file have each n-gram: those that any has, with their counts."""
    known, lengths = opened(folder)
    counts = np.zeros(len(known), np.int64)
    n_documents = n_characters = 0
    for batch in batches(part):
        found, firsts, _, numbers = matches(batch, known, lengths)
        pairs = np.unique(found.texts[firsts] * max(1, len(known)) + numbers)
        np.add.at(counts, pairs % max(1, len(known)), 1)
        n_documents += len(batch)
        n_characters += sum(len(document.text) for document in batch)
        tell(batch[-1].done)
    some = np.flatnonzero(counts)
    checksums.save_array(result(folder, part), np.concatenate([[n_documents, n_characters], some, counts[some]]))


def batches(part: Part) -> Iterator[list[Document]]:
    """The documents of a file, many at once; none of an empty file."""
    if isinstance(part.source, data.Text) and find_files.regular(pathlib.Path(part.source.path)).st_size == 0:
        return iter(())
    return tokenize.grouped(open.documents(part.source), ngrams.CHUNK, lambda document: len(document.text))


def result(folder: pathlib.Path, part: Part) -> pathlib.Path:
    return folder / f"count-{part.key}.npy"


def is_counted(folder: pathlib.Path, part: Part) -> bool:
    """Is the result of `counted` there, and whole?"""
    try:
        checksums.read_array(result(folder, part))
    except ValueError:
        return False
    return True


def totals(folder: pathlib.Path, these: list[Part], n_grams: int) -> tuple[Any, int, int]:
    """(how many documents of all files have each n-gram, documents, characters)."""
    counts, n_documents, n_characters = np.zeros(n_grams, np.int64), 0, 0
    for part in these:
        held = checksums.read_array(result(folder, part))
        some, times = np.split(held[2:], 2)
        counts[some] += times
        n_documents, n_characters = n_documents + int(held[0]), n_characters + int(held[1])
    return counts, n_documents, n_characters


# --- processes -----------------------------------------------------------------------------------------------------------------

_worker: list[Any] = []  # a worker process's array of how far each part is


def each(these: list[Part], work: Work, folder: pathlib.Path, workers: int, advance: Tell) -> None:
    """work(part, folder, tell) for every part, in processes; 1 works in this one. ValueError, in one line, for a file's fault."""
    total = sum(part.size for part in these)
    before = 0.0
    if workers == 1 or len(these) < 2:
        for part in these:
            work(part, folder, lambda done, part=part, before=before: advance((before + done * part.size) / total))
            before += part.size
        return
    import concurrent.futures
    import multiprocessing

    progress = multiprocessing.get_context("spawn").Array("d", len(these))
    with worker_pool.executor(min(workers, len(these)), _start, (progress,)) as executor:
        pending = {executor.submit(_work, work, n, part, folder) for n, part in enumerate(these)}
        while pending:
            done, pending = concurrent.futures.wait(pending, timeout=0.5, return_when=concurrent.futures.FIRST_COMPLETED)
            advance(sum(part.size * share for part, share in zip(these, progress[:], strict=True)) / total)
            for line in filter(None, (one.result() for one in done)):
                raise ValueError(line)


def _start(progress: Any) -> None:
    _worker[:] = [progress]


def _work(work: Work, n: int, part: Part, folder: pathlib.Path) -> str | None:
    """What is wrong in one line, if that is the user's; a bug keeps its trace."""

    def tell(done: float) -> None:
        _worker[0][n] = done

    try:
        work(part, folder, tell)
    except (ValueError, OSError) as error:
        status, line = command.verdict(error)
        if status != 2:
            raise
        return line
    tell(1.0)
    return None
