"""Train a GPT: `python -m gptjax.train --config=NAME`. It reads in chapters: config, mesh, data, state, step, loop."""

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from gptjax import pretraining
from gptjax.config import command, count, find_files, overrides, parse, registry
from gptjax.config.batch_schedule import Batches
from gptjax.config.schema import Config
from gptjax.distributed import rendezvous
from gptjax.runtime import run_dir
from gptjax.training import resume

CPU_TOKENS = 4096  # of a microbatch on CPU: more is no faster there, and its progress would show after minutes
EXAMPLE = 'python -m gptjax.train --config=gpt3_small --set train.steps=100 --set "model.attention=Dense()"'


@find_files.list_once()
def main(arguments: list[str]) -> int:
    """Exit status 0 at the end of the run or at an orderly stop, 3 if the run gave up on non-finite updates."""
    args, config = read_arguments(arguments)
    recipe = registry.config(args.config)
    set_length = config.train.total_tokens != recipe.train.total_tokens or run_dir.decay(config) not in (None, run_dir.decay(recipe))
    request = resume.Request(run_dir.directory(args.run, config.name), config, args.tokens, set_length, args.new_record)

    from gptjax.distributed import processes

    here = rendezvous.place(args.coordinator, args.processes, args.process, args.join_seconds)
    with processes.joined(here, config, args.join_seconds) as party:
        return train(request, run_dir.bucket(args.run), party, args.profile, pretraining.Pretraining(args.init))


def read_arguments(arguments: list[str], here: bool = True) -> tuple[argparse.Namespace, Config]:
    """main's arguments, and the config that they give, the length of --tokens not in it. ValueError for all that can be refused without
    devices and jax: the launchers call it before they print a job, which runs where files and packages are not those of this machine: not
    `here`."""
    parser = command.parser("train", "Train a GPT on text. The same command continues an interrupted run.", EXAMPLE, text=True)
    parser.add_argument(
        "--run", metavar="DIR", help=f"where the run goes, or lies; or gs://BUCKET/FOLDER, {run_dir.NO_LOCK} (default: runs/CONFIG)"
    )
    parser.add_argument("--init", metavar="RUN_OR_WEIGHTS", help="begin with the weights of another run, or of a folder of weights")
    steps = parse.whole_argument(0, 10**6)
    parser.add_argument("--profile", metavar="N", type=steps, default=0, help="trace N steps for xprof and Perfetto into DIR/profile")
    tokens = "the length: moves train.total_tokens and, in proportion, the schedule's decay of the recipe or of the run that is there"
    parser.add_argument("--tokens", metavar="N", type=parse.whole_argument(), help=tokens)
    add_new_record(parser)
    rendezvous.flags(parser)
    args = parser.parse_args(arguments)
    config = command.resolved(args, here)
    Batches(config if args.tokens is None else overrides.override(config, f"train.total_tokens={args.tokens}"))
    if here or args.run is not None and not args.run.startswith(tuple(run_dir.BUCKETS)):
        run_dir.directory(args.run, config.name)
    return args, config


def add_new_record(parser: argparse.ArgumentParser) -> None:
    """The argument of a program that may have lost a run's record."""
    lost = "go on from the checkpoints though config.json or metrics.jsonl is lost or damaged: the old one is set aside"
    parser.add_argument("--new_record", action="store_true", help=lost)


class Learning(Protocol):
    """What is learnt: all in which pre-training and fine-tuning differ."""

    def reading(self, config: Config, directory: Path, say: Callable[[str], None]) -> Any:
        """What the run reads, open; what is not prepared yet is, below `directory`. As data.loader.Reading."""
        ...

    def step(self, config: Config, platform: str, mesh: Any, reading: Any) -> Any:
        """The training.step.Step."""
        ...

    def state(self, config: Config, step: Any, mesh: Any, reading: Any, out: Any) -> Any:
        """The state before the first step, on the mesh. Where jax's mesh is set."""
        ...

    def evaluation(self, session: "Session", put: Callable) -> Callable[[Any], dict[str, float]]:
        """What the held-out data say of parameters: validation_loss, and more."""
        ...

    def said(self, session: "Session", now: Any, step: int, last: bool) -> list[str]:
        """What to show of the state, for people; `last`: at the end of the run."""
        ...


