"""From a source of text to a shard directory (shards.py describes it): in parallel processes, and resumable after a kill."""

import collections
import contextlib
import dataclasses
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
from gptjax.data.tokenizers import sentencepiece_tokenizer
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.runtime import atomic, checksums, worker_pool

Item = TypeVar("Item")

BLOCK = 20_000_000  # characters of text in a shard, about five million tokens of GPT-2
BATCH = 1_000_000  # characters encoded at once


def write(
    source: open.Untokenised,
    description: str,
    tokenizer: Tokenizer,
    rule: data.HeldOut,
    directory: pathlib.Path,
    advance: Callable[[float], None],
    workers: int = 1,
    block: int = BLOCK,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Tokenise `source` into `directory`, or finish what was begun there, and return the manifest.

    description: of the tokenizer. advance(f) is called with the fraction of the source that is done. workers: processes; 1 works in this
    one. say: is told, a line at a time, what was passed over and what was found damaged and made again. Where only the text has changed
    since an unfinished start, the blocks that it has still are kept. Where files have changed since all was finished, their text is
    compared. ValueError if the directory is of another source, text, tokenizer or rule, or the source is bad; OSError if it cannot be
    written.
    """
    job = {
        "format": shards.FORMAT,
        "source": named(source),
        "fingerprint": open.fingerprint(source),
        "tokenizer": {
            "description": description,
            "digest": tokenizer.digest,
            "n_vocab": tokenizer.n_vocab,
            "end_of_text": tokenizer.end_of_text,
        },
        "held_out": validation_split.written(rule),
        "block": block,
    }
    if (directory / "manifest.json").exists():
        manifest = shards.read_manifest(directory)
        same(directory, manifest, {name: value for name, value in job.items() if name != "fingerprint"})
        if manifest["fingerprint"] != job["fingerprint"]:
            say(f"files of {named(source)} have other names, sizes or times than {directory} was prepared of: comparing their text")
            same(directory, manifest, {"text": count_text(source, advance)})
        return manifest
    directory.mkdir(parents=True, exist_ok=True)
    job_file = directory / "job.json"
    if job_file.exists():
        try:
            earlier = checksums.read(job_file)
        except ValueError as error:  # each block says itself what it is of
            say(f"{error}; it is written again")
        else:
            same(directory, earlier, {name: value for name, value in job.items() if name != "fingerprint"})
    elif any(directory.glob("*.npy")):
        raise ValueError(f"{directory} holds files of something else; give an empty directory")
    checksums.save(job_file, job)
    atomic.sweep(directory)
    skipped: files.Skipped = collections.Counter()
    blocks = run_blocks(source, tokenizer, rule, directory, advance, workers, block, skipped, say)
    passed_over = {what: count for what, count in sorted(skipped.items()) if count}
    manifest = job | {"python": open.python_version(source)} | summed(blocks) | {"passed_over": passed_over}
    if passed_over:
        say(f"passed over in {named(source)}: {', '.join(f'{count:,} {what}' for what, count in passed_over.items())}")
    if isinstance(tokenizer, sentencepiece_tokenizer.Pieces):
        atomic.save(directory / "tokenizer.model", tokenizer.model)
    checksums.save(directory / "manifest.json", manifest)
    clear(directory, manifest)
    return manifest


def clear(directory: pathlib.Path, manifest: dict[str, Any]) -> None:
    """Remove what a finished directory needs no more: records of blocks, and shards of text that it was begun with and has no longer."""
    kept = {shard["name"] for counts in manifest["splits"].values() for shard in counts["shards"]}
    for split in validation_split.SPLITS:
        for left in directory.glob(f"{split}-*.npy"):
            if left.name.partition(".")[0] not in kept:
                left.unlink(missing_ok=True)
    for left in [*directory.glob("block-*.json"), directory / "job.json"]:
        left.unlink(missing_ok=True)


def named(source: data.Source) -> str:
    """A source as text, without its weight: that does not change its tokens."""
    return repr(dataclasses.replace(source, weight=1.0)).replace(", weight=1.0", "").replace("weight=1.0", "")


FIELD_NAMES = {
    "fingerprint": "state of its text (the files' names, sizes or times, or Python's version)",
    "block": "number of characters a shard",
    "tasks": "set of tasks",
}


def same(directory: pathlib.Path, there: dict[str, Any], job: dict[str, Any]) -> None:
    """ValueError unless what is in the directory is what is to be written: it says in words what differs."""
    for name, value in job.items():
        if name not in there or there[name] != value:
            known = FIELD_NAMES[name] if name in FIELD_NAMES else name
            was, now = difference(there[name], value) if name in there else ("none", shortened(value))
            detail = f": it has {was}, now it is {now}" if name != "fingerprint" else ""
            raise ValueError(f"{directory} was prepared with another {known}{detail}; give an empty directory or delete that one")


def difference(was: Any, now: Any) -> tuple[str, str]:
    """Two values as a line shows them: of records, the fields in which they differ."""
    if not isinstance(was, dict) or not isinstance(now, dict):
        return shortened(was), shortened(now)
    if "description" in was and "description" in now and was["description"] != now["description"]:
        return shortened(was["description"]), shortened(now["description"])
    fields = [
        name for name in (*was, *(name for name in now if name not in was)) if name not in was or name not in now or was[name] != now[name]
    ]
    left, right = (", ".join(f"{name} {shortened(held[name])}" if name in held else f"no {name}" for name in fields) for held in (was, now))
    return left, right


def shortened(value: Any) -> str:
    return str(value)[:80]


def grouped(items: Iterable[Item], size: int, length: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Consecutive items in groups whose lengths come to `size`, or to the little more that ends the last item."""
    held: list[Item] = []
    total = 0
    for item in items:
        held.append(item)
        total += length(item)
        if total >= size:
            yield held
            held, total = [], 0
    if held:
        yield held


def cut_blocks(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    """Consecutive documents in blocks of `size` characters, and what ends the last document. A file's end ends a block of half the size, so
    that a change in one file leaves the blocks of others what they were."""
    held: list[Document] = []
    total = 0
    for one in documents:
        if total >= size or (held and one.file != held[-1].file and 2 * total >= size):
            yield held
            held, total = [], 0
        held.append(one)
        total += len(one.text)
    if held:
        yield held


def run_blocks(
    source: open.Untokenised,
    tokenizer: Tokenizer,
    rule: data.HeldOut,
    directory: pathlib.Path,
    advance: Callable[[float], None],
    workers: int,
    size: int,
    skipped: files.Skipped,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Write every block that is not there yet; what each holds, in order."""
    about = f"{tokenizer.digest} {validation_split.written(rule)}"
    done: list[dict[str, Any]] = []
    todo: list[tuple[float, Any]] = []  # fraction of the source, and the pending result
    finished = read_blocks(directory, say)
    names = {block["name"] for block in finished.values()}
    with pool(tokenizer, rule, directory, workers) as submit:

        def collect(limit: int) -> None:
            while len(todo) > limit:
                fraction, pending = todo.pop(0)
                block = pending()
                if "was_damaged" in block:
                    say(f"{directory}: block {block['name']} was damaged, and is made again")
                    del block["was_damaged"]
                done.append(block)
                advance(fraction)

        for number, documents in enumerate(cut_blocks(open.documents(source, skipped), size)):
            content = content_digest(documents, about)
            earlier = finished.pop(content, None)
            name = earlier["name"] if earlier else f"{number:05d}"
            if earlier is None and name in names:  # by text that may yet come
                name = f"{number:05d}-{content[:12]}"
            todo.append((documents[-1].done, submit(name, documents, content, earlier)))
            collect(2 * workers if workers > 1 else 0)
        collect(0)
    return done


def read_blocks(directory: pathlib.Path, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """The blocks that an earlier start finished, by the digest of their documents."""
    found = {}
    for path in sorted(directory.glob("block-*.json")):
        try:
            block = checksums.read(path)
        except ValueError as error:
            say(f"{error}; its block is made again")
            continue
        found[block["content"]] = block
    return found


def content_digest(documents: list[Document], about: str) -> str:
    """Of some documents: their texts, order and keys. about: of what else their shards depend on."""
    content = hashlib.sha256(about.encode())
    for one in documents:
        content.update(f"{one.key} {hashlib.sha256(one.text.encode()).hexdigest()} ".encode())
    return content.hexdigest()


@contextlib.contextmanager
def pool(tokenizer: Tokenizer, rule: data.HeldOut, directory: pathlib.Path, workers: int):
    """A function that starts write_block(name, documents, content, earlier) and returns a function that waits for its result."""
    if workers == 1:
        yield lambda name, documents, content, earlier: lambda: write_block(directory, name, documents, content, earlier, tokenizer, rule)
        return
    with worker_pool.executor(workers, start_worker, (tokenizer, rule, directory)) as executor:
        yield lambda *block: executor.submit(work, *block).result


_worker: list[Any] = []  # a worker process's tokenizer, rule and directory, sent once


def start_worker(*shared: Any) -> None:
    """Keep what every block needs."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a thread each: the processes are the parallelism
    _worker[:] = shared


def work(name: str, documents: list[Document], content: str, earlier: dict[str, Any] | None) -> dict[str, Any]:
    tokenizer, rule, directory = _worker
    return write_block(directory, name, documents, content, earlier, tokenizer, rule)


def write_block(
    directory: pathlib.Path,
    name: str,
    documents: list[Document],
    content: str,
    earlier: dict[str, Any] | None,
    tokenizer: Tokenizer,
    rule: data.HeldOut,
) -> dict[str, Any]:
    """Tokenise one block into a shard of each split; what it holds, which is also saved as its block file. content: its digest.

    earlier: what an earlier start says of the same block; it stays if its shards are whole, else what is returned has `was_damaged`."""
    if earlier is not None and is_whole(directory, earlier, tokenizer.n_vocab):
        return earlier
    held: dict[str, Any] = {"name": name, "content": content, "text": text_counts(documents), "splits": {}}
    parts = [part for document in documents for part in validation_split.parts(document, rule)]
    for split in validation_split.SPLITS:
        texts = [text for side, text in parts if side == split]
        shard = write_shard(directory, f"{split}-{name}", texts, tokenizer, keyed=not isinstance(rule, data.Tail)) if texts else None
        if shard is not None:
            held["splits"][split] = shard
    checksums.save(directory / f"block-{name}.json", held)
    return held if earlier is None else held | {"was_damaged": True}


def is_whole(directory: pathlib.Path, block: dict[str, Any], n_vocab: int) -> bool:
    """Are a finished block's shards what they were?"""
    try:
        for described in block["splits"].values():
            shard = shards.Shard(directory, described, n_vocab)
            shard.verify()
            shard.keys()
    except ValueError:
        return False
    return True


def write_shard(directory: pathlib.Path, name: str, texts: list[str], tokenizer: Tokenizer, keyed: bool) -> dict[str, Any] | None:
    """The tokens of `texts`, where each ends and, if `keyed`, their keys, as files; counts and digests. None if there are no tokens."""
    kind = shards.shard_type(tokenizer.n_vocab)
    end = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    encoded: list[np.ndarray] = []
    for batch in grouped(texts, BATCH, len):
        encoded += [np.array(ids + end, kind) for ids in tokenizer.encode_batch(batch)]
    tokens = np.concatenate(encoded)
    if not len(tokens):
        return None
    ends = np.cumsum([len(ids) for ids in encoded], dtype=np.uint64)
    arrays = {"tokens": tokens, "ends": ends}
    if keyed:
        arrays["keys"] = np.array([int(document.key(text)[:16], 16) for text in texts], np.uint64)
    for part, array in arrays.items():
        save_array(directory / f"{name}.{part}.npy", array)
    return {
        "name": name,
        "documents": len(ends),
        "tokens": len(tokens),
        "bytes": sum(len(text.encode()) for text in texts),
        "digest": shards.digest(tokens, ends),
    } | {part: shards.digest(array) for part, array in arrays.items() if part != "tokens"}


def text_counts(documents: list[Document]) -> dict[str, Any]:
    """Counts of the text of `documents`, both splits together. digest: the sum of their SHA-256s, which no order or blocking changes."""
    raw = [document.text.encode() for document in documents]
    total = sum(int.from_bytes(hashlib.sha256(text).digest(), "big") for text in raw) % 2**256
    characters = sum(len(document.text) for document in documents)
    return {"documents": len(raw), "characters": characters, "bytes": sum(map(len, raw)), "digest": f"{total:064x}"}


def add_counts(texts: list[dict[str, Any]]) -> dict[str, Any]:
    """`text_counts` of several lists of documents together."""
    total = sum(int(text["digest"], 16) for text in texts) % 2**256
    return {name: sum(text[name] for text in texts) for name in ("documents", "characters", "bytes")} | {"digest": f"{total:064x}"}


def count_text(source: open.Untokenised, advance: Callable[[float], None]) -> dict[str, Any]:
    """`text_counts` of all documents of `source`."""
    counts = []
    for documents in cut_blocks(open.documents(source), BATCH):
        counts.append(text_counts(documents))
        advance(documents[-1].done)
    return add_counts(counts)


def summed(held: list[dict[str, Any]]) -> dict[str, Any]:
    """The counts of all blocks together, as the manifest has them."""
    text = add_counts([block["text"] for block in held])
    splits = {}
    for split in validation_split.SPLITS:
        shards = [block["splits"][split] for block in held if split in block["splits"]]
        splits[split] = {name: sum(shard[name] for shard in shards) for name in ("documents", "tokens", "bytes")} | {"shards": shards}
    return {"text": text, "splits": splits}


def save_array(path: pathlib.Path, array: np.ndarray) -> None:
    atomic.save(path, checksums.npy(array))
