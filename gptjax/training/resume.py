"""Where an interrupted run resumes: all of it is looked at first, and nothing is written before it
is known to go on.

A checkpoint decides the future of its run: its state (rows done among it), the ramp's quantum, its
microbatches, the whole config, the digests of tokenizer and text, the record up to it. A request to
continue is compared with that. Only run_dir.MAY_CHANGE may be other, and the length, where train
--tokens says so; changes are then reported.
"""

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gptjax.config import batch_schedule, overrides
from gptjax.config.schema import Config
from gptjax.data.tokenizers import build
from gptjax.report import events
from gptjax.runtime import atomic, lock, run_dir


@contextlib.contextmanager
def hold_lock(
    directory: Path, shared: bool, processes: Any, warn: Callable[[str], None]
) -> Iterator[None]:
    """A context in which no other program trains in the directory. processes: a
    distributed.processes.ProcessGroup, whose process 0 holds the lock. shared: whether all
    processes see the same directory. ValueError if another program has it, or if it should be
    shared and is not."""
    with (
        lock.hold(directory, "run directory", warn)
        if processes.process_id == 0
        else contextlib.nullcontext()
    ):
        owner = processes.broadcast_from_zero(lambda: lock.owner(directory))
        if shared:
            run_dir.check_shared(directory, owner)
        yield


def metadata(
    config: Config,
    plan: batch_schedule.BatchSchedule,
    max_microbatch_rows: int,
    dataset: Any,
    record: dict[str, Any],
    position: Any = None,
) -> dict[str, Any]:
    """What a checkpoint holds besides the state. record: the seal of what was measured up to it
    (report.events). position: of the data, dataset.position of its step.
    """
    leaves = {
        "config": overrides.flatten(config),
        "microbatch_rows": max_microbatch_rows,
        "shards": plan.shards,
        "quantum": plan.quantum,
    }
    return leaves | {
        "tokenizer": dataset.tokenizer.digest,
        "text": dataset.digest(),
        "models": dataset.model_digests,
        "record": record,
        "position": position,
    }


@dataclasses.dataclass(frozen=True)
class Request:
    """A request to start or continue a run. tokens: of train --tokens. set_length: --set gives the
    config another total_tokens or decay_tokens than its recipe has. new_record: train --new_record.
    """

    directory: Path
    config: Config
    tokens: int | None = None
    set_length: bool = False
    new_record: bool = False


@dataclasses.dataclass(frozen=True)
class ResumePoint:
    """The position at which a run continues. record_bytes: length of the part of metrics.jsonl that
    is kept; None if the file is set aside and a new one begun. notes: differences from the earlier
    part of the run, for the user."""

    step: int
    state: Any
    plan: batch_schedule.BatchSchedule
    max_microbatch_rows: int  # of a microbatch
    record_bytes: int | None = 0
    notes: tuple[str, ...] = ()


def find_run(
    request: Request, checkpoints: Any, warn: Callable[[str], None]
) -> tuple[bool, dict[str, Any]]:
    """Whether there is a run that goes on, and the leaves (overrides.flatten) of the config that it
    is to have, its length that of --tokens. For process 0. ValueError if it cannot go on, as far as
    can be determined before its data are read.
    """
    steps = checkpoints.steps()
    exists = run_dir.claim_run_dir(
        request.directory, request.config, steps, request.tokens is not None, request.new_record
    )
    if steps:
        step, meta = checkpoints.latest()
        _check_config(request, step, meta)
        config = _set_length(request, overrides.unflatten(meta["config"]))
        _check_record(request, step, meta)
        return True, overrides.flatten(config)
    config = _set_length(request, run_dir.load_config(request.directory) if exists else None)
    steps_done = events.last_step(request.directory)
    if steps_done and (request.directory / "config.json").is_file():
        # The save before is waited for at each: so after two periods the first is there.
        if steps_done > 2 * run_dir.load_config(request.directory).loop.every_save:
            raise ValueError(
                f"{request.directory} has a record of {steps_done:,} steps and no checkpoint: put "
                "checkpoints/ back, give another --run_dir, "
                f"or remove metrics.jsonl, and the run begins again"
            )
        warn(
            f"no checkpoint is in {request.directory}: its record of {steps_done:,} steps is "
            "dropped, and the run begins again"
        )
    return False, overrides.flatten(config)


