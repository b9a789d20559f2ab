"""Sources of text as streams of documents: files, the embedded corpus, TensorFlow Datasets."""

import dataclasses
import hashlib
import os
import pathlib
import platform
import re
import shlex
from collections.abc import Collection, Iterable, Iterator
from typing import Any, assert_never

from gptjax.config import data, find_files, parse
from gptjax.data import unicode
from gptjax.data.sources import document, files, stdlib_corpus
from gptjax.data.sources.document import Document
from gptjax.runtime import errors

TextSource = data.Embedded | data.Text | data.Tfds


def documents(source: TextSource, skipped: files.Skipped | None = None) -> Iterator[Document]:
    """Yields the documents of `source`, always in the same order.

    skipped: counts what is skipped, by reason. Raises a one-line ValueError for anything wrong with
    the source.
    """
    match source:
        case data.Embedded():
            return stdlib_corpus.documents()
        case data.Text(path=path, field=field):
            return files.documents(path, field, skipped)
        case data.Tfds():
            return tfds_documents(source)
        case _:
            assert_never(source)


def text_sources(sources: Iterable[data.Source]) -> list[TextSource]:
    """Returns the sources that are tokenized before a run."""
    return [
        source for source in sources if isinstance(source, data.Embedded | data.Text | data.Tfds)
    ]


def describe(source: data.Source) -> str:
    """Returns a source as text, without its weight, which does not change its tokens."""
    return (
        repr(dataclasses.replace(source, weight=1.0))
        .replace(", weight=1.0", "")
        .replace("weight=1.0", "")
    )


def fingerprint(source: TextSource) -> str:
    """Returns a string that changes if the text may have changed: a digest of the names, sizes and
    times of its files, or Python's version. No file is read."""
    match source:
        case data.Embedded():
            return f"embedded in Python {platform.python_version()}"
        case data.Text(path=path, field=field):
            states = [
                (str(file), state.st_size, state.st_mtime_ns)
                for file, state in find_files.find(path).states.items()
            ]
        case data.Tfds(split=split, field=field):
            states = [
                split,
                *(
                    (str(file), *_file_state(file))
                    for file in sorted(tfds_directory(source).iterdir())
                ),
            ]
        case _:
            assert_never(source)
    return hashlib.sha256(repr((states, field)).encode()).hexdigest()


