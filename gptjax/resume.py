"""Where an interrupted run resumes: all of it is looked at first, and nothing is written before it is known to go on.

A checkpoint decides the future of its run: its state (rows done among it), the ramp's quantum, its microbatches, the whole config, the
digests of tokenizer and text, the record up to it. What is asked for is compared with that. Only run.FREE may be other, and the length,
where train --tokens says so; what then is not as it was is told.
"""

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gptjax.config import batches, lock, overrides, run
from gptjax.config.schema import Config
from gptjax.data import saving, tokenizer
from gptjax.report import events


@contextlib.contextmanager
def hold_lock(directory: Path, shared: bool, party: Any, warn: Callable[[str], None]) -> Iterator[None]:
    """While entered, no other run is in the directory. party: a mesh.hosts.Hosts, whose process 0 holds the lock. shared: all see the
    directory. ValueError if another program has it, or if it is not the same for all."""
    with lock.hold(directory, "run directory", warn) if party.process == 0 else contextlib.nullcontext():
        owner = party.first(lambda: lock.owner(directory))
        if shared:
            run.check_shared(directory, owner)
        yield


def about(config: Config, plan: batches.Batches, limit_rows: int, reading: Any, record: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds beside the state. record: the seal of what was measured up to it (report.events)."""
    leaves = {"config": overrides.flat(config), "microbatch_rows": limit_rows, "shards": plan.shards, "quantum": plan.quantum}
    return leaves | {"tokenizer": reading.tokenizer.digest, "text": reading.digest(), "record": record}


@dataclasses.dataclass(frozen=True)
class Request:
    """What a run is asked to be. tokens: of train --tokens. set_length: --set gives the config another total_tokens or decay_tokens than
    its recipe has. new_record: train --new_record."""

    directory: Path
    config: Config
    tokens: int | None = None
    set_length: bool = False
    new_record: bool = False


@dataclasses.dataclass(frozen=True)
class ResumePoint:
    """Where a run stands. record_bytes: so many bytes of its record stay; None: it is set aside, and begins anew. notes: what is not as it
    was, for people."""

    step: int
    state: Any
    plan: batches.Batches
    limit_rows: int  # of a microbatch
    record_bytes: int | None = 0
    notes: tuple[str, ...] = ()


def find_run(request: Request, checkpoints: Any, warn: Callable[[str], None]) -> tuple[bool, dict[str, Any]]:
    """Whether there is a run that goes on, and the leaves (overrides.flat) of the config that it is to have, its length that of --tokens.
    For process 0. ValueError if it cannot go on, as far as can be told before its data are read."""
    steps = checkpoints.steps()
    exists = run.claim(request.directory, request.config, steps, request.tokens is not None, request.new_record)
    if steps:
        step, meta = checkpoints.newest()
        _compare(request, step, meta)
        config = _set_length(request, overrides.rebuild(meta["config"]))
        _check_record(request, step, meta)
        return True, overrides.flat(config)
    config = _set_length(request, run.config(request.directory) if exists else None)
    done = events.last_step(request.directory)
    if done and (request.directory / "config.json").is_file():
        # The save before is waited for at each: so after two periods the first is there.
        if done > 2 * run.config(request.directory).loop.every_save:
            raise ValueError(
                f"{request.directory} has a record of {done:,} steps and no checkpoint: put checkpoints/ back, give another --run, or "
                f"remove metrics.jsonl, and the run begins again"
            )
        warn(f"no checkpoint is in {request.directory}: its record of {done:,} steps is dropped, and the run begins again")
    return False, overrides.flat(config)


def restore_run(request: Request, checkpoints: Any, abstract_state: Any, reading: Any, shards: int, party: Any) -> ResumePoint:
    """The run as its newest checkpoint that is whole has it, from there on. ValueError if what is asked for cannot go on from it."""
    import jax

    from gptjax.learn import checkpoint, schedule

    data = f"the data of {request.directory} have changed since it began: give back what it read, or another --run"
    step, now, meta = checkpoints.restore(abstract_state)
    if (saved_step := int(jax.device_get(now.step))) != step:  # of an earlier version, whose record has no step
        raise checkpoint.name_error(request.directory / "checkpoints" / str(step), saved_step)
    if meta["tokenizer"] != reading.tokenizer.digest or meta.get("text", reading.digest()) != reading.digest():  # earlier ones lack it
        raise ValueError(data)
    rows, longer = int(jax.device_get(now.rows)), _compare(request, step, meta)
    if longer and request.config.train.total_tokens < min(rows * request.config.model.n_ctx, meta["config"]["train.total_tokens"]):
        done = f"{rows * request.config.model.n_ctx:,}"
        raise ValueError(f"--tokens={request.config.train.total_tokens:,}, but {done} tokens are done; give more, or another --run")
    record_bytes = party.first(lambda: _check_record(request, step, meta))
    plan = batches.resume(request.config, shards, step, rows, meta.get("quantum"))
    limit = request.config.train.microbatch_rows or meta["microbatch_rows"]
    notes = [events.LOST_NOTE] if record_bytes is None else []
    if longer:
        seen = (rows + plan.rows(step)) * request.config.model.n_ctx
        now_rate, old_rate = (schedule.rate(config.train.schedule, seen) for config in (request.config, overrides.rebuild(meta["config"])))
        notes.append(
            f"the run has another length from step {step:,} on: {'; '.join(longer)}; its learning rate goes on at {now_rate:.2e}, where it "
            f"would have been {old_rate:.2e}"
        )
    before, after = plan.largest_microbatch(meta["microbatch_rows"], meta.get("shards", shards)), plan.largest_microbatch(limit)
    if before != after:
        has_dropout = any(dataclasses.astuple(request.config.model.dropout))
        other = "sums are rounded otherwise, and dropout draws other masks" if has_dropout else "sums are rounded otherwise"
        notes.append(f"microbatches have {after} rows from step {step:,} on, where they had {before}: {other}")
    return ResumePoint(step, now, plan, limit, record_bytes, tuple(notes))


def write_description(directory: Path, config: Config, reading: Any) -> None:
    """config.json, data.json, and the tokenizer's files: sampling must not need them elsewhere again. For process 0. OSError that names
    what cannot be written."""
    saving.save(directory / "config.json", run.config_bytes(config))
    saving.save(directory / "data.json", saving.json_bytes(reading.description()))
    tokenizer.save_files(reading.tokenizer, config.data.tokenizer, directory)


@contextlib.contextmanager
def remove_new_data(directory: Path, continues: bool) -> Iterator[None]:
    """Where a run that goes on is refused within, what was prepared for it below `directory` is removed again."""
    before = set(directory.iterdir()) if directory.is_dir() else set()
    try:
        yield
    except ValueError:
        if continues:
            for path in set(directory.iterdir()) - before if directory.is_dir() else ():
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
            with contextlib.suppress(OSError):
                directory.rmdir()  # where it is empty
        raise


def _set_length(request: Request, there: Config | None) -> Config:
    """The config that is asked for, with the length of --tokens: it scales the decay of the run that is there, or of the recipe, and no
    decay of --set, which might be of the new length or of the old. ValueError if --set gives one that is not in proportion to the run's."""
    if request.tokens is None:
        return request.config
    given, begun = ((c.train.total_tokens, run.decay(c)) for c in (request.config, there or request.config))
    if request.set_length and there is None:
        raise ValueError(
            f"--tokens={request.tokens:,} moves the length and the decay of the recipe, and --set changes them, too "
            f"(to {_length(*given)}); give one of the two"
        )
    rates = [decay / tokens for tokens, decay in (given, begun) if decay is not None]
    if request.set_length and len(rates) == 2 and not math.isclose(*rates, rel_tol=1e-3):
        raise ValueError(
            f"--tokens={request.tokens:,} moves the length and the decay of the run in {request.directory} ({_length(*begun)}), and --set "
            f"gives others ({_length(*given)}): leave those out"
        )
    return run.scale_length(request.config, request.tokens, there)


def _length(total_tokens: int, decay: int | None) -> str:
    return f"train.total_tokens={total_tokens:,}" + (f", decay_tokens={decay:,}" if decay is not None else "")


def _compare(request: Request, step: int, meta: dict[str, Any]) -> list[str]:
    """What is other than in the checkpoint in length. ValueError if more is."""
    there = overrides.rebuild(meta["config"])
    what = f"the checkpoint of step {step:,} in {request.directory} is of another config"
    return run.check(there, request.config, what, request.tokens is not None)


def _check_record(request: Request, step: int, meta: dict[str, Any]) -> int | None:
    try:
        return events.check(request.directory, step, meta.get("record"))
    except ValueError:
        if not request.new_record and not events.starts_at(request.directory, step):
            raise
        return None
