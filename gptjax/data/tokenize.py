"""Tokenization of a source of text into a shard directory (data/shards.py), in parallel processes
and resumable after a kill.

The text is cut into blocks of whole documents. A finished block has its shards and a small record,
and is not tokenized again when the same job is started again.
"""

import collections
import contextlib
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from gptjax.config import data
from gptjax.data import shards, validation_split
from gptjax.data.sources import document, files, open
from gptjax.data.sources.document import Document
from gptjax.data.tokenizers import byte_level_bpe, sentencepiece_tokenizer
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.runtime import atomic, checksums, job_dir, worker_pool

Item = TypeVar("Item")

BLOCK_CHARS = 20_000_000  # characters of text in a block: about five million tokens of GPT-2
BATCH_CHARS = 1_000_000  # characters that are encoded at once


def tokenize_corpus(
    source: open.TextSource,
    description: str,
    tokenizer: Tokenizer,
    rule: data.ValidationSplit,
    directory: pathlib.Path,
    advance: Callable[[float], None],
    workers: int = 1,
    block: int = BLOCK_CHARS,
    print_line: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Tokenizes `source` into `directory`, or finishes what an earlier call started there, and
    returns the manifest.

    description: of the tokenizer, for errors and the manifest. rule: which text is for validation.
    advance: called with the fraction of the source that is done. workers: number of processes; with
    1, this one. block: characters in a block. print_line: called with a line about skipped text,
    and about damaged files that are made again.

    If only the text has changed since an unfinished start, the blocks whose text is unchanged are
    kept. If files have changed since all was finished, their text is compared. Raises ValueError if
    the directory is of another source, text, tokenizer or rule, or the source has an error; OSError
    if the directory cannot be written.
    """
    job = {
        "format": shards.FORMAT,
        "source": open.describe(source),
        "fingerprint": open.fingerprint(source),
        "tokenizer": {
            "description": description,
            "digest": tokenizer.digest,
            "n_vocab": tokenizer.n_vocab,
            "end_of_text": tokenizer.end_of_text,
        },
        "held_out": validation_split.describe(rule),
        "block": block,
    }
    if (directory / "manifest.json").exists():
        manifest = shards.read_manifest(directory)
        job_dir.check_same(directory, manifest, job_dir.without_fingerprint(job))
        if manifest["fingerprint"] != job["fingerprint"]:
            print_line(
                f"files of {open.describe(source)} have other names, sizes or times than "
                f"{directory} was prepared of: comparing their text"
            )
            job_dir.check_same(directory, manifest, {"text": count_text(source, advance)})
        return manifest
    job_dir.check_start(directory, job, "*.npy", print_line)
    checksums.save(directory / "job.json", job)
    atomic.remove_partial(directory)
    skipped: files.Skipped = collections.Counter()
    blocks = run_blocks(
        source, tokenizer, rule, directory, advance, workers, block, skipped, print_line
    )
    skip_counts = {what: count for what, count in sorted(skipped.items()) if count}
    manifest = (
        job
        | {"python": open.python_version(source)}
        | sum_counts(blocks)
        | {"passed_over": skip_counts}
    )
    if skip_counts:
        print_line(
            f"passed over in {open.describe(source)}: "
            f"{', '.join(f'{count:,} {what}' for what, count in skip_counts.items())}"
        )
    match tokenizer:
        case sentencepiece_tokenizer.SentencePieceTokenizer(model=content):
            atomic.save(directory / sentencepiece_tokenizer.FILE, content)
        case byte_level_bpe.TrainedTokenizer(content=content):
            atomic.save(directory / byte_level_bpe.FILE, content)
    checksums.save(directory / "manifest.json", manifest)
    remove_leftovers(directory, manifest)
    return manifest


def remove_leftovers(directory: pathlib.Path, manifest: dict[str, Any]) -> None:
    """Removes what a finished directory no longer needs: the records of job and blocks, and shards
    of text that has changed since an earlier start.
    """
    shard_names = {
        shard["name"] for counts in manifest["splits"].values() for shard in counts["shards"]
    }
    for split in validation_split.SPLITS:
        for path in directory.glob(f"{split}-*.npy"):
            if path.name.partition(".")[0] not in shard_names:
                path.unlink(missing_ok=True)
    for path in [*directory.glob("block-*.json"), directory / "job.json"]:
        path.unlink(missing_ok=True)


def group_by_length(
    items: Iterable[Item], size: int, length: Callable[[Item], int]
) -> Iterator[list[Item]]:
    """Yields consecutive items in groups. A group ends with the item that brings the sum of its
    lengths to `size` or more."""
    group: list[Item] = []
    total = 0
    for item in items:
        group.append(item)
        total += length(item)
        if total >= size:
            yield group
            group, total = [], 0
    if group:
        yield group


def cut_blocks(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    """Yields consecutive documents in blocks of at least `size` characters. The end of a file also
    ends a block of at least half of that, so that a change in one file does not move the blocks of
    the others."""
    group: list[Document] = []
    total = 0
    for doc in documents:
        if total >= size or (
            group and doc.file_index != group[-1].file_index and 2 * total >= size
        ):
            yield group
            group, total = [], 0
        group.append(doc)
        total += len(doc.text)
    if group:
        yield group


def run_blocks(
    source: open.TextSource,
    tokenizer: Tokenizer,
    rule: data.ValidationSplit,
    directory: pathlib.Path,
    advance: Callable[[float], None],
    workers: int,
    size: int,
    skipped: files.Skipped,
    print_line: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Writes every block that is not finished yet, and returns the records of all, in order."""
    settings = f"{tokenizer.digest} {validation_split.describe(rule)}"
    done: list[dict[str, Any]] = []
    todo: list[tuple[float, Any]] = []  # fraction of the source, and the pending result
    old_records = read_blocks(directory, print_line)
    names = {block["name"] for block in old_records.values()}
    with pool(tokenizer, rule, directory, workers) as submit:

        def collect(limit: int) -> None:
            while len(todo) > limit:
                fraction, pending = todo.pop(0)
                block = pending()
                if "was_damaged" in block:
                    print_line(f"{directory}: block {block['name']} was damaged, and is made again")
                    del block["was_damaged"]
                done.append(block)
                advance(fraction)

        for number, documents in enumerate(cut_blocks(open.documents(source, skipped), size)):
            content = content_digest(documents, settings)
            old_record = old_records.pop(content, None)
            name = old_record["name"] if old_record else f"{number:05d}"
            if old_record is None and name in names:  # taken by a block that may come later
                name = f"{number:05d}-{content[:12]}"
            todo.append((documents[-1].progress, submit(name, documents, content, old_record)))
            collect(2 * workers if workers > 1 else 0)
        collect(0)
    return done


def read_blocks(
    directory: pathlib.Path, print_line: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Returns the records of the blocks that an earlier start finished, by the digest of their
    documents."""
    by_content = {}
    for path in sorted(directory.glob("block-*.json")):
        try:
            block = checksums.read(path)
        except ValueError as error:
            print_line(f"{error}; its block is made again")
            continue
        by_content[block["content"]] = block
    return by_content


def content_digest(documents: list[Document], settings: str) -> str:
    """Returns the digest of all that the shards of these documents depend on: their texts, keys and
    order, and `settings`."""
    content = hashlib.sha256(settings.encode())
    for doc in documents:
        content.update(f"{doc.key} {hashlib.sha256(doc.text.encode()).hexdigest()} ".encode())
    return content.hexdigest()


@contextlib.contextmanager
def pool(tokenizer: Tokenizer, rule: data.ValidationSplit, directory: pathlib.Path, workers: int):
    """Yields a function that starts write_block(name, documents, content, old_record) in a worker
    process and returns a function that waits for its result."""
    if workers == 1:
        yield (
            lambda name, documents, content, old_record: (
                lambda: write_block(
                    directory, name, documents, content, old_record, tokenizer, rule
                )
            )
        )
        return
    with worker_pool.executor(workers, start_worker, (tokenizer, rule, directory)) as executor:
        yield lambda *block: executor.submit(run_block, *block).result


_worker: list[Any] = []  # in a worker process: the tokenizer, rule and directory of every block


def start_worker(*shared: Any) -> None:
    """Prepares a worker process: keeps what is the same for every block."""
    # One thread in each process: the parallelism is that of the processes.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker[:] = shared


def run_block(
    name: str, documents: list[Document], content: str, old_record: dict[str, Any] | None
) -> dict[str, Any]:
    """Calls `write_block` with this worker process's tokenizer, rule and directory."""
    tokenizer, rule, directory = _worker
    return write_block(directory, name, documents, content, old_record, tokenizer, rule)


def write_block(
    directory: pathlib.Path,
    name: str,
    documents: list[Document],
    content: str,
    old_record: dict[str, Any] | None,
    tokenizer: Tokenizer,
    rule: data.ValidationSplit,
) -> dict[str, Any]:
    """Tokenizes one block into a shard of each split, and saves and returns its record. content:
    the digest of the documents.

    old_record: of an earlier start for the same documents, returned as it is if its shards are
    whole. If not, the result has "was_damaged".
    """
    if old_record is not None and is_whole(directory, old_record, tokenizer.n_vocab):
        return old_record
    record: dict[str, Any] = {
        "name": name,
        "content": content,
        "text": text_counts(documents),
        "splits": {},
    }
    parts = [
        part for document in documents for part in validation_split.split_document(document, rule)
    ]
    for split in validation_split.SPLITS:
        texts = [text for side, text in parts if side == split]
        shard = (
            write_shard(
                directory,
                f"{split}-{name}",
                texts,
                tokenizer,
                with_keys=not isinstance(rule, data.Tail),
            )
            if texts
            else None
        )
        if shard is not None:
            record["splits"][split] = shard
    checksums.save(directory / f"block-{name}.json", record)
    return record if old_record is None else record | {"was_damaged": True}


def is_whole(directory: pathlib.Path, block: dict[str, Any], n_vocab: int) -> bool:
    """Whether the shards of a finished block match the digests in its record."""
    try:
        for entry in block["splits"].values():
            shard = shards.Shard(directory, entry, n_vocab)
            shard.verify()
            shard.keys()
    except ValueError:
        return False
    return True


def write_shard(
    directory: pathlib.Path, name: str, texts: list[str], tokenizer: Tokenizer, with_keys: bool
) -> dict[str, Any] | None:
    """Writes the tokens of `texts`, where each text ends and, if `with_keys`, their keys, as .npy
    files. Returns counts and digests, or None if there are no tokens."""
    kind = shards.token_dtype(tokenizer.n_vocab)
    end = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    encoded: list[np.ndarray] = []
    for batch in group_by_length(texts, BATCH_CHARS, len):
        encoded += [np.array(ids + end, kind) for ids in tokenizer.encode_batch(batch)]
    tokens = np.concatenate(encoded)
    if not len(tokens):
        return None
    ends = np.cumsum([len(ids) for ids in encoded], dtype=np.uint64)
    arrays = {"tokens": tokens, "ends": ends}
    if with_keys:
        arrays["keys"] = np.array(
            [int(document.text_key(text)[:16], 16) for text in texts], np.uint64
        )
    for part, array in arrays.items():
        atomic.save(directory / f"{name}.{part}.npy", checksums.npy_bytes(array))
    return {
        "name": name,
        "documents": len(ends),
        "tokens": len(tokens),
        "bytes": sum(len(text.encode()) for text in texts),
        "digest": shards.digest(tokens, ends),
    } | {part: shards.digest(array) for part, array in arrays.items() if part != "tokens"}


def text_counts(documents: list[Document]) -> dict[str, Any]:
    """Returns counts of the text of `documents`, both splits together, with a digest: the sum of
    their SHA-256s, which does not depend on their order or blocks."""
    raw = [document.text.encode() for document in documents]
    total = sum(int.from_bytes(hashlib.sha256(text).digest(), "big") for text in raw) % 2**256
    characters = sum(len(document.text) for document in documents)
    return {
        "documents": len(raw),
        "characters": characters,
        "bytes": sum(map(len, raw)),
        "digest": f"{total:064x}",
    }


def add_counts(texts: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the `text_counts` of several lists of documents together."""
    total = sum(int(text["digest"], 16) for text in texts) % 2**256
    return {
        name: sum(text[name] for text in texts) for name in ("documents", "characters", "bytes")
    } | {"digest": f"{total:064x}"}


def count_text(source: open.TextSource, advance: Callable[[float], None]) -> dict[str, Any]:
    """Returns the `text_counts` of all documents of `source`."""
    counts = []
    for documents in cut_blocks(open.documents(source), BATCH_CHARS):
        counts.append(text_counts(documents))
        advance(documents[-1].progress)
    return add_counts(counts)


def sum_counts(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the fields "text" and "splits" of the manifest from the records of all blocks."""
    text = add_counts([block["text"] for block in blocks])
    splits = {}
    for split in validation_split.SPLITS:
        entries = [block["splits"][split] for block in blocks if split in block["splits"]]
        splits[split] = {
            name: sum(shard[name] for shard in entries) for name in ("documents", "tokens", "bytes")
        } | {"shards": entries}
    return {"text": text, "splits": splits}