def _file_state(file: pathlib.Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    return status.st_size, status.st_mtime_ns


def check(source: TextSource) -> list[str]:
    """Checks a source before hours are spent on it, reading little of it, and returns notices for
    the user. Raises a one-line ValueError for an error that can be seen so."""
    return files.check(source.path, source.field) if isinstance(source, data.Text) else []


def is_one_document(source: TextSource) -> bool:
    """Whether the source is known to be a single document without reading all of it: one .txt file,
    or a data set of one example.
    """
    match source:
        case data.Embedded():
            return False
        case data.Text(path=path):
            paths = find_files.find(path).files
            return len(paths) == 1 and find_files.file_type(paths[0])[0] == ".txt"
        case data.Tfds():
            return len(tfds_examples(source)) == 1
        case _:
            assert_never(source)


VERSION_PATTERN = re.compile(r"\d+\.\d+\.\d+")


def tfds_directory(source: data.Tfds) -> pathlib.Path:
    """Returns the directory of a prepared data set: of the named config, else the default one; of
    the named version, else the newest by number.

    Names are those of tfds: NAME, NAME/CONFIG, NAME/CONFIG:VERSION; and paths below its directory,
    NAME/CONFIG/VERSION. Raises ValueError if the data set is not prepared, or if no config is
    named, there are several and tfds has not recorded which is the default. Does not use tfds,
    which goes to the network for a data set that is not prepared.
    """
    where = f"Tfds(name={source.name!r})"
    path, _, version = source.name.partition(":")
    name, *rest = path.rstrip("/").split("/")
    if rest and not version and VERSION_PATTERN.fullmatch(rest[-1]):
        version = rest.pop()
    if len(rest) > 1 or not name or (version and not VERSION_PATTERN.fullmatch(version)):
        raise ValueError(f"{where}: give NAME, NAME/CONFIG or NAME/CONFIG:VERSION, as c4/en:3.1.0")
    try:
        default = (
            os.environ["TFDS_DATA_DIR"]
            if "TFDS_DATA_DIR" in os.environ
            else "~/tensorflow_datasets"
        )  # as in tfds
        root = parse.path(default if source.data_dir is None else source.data_dir)
    except ValueError as error:
        raise ValueError(f"{where}: data_dir: {error}") from None
    relative_paths = [
        file.parent.relative_to(root / name).parts
        for file in (root / name).rglob("dataset_info.json")
    ]
    versions: dict[str, list[str]] = {}  # of each config; "" where a data set has none
    for parts in relative_paths:
        if len(parts) in (1, 2) and VERSION_PATTERN.fullmatch(parts[-1]):
            versions.setdefault(parts[0] if len(parts) == 2 else "", []).append(parts[-1])
    config = rest[0] if rest else _default_config(root / name, versions)
    if config is None and versions:
        names = ", ".join(f"{name}/{one}" for one in sorted(versions))
        raise ValueError(
            f"{where} has configs of which none is known to be the default: name the one that is "
            f"meant, of {names}"
        )
    matches = [one for one in versions.get(config or "", []) if version in ("", one)]
    if not matches:
        full_name = f"{name}{f'/{config}' if config else ''}{f':{version}' if version else ''}"
        others = sorted(
            "/".join(filter(None, (name, one))) + f":{v}"
            for one, each in versions.items()
            for v in each
        )
        others_hint = f" (prepared are {', '.join(others)})" if others else ""
        config_hint = (
            ""
            if config
            else "; where it has configs, name one as NAME/CONFIG, or tfds builds them all"
        )
        raise ValueError(
            f"{where} is not prepared under {root}{others_hint}: on a machine with network run "
            f"`tfds build {full_name} --file_format=array_record "
            f"--data_dir={shlex.quote(str(root))}`{config_hint}"
        )
    return (
        root
        / name
        / (config or "")
        / max(matches, key=lambda one: [int(part) for part in one.split(".")])
    )


def _default_config(directory: pathlib.Path, versions: Collection[str]) -> str | None:
    """Returns the config that a name without one means: "" if the data set has no configs, else the
    one that tfds recorded as the default when it built any of them; None if unknown."""
    metadata = directory / ".config" / "metadata.json"
    if metadata.exists():
        record = parse.read_json(metadata)
        if "default_config_name" in record:
            return parse.member(record, "default_config_name", str, str(metadata))
    return "" if "" in versions else None


def tfds_documents(source: data.Tfds) -> Iterator[Document]:
    """Yields source.field of every example of a prepared array_record data set that is not empty,
    read without TensorFlow."""
    examples = tfds_examples(source)
    for number, example in enumerate(examples):
        if source.field not in example:
            raise ValueError(
                f"Tfds(name={source.name!r}) has no feature {source.field!r}: it has "
                f"{', '.join(example)}; name one with field="
            )
        value = example[source.field]
        text = unicode.replace_surrogates(
            parse.utf8(value, f"Tfds {source.name} example {number:,}")
            if isinstance(value, bytes)
            else str(value)
        )
        if text:
            yield Document(text, document.text_key(text), (number + 1) / len(examples))


def tfds_examples(source: data.Tfds) -> Any:
    """Returns the examples of a prepared array_record data set as a sequence of dicts of NumPy
    values, read without TensorFlow. Raises ValueError if it is not prepared, is in another format,
    or has a damaged description."""
    directory = tfds_directory(source)
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(directory)
    # Errors of JSON, protocol buffers and feature classes: tfds passes all of them on.
    except Exception as error:
        reason = f"{type(error).__name__}: {errors.first_line(error)}"
        raise ValueError(
            f"{directory}: tfds cannot read dataset_info.json and features.json there ({reason}); "
            "prepare it again"
        ) from None
    file_format = builder.info.file_format.value  # type: ignore[union-attr]
    if file_format != "array_record":
        raise ValueError(
            f"{directory} is prepared as {file_format}, which needs TensorFlow: prepare it with "
            "--file_format=array_record"
        )
    try:
        return builder.as_data_source(split=source.split)  # type: ignore[call-arg]
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"Tfds(name={source.name!r}, split={source.split!r}): {str(error).splitlines()[0]}"
        ) from None


def python_version(source: TextSource) -> str | None:
    """Returns the version of Python that the embedded corpus is from; None for other sources."""
    return platform.python_version() if isinstance(source, data.Embedded) else None