def restore_run(
    request: Request,
    checkpoints: Any,
    abstract_state: Any,
    dataset: Any,
    shards: int,
    processes: Any,
) -> ResumePoint:
    """The run as its newest checkpoint that is whole has it, from there on. ValueError if the
    requested run cannot continue from it.
    """
    import jax

    from gptjax.training import checkpoint_files, schedule

    data_error = (
        f"the data of {request.directory} have changed since it began: give back what it read, or "
        "another --run_dir"
    )
    step, state, meta = checkpoints.restore(abstract_state)
    saved_step = int(jax.device_get(state.step))
    if saved_step != step:  # of an earlier version, whose record has no step
        raise checkpoint_files.name_error(request.directory / "checkpoints" / str(step), saved_step)
    if meta.get("position") is not None:
        dataset.seek(meta["position"])
    digest = dataset.digest()
    if (
        meta["tokenizer"] != dataset.tokenizer.digest
        or meta.get("text", digest) != digest  # earlier versions did not record it
    ):
        raise ValueError(data_error)
    for name, saved_digest in meta.get("models", {}).items():
        if dataset.model_digests.get(name) != saved_digest:
            raise ValueError(
                f"the {name} of {request.directory} is not the one that the run began with: give "
                "that, or another --run_dir"
            )
    rows, length_changes = int(jax.device_get(state.rows)), _check_config(request, step, meta)
    if length_changes and request.config.train.total_tokens < min(
        rows * request.config.model.n_ctx, meta["config"]["train.total_tokens"]
    ):
        tokens_done = f"{rows * request.config.model.n_ctx:,}"
        raise ValueError(
            f"--tokens={request.config.train.total_tokens:,}, but {tokens_done} tokens are done; "
            "give more, or another --run_dir"
        )
    record_bytes = processes.broadcast_from_zero(lambda: _check_record(request, step, meta))
    plan = batch_schedule.resume(request.config, shards, step, rows, meta.get("quantum"))
    limit = request.config.train.microbatch_rows or meta["microbatch_rows"]
    notes = [events.LOST_NOTE] if record_bytes is None else []
    if length_changes:
        tokens_seen = (rows + plan.rows(step)) * request.config.model.n_ctx
        new_lr, old_lr = (
            schedule.lr_at(config.train.schedule, tokens_seen)
            for config in (request.config, overrides.unflatten(meta["config"]))
        )
        notes.append(
            f"the run has another length from step {step:,} on: {'; '.join(length_changes)}; its "
            f"learning rate goes on at {new_lr:.2e}, "
            f"where it would have been {old_lr:.2e}"
        )
    old_microbatch, new_microbatch = (
        plan.largest_microbatch(meta["microbatch_rows"], meta.get("shards", shards)),
        plan.largest_microbatch(limit),
    )
    if old_microbatch != new_microbatch:
        has_dropout = any(dataclasses.astuple(request.config.model.dropout))
        effect = (
            "sums are rounded otherwise, and dropout draws other masks"
            if has_dropout
            else "sums are rounded otherwise"
        )
        notes.append(
            f"microbatches have {new_microbatch} rows from step {step:,} on, where they had "
            f"{old_microbatch}: {effect}"
        )
    return ResumePoint(step, state, plan, limit, record_bytes, tuple(notes))


def write_description(directory: Path, config: Config, dataset: Any) -> None:
    """Writes config.json, data.json and the tokenizer's files, so that sampling needs no other copy
    of them. For process 0. OSError names the file that cannot be written."""
    atomic.save(directory / "config.json", run_dir.config_bytes(config))
    atomic.save(directory / "data.json", atomic.json_bytes(dataset.description()))
    build.save_files(dataset.tokenizer, config.data.tokenizer, directory)


@contextlib.contextmanager
def remove_new_data(directory: Path, continues: bool) -> Iterator[None]:
    """A context that removes data newly prepared below `directory` if a ValueError refuses the
    continuation of a run within it."""
    old_paths = set(directory.iterdir()) if directory.is_dir() else set()
    try:
        yield
    except ValueError:
        if continues:
            for path in set(directory.iterdir()) - old_paths if directory.is_dir() else ():
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
            with contextlib.suppress(OSError):
                directory.rmdir()  # where it is empty
        raise


def _set_length(request: Request, saved_config: Config | None) -> Config:
    """The requested config, with the length of --tokens: it scales the decay of the run that is
    there, or of the recipe, and no decay of --set, which might be of the new length or of the old.
    ValueError if --set gives one that is not in proportion to the run's.
    """
    if request.tokens is None:
        return request.config
    given, begun = (
        (c.train.total_tokens, run_dir.decay(c))
        for c in (request.config, saved_config or request.config)
    )
    if request.set_length and saved_config is None:
        raise ValueError(
            f"--tokens={request.tokens:,} moves the length and the decay of the recipe, and --set "
            "changes them, too "
            f"(to {_length(*given)}); give one of the two"
        )
    rates = [decay / tokens for tokens, decay in (given, begun) if decay is not None]
    if request.set_length and len(rates) == 2 and not math.isclose(*rates, rel_tol=1e-3):
        raise ValueError(
            f"--tokens={request.tokens:,} moves the length and the decay of the run in "
            f"{request.directory} ({_length(*begun)}), and --set "
            f"gives others ({_length(*given)}): leave those out"
        )
    return run_dir.scale_length(request.config, request.tokens, saved_config)


def _length(total_tokens: int, decay: int | None) -> str:
    return f"train.total_tokens={total_tokens:,}" + (
        f", decay_tokens={decay:,}" if decay is not None else ""
    )


def _check_config(request: Request, step: int, meta: dict[str, Any]) -> list[str]:
    """Returns the differences in length from the config of the checkpoint. ValueError if other
    fields differ."""
    saved_config = overrides.unflatten(meta["config"])
    what = f"the checkpoint of step {step:,} in {request.directory} is of another config"
    return run_dir.check_same_config(saved_config, request.config, what, request.tokens is not None)


def _check_record(request: Request, step: int, meta: dict[str, Any]) -> int | None:
    try:
        return events.check(request.directory, step, meta.get("record"))
    except ValueError:
        if not request.new_record and not events.starts_at(request.directory, step):
            raise
        return None
