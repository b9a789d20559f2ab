"""Detection of validation text in the training data, under whatever name it is there: another path,
a link, a copy, shards made from it."""

import hashlib
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from gptjax.config import data, find_files, parse
from gptjax.data import shards
from gptjax.data.sources import open

# Bytes that are compared first of two files of equal size: most differ there.
PREFIX_BYTES = 2**16
# Fraction of validation documents in the training data from which a run is refused. A smaller one
# is only reported, since many corpora contain copies.
ERROR_SHARE = 0.5


def check_sources(train: Sequence[data.Source], validation: data.Source) -> None:
    """Raises ValueError if a training source has a file of the validation source, before any of
    them is tokenized."""
    for source in train:
        common = _common_source(source, validation)
        if common is not None:
            raise ValueError(
                f"data.validation=Separate(source={validation}): {common} is also trained on, by "
                f"{source}; validate on another, or use "
                "data.validation=Tail(fraction=0.1)"
            )


def _common_source(source: data.Source, validation: data.Source) -> str | None:
    """Returns what both sources read, for an error; None if nothing is known to be common."""
    match source, validation:
        case data.Text(), data.Text():
            return _common_file(source, validation)
        case data.Tfds(), data.Tfds():
            same = open.tfds_directory(source) == open.tfds_directory(validation) and (
                source.split,
                source.field,
            ) == (validation.split, validation.field)
        case data.Shards(), data.Shards():
            same = parse.path(source.path).resolve() == parse.path(validation.path).resolve()
        case data.Embedded(), data.Embedded():
            same = True
        case _:
            return None
    return "that source" if same else None


def _common_file(source: data.Text, validation: data.Text) -> str | None:
    """Returns a file that both sources read, or whose content equals that of a file of the other;
    None if there is none. Different fields of the same .jsonl or .parquet files are not common."""
    by_size: dict[int, list[pathlib.Path]] = {}
    for file, state in find_files.find(source.path).states.items():
        by_size.setdefault(state.st_size, []).append(file)
    for file, state in find_files.find(validation.path).states.items():
        size = state.st_size
        if (
            size
            and size in by_size
            and (source.field == validation.field or find_files.file_type(file)[0] == ".txt")
        ):
            for other in by_size[size]:
                if file.samefile(other) or all(
                    _digest(file, size) == _digest(other, size) for size in (PREFIX_BYTES, None)
                ):
                    return str(file)
    return None


def _digest(file: pathlib.Path, size: int | None) -> bytes:
    """Returns the SHA-256 of the first `size` bytes of a file, or of all of them if None."""
    try:
        with file.open("rb") as stream:
            return (
                hashlib.sha256(stream.read(size)).digest()
                if size
                else hashlib.file_digest(stream, "sha256").digest()
            )
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None


def check_documents(
    train: Sequence[shards.Split], validation: shards.Split, print_line: Callable[[str], None]
) -> None:
    """Compares validation and training documents by the keys of their texts; shards without keys
    (of earlier versions) are compared as a whole.

    Raises ValueError if at least ERROR_SHARE of the validation documents are in the training data;
    reports a smaller share by `print_line`.
    """
    train_shards = [shard for split in train for shard in split.shards]
    train_digests = {shard.record["digest"] for shard in train_shards}
    n_common = n_validation = 0
    shards_with_keys = [(shard, shard.keys()) for shard in validation.shards]
    validation_keys = np.unique(
        np.concatenate(
            [np.zeros(0, np.uint64), *(keys for _, keys in shards_with_keys if keys is not None)]
        )
    )
    common = np.zeros(len(validation_keys), bool)
    for other in train_shards:  # may be thousands, so the validation keys are sorted once
        keys = other.keys() if len(other.ends) and len(validation_keys) else None
        if keys is not None:
            positions = np.searchsorted(validation_keys, keys)
            common[positions[validation_keys.take(positions, mode="clip") == keys]] = True
    for shard, keys in shards_with_keys:
        n_validation += len(shard.ends)
        n_known = 0 if keys is None else int(common[np.searchsorted(validation_keys, keys)].sum())
        n_common += len(shard.ends) if shard.record["digest"] in train_digests else n_known
    line = f"{n_common:,} of {n_validation:,} documents that are validated on are also trained on"
    if n_common and n_common >= ERROR_SHARE * n_validation:
        raise ValueError(
            f"data.validation=Separate(...): {line}; validate on other text, or use "
            "data.validation=Tail(fraction=0.1)"
        )
    if n_common:
        print_line(f"{line}: copies of one text")
