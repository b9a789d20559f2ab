"""The files of one checkpoint, with what detects damage to them; the only file that uses Orbax (its
v1 API, which may still change).

A checkpoint is a directory DIR/<step>. After Orbax has written it, files.json (the size of every
file, and the CRC of those that hold no array values) is added, and one rename makes it valid
(runtime/storage.py). So a kill at any moment leaves valid checkpoints and files that the next
writer removes. The leaves are saved with a sealed record: the step, `about` (the metadata), and
dtype, shape and digest of each leaf. Digests are computed on the devices before saving and again
after restoring, so that corruption on any part of the way is detected."""

import contextlib
import json
import zlib
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from gptjax.runtime import checksums, errors, storage
from gptjax.sharding import trees


class CorruptCheckpoint(Exception):
    """Raised for a damaged checkpoint; the message says briefly what is wrong."""


def write(store: storage.Directory, step: int, leaves: dict[str, jax.Array], metadata: dict) -> Any:
    """Begins to write the leaves, by name, and the sealed record of a checkpoint to its staging
    path; returns once the leaves are copied or, on CPU, held. `result()` of the response waits for
    the writing; `commit` then makes the checkpoint valid. OSError or ValueError if Orbax cannot
    write there.
    """
    with _orbax_context():
        digests = trees.digests(leaves)
        kinds = {n: {"kind": _dtype_and_shape(x), "digest": digests[n]} for n, x in leaves.items()}
        record = {"step": step, "about": metadata, "leaves": kinds}
        record = json.loads(json.dumps(record))  # as it will be read: lists for tuples
        return ocp.save_async(
            str(store.staging_path(step)),
            leaves,
            overwrite=True,
            custom_metadata={"record": record, "seal": checksums.seal(record)},
        )


def commit(store: storage.Directory, step: int) -> None:
    """Lists the files of a written checkpoint and makes it valid. Orbax's files of array values are
    listed without a CRC, since the digests cover them."""
    listing = {
        name: (
            store.file_size(file),
            None if "/ocdbt.process_" in name else zlib.crc32(file.read_bytes()),
        )
        for name, file in store.list_files(store.staging_path(step))
    }
    store.commit(step, json.dumps(listing, indent=0))


def read_record(store: storage.Directory, step: int) -> dict:
    """Returns the record of a checkpoint after checking its files and the seal. CorruptCheckpoint
    if they are damaged; ValueError if it is of another step than its directory's name says."""
    directory = store.path / str(step)
    try:
        for name, (size, crc) in json.loads((directory / storage.LISTING).read_text()).items():
            _check_file(store, directory / name, name, size, crc)
        sealed: Any = ocp.checkpointables_metadata(str(directory)).custom_metadata
        if sealed["seal"] != checksums.seal(sealed["record"]):
            raise CorruptCheckpoint("its record was changed")
    except FileNotFoundError as error:
        raise CorruptCheckpoint(f"{storage.LISTING} is missing") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptCheckpoint(f"its metadata is unreadable: {first_line(error)}") from error
    record = sealed["record"]
    if record.get("step", step) != step:  # earlier versions did not record it
        raise name_error(directory, record["step"])
    return record


def read_leaves(
    store: storage.Directory,
    step: int,
    entries: dict[str, dict],
    expected: dict[str, jax.ShapeDtypeStruct],
    is_shared: bool,
) -> dict[str, jax.Array]:
    """Returns the leaves by name after verifying their digests.

    entries: of those leaves in the record. expected: dtype, shape and sharding of each; ValueError
    for the first leaf that only one of the two has, or whose dtype or shape differs. is_shared:
    other processes read too, and have perhaps read their parts of a leaf that is unreadable here:
    that raises ValueError, not CorruptCheckpoint, as they wait for this one.
    """
    _check_leaves(store, step, entries, expected)
    with _orbax_context():
        try:
            leaves = ocp.load(str(store.path / str(step)), expected)
        except jax.errors.JaxRuntimeError:  # too little device memory, for one: no damage
            raise
        except Exception as error:  # Orbax raises a bare Exception for an array it cannot read
            name = next((name for name in expected if f"{name}/" in str(error)), "a leaf")
            if is_shared:
                raise ValueError(
                    f"{name} of the checkpoint of step {step:,} is unreadable: "
                    f"{first_line(error)}; move {store.path / str(step)} away, and the same "
                    "command takes the one before"
                ) from error
            raise CorruptCheckpoint(f"{name} is unreadable: {first_line(error)}") from error
        digests = trees.digests(leaves)  # each of a whole leaf: the same on all processes
    for name in expected:
        if digests[name] != entries[name]["digest"]:
            raise CorruptCheckpoint(
                f"{name} is not what was saved: its digest is {digests[name]:08x}, not "
                f"{entries[name]['digest']:08x}"
            )
    return leaves


def name_error(directory: Any, step: int) -> ValueError:
    """Returns the error for a checkpoint of `step` in a directory that is named after another
    step."""
    return ValueError(
        f"{directory} is of step {step:,}: a folder was renamed or copied; name it {step} again, "
        "or remove it"
    )


def first_line(error: BaseException) -> str:
    """Returns what went wrong with a file, in one line."""
    is_full = "No space left on device" in str(error)
    return "the disk is full" if is_full else errors.first_line(error)


def _check_file(store: storage.Directory, file: Any, name: str, size: int, crc: int | None) -> None:
    """Raises CorruptCheckpoint if a file is missing, or has another size or CRC than recorded."""
    try:
        actual = store.file_size(file)
    except FileNotFoundError:
        raise CorruptCheckpoint(f"{name} is missing") from None
    if actual != size:
        raise CorruptCheckpoint(f"{name} has {actual:,} bytes, not {size:,}")
    if crc is not None and zlib.crc32(file.read_bytes()) != crc:
        raise CorruptCheckpoint(f"{name} was changed")


def _check_leaves(store: storage.Directory, step: int, entries: dict, expected: dict) -> None:
    """Raises ValueError for the first leaf that only one of checkpoint and config has, or whose
    shape or dtype differs."""
    for name in [*expected, *entries]:
        expected_kind = _dtype_and_shape(expected[name]) if name in expected else "absent"
        saved_kind = entries[name]["kind"] if name in entries else "absent"
        if expected_kind != saved_kind:
            raise ValueError(
                f"{name} is {saved_kind} in the checkpoint of step {step:,} in {store.path} and "
                f"{expected_kind} in this config; use the config that wrote the checkpoint, or "
                "another --run_dir"
            )


@contextlib.contextmanager
def _orbax_context():
    """A context with Orbax's options, in which arrays may be moved to and from the devices although
    the training loop forbids it."""
    context = ocp.Context()
    # float32 weights shrink by 7%, and a flipped byte would spoil a whole chunk
    context.array.saving.use_compression = False
    context.pytree.loading.partial_load = True
    with context, jax.transfer_guard("allow"):
        yield


def _dtype_and_shape(leaf) -> str:
    """Returns a leaf's dtype and shape, as in "float32[12,768]"."""
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
