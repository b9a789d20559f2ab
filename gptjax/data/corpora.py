"""Every source of text as one stream of documents."""

import hashlib
import os
import pathlib
import platform
from collections.abc import Iterator
from typing import Any, assert_never

from gptjax.config import data
from gptjax.data import document, embedded, files, unicode
from gptjax.data.document import Document

Untokenised = data.Embedded | data.Text | data.Tfds


def documents(source: Untokenised) -> Iterator[Document]:
    """The documents of `source`, always in the same order. ValueError, in one line, for anything wrong with it."""
    match source:
        case data.Embedded():
            return embedded.documents()
        case data.Text(path=path, field=field):
            return files.documents(path, field)
        case data.Tfds():
            return tfds_documents(source)
        case _:
            assert_never(source)


def fingerprint(source: Untokenised) -> str:
    """Changes when the text may have: names, sizes and times of files, Python's version. Cheap: nothing is read."""
    match source:
        case data.Embedded():
            return f"embedded in Python {platform.python_version()}"
        case data.Text(path=path, field=field):
            state = [(str(file), *_state(file)) for file in files.found(path)]
        case data.Tfds(split=split, field=field):
            state = [split, *((str(file), *_state(file)) for file in sorted(prepared(source).iterdir()))]
        case _:
            assert_never(source)
    return hashlib.sha256(repr((state, field)).encode()).hexdigest()


def _state(file: pathlib.Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    return status.st_size, status.st_mtime_ns


def prepared(source: data.Tfds) -> pathlib.Path:
    """The directory of a prepared data set's newest version. ValueError, at once and without network, if there is none.

    Looked up by hand: asking tfds for an unprepared name sends it to the network.
    """
    name, _, rest = source.name.partition("/")
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")  # as in tfds
    root = pathlib.Path(source.data_dir or default).expanduser()
    pattern = f"{name}/{rest}" if rest else name
    found = sorted((root / pattern).rglob("dataset_info.json"))
    if not found:
        raise ValueError(
            f"Tfds(name={source.name!r}) is not prepared under {root}: on a machine with network run "
            f"`tfds build {source.name} --file_format=array_record --data_dir={root}`"
        )
    return found[-1].parent


def tfds_documents(source: data.Tfds) -> Iterator[Document]:
    """The field of every example of a prepared array_record data set, read without TensorFlow."""
    examples = tfds_examples(source)
    for number, example in enumerate(examples):
        if source.field not in example:
            raise ValueError(
                f"Tfds(name={source.name!r}) has no feature {source.field!r}: it has {', '.join(example)}; name one with field="
            )
        value = example[source.field]
        text = unicode.valid(files.utf8(value, f"Tfds {source.name} example {number:,}") if isinstance(value, bytes) else str(value))
        if text:
            yield Document(text, document.key(text), (number + 1) / len(examples))


def tfds_examples(source: data.Tfds) -> Any:
    """The examples of a prepared array_record data set, a sequence of dicts of NumPy values, read without TensorFlow. ValueError if it is
    not prepared, or not so."""
    directory = prepared(source)
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(directory)
    stored = builder.info.file_format.value  # type: ignore[union-attr]
    if stored != "array_record":
        raise ValueError(f"{directory} is prepared as {stored}, which needs TensorFlow: prepare it with --file_format=array_record")
    try:
        return builder.as_data_source(split=source.split)  # type: ignore[call-arg]
    except (ValueError, KeyError) as error:
        raise ValueError(f"Tfds(name={source.name!r}, split={source.split!r}): {str(error).splitlines()[0]}") from None


def python_version(source: Untokenised) -> str | None:
    """The Python whose text this is, for the embedded corpus."""
    return platform.python_version() if isinstance(source, data.Embedded) else None
