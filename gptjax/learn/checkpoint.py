"""Checkpoints whose damage is noticed: the one file that knows Orbax (its v1 API, which may still move).

A checkpoint is a directory DIR/<step>. When Orbax has written it, files.json (the size of every file, and the CRC of those that hold no
values) joins it, and it becomes valid at once (places.py). A kill at any moment so leaves whole checkpoints, and rubbish that the next
writer removes. With the leaves goes a sealed record: the step, `about`, and each leaf's dtype, shape and digest. The digests
are computed on the devices before saving, and again after restoring, so that nothing on the way between goes unseen.
"""

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

from gptjax.arrays import trees
from gptjax.config import command
from gptjax.data import checksums
from gptjax.learn import places
from gptjax.mesh import hosts

RESERVE_BYTES = 8 << 20  # beyond the leaves: Orbax's own files, and room for the run's log


class Damage(Exception):
    """What is wrong with one checkpoint, in a few words."""


class Saved:
    """The checkpoints in `directory`, for programs that only read; `say` gets one line for each damaged one that is passed over."""

    def __init__(self, directory: Path | str, say: Callable[[str], None], party: hosts.Hosts | None = None):
        self._place = places.place(directory)
        self._directory = self._place.path
        self._say, self._party = say, party or hosts.Hosts()
        self._good: set[int] = set()  # restored or saved by this object
        self._damaged: set[int] = set()
        for name in ("absl", "asyncio"):  # Orbax narrates through the first; reads that failed leave their tracebacks in the second
            logging.getLogger(name).setLevel(logging.CRITICAL)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, good or damaged, oldest first."""
        return self._place.steps()

    def about(self, step: int | None = None) -> dict:
        """What was saved beside the state of `step`, by default of the newest checkpoint that is readable; reads no arrays.

        ValueError if there is none, none that is readable, or if its folder has the name of another step.
        """
        return self.newest(step)[1]

    def newest(self, step: int | None = None) -> tuple[int, dict]:
        """(step, `about` of it)."""
        steps = self.steps()
        if not steps or step is not None and step not in steps:
            raise ValueError(
                f"no checkpoint {'' if step is None else f'of step {step} '}in {self._directory}; steps there: {_listed(steps)}"
            )
        found, record = self._newest(steps if step is None else [step], self._record)
        return found, record["about"]

    def restore(self, abstract_state, part: str = "", steps: Sequence[int] | None = None) -> tuple[int, Any, dict] | None:
        """(step, state, about) of the newest checkpoint that is whole, or of the last of `steps` that is; None if there is none to try.

        abstract_state: a pytree of jax.ShapeDtypeStruct; its shardings need not be those that were saved, and a leaf without one comes
        to the first device. part: restore the leaves whose names start so, for example "params/", which abstract_state then consists of.
        ValueError if its leaves are not the checkpoint's, if its folder has the name of another step, or if every checkpoint is damaged.
        """
        structure = jax.tree.structure(abstract_state)
        wanted = {name: _placed(leaf) for name, leaf in trees.named_leaves(abstract_state)}

        def read(step):
            record = self._agreed_record(step)
            saved = {name: entry for name, entry in record["leaves"].items() if name.startswith(part)}
            self._compare(step, saved, wanted)
            return self._leaves(step, saved, wanted), record["about"]

        candidates = self._party.first(self.steps) if steps is None else steps
        if not candidates:
            return None
        found, (leaves, about) = self._newest(candidates, read)
        self._good.add(found)
        return found, jax.tree.unflatten(structure, [leaves[name] for name in wanted]), about

    def _newest(self, steps: Sequence[int], read: Callable[[int], Any]) -> tuple[int, Any]:
        """(step, read(step)) for the last of `steps` whose reading does not raise Damage."""
        troubles = []
        for step in reversed(steps):
            try:
                return step, read(step)
            except Damage as trouble:
                if step not in self._damaged:
                    self._say(f"the checkpoint of step {step:,} is damaged: {trouble}")
                self._damaged.add(step)
                troubles.append(f"{step}: {trouble}")
        raise ValueError(
            f"every checkpoint in {self._directory} is damaged ({'; '.join(troubles)}); put back a copy, or start again in another --run"
        )

    def _agreed_record(self, step: int) -> dict:
        """`_record` as process 0 finds it, on every process: or one would pass over a checkpoint that another waits in."""

        def attempt() -> dict:
            try:
                return {"record": self._record(step)}
            except Damage as trouble:
                return {"damage": str(trouble)}

        answer = self._party.first(attempt)
        if "damage" in answer:
            raise Damage(answer["damage"])
        return answer["record"]

    def _record(self, step: int) -> dict:
        """The sealed record of a checkpoint, after a look at its files. ValueError if it is of another step than its folder's name says."""
        directory = self._directory / str(step)
        try:
            for name, (size, crc) in json.loads((directory / places.LISTING).read_text()).items():
                self._check_file(directory / name, name, size, crc)
            sealed: Any = ocp.checkpointables_metadata(str(directory)).custom_metadata
            if sealed["seal"] != checksums.seal(sealed["record"]):
                raise Damage("its record was changed")
        except FileNotFoundError as error:
            raise Damage(f"{places.LISTING} is missing") from error
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise Damage(f"its metadata is unreadable: {_first_line(error)}") from error
        record = sealed["record"]
        if record.get("step", step) != step:  # earlier versions did not record it
            raise name_error(directory, record["step"])
        return record

    def _check_file(self, file: Any, name: str, size: int, crc: int | None) -> None:
        """Damage if the file is missing, not as long as it was, or has another CRC."""
        try:
            there = self._place.size(file)
        except FileNotFoundError:
            raise Damage(f"{name} is missing") from None
        if there != size:
            raise Damage(f"{name} has {there:,} bytes, not {size:,}")
        if crc is not None and zlib.crc32(file.read_bytes()) != crc:
            raise Damage(f"{name} was changed")

    def _compare(self, step: int, saved: dict, wanted: dict) -> None:
        """ValueError at the first leaf that is not in both, or of another shape or dtype."""
        for name in [*wanted, *saved]:
            here = _kind(wanted[name]) if name in wanted else "absent"
            there = saved[name]["kind"] if name in saved else "absent"
            if here != there:
                raise ValueError(
                    f"{name} is {there} in the checkpoint of step {step:,} in {self._directory} and {here} in this config; "
                    f"use the config that wrote the checkpoint, or another --run"
                )

    def _leaves(self, step: int, saved: dict, wanted: dict) -> dict[str, jax.Array]:
        """The leaves by name, each digest verified. A digest is of the whole leaf, so all processes find the same."""
        with _orbax():
            try:
                leaves = ocp.load(str(self._directory / str(step)), wanted)
            except jax.errors.JaxRuntimeError:  # too little device memory, for one: not the checkpoint's fault
                raise
            except Exception as error:  # what Orbax raises for an array that it cannot read is a bare Exception
                name = next((name for name in wanted if f"{name}/" in str(error)), "a leaf")
                if self._party.processes > 1:  # the others may have read their parts, and wait for this one
                    raise ValueError(
                        f"{name} of the checkpoint of step {step:,} is unreadable: {_first_line(error)}; move "
                        f"{self._directory / str(step)} away, and the same command takes the one before"
                    ) from error
                raise Damage(f"{name} is unreadable: {_first_line(error)}") from error
            digests = trees.digests(leaves)
        for name in wanted:
            if digests[name] != saved[name]["digest"]:
                raise Damage(f"{name} is not what was saved: its digest is {digests[name]:08x}, not {saved[name]['digest']:08x}")
        return leaves


