"""Rows of streamed sources: documents are tokenized as they are needed and packed end to end, epoch
after epoch, and the place of every row is known, so that a run goes on there without reading what
came before.

Row r of a source is tokens r * n_ctx to (r + 1) * n_ctx of its endless sequence of documents, in
the order of the source; the rows of each window of shuffle_rows are shuffled. A position is always
that of a window's beginning, so that no buffer need be saved.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gptjax.config import data
from gptjax.data import packing, unicode, validation_split
from gptjax.data.sources import document, open, stream
from gptjax.data.tokenizers.build import Tokenizer

CHUNK_CHARS = 2**18  # characters that are encoded at once


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a row of a stream begins: `token` tokens into the training text of the document at
    `place` in epoch `epoch`.

    row: its number. key: of that document's text; "" if nothing was read yet. documents, empty,
    held_out: how many documents of the epoch before it were trained on, had no text, or are
    validated on.
    """

    row: int = 0
    epoch: int = 0
    place: stream.Place = stream.Place()
    token: int = 0
    key: str = ""
    documents: int = 0
    empty: int = 0
    held_out: int = 0


class OpenStream:
    """A streamed source of a run.

    validation: the first of its documents that are validated on, of n_validation tokens or all;
    none with data.Separate. identity: what it reads, the same on every host.
    """

    def __init__(
        self,
        source: data.Streamed,
        tokenizer: Tokenizer,
        rule: data.ValidationSplit,
        n_validation: int,
        print_line: Callable[[str], None],
    ):
        """Raises ValueError if no document is left to train on, or one of the first documents
        cannot be read."""
        self._source, self._tokenizer, self._rule = source, tokenizer, rule
        self._print_line = print_line
        self._reader = stream.open_stream(source)
        self._validation_keys = np.zeros(0, np.uint64)
        self.n_tokens: int | None = None  # to train on: not known
        self.validation = HeldOut(self._held_out(), self.encode, n_validation)
        self.identity = [
            open.describe(source),
            [(file.name, file.size) for file in self._reader.files],
        ]
        sizes = [file.size or 0 for file in self._reader.files]
        self.summary = {"files": len(sizes), "bytes": sum(sizes)} if sizes else {}

    def exclude(self, keys: np.ndarray, n_ctx: int) -> None:
        """Leaves documents out of training: those whose texts have these keys, uint64 as in
        data/shards.py. Raises ValueError if what is left of an epoch does not fill a row."""
        self._validation_keys = np.unique(keys)
        n_tokens = 0
        for position, text in self.texts(Position()):
            if position.epoch or n_tokens > n_ctx:
                break
            n_tokens += len(self.encode([text])[0])
        packing.check_size(n_tokens, n_ctx, open.describe(self._source))

    def texts(self, position: Position) -> Iterator[tuple[Position, str]]:
        """Yields the texts to train on from a position on, epoch after epoch, each with the
        position of its first token, but for its row."""
        at = position
        while True:
            for place, text in self._reader.read(at.place):
                text = unicode.replace_surrogates(text or "")
                at = dataclasses.replace(at, place=place, token=0)
                if not text:
                    at = dataclasses.replace(at, empty=at.empty + 1)
                    continue
                key = document.text_key(text)
                part = self._part(text, key, "train")
                if not part or self._is_excluded(key):
                    at = dataclasses.replace(at, held_out=at.held_out + 1)
                    continue
                yield dataclasses.replace(at, key=key), part
                at = dataclasses.replace(at, documents=at.documents + 1)
            counts = f"{at.empty:,} without text, {at.held_out:,} validated on"
            if not at.documents:
                raise ValueError(
                    f"{open.describe(self._source)}: no document is left to train on ({counts}); "
                    f"{validation_split.advice(self._rule, 'train')}"
                )
            epoch = at.epoch + 1
            if epoch & at.epoch == 0:  # 1, 2, 4, 8: a small source has thousands
                self._print_line(
                    f"{open.describe(self._source)}: end of epoch {epoch:,}, of {at.documents:,} "
                    f"documents, and {counts}; it begins again"
                )
            at = Position(epoch=epoch)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the tokens of each text, end-of-text included, as int32."""
        end = [] if self._tokenizer.end_of_text is None else [self._tokenizer.end_of_text]
        return [np.array(ids + end, np.int32) for ids in self._tokenizer.encode_batch(texts)]

    def rows(self, n_ctx: int, key: str, name: str) -> "StreamRows":
        """Returns the rows to train on, as loader.OpenShards.rows does."""
        return StreamRows(self, n_ctx, self._source.shuffle_rows, key)

    def to_json(self, position: Position) -> dict[str, Any]:
        """Returns a position and the files that it is in, as a JSON object."""
        files = [dataclasses.astuple(file) for file in self._reader.files]
        return dataclasses.asdict(position) | {"files": files}

    def from_json(self, saved: dict[str, Any]) -> Position:
        """Returns the position that `to_json` wrote. Raises ValueError, which names the file, if
        the files, or the text there, are not those of then."""
        before = {name: (size, stamp) for name, size, stamp in saved["files"]}
        now = {file.name: (file.size, file.stamp) for file in self._reader.files}
        for name in [*before, *now]:
            if name not in now:
                change = "is gone"
            elif name not in before:
                change = "is new"
            elif before[name][0] != now[name][0]:
                change = f"has {now[name][0]} bytes, where it had {before[name][0]}"
            elif before[name][1] != now[name][1]:
                change = f"was written again (its mark was {before[name][1]}, is {now[name][1]})"
            else:
                continue
            raise ValueError(
                f"{name} {change} since the checkpoint, whose place in "
                f"{open.describe(self._source)} is lost: give back what was read, with its times, "
                "or another --run_dir"
            )
        values: dict[str, Any] = {name: saved[name] for name in saved if name != "files"}
        values["place"] = stream.Place(**saved["place"])
        position = Position(**values)
        if position.key:
            found, _ = next(self.texts(position))
            if (found.place, found.key) != (position.place, position.key):
                place = position.place
                name = self._reader.files[place.file].name if self._reader.files else "the data set"
                raise ValueError(
                    f"{open.describe(self._source)}: {name} has another text after line "
                    f"{place.line:,} than at the checkpoint: give back what was read, or another "
                    "--run_dir"
                )
        return position

    def _part(self, text: str, key: str, split: validation_split.Split) -> str:
        """Returns the part of a text that is in a split; "" if none is."""
        parts = validation_split.split_document(document.Document(text, key, 0), self._rule)
        return "".join(part for side, part in parts if side == split)

    def _is_excluded(self, key: str) -> bool:
        keys = self._validation_keys
        value = np.uint64(int(key[:16], 16))
        return bool(len(keys)) and bool(
            keys.take(np.searchsorted(keys, value), mode="clip") == value
        )

    def _held_out(self) -> Iterator[str]:
        """Yields the texts to validate on."""
        if isinstance(self._rule, data.Separate):
            return
        for _, text in self._reader.read(stream.Place()):
            if text:
                text = unicode.replace_surrogates(text)
                part = self._part(text, document.text_key(text), "validation")
                if part:
                    yield part


class HeldOut:
    """Tokenized texts to validate on; a packing.Documents."""

    def __init__(
        self, texts: Iterator[str], encode: Callable[[list[str]], list[np.ndarray]], n_tokens: int
    ):
        """Takes texts until they have n_tokens tokens, or all."""
        self._documents: list[np.ndarray] = []
        self.n_tokens = self.n_bytes = 0
        for text in texts:
            self._documents += encode([text])
            self.n_tokens += len(self._documents[-1])
            self.n_bytes += len(text.encode())
            if self.n_tokens >= n_tokens:
                break
        self.lengths = np.array([len(ids) for ids in self._documents], np.int64)

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        """Returns tokens start..stop-1 of a document."""
        return self._documents[document][start:stop]


class StreamRows:
    """The rows of a stream from a position on, read in order: a row can be had while its
    window, or one after it, is not passed."""

    def __init__(
        self,
        source: OpenStream,
        n_ctx: int,
        n_window: int,
        key: str,
        position: Position = Position(),
    ):
        """n_window: rows of a window. key: what the order within windows depends on. position: of
        the first row of a window."""
        self._arguments = source, n_ctx, n_window, key
        self._source, self._first, self._key = source, position, key
        self._texts = source.texts(position)
        self._documents: collections.deque[tuple[Position, np.ndarray]] = collections.deque()
        # Of the first of _documents, how many tokens are taken; how many all of them have left.
        self._taken, self._n_left = position.token, -position.token
        self._rows = np.empty((n_window, n_ctx + 1), np.int32)
        self._window = position.row // n_window  # number of the next window
        self._window_start = position
        self._order = packing.Permutation(n_window, key)

    def begin(self, position: Position) -> "StreamRows":
        """Returns these rows from a position on, which reads by itself."""
        return StreamRows(*self._arguments, position)

    def fill(self, number: int, out: np.ndarray) -> None:
        """Writes row `number` into `out`, an int32 array of shape (n_ctx + 1,)."""
        window, row = divmod(number, len(self._rows))
        while self._window <= window:
            self._read_window()
        assert window == self._window - 1, "rows of a stream are read in order"
        out[:] = self._rows[self._order(row)]

    def position(self, number: int) -> Position:
        """Returns the position from which row `number` is read: of its window's first row."""
        window = number // len(self._rows)
        while self._window < window:
            self._read_window()
        assert window >= self._window - 1, "rows of a stream are read in order"
        return self._next_position() if window == self._window else self._window_start

    def _next_position(self) -> Position:
        """Returns the position of the next window."""
        if not self._documents:
            return self._first
        row = self._window * len(self._rows)
        return dataclasses.replace(self._documents[0][0], row=row, token=self._taken)

    def _read_window(self) -> None:
        self._window_start = self._next_position()
        for row in self._rows:
            self._read_row(row)
        self._order = packing.Permutation(len(self._rows), f"{self._key} window {self._window}")
        self._window += 1

    def _read_row(self, out: np.ndarray) -> None:
        """Fills a row, whose last token is the first of the next one."""
        while self._n_left < len(out):
            self._read_documents()
        start, n = self._taken, 0
        for _, ids in self._documents:
            part = ids[start : start + len(out) - n]
            out[n : n + len(part)] = part
            start, n = 0, n + len(part)
            if n == len(out):
                break
        self._taken += len(out) - 1
        self._n_left -= len(out) - 1
        while self._taken >= len(self._documents[0][1]):
            self._taken -= len(self._documents.popleft()[1])

    def _read_documents(self) -> None:
        """Tokenizes the next documents; the end of an epoch ends them."""
        chunk: list[tuple[Position, str]] = []
        n_chars = 0
        while n_chars < CHUNK_CHARS and (not chunk or chunk[-1][0].epoch == chunk[0][0].epoch):
            chunk.append(next(self._texts))
            n_chars += len(chunk[-1][1])
        for (position, _), ids in zip(
            chunk, self._source.encode([text for _, text in chunk]), strict=True
        ):
            if len(ids):
                self._documents.append((position, ids))
                self._n_left += len(ids)
