"""The checkpoints of a run: the newest intact one is restored, damaged ones are skipped, the newest
and every so many are kept. checkpoint_files.py has the files of each."""

import concurrent.futures
import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from gptjax.distributed.processes import ProcessGroup
from gptjax.runtime import storage
from gptjax.sharding import trees
from gptjax.training import checkpoint_files

RESERVE_BYTES = 8 << 20  # beyond the leaves: Orbax's own files, and room for the run's log


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
            is_shared = self._processes.num_processes > 1
            return (
                checkpoint_files.read_leaves(self._storage, step, entries, expected, is_shared),
                record["about"],
            )

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
        checkpoint_files.CorruptCheckpoint."""
        steps_by_error: dict[str, list[int]] = {}
        for step in reversed(steps):
            try:
                return step, read(step)
            except checkpoint_files.CorruptCheckpoint as error:
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
            except checkpoint_files.CorruptCheckpoint as error:
                return {"damage": str(error)}

        reply = self._processes.broadcast_from_zero(read_record)
        if "damage" in reply:
            raise checkpoint_files.CorruptCheckpoint(reply["damage"])
        return reply["record"]

    def _read_record(self, step: int) -> dict:
        return checkpoint_files.read_record(self._storage, step)


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
        try:
            response = checkpoint_files.write(self._storage, step, leaves, metadata)
        except (OSError, ValueError) as error:
            line = self._save_error(step, needed, checkpoint_files.first_line(error))
            raise ValueError(line) from error
        self._pending = self._thread.submit(self._commit, step, response, needed)

    def wait(self) -> None:
        """Blocks until the save in progress is a valid checkpoint. ValueError if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _commit(self, step: int, response: Any, needed: int) -> None:
        """Waits for Orbax, makes the checkpoint valid by a rename, and removes checkpoints that are
        no longer kept. Runs in a background thread."""
        try:
            response.result()
            if jax.process_index() == 0:
                checkpoint_files.commit(self._storage, step)
            self._intact.add(step)
            self._corrupt.discard(step)
        except Exception as error:  # whatever a background write raises reaches the loop as a line
            line = self._save_error(step, needed, checkpoint_files.first_line(error))
            # Orbax may be writing there still; the next writer removes what is left
            with contextlib.suppress(OSError):
                self._storage.clean()
            raise ValueError(line) from error
        self._prune()

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
                    f"{checkpoint_files.first_line(error)}"
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


def _with_sharding(leaf) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _format_steps(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "none"