class Checkpoints(Saved):
    """Writes checkpoints too: keeps the newest `keep_last`, and for ever those at multiples of `every_keep` steps.

    A context manager; leaving it waits for the save under way. Until `begin` it only reads.
    """

    def __init__(
        self, directory: Path | str, keep_last: int, every_keep: int | None, say: Callable[[str], None], party: hosts.Hosts | None = None
    ):
        super().__init__(directory, say, party)
        self._keep_last, self._every_keep = keep_last, every_keep
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future | None = None
        self._ready = False
        self._warnings: set[str] = set()

    def begin(self) -> None:
        """Make the directory, and remove what a kill left in it; `save` does so first. ValueError if nothing can be written there."""
        try:
            lines = self._party.first(lambda: [self._place.make(), self._place.clean()][1])
        except OSError as error:
            raise ValueError(
                f"cannot write checkpoints to {self._directory}: {error.strerror or error}; make it writable, or give another --run"
            ) from error
        self._ready = True
        self._warn_once(lines)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        try:
            self.wait()
        except ValueError as trouble:
            if error is None:
                raise
            self._say(str(trouble))  # the error under way is the one to raise
        finally:
            self._thread.shutdown()

    def save(self, step: int, state, about: dict) -> None:
        """Begin to save `state` (a pytree of arrays) and `about` (JSON values; process 0's is kept) as the checkpoint of `step`.

        Returns when the state is copied or, on CPU, held fast: the caller may then donate or delete it. So it blocks on the computation
        of the state, on the save before it, on one digest pass over the state and on the copy from device to host. A checkpoint of
        `step` that this object restored or saved is left as it is; another one is replaced once the new one is whole.
        ValueError if the disk is too full, or if the save before this one failed.
        """
        if not self._ready:
            self.begin()
        self.wait()
        if step in self._good:
            return
        leaves = dict(trees.named_leaves(state))
        needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves.values()) + RESERVE_BYTES
        if self._free() < needed:
            raise ValueError(self._trouble(step, needed, "the disk is full"))
        with _orbax():
            digests = trees.digests(leaves)
            record = {"step": step, "about": about, "leaves": {n: {"kind": _kind(x), "digest": digests[n]} for n, x in leaves.items()}}
            record = json.loads(json.dumps(record))  # as it will be read: lists for tuples
            try:
                response = ocp.save_async(
                    str(self._place.writing(step)),
                    leaves,
                    overwrite=True,
                    custom_metadata={"record": record, "seal": checksums.seal(record)},
                )
            except (OSError, ValueError) as error:
                raise ValueError(self._trouble(step, needed, _first_line(error))) from error
        self._pending = self._thread.submit(self._commit, step, response, needed)

    def wait(self) -> None:
        """Block until the save under way is a whole checkpoint; ValueError if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _commit(self, step: int, response: ocp.AsyncResponse, needed: int) -> None:
        """In the background: wait for Orbax, make the checkpoint valid by its rename, remove those no longer kept, as far as that goes."""
        try:
            response.result()
            if jax.process_index() == 0:
                self._place.commit(step, json.dumps({name: list(entry) for name, entry in self._files(step)}, indent=0))
            self._good.add(step)
            self._damaged.discard(step)
        except Exception as error:  # whatever a background write raises must reach the loop as one line
            line = self._trouble(step, needed, _first_line(error))
            with contextlib.suppress(OSError):  # Orbax may be writing there still; the next writer removes what is left
                self._place.clean()
            raise ValueError(line) from error
        self._prune()

    def _files(self, step: int) -> Iterable[tuple[str, tuple[int, int | None]]]:
        """(name, (bytes, CRC)) of every file of a checkpoint; no CRC for Orbax's files of values, which the digests cover."""
        for name, file in self._place.files(self._place.writing(step)):
            yield name, (self._place.size(file), None if "/ocdbt.process_" in name else zlib.crc32(file.read_bytes()))

    def _prune(self) -> None:
        """Remove every checkpoint that is damaged or not to be kept. What cannot be removed is told, once each, and stays."""
        if jax.process_index() != 0:
            return
        try:
            whole = [step for step in self.steps() if step not in self._damaged]
            kept = whole[-self._keep_last :] + [step for step in whole if self._every_keep and step % self._every_keep == 0]
            for step in sorted(set(self.steps()) - set(kept)):
                try:
                    self._place.remove(step)
                except OSError as error:
                    if step in self.steps():  # else it is out of the way, and clean tells
                        self._warn_once([f"the checkpoint of step {step:,} cannot be removed: {error.strerror or error}"])
            self._warn_once(self._place.clean())
        except Exception as error:  # of an object store, too
            self._warn_once([f"what is no longer kept in {self._directory} cannot be removed: {_first_line(error)}"])

    def _warn_once(self, lines: Iterable[str]) -> None:
        for line in lines:
            if line not in self._warnings:
                self._warnings.add(line)
                self._say(f"{line}; the training goes on")

    def _free(self) -> int:
        """Bytes free where the checkpoints go."""
        return self._place.free()

    def _trouble(self, step: int, needed: int, what: str) -> str:
        return (
            f"cannot save the checkpoint of step {step:,} in {self._directory}: {what}; it needs {needed / 1e6:,.1f} MB and "
            f"{self._free() / 1e6:,.1f} MB are free; make room and start again; checkpoints there: {_listed(self.steps())}"
        )


@contextlib.contextmanager
def _orbax():
    """Orbax's options, and leave to move arrays to and from the devices where the training loop forbids it."""
    context = ocp.Context()
    context.array.saving.use_compression = False  # float32 weights shrink by 7%, and a flipped byte would spoil a whole chunk
    context.pytree.loading.partial_load = True
    with context, jax.transfer_guard("allow"):
        yield


def _placed(leaf) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _kind(leaf) -> str:
    """A leaf's dtype and shape, as in "float32[12,768]"."""
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def name_error(directory: Any, step: int) -> ValueError:
    """What to say of a checkpoint of `step` whose folder has the name of another."""
    return ValueError(f"{directory} is of step {step:,}: a folder was renamed or copied; name it {step} again, or remove it")


def _first_line(error: BaseException) -> str:
    return "the disk is full" if "No space left on device" in str(error) else command.first_line(error)


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "none"
