"""Removes the n-grams of evaluation tasks from a corpus: GPT-3 Appendix C's filter of training
text.
"""

import collections
import contextlib
import gzip
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from gptjax.config import find_files
from gptjax.config.decontamination import Filter
from gptjax.curation import count_ngrams, ngrams
from gptjax.curation.page import PIECE_BITS, Dropped, Page
from gptjax.data.sources.document import Document
from gptjax.runtime import atomic, checksums

COUNT_NAMES = (  # counted for every file
    "documents",
    "documents_untouched",
    "documents_cut",
    "documents_dropped",  # split into too many pieces
    "documents_lost",  # without a piece that is long enough
    "pieces",
    "pieces_short",
    "characters",
    "characters_kept",
)


def remaining_spans(
    length: int, spans: Sequence[tuple[int, int]], rule: Filter
) -> list[tuple[int, int]]:
    """Returns the (start, end) spans of a text of `length` characters outside its matches and their
    windows.
    """
    spans_left, position = [], 0
    for start, end in sorted(spans):
        if start - rule.window > position:
            spans_left.append((position, start - rule.window))
        position = max(position, end + rule.window)
    return [*spans_left, (position, length)] if position < length else spans_left


def clean_text(
    text: str, spans: Sequence[tuple[int, int]], rule: Filter, counts: collections.Counter
) -> list[str]:
    """Returns the pieces of a text to keep, and counts the outcome in `counts`."""
    counts["documents"] += 1
    counts["characters"] += len(text)
    if not spans:
        counts["documents_untouched"] += 1
        counts["characters_kept"] += len(text)
        return [text]
    spans_left = remaining_spans(len(text), spans, rule)
    if len(spans_left) > rule.most_pieces:
        counts["documents_dropped"] += 1
        return []
    texts = [text[start:end] for start, end in spans_left if end - start >= rule.shortest]
    counts["pieces"] += len(texts)
    counts["pieces_short"] += len(spans_left) - len(texts)
    counts["documents_cut" if texts else "documents_lost"] += 1
    counts["characters_kept"] += sum(map(len, texts))
    return texts


class PartCleaner:
    """Cleans a file of a corpus: writes the remaining text to `out` as .jsonl, and counts next to
    the n-grams. Without remaining text no file is written.
    """

    def __init__(self, rule: Filter, out: pathlib.Path, compression: str):
        self.rule, self.out, self.compression = rule, out, compression

    def __call__(
        self,
        part: count_ngrams.Part,
        folder: pathlib.Path,
        report_progress: count_ngrams.ProgressFn,
    ) -> None:
        hash_set, lengths = count_ngrams.load_ngrams(folder)
        counts: collections.Counter = collections.Counter()
        texts = self.clean_texts(part, hash_set, lengths, report_progress, counts)
        first = next(texts, None)
        path, digest = self.out / self.output_name(part), None
        if first is None:
            path.unlink(missing_ok=True)  # from an earlier start with other n-grams
        else:
            with atomic.atomic_write(path) as raw, compress(raw, self.compression) as stream:
                for text in itertools.chain([first], texts):
                    stream.write(json_line(text))
            digest = checksums.file_digest(path)
        record = {
            "counts": dict(counts),
            "cut": _grams_digest(folder),
            "file": path.name,
            "digest": digest,
        }
        checksums.save(report_path(folder, part), record)

    def is_done(self, folder: pathlib.Path, part: count_ngrams.Part) -> bool:
        """Whether the file was cleaned of these n-grams and its output is intact."""
        try:
            record = checksums.read(report_path(folder, part))
        except ValueError:
            return False
        path = self.out / self.output_name(part)
        return (record["cut"], record["file"], record["digest"]) == (
            _grams_digest(folder),
            path.name,
            checksums.file_digest(path) if path.exists() else None,
        )

    def output_name(self, part: count_ngrams.Part) -> str:
        """Name of the output file; the number keeps names distinct and in order."""
        stem = find_files.stem(pathlib.Path(part.source.path))
        return f"{part.number:05d}-{stem}.jsonl{self.compression}"

    def clean_texts(
        self,
        part: count_ngrams.Part,
        hash_set: ngrams.HashSet,
        lengths: Sequence[int],
        report_progress: count_ngrams.ProgressFn,
        counts: collections.Counter,
    ) -> Iterator[str]:
        """Yields the texts to keep."""
        for batch in count_ngrams.read_batches(part):
            words, firsts, ns, _ = count_ngrams.find_matches(batch, hash_set, lengths)
            spans = collections.defaultdict(list)
            for first, n in zip(firsts.tolist(), ns.tolist(), strict=True):
                spans[int(words.texts[first])].append(
                    (int(words.starts[first]), int(words.ends[first + n - 1]))
                )
            for number, document in enumerate(batch):
                yield from clean_text(document.text, spans.get(number, ()), self.rule, counts)
            report_progress(batch[-1].progress)


class PageCutter:
    """The stage of curation: cuts a page around its matches. folder: of the n-grams."""

    def __init__(self, rule: Filter, folder: pathlib.Path):
        self._rule = rule
        self._hash_set, self._lengths = count_ngrams.load_ngrams(folder)

    def __call__(self, page: Page) -> Page | list[Page] | Dropped:
        document = Document(page.text, "", 0.0)
        words, firsts, ns, _ = count_ngrams.find_matches([document], self._hash_set, self._lengths)
        spans = [
            (int(words.starts[first]), int(words.ends[first + n - 1]))
            for first, n in zip(firsts.tolist(), ns.tolist(), strict=True)
        ]
        counts: collections.Counter = collections.Counter()
        texts = clean_text(page.text, spans, self._rule, counts)
        if counts["documents_untouched"]:
            return page
        if counts["documents_dropped"] or len(texts) > 2**PIECE_BITS:
            return Dropped("over many matches with tasks")
        if not texts:
            return Dropped("short pieces between matches with tasks")
        return [
            Page(page.number + n, f"{page.id}, piece {n}", page.url, text)
            for n, text in enumerate(texts)
        ]


def _grams_digest(folder: pathlib.Path) -> str:
    """Digest of the n-grams to remove."""
    return hashlib.sha256(count_ngrams.load_ngrams(folder)[0].hashes.data).hexdigest()


def report_path(folder: pathlib.Path, part: count_ngrams.Part) -> pathlib.Path:
    """File with the counts of a part."""
    return folder / f"cleaned-{part.key}.json"


def sum_counts(folder: pathlib.Path, parts: list[count_ngrams.Part]) -> dict[str, int]:
    """Sums the counts of all files."""
    totals: collections.Counter[str] = collections.Counter()
    for part in parts:
        totals.update(checksums.read(report_path(folder, part))["counts"])
    return {name: totals[name] for name in COUNT_NAMES}


def json_line(text: str) -> bytes:
    """A line of .jsonl with a text."""
    return json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n"


def compress(raw: Any, compression: str) -> Any:
    """Wraps `raw` in a stream that takes plain bytes. compression: "" or ".gz", which has a
    checksum per member; pyarrow's .zst has none.
    """
    return gzip.GzipFile("", "wb", 1, raw, mtime=0) if compression else contextlib.nullcontext(raw)