@dataclasses.dataclass
class Session:
    """What the loop works with: made once, by `train`."""

    config: Config
    directory: Path
    mesh: Any
    point: resume.ResumePoint
    reading: Any  # data.loader.Reading
    step: Any  # training.step.Step
    checkpoints: Any  # training.checkpoint.Checkpoints
    copies: Any  # report.sync.Copies
    out: Any  # report.console.Console
    party: Any  # distributed.processes.Hosts
    profile: Any  # report.profile.Profile
    learning: Learning
    warnings: set[str] = dataclasses.field(default_factory=set)  # that were told

    @property
    def batches(self) -> Batches:
        return self.point.plan

    @property
    def limit_rows(self) -> int:
        """Of a microbatch, over all processes; Batches.microbatch has what each step takes of it."""
        return self.point.limit_rows

    @property
    def microbatch(self) -> int:
        """Rows of the last batch's microbatches."""
        return self.batches.largest_microbatch(self.limit_rows)

    def try_optional(self, what: str, act: Callable[[], Any]) -> None:
        """act(), which the training does not need: what goes wrong with it is told, once, and the training goes on."""
        try:
            act()
        except Exception as error:
            if what not in self.warnings:
                self.warnings.add(what)
                self.out.warn(f"{what}: {command.verdict(error)[1]}; the training goes on")


def train(request: resume.Request, bucket: str | None, party: Any, profiled: int, learning: Learning) -> int:
    """Train as asked for from where the run stands, with the processes of `party`; `profiled` steps are traced. bucket: where checkpoints
    go, and copies of the record. ValueError, in one line, for what a user can mend: then the directory is as it was."""
    import jax

    from gptjax.report import console, events, profile, sync
    from gptjax.sharding import device_mesh, rules, xla_options
    from gptjax.training import checkpoint, run_summary, state

    config, directory = request.config, request.directory

    # --- mesh
    xla_options.begin()
    mesh = device_mesh.mesh(config.mesh)
    rules.check(config, mesh)
    device_mesh.check_room(config.model, mesh)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    out = console.Console(quiet=party.process != 0)
    copied = sync.Copies(directory, bucket)
    stored = directory / "checkpoints" if bucket is None else f"{bucket}/checkpoints"
    with (
        resume.hold_lock(directory, bucket is None, party, out.warn),
        checkpoint.Checkpoints(stored, config.loop.keep_last, config.loop.every_keep, out.warn, party) as checkpoints,
    ):
        _, continues, leaves = party.first(lambda: [copied.fetch(), *resume.find_run(request, checkpoints, out.warn)])
        config = overrides.rebuild(leaves)
        request = dataclasses.replace(request, config=config)
        plan = None if continues else Batches(config, shards)
        with resume.remove_new_data(directory / "data", continues and party.process == 0):
            # --- data
            party.doing("the preparation of its data")
            reading = party.in_turn(lambda: learning.reading(config, directory / "data", out.say))
            party.agree({"text": reading.digest()}, "prepare it once with python -m gptjax.prepare, and give the shards to all")

            # --- state: of the newest good checkpoint, else as the learning begins
            built = learning.step(config, jax.devices()[0].platform, mesh, reading)
            with jax.set_mesh(mesh):
                if plan is None:
                    wanted = state.abstract(config, built.model, built.tx, mesh)
                    point = resume.restore_run(request, checkpoints, wanted, reading, shards, party)
                else:
                    now = learning.state(config, built, mesh, reading, out)
                    point = resume.ResumePoint(0, now, plan, microbatch_limit(config, mesh, built.model.manner, shards, party))

        # --- nothing has been written until here
        tracing = profile.Profile(directory / "profile", profiled if party.process == 0 else 0, out.say)
        if point.step > point.plan.n_steps:
            out.say(f"already at step {point.step:,}, and asked for {point.plan.n_steps:,}: nothing to do, and nothing is changed")
            tracing.close()
            return 0
        checkpoints.begin()
        if party.process == 0:
            if point.record_bytes is None:
                events.set_aside(directory, point.step)
            resume.write_description(directory, config, reading)
        with jax.set_mesh(mesh):
            session = Session(config, directory, mesh, point, reading, built, checkpoints, copied, out, party, tracing, learning)
            out.table(config.name, run_summary.summarize(session))
            for note in (*point.notes, *run_summary.warnings(session)):
                out.warn(note)
            if point.step == point.plan.n_steps:
                out.say(f"the run is finished: all of its {point.step:,} steps are done")
            elif point.step:
                out.say(f"continuing from step {point.step:,} of {point.plan.n_steps:,}")
            with party.watched(config.loop.hang_seconds):
                return loop(session)


