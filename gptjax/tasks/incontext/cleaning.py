"""A corpus without the n-grams of tasks: GPT-3 Appendix C's filter of training text."""

import collections
import contextlib
import gzip
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from gptjax.config import data, find_files
from gptjax.config.contamination import Filter
from gptjax.data import checksums, saving
from gptjax.tasks.incontext import grams, scanning

COUNTS = (  # what is counted of every file
    "documents",
    "documents_untouched",
    "documents_cut",
    "documents_dropped",  # in too many pieces
    "documents_lost",  # no piece is long enough
    "pieces",
    "pieces_short",
    "characters",
    "characters_kept",
)


def pieces(length: int, spans: Sequence[tuple[int, int]], rule: Filter) -> list[tuple[int, int]]:
    """What is left of a text of that many characters around the spans of its matches, with their windows: starts and ends."""
    left, at = [], 0
    for start, end in sorted(spans):
        if start - rule.window > at:
            left.append((at, start - rule.window))
        at = max(at, end + rule.window)
    return [*left, (at, length)] if at < length else left


def cleaned(text: str, spans: Sequence[tuple[int, int]], rule: Filter, count: collections.Counter) -> list[str]:
    """The texts that stay of one; what happened to it goes to `count`."""
    count["documents"] += 1
    count["characters"] += len(text)
    if not spans:
        count["documents_untouched"] += 1
        count["characters_kept"] += len(text)
        return [text]
    left = pieces(len(text), spans, rule)
    if len(left) > rule.most_pieces:
        count["documents_dropped"] += 1
        return []
    kept = [text[start:end] for start, end in left if end - start >= rule.shortest]
    count["pieces"] += len(kept)
    count["pieces_short"] += len(left) - len(kept)
    count["documents_cut" if kept else "documents_lost"] += 1
    count["characters_kept"] += sum(map(len, kept))
    return kept


class Cleaning:
    """The work on a file of a corpus: its cleaned text as .jsonl in `out`, and what was counted beside the n-grams. A file of which
    nothing stays is not written."""

    def __init__(self, rule: Filter, out: pathlib.Path, compression: str):
        self.rule, self.out, self.compression = rule, out, compression

    def __call__(self, part: scanning.Part, folder: pathlib.Path, tell: scanning.Tell) -> None:
        known, lengths = scanning.opened(folder)
        count: collections.Counter = collections.Counter()
        texts = self.texts(part, known, lengths, tell, count)
        first = next(texts, None)
        path, digest = self.out / self.name(part), None
        if first is None:
            path.unlink(missing_ok=True)  # of an earlier start, with other n-grams
        else:
            with saving.saved(path) as raw, compress(raw, self.compression) as stream:
                for text in itertools.chain([first], texts):
                    stream.write(line(text))
            digest = _digest(path)
        kept = {"counts": dict(count), "cut": _grams_digest(folder), "file": path.name, "digest": digest}
        checksums.save(report(folder, part), kept)

    def is_done(self, folder: pathlib.Path, part: scanning.Part) -> bool:
        """Is the file cleaned of these n-grams, and what was written whole?"""
        try:
            kept = checksums.read(report(folder, part))
        except ValueError:
            return False
        path = self.out / self.name(part)
        return (kept["cut"], kept["file"], kept["digest"]) == (_grams_digest(folder), path.name, _digest(path))

    def name(self, part: scanning.Part) -> str:
        """Of the file that is written: the number keeps names apart, and in order."""
        stem = find_files.stem(pathlib.Path(part.source.path)) if isinstance(part.source, data.Text) else "corpus"
        return f"{part.number:05d}-{stem}.jsonl{self.compression}"

    def texts(
        self, part: scanning.Part, known: grams.Known, lengths: Sequence[int], tell: scanning.Tell, count: collections.Counter
    ) -> Iterator[str]:
        for batch in scanning.batches(part):
            found, firsts, ns, _ = scanning.matches(batch, known, lengths)
            spans = collections.defaultdict(list)
            for first, n in zip(firsts.tolist(), ns.tolist(), strict=True):
                spans[int(found.texts[first])].append((int(found.starts[first]), int(found.ends[first + n - 1])))
            for number, document in enumerate(batch):
                yield from cleaned(document.text, spans.get(number, ()), self.rule, count)
            tell(batch[-1].done)


def _digest(file: pathlib.Path) -> str | None:
    """SHA-256 of a file; None if there is none."""
    if not file.exists():
        return None
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _grams_digest(folder: pathlib.Path) -> str:
    """A digest of the n-grams that are cut out."""
    return hashlib.sha256(scanning.opened(folder)[0].hashes.data).hexdigest()


def report(folder: pathlib.Path, part: scanning.Part) -> pathlib.Path:
    return folder / f"cleaned-{part.key}.json"


def counts(folder: pathlib.Path, these: list[scanning.Part]) -> dict[str, int]:
    """What was counted of all files together."""
    held: collections.Counter[str] = collections.Counter()
    for part in these:
        held.update(checksums.read(report(folder, part))["counts"])
    return {name: held[name] for name in COUNTS}


def line(text: str) -> bytes:
    return json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n"


def compress(raw: Any, compression: str) -> Any:
    """`raw` as a stream that takes plain bytes. compression: "" or ".gz", whose every member has a checksum; pyarrow's .zst has none."""
    return gzip.GzipFile("", "wb", 1, raw, mtime=0) if compression else contextlib.nullcontext(raw)
