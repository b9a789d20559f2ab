"""Checkpoints that detect damage; the only file that uses Orbax (its v1 API, which may still
change).

A checkpoint is a directory DIR/<step>. After Orbax has written it, files.json (the size of every
file, and the CRC of those that hold no array values) is added, and one rename makes it valid
(runtime/storage.py). So a kill at any moment leaves valid checkpoints and files that the next
writer removes. The leaves are saved with a sealed record: the step, `about` (the metadata), and
dtype, shape and digest of each leaf. Digests are computed on the devices before saving and again
after restoring, so that corruption on any part of the way is detected."""

import concurrent.futures
import contextlib
import json
import logging
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from gptjax.distributed.processes import ProcessGroup
from gptjax.runtime import checksums, errors, storage
from gptjax.sharding import trees

RESERVE_BYTES = 8 << 20  # beyond the leaves: Orbax's own files, and room for the run's log


class CorruptCheckpoint(Exception):
    """Raised for a damaged checkpoint; the message says briefly what is wrong."""


class CheckpointReader:
    """The checkpoints in `directory`, for programs that only read; `print_line` gets one line for
    each damaged one that is skipped.
    """

    def __init__(
        self,
        directory: Path | str,
        print_line: Callable[[str], None],
        processes: ProcessGroup | None = None,
    ):
        self._storage = storage.open_storage(directory)
        self._directory = self._storage.path
        self._print_line, self._processes = print_line, processes or ProcessGroup()
        self._intact: set[int] = set()  # restored or saved by this object
        self._corrupt: set[int] = set()
        for name in ("absl", "asyncio"):
            # Orbax narrates through the first; reads that failed leave their tracebacks in the
            # second
            logging.getLogger(name).setLevel(logging.CRITICAL)

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, intact or damaged, in ascending order."""
        return self._storage.steps()

    def metadata(self, step: int | None = None) -> dict:
        """What was saved with the state of `step`, by default of the newest checkpoint that is
        readable; reads no arrays.

        ValueError if there is none, none that is readable, or if its folder has the name of another
        step.
        """
        return self.latest(step)[1]

    def latest(self, step: int | None = None) -> tuple[int, dict]:
        """Returns (step, metadata) of a checkpoint, as `metadata` chooses it."""
        steps = self.steps()
        if not steps or step is not None and step not in steps:
            raise ValueError(
                f"no checkpoint {'' if step is None else f'of step {step} '}in {self._directory}; "
                f"steps there: {_format_steps(steps)}"
            )
        latest_step, record = self._latest_intact(
            steps if step is None else [step], self._read_record
        )
        return latest_step, record["about"]

    def restore(
        self, abstract_state, prefix: str = "", steps: Sequence[int] | None = None
    ) -> tuple[int, Any, dict] | None:
        """(step, state, metadata) of the newest checkpoint that is whole, or of the last of `steps`
        that is; None if there is none to try.

        abstract_state: a pytree of jax.ShapeDtypeStruct; its shardings need not be those that were
        saved, and a leaf without one comes to the first device. prefix: restore the leaves whose
        names start so, for example "params/", which abstract_state then consists of. ValueError if
        its leaves are not the checkpoint's, if its folder has the name of another step, or if every
        checkpoint is damaged.
        """
        structure = jax.tree.structure(abstract_state)
        expected = {name: _with_sharding(leaf) for name, leaf in trees.named_leaves(abstract_state)}

        def read(step):
            record = self._shared_record(step)
            entries = {
                name: entry for name, entry in record["leaves"].items() if name.startswith(prefix)
            }
            self._check_leaves(step, entries, expected)
            return self._load_leaves(step, entries, expected), record["about"]

        candidates = self._processes.broadcast_from_zero(self.steps) if steps is None else steps
        if not candidates:
            return None
        restored_step, (leaves, metadata) = self._latest_intact(candidates, read)
        self._intact.add(restored_step)
        return (
            restored_step,
            jax.tree.unflatten(structure, [leaves[name] for name in expected]),
            metadata,
        )

    def _latest_intact(self, steps: Sequence[int], read: Callable[[int], Any]) -> tuple[int, Any]:
        """(step, read(step)) for the last of `steps` whose reading does not raise
        CorruptCheckpoint."""
        steps_by_error: dict[str, list[int]] = {}
        for step in reversed(steps):
            try:
                return step, read(step)
            except CorruptCheckpoint as error:
                if step not in self._corrupt:
                    self._print_line(f"the checkpoint of step {step:,} is damaged: {error}")
                self._corrupt.add(step)
                steps_by_error.setdefault(str(error), []).append(step)
        errors = "; ".join(
            f"{', '.join(map(str, steps))}: {error}" for error, steps in steps_by_error.items()
        )
        raise ValueError(
            f"every checkpoint in {self._directory} is damaged ({errors}); put back a copy, or "
            "start again in another --run_dir"
        )

    def _shared_record(self, step: int) -> dict:
        """Returns what `_read_record` finds on process 0, on every process; otherwise one process
        could pass over a checkpoint that another one waits to restore."""

        def read_record() -> dict:
            try:
                return {"record": self._read_record(step)}
            except CorruptCheckpoint as error:
                return {"damage": str(error)}

        reply = self._processes.broadcast_from_zero(read_record)
        if "damage" in reply:
            raise CorruptCheckpoint(reply["damage"])
        return reply["record"]

    def _read_record(self, step: int) -> dict:
        """Returns the sealed record of a checkpoint after checking its files. ValueError if it is
        of another step than its directory's name says."""
        directory = self._directory / str(step)
        try:
            for name, (size, crc) in json.loads((directory / storage.LISTING).read_text()).items():
                self._check_file(directory / name, name, size, crc)
            sealed: Any = ocp.checkpointables_metadata(str(directory)).custom_metadata
            if sealed["seal"] != checksums.seal(sealed["record"]):
                raise CorruptCheckpoint("its record was changed")
        except FileNotFoundError as error:
            raise CorruptCheckpoint(f"{storage.LISTING} is missing") from error
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise CorruptCheckpoint(f"its metadata is unreadable: {_first_line(error)}") from error
        record = sealed["record"]
        if record.get("step", step) != step:  # earlier versions did not record it
            raise name_error(directory, record["step"])
        return record

    def _check_file(self, file: Any, name: str, size: int, crc: int | None) -> None:
        """Raises CorruptCheckpoint if a file is missing, or has another size or CRC than
        recorded."""
        try:
            actual = self._storage.file_size(file)
        except FileNotFoundError:
            raise CorruptCheckpoint(f"{name} is missing") from None
        if actual != size:
            raise CorruptCheckpoint(f"{name} has {actual:,} bytes, not {size:,}")
        if crc is not None and zlib.crc32(file.read_bytes()) != crc:
            raise CorruptCheckpoint(f"{name} was changed")

    def _check_leaves(self, step: int, entries: dict, expected: dict) -> None:
        """Raises ValueError for the first leaf that only one of checkpoint and config has, or whose
        shape or dtype differs."""
        for name in [*expected, *entries]:
            expected_kind = _dtype_and_shape(expected[name]) if name in expected else "absent"
            saved_kind = entries[name]["kind"] if name in entries else "absent"
            if expected_kind != saved_kind:
                raise ValueError(
                    f"{name} is {saved_kind} in the checkpoint of step {step:,} in "
                    f"{self._directory} and {expected_kind} in this config; "
                    f"use the config that wrote the checkpoint, or another --run_dir"
                )

    def _load_leaves(self, step: int, entries: dict, expected: dict) -> dict[str, jax.Array]:
        """Returns the leaves by name after verifying their digests. A digest covers the whole leaf,
        so it is the same on all processes."""
        with _orbax_context():
            try:
                leaves = ocp.load(str(self._directory / str(step)), expected)
            except (
                jax.errors.JaxRuntimeError
            ):  # too little device memory, for one: not the checkpoint's fault
                raise
            except (
                Exception
            ) as error:  # what Orbax raises for an array that it cannot read is a bare Exception
                name = next((name for name in expected if f"{name}/" in str(error)), "a leaf")
                if (
                    self._processes.num_processes > 1
                ):  # the others may have read their parts, and wait for this one
                    raise ValueError(
                        f"{name} of the checkpoint of step {step:,} is unreadable: "
                        f"{_first_line(error)}; move "
                        f"{self._directory / str(step)} away, and the same command takes the one "
                        "before"
                    ) from error
                raise CorruptCheckpoint(f"{name} is unreadable: {_first_line(error)}") from error
            digests = trees.digests(leaves)
        for name in expected:
            if digests[name] != entries[name]["digest"]:
                raise CorruptCheckpoint(
                    f"{name} is not what was saved: its digest is {digests[name]:08x}, not "
                    f"{entries[name]['digest']:08x}"
                )
        return leaves