def microbatch_limit(config: Config, mesh: Any, manner: Any, shards: int, party: Any) -> int:
    """The most rows of a microbatch of a run that begins: as asked for, or what fits the devices of all processes."""
    import jax

    from gptjax.training import step

    least = min(party.gathered(memory(config, mesh)))
    if config.train.microbatch_rows is not None:
        return config.train.microbatch_rows
    fitting = step.rows_that_fit(config, manner, mesh, shards, least)
    if jax.devices()[0].platform == "cpu":
        fitting = min(fitting, CPU_TOKENS // config.model.n_ctx)
    return max(1, fitting // sequences(config))


def memory(config: Config, mesh: Any) -> int:
    """Bytes that one device has for activations: what is free now, with the state in place, less two copies of the gradients. On CPU
    half of what the machine has available, shared by the devices that are simulated on it."""
    import psutil

    parts = mesh.size // mesh.shape["data"]
    stats = mesh.local_devices[0].memory_stats()
    if stats is None:
        return psutil.virtual_memory().available // 2 // len(mesh.local_devices) - 2 * count.gradient_bytes(config.model) // parts
    return count.room(config.model, stats["bytes_limit"], stats["bytes_in_use"], parts)


def sequences(config: Config) -> int:
    """Of a row: one, but for tasks that read several for an example."""
    return 1 if config.task is None else config.task.n_sequences


class GaveUp(Exception):
    """(step, updates in a row that were not finite)."""


def driver(session: Session, put: Callable) -> Callable:
    """advance(state, batch, stop, progress) -> (state, metrics), or None if asked to stop before the step was whole; it consumes the state.

    One program a step, microbatches within it; but on CPU one a microbatch, since a step of half a million tokens takes an hour there:
    so progress shows, Ctrl-C works, and XLA's slow loop bodies are avoided."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from gptjax.sharding import xla_options

    step, parts = session.step, session.batches.max_rows // session.microbatch
    party = session.party
    platform = session.mesh.devices.flat[0].platform
    options = xla_options.options(session.mesh.devices.flat[0])
    ramp = session.config.train.ramp is not None  # while it lasts a batch may have many microbatches, though the full one has not
    if platform != "cpu" or (parts == 1 and not ramp):
        # Without a ramp the count is a constant of the program, with one it is an argument: one program serves the whole ramp, and one
        # the full batch, whose microbatches may be larger.
        everywhere = NamedSharding(session.mesh, PartitionSpec())
        whole = jax.jit(step, donate_argnums=0, static_argnums=() if ramp else 2, compiler_options=options)

        def advance(now, batch, stop, progress):
            count = int(batch["count"])
            if ramp:
                with jax.transfer_guard("allow"):
                    count = jax.make_array_from_callback((), everywhere, lambda _: batch["count"])
            return whole(now, put(batch["tokens"], "MB1", int(batch["rows"])), count)

        return advance

    zero, add = jax.jit(step.zero), jax.jit(step.accumulate, donate_argnums=2, compiler_options=options)
    update = jax.jit(step.update, donate_argnums=0, static_argnums=2)

    def advance_by_parts(now, batch, stop, progress):
        number, count, sums = jax.device_get(now.step).item() + 1, int(batch["count"]), zero(now.params)
        microbatch = int(batch["rows"])
        for i in range(count):
            if stop.at_once:
                return None
            party.doing(f"step {number}, microbatch {i + 1} of {count}")
            began = time.perf_counter()
            sums = add(now.params, now.step, sums, put(batch["tokens"][i], "B1", microbatch))
            sums.count.block_until_ready()
            progress.part(number, (i + 1) / count, microbatch * session.config.model.n_ctx / (time.perf_counter() - began))
        return update(now, sums, microbatch)

    return advance_by_parts


def loop(session: Session) -> int:
    """Steps point.step .. n_steps. For each n, in this order: evaluate state n, save state n, next batch, step, report step n - 1. So what
    was saved was reported before, and nothing but reporting waits for the device."""
    import jax

    from gptjax.distributed import preemption
    from gptjax.report import events, loss_plot
    from gptjax.sharding import rules
    from gptjax.training import metrics

    config, out, party, batches, reading = session.config, session.out, session.party, session.batches, session.reading
    activations = rules.PRESETS[config.mesh.sharding].activations
    now, start = session.point.state, session.point.step
    flops = count.train_flops_per_token(config.model) * sequences(config)
    pending: tuple[int, dict, float | None] | None = None  # and when it ended, where dispatching waits for that, as on CPU
    at_once, clock = session.mesh.devices.flat[0].platform == "cpu", time.perf_counter()

    def put(rows, letters, n_rows=None):
        return rules.placed(rows, letters, activations, session.mesh, n_rows)

    def report():
        """Write and show the step that was dispatched last, once."""
        nonlocal pending, clock
        if pending is None:
            return
        with session.profile.span("wait"):
            step, values = pending[0], {name: value.item() for name, value in jax.device_get(pending[1]).items()}
        ended = pending[2] or time.perf_counter()
        pending, seconds, clock = None, ended - clock, ended
        if batches.max_rows == session.microbatch:
            del values["noise_scale"]  # needs gradients of two batch sizes
        speed = batches.rows(step - 1) * config.model.n_ctx / seconds
        values |= {"tokens": batches.tokens(step), "seconds": seconds, "tokens_per_s": speed}
        share = metrics.mfu(flops, speed, session.mesh.devices.ravel())
        values |= {} if share is None else {"mfu": share}
        with session.profile.span("log"):
            log.write(step, values)
            progress.update(step, values)
        if values["skipped_in_row"] >= config.train.skips_allowed:
            raise GaveUp(step, values["skipped_in_row"])

    def evaluate(step):
        values = evaluated(now.params) | {"tokens": batches.tokens(step)}
        log.write(step, values)
        progress.update(step, values)

    advance, evaluated = driver(session, put), session.learning.evaluation(session, put)
    feed = reading.batches(batches, session.limit_rows, start, lambda n_rows: rules.rows_here(n_rows, activations, session.mesh))
    # settled: the step that was evaluated and saved, as a restored state was before; what was measured of it may be lost
    step, settled = start, start if session.point.record_bytes is not None else None
    log = events.Silent()
    if party.process == 0:
        log = events.Events(session.directory, start + 1 if start else 0, session.point.record_bytes or 0, out.warn)
    with preemption.Stop(out.warn, party, session.mesh) as stop, log:
        with out.training(batches.n_steps, start, config.loop.every_log) as progress, jax.transfer_guard("disallow"):
            try:
                for note in session.point.notes:
                    log.write(start, {"note": note})
                while True:
                    last = step == batches.n_steps
                    ending = stop.agreed() or last  # asked once: a signal that comes after this waits for the next step
                    if step != settled and (step % config.loop.every_eval == 0 or last):
                        report()
                        party.doing(f"the evaluation of step {step:,}")
                        evaluate(step)
                    if step != settled and not last and config.loop.every_sample and step % config.loop.every_sample == 0:
                        out.samples(session.learning.said(session, now, step, False))
                    if step != settled and (step % config.loop.every_save == 0 or ending):
                        report()
                        party.doing(f"the checkpoint of step {step:,}")
                        record = log.seal(step)
                        if party.process == 0:
                            session.try_optional("the record is not copied", session.copies.send)
                        about = resume.about(config, batches, session.limit_rows, reading, record)
                        session.checkpoints.save(step, now, about)
                        if party.process == 0:
                            session.try_optional("loss.png is not drawn", lambda: loss_plot.loss_curve(session.directory))
                    settled = step
                    clock = clock if pending else time.perf_counter()  # evaluating and saving are no part of a step's time
                    if ending:
                        break
                    party.doing(f"step {step + 1:,}")
                    stop.vote()
                    session.profile.before_step()
                    with session.profile.span("data"):
                        batch = next(feed)
                    with session.profile.span("step"):
                        after = advance(now, batch, stop, progress)
                    if after is not None:
                        now, step, ended = after[0], step + 1, time.perf_counter() if at_once else None
                        report()
                        pending = step, after[1], ended
            except GaveUp as end:
                out.warn(f"{end.args[1]} updates in a row were not finite, up to step {end.args[0]:,}: stopping")
                session.checkpoints.wait()
                steps = session.checkpoints.steps()
                out.warn(f"the last good checkpoint is of step {steps[-1]:,}" if steps else "there is no checkpoint yet")
                return 3
            finally:
                session.profile.close()
    session.checkpoints.wait()
    if party.process == 0:
        session.try_optional("the record is not copied", session.copies.send)
    if last:
        out.samples(session.learning.said(session, now, step, True))
        sampled = f"; python -m gptjax.sample --run={session.directory}" if config.task is None else ""
        out.say(f"the run lies in {session.directory}: loss.png, metrics.jsonl, checkpoints{sampled}")
    else:
        out.say(f"stopped at step {step:,}; the same command continues")
    return 0


if __name__ == "__main__":
    command.run(main)
