"""Train a GPT: `python -m gptjax.train --config=NAME`. It reads in chapters: config, mesh, data, state, step, loop."""

import dataclasses
import json
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptjax.config import command, count, overrides, run
from gptjax.config.batches import Batches
from gptjax.config.data import Embedded, SentencePiece
from gptjax.config.schema import Config

EXAMPLE = 'python -m gptjax.train --config=gpt3_small --set train.steps=100 --set "model.attention=Dense()"'


def main(arguments: list[str]) -> int:
    """Exit status 0 at the end of the run or at an orderly stop, 3 if the run gave up on non-finite updates."""
    parser = command.parser("train", "Train a GPT on text. The same command continues an interrupted run.", EXAMPLE)
    parser.add_argument("--run", metavar="DIR", help="where the run goes, or lies (default: runs/CONFIG)")
    args = parser.parse_args(arguments)
    config = command.resolved(args)
    return train(config, run.directory(args.run, config))


@dataclasses.dataclass
class Session:
    """What the loop works with: made once, by `train`."""

    config: Config
    directory: Path
    mesh: Any
    batches: Batches
    reading: Any  # data.pipeline.Reading
    step: Any  # learn.step.Step
    microbatch: int  # rows, over all processes
    checkpoints: Any  # learn.checkpoint.Checkpoints
    out: Any  # report.console.Console


def train(config: Config, directory: Path) -> int:
    """Train in `directory` from where its run stands. Raises ValueError, in one line, for what a user can mend."""
    Batches(config)  # what can be refused without devices is refused before the run directory is made and jax imported
    resumed = run.claim(directory, config)

    import jax

    from gptjax.data import pipeline, saving
    from gptjax.learn import checkpoint, state, step
    from gptjax.mesh import devices
    from gptjax.report import console

    # --- mesh
    mesh = devices.mesh(config.mesh)
    batches = Batches(config, shards=mesh.shape["data"] * mesh.shape["fsdp"])
    out = console.Console(quiet=jax.process_index() != 0)

    # --- data
    reading = pipeline.reading(config, directory / "data", out.say)
    if jax.process_index() == 0:
        (directory / "data.json").write_text(json.dumps(reading.description(), indent=1) + "\n")
        if isinstance(config.data.tokenizer, SentencePiece):
            saving.save(directory / "tokenizer.model", reading.tokenizer.model)

    # --- state: of the newest good checkpoint, else drawn from the seed
    built = step.build(config, jax.devices()[0].platform, mesh, reading.tokenizer.end_of_text)
    with checkpoint.Checkpoints(directory / "checkpoints", config.loop.keep_last, config.loop.every_keep, out.warn) as checkpoints:
        with jax.set_mesh(mesh):
            restored = checkpoints.restore(state.abstract(config, built.model, built.tx, mesh)) if resumed else None
            if restored is not None:
                start, now, about = restored
                microbatch = about["microbatch_rows"]  # dropout masks and sums depend on it, so a resumed run keeps it
            else:
                start, now = 0, state.created(config, built.model, built.tx, mesh)
                microbatch = config.train.microbatch_rows or batches.largest_microbatch(count.microbatch_rows(config, memory(), batches.shards))
            session = Session(config, directory, mesh, batches, reading, built, microbatch, checkpoints, out)
            out.table(config.name, facts(session))
            if start:
                out.say(f"continuing from step {start:,} of {batches.n_steps:,}")
            return loop(session, now, start)


def loop(session: Session, now: Any, start: int) -> int:
    """Steps start..n_steps. For each n, in this order: evaluate state n, save state n, next batch, step, report step n - 1. So what was
    saved was reported, and nothing but reporting waits for the device."""
    import jax

    from gptjax.learn import metrics
    from gptjax.report import events, plots

    config, out, batches = session.config, session.out, session.batches
    table = _activations(config)
    nll = jax.jit(session.step.nll)
    held_out = session.reading.validation(config.loop.eval_rows)
    about = {"config": overrides.flat(config), "microbatch_rows": session.microbatch, "tokenizer": session.reading.tokenizer.digest}
    pending: tuple[int, dict] | None = None
    clock = time.perf_counter()

    def report() -> None:
        """Write and show the step that was dispatched last, if that was not done yet; waits for it."""
        nonlocal pending, clock
        if pending is None:
            return
        step, values = pending[0], {k: v.item() for k, v in jax.device_get(pending[1]).items()}
        pending = None
        seconds, clock = time.perf_counter() - clock, time.perf_counter()
        tokens = (batches.first_row(step) - batches.first_row(step - 1)) * config.model.n_ctx
        values |= {"tokens": batches.tokens(step), "seconds": seconds, "tokens_per_s": tokens / seconds}
        log.write(step, values)
        progress.update(step, values)
        if values["skipped_in_row"] >= config.train.skips_allowed:
            raise GaveUp(step, values["skipped_in_row"])

    def evaluate(step: int) -> None:
        nonlocal clock
        report()
        began = time.perf_counter()
        values = metrics.evaluation(nll, now.params, held_out, session.microbatch, put, session.reading.validation_bytes_per_token)
        log.write(step, values | {"tokens": batches.tokens(step)})
        progress.update(step, values | {"tokens": batches.tokens(step)})
        clock += time.perf_counter() - began  # an evaluation is no part of a step's time

    def put(rows):
        from gptjax.mesh import rules

        return rules.placed(rows, "BT", table, session.mesh)

    advance = driver(session)
    feed = session.reading.batches(batches, session.microbatch, start, jax.process_index(), jax.process_count())
    with Stop() as stop, events.Events(session.directory, start + 1) as log, out.training(batches.n_steps, start) as progress:
        step, saved = start, start if start else None
        try:
            with jax.transfer_guard("disallow"):
                while True:
                    ending = stop.asked or step == batches.n_steps
                    if step != saved and (step % config.loop.every_eval == 0 or step == batches.n_steps):
                        evaluate(step)
                    if step != saved and step and (step % config.loop.every_save == 0 or ending):
                        report()
                        session.checkpoints.save(step, now, about)
                        saved = step
                        plots.loss_curve(session.directory)
                    if ending:
                        break
                    after = advance(now, next(feed), stop, progress)
                    if after is not None:  # None: asked to stop between two microbatches
                        now, step = after[0], step + 1
                        report()
                        pending = (step, after[1])
        except GaveUp as gave_up:
            session.checkpoints.wait()
            steps = session.checkpoints.steps()
            last = f"the last good checkpoint is of step {steps[-1]:,}" if steps else "there is no checkpoint yet"
            out.warn(f"stopped: {gave_up.args[1]} updates in a row were not finite, up to step {gave_up.args[0]:,}; {last} in {session.directory}")
            return 3
    session.checkpoints.wait()
    return 0