class CheckpointManager(CheckpointReader):
    """Writes checkpoints too: keeps the newest `keep_last`, and permanently those at multiples of
    `every_keep` steps.

    A context manager; leaving it waits for the save under way. Until `prepare` it only reads.
    """

    def __init__(
        self,
        directory: Path | str,
        keep_last: int,
        every_keep: int | None,
        print_line: Callable[[str], None],
        processes: ProcessGroup | None = None,
    ):
        super().__init__(directory, print_line, processes)
        self._keep_last, self._every_keep = keep_last, every_keep
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future | None = None
        self._ready = False
        self._warnings: set[str] = set()

    def prepare(self) -> None:
        """Creates the directory and removes what an interrupted save left in it; `save` calls it
        first. ValueError if the directory cannot be written."""
        try:
            lines = self._processes.broadcast_from_zero(
                lambda: [self._storage.create(), self._storage.clean()][1]
            )
        except OSError as error:
            raise ValueError(
                f"cannot write checkpoints to {self._directory}: {error.strerror or error}; make "
                "it writable, or give another --run_dir"
            ) from error
        self._ready = True
        self._warn_once(lines)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        try:
            self.wait()
        except ValueError as save_error:
            if error is None:
                raise
            self._print_line(str(save_error))  # the error under way is the one to raise
        finally:
            self._thread.shutdown()

    def save(self, step: int, state, metadata: dict) -> None:
        """Begin to save `state` (a pytree of arrays) and `metadata` (JSON values; process 0's is
        kept) as the checkpoint of `step`.

        Returns when the state is copied or, on CPU, held fast: the caller may then donate or delete
        it. So it blocks on the computation of the state, on the save before it, on one digest pass
        over the state and on the copy from device to host. A checkpoint of `step` that this object
        restored or saved is left as it is; another one is replaced once the new one is whole.
        ValueError if the disk is too full, or if the save before this one failed.
        """
        if not self._ready:
            self.prepare()
        self.wait()
        if step in self._intact:
            return
        leaves = dict(trees.named_leaves(state))
        needed = (
            sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves.values())
            + RESERVE_BYTES
        )
        if self._free_bytes() < needed:
            raise ValueError(self._save_error(step, needed, "the disk is full"))
        with _orbax_context():
            digests = trees.digests(leaves)
            record = {
                "step": step,
                "about": metadata,
                "leaves": {
                    n: {"kind": _dtype_and_shape(x), "digest": digests[n]}
                    for n, x in leaves.items()
                },
            }
            record = json.loads(json.dumps(record))  # as it will be read: lists for tuples
            try:
                response = ocp.save_async(
                    str(self._storage.staging_path(step)),
                    leaves,
                    overwrite=True,
                    custom_metadata={"record": record, "seal": checksums.seal(record)},
                )
            except (OSError, ValueError) as error:
                raise ValueError(self._save_error(step, needed, _first_line(error))) from error
        self._pending = self._thread.submit(self._commit, step, response, needed)

    def wait(self) -> None:
        """Blocks until the save in progress is a valid checkpoint. ValueError if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _commit(self, step: int, response: ocp.AsyncResponse, needed: int) -> None:
        """Waits for Orbax, makes the checkpoint valid by a rename, and removes checkpoints that are
        no longer kept. Runs in a background thread."""
        try:
            response.result()
            if jax.process_index() == 0:
                self._storage.commit(
                    step,
                    json.dumps(
                        {name: list(entry) for name, entry in self._file_entries(step)}, indent=0
                    ),
                )
            self._intact.add(step)
            self._corrupt.discard(step)
        except (
            Exception
        ) as error:  # whatever a background write raises must reach the loop as one line
            line = self._save_error(step, needed, _first_line(error))
            with contextlib.suppress(
                OSError
            ):  # Orbax may be writing there still; the next writer removes what is left
                self._storage.clean()
            raise ValueError(line) from error
        self._prune()

    def _file_entries(self, step: int) -> Iterable[tuple[str, tuple[int, int | None]]]:
        """Iterates over (name, (bytes, CRC)) of every file of a checkpoint. Orbax's files of array
        values have no CRC, since the digests cover them."""
        for name, file in self._storage.list_files(self._storage.staging_path(step)):
            yield (
                name,
                (
                    self._storage.file_size(file),
                    None if "/ocdbt.process_" in name else zlib.crc32(file.read_bytes()),
                ),
            )

    def _prune(self) -> None:
        """Remove every checkpoint that is damaged or not to be kept. What cannot be removed is
        reported, once each, and stays.
        """
        if jax.process_index() != 0:
            return
        try:
            intact = [step for step in self.steps() if step not in self._corrupt]
            to_keep = intact[-self._keep_last :] + [
                step for step in intact if self._every_keep and step % self._every_keep == 0
            ]
            for step in sorted(set(self.steps()) - set(to_keep)):
                try:
                    self._storage.remove(step)
                except OSError as error:
                    if step in self.steps():  # else it is out of the way, and clean reports it
                        self._warn_once(
                            [
                                f"the checkpoint of step {step:,} cannot be removed: "
                                f"{error.strerror or error}"
                            ]
                        )
            self._warn_once(self._storage.clean())
        except Exception as error:  # of an object store, too
            self._warn_once(
                [
                    f"what is no longer kept in {self._directory} cannot be removed: "
                    f"{_first_line(error)}"
                ]
            )

    def _warn_once(self, lines: Iterable[str]) -> None:
        for line in lines:
            if line not in self._warnings:
                self._warnings.add(line)
                self._print_line(f"{line}; the training goes on")

    def _free_bytes(self) -> int:
        """Returns the free bytes where checkpoints are stored."""
        return self._storage.free_bytes()

    def _save_error(self, step: int, needed: int, what: str) -> str:
        return (
            f"cannot save the checkpoint of step {step:,} in {self._directory}: {what}; it needs "
            f"{needed / 1e6:,.1f} MB and "
            f"{self._free_bytes() / 1e6:,.1f} MB are free; make room and start again; checkpoints "
            f"there: {_format_steps(self.steps())}"
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


def _with_sharding(leaf) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _dtype_and_shape(leaf) -> str:
    """Returns a leaf's dtype and shape, as in "float32[12,768]"."""
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def name_error(directory: Any, step: int) -> ValueError:
    """Returns the error for a checkpoint of `step` in a directory that is named after another
    step."""
    return ValueError(
        f"{directory} is of step {step:,}: a folder was renamed or copied; name it {step} again, "
        "or remove it"
    )


def _first_line(error: BaseException) -> str:
    return (
        "the disk is full" if "No space left on device" in str(error) else errors.first_line(error)
    )


def _format_steps(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "none"
