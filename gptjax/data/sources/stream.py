"""Streamed sources: their texts from any place on, with the place of each, so that reading goes on
there later. Files of a disk or of whatever fsspec reads, and Hugging Face's `datasets`.
"""

import copy
import dataclasses
import itertools
import pathlib
import pickle
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol, assert_never

from gptjax.config import data, find_files, parse
from gptjax.data.sources import compression, file_listing, files
from gptjax.runtime import errors

HF_STATE_EXAMPLES = 256  # between two states of an IterableDataset: one is a copy of a nested dict


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a text begins. file: its number. offset: bytes of a decompressed .jsonl file before it,
    rows of a .parquet file, examples of `datasets` since `state`. line: lines before it in its
    file, for errors. state: of a datasets.IterableDataset, a JSON object."""

    file: int = 0
    offset: int = 0
    line: int = 0
    state: Any = None


class Reader(Protocol):
    """A streamed source that is open. files: in the order of reading; () if they are unknown."""

    files: tuple[file_listing.File, ...]

    def read(self, place: Place) -> Iterator[tuple[Place, str | None]]:
        """Yields every text from `place` to the end, None where it is null, each with its place.
        Raises a one-line ValueError for anything wrong with the source."""
        ...


def open_stream(source: data.Streamed) -> Reader:
    """Opens a streamed source. Raises a one-line ValueError if there is nothing to read."""
    match source:
        case data.Stream():
            return FileReader(source)
        case data.HfDataset():
            return HfReader(source)
        case _:
            assert_never(source)


class FileReader:
    """A `Reader` of files."""

    def __init__(self, source: data.Stream):
        """Lists the files; none is read."""
        self._field = source.field
        self.files = tuple(file_listing.list_files(source.path)[0])

    def read(self, place: Place) -> Iterator[tuple[Place, str | None]]:
        for number in range(place.file, len(self.files)):
            name, size = self.files[number].name, self.files[number].size
            try:
                with file_listing.open_file(name) as raw:
                    if size != 0:
                        yield from self._read_file(raw, name, place)
            except compression.CorruptFile as error:
                raise ValueError(
                    f"{name} is damaged or cut short ({error}): fetch it again"
                ) from None
            except OSError as error:
                raise ValueError(f"{name} cannot be read: {error.strerror}") from None
            place = Place(number + 1)

    def _read_file(
        self, raw: BinaryIO, name: str, place: Place
    ) -> Iterator[tuple[Place, str | None]]:
        path = pathlib.Path(name)
        file_format, suffix = find_files.file_type(path)
        stream = compression.decompress(raw, suffix)
        match file_format:
            case ".txt":
                content = files.read_whole(stream, name)
                if not place.offset and content:
                    yield place, parse.utf8(content, name)
            case ".parquet":
                texts = files.read_parquet(stream, path, self._field, place.offset)
                for row, text in enumerate(texts, place.offset):
                    yield Place(place.file, row, row), text
            case ".jsonl":
                lines = _Lines(stream, place, seekable=not suffix)
                texts = files.read_jsonl(lines, path, self._field, place.line + 1)  # type: ignore
                while True:
                    here = Place(place.file, lines.offset, lines.line)
                    try:
                        yield here, next(texts)
                    except StopIteration:
                        return


class _Lines:
    """The lines of a stream from a place on, with the place of the next."""

    def __init__(self, stream: BinaryIO, place: Place, seekable: bool):
        self._stream, self.offset, self.line = stream, place.offset, place.line
        if seekable:
            stream.seek(place.offset)
        else:  # a compressed file is decompressed from its beginning
            left = place.offset
            while left and (part := stream.read(min(left, compression.BUFFER_BYTES))):
                left -= len(part)

    def readline(self, limit: int) -> bytes:
        line = self._stream.readline(limit)
        self.offset, self.line = self.offset + len(line), self.line + 1
        return line


class HfReader:
    """A `Reader` of a data set of Hugging Face's `datasets`."""

    files: tuple[file_listing.File, ...] = ()

    def __init__(self, source: data.HfDataset):
        self._name, self._field = f"HfDataset(name={source.name!r})", source.field
        try:
            import datasets  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError(
                f"{self._name} needs Hugging Face's datasets: pip install gptjax[stream], or "
                "-r requirements-stream.txt"
            ) from None
        datasets.disable_progress_bars()
        try:
            dataset = datasets.load_dataset(
                source.name,
                source.config,
                split=source.split,
                revision=source.revision,
                streaming=True,
            )
            # each reader needs one of its own, which holds its state
            self._pickled = pickle.dumps(dataset)
        except Exception as error:  # of the network, or of a loader of others
            raise ValueError(f"{self._name}: {errors.first_line(error)}") from None

    def read(self, place: Place) -> Iterator[tuple[Place, str | None]]:
        dataset = pickle.loads(self._pickled)
        state, line = place.state, place.line
        try:
            if state is not None:
                dataset.load_state_dict(state)
            examples = itertools.islice(dataset, place.offset, None)
            offset = place.offset
            while True:
                if offset % HF_STATE_EXAMPLES == 0 or state is None:
                    state, offset = copy.deepcopy(dataset.state_dict()), 0
                example = next(examples, None)
                if example is None:
                    return
                yield Place(0, offset, line, state), self._text(example, line)
                offset, line = offset + 1, line + 1
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(
                f"{self._name} example {line + 1:,}: {errors.first_line(error)}"
            ) from None

    def _text(self, example: dict[str, Any], line: int) -> str | None:
        if self._field not in example:
            raise ValueError(
                f"{self._name} has no column {self._field!r}: it has {', '.join(example)}; name "
                "one with field="
            )
        text = example[self._field]
        if text is not None and not isinstance(text, str):
            raise ValueError(
                f"{self._name} example {line + 1:,}: {self._field!r} is a "
                f"{type(text).__name__}, not a string; name another column with field="
            )
        return text
