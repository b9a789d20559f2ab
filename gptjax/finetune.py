"""Fine-tune a pre-trained GPT on a labelled task: `python -m gptjax.finetune --config=gpt1_sst2 --init=RUN`. GPT-1 sections 3.2 and 3.3."""

import dataclasses
import json
import statistics
from typing import Any

from gptjax import train
from gptjax.config import command, finetuning, overrides, registry, run
from gptjax.config.batches import Batches
from gptjax.config.schema import Config

EXAMPLE = "python -m gptjax.finetune --config=gpt1_sst2 --init=runs/gpt1 --set task.train=train.tsv --set task.dev=dev.tsv --seeds=5"


def main(arguments: list[str]) -> int:
    """Exit status as gptjax.train's."""
    parser = command.parser("finetune", "Fine-tune a model on a task. The same command continues an interrupted run.", EXAMPLE)
    parser.add_argument("--init", metavar="PATH", help="the pre-trained model: a run's directory, or a folder of weights")
    parser.add_argument("--run", metavar="DIR", help="where the run goes, or lies (default: runs/CONFIG)")
    parser.add_argument("--seeds", metavar="N", type=int, default=1, help="so many runs from seed on, below DIR; shows median and spread")
    parser.add_argument("--profile", metavar="N", type=int, default=0, help="trace N steps for xprof and Perfetto into DIR/profile")
    train.recording(parser)
    train.hosted(parser)
    args = parser.parse_args(arguments)
    if args.config is None:
        raise ValueError(f"say which task with --config=NAME: {', '.join(registry.finetunings())}")
    recipe = overrides.override(registry.finetuning(args.config), *args.assignments)
    if args.init is None:
        raise ValueError("say which model with --init=PATH: a run's directory, or a folder of weights")
    if args.seeds < 1:
        raise ValueError(f"--seeds={args.seeds}: give 1 or more")
    if args.profile < 0:
        raise ValueError(f"--profile={args.profile}: give a number of steps above 0, or leave it out")

    from gptjax.mesh import meeting
    from gptjax.report import console

    here = meeting.place(args.coordinator, args.processes, args.process, args.join_seconds)
    if here is not None and args.seeds > 1:
        raise ValueError(f"--seeds={args.seeds} is for one process: on several give each seed its own run, with --set seed=N and --run")
    out = console.Console(quiet=here is not None and here.process != 0)
    learning, config = prepared(recipe, args.init, out)
    directory, results = args.run or str(run.directory(None, config.name)), []
    for number in range(args.seeds):
        one = dataclasses.replace(config, seed=config.seed + number)
        there = directory if args.seeds == 1 else f"{directory}/seed_{one.seed}"
        learning.result = None
        status = finetuned(one, there, learning, args, here)
        if status or learning.result is None:
            return status
        results.append(learning.result)
    if args.seeds > 1:
        told(out, results)
        (run.directory(directory) / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


def prepared(recipe: finetuning.Finetuning, init: str, out: Any) -> tuple["Finetuned", Config]:
    """The examples, read, and the whole config. ValueError, in one line, for anything wrong with the model or the data."""
    from gptjax.data import tokenizer
    from gptjax.interop import weights
    from gptjax.tasks.finetune import reading

    origin = weights.found(init)
    text = tokenizer.tokenizer(origin.config.data.tokenizer)
    with out.working("reading examples") as progress:
        examples = reading.Examples(recipe.task, text, origin.config.model.n_ctx, out.say, progress)
    config = finetuning.resolved(recipe, origin.config, len(examples), examples.n_ctx)
    Batches(config)
    return Finetuned(origin, examples), config


def finetuned(config: Config, there: str, learning: "Finetuned", args: Any, here: Any) -> int:
    """One run, which goes to `there`, given as --run is, to its result. Exit status as train's."""
    from gptjax.mesh import hosts

    with hosts.joined(here, config, args.join_seconds) as party:
        return train.train(config, run.directory(there), run.bucket(there), party, args.profile, learning, new_record=args.new_record)


class Finetuned:
    """Learning of a task: GPT-1 equation 5. A train.Learning; `result`: of the run that ended last."""

    def __init__(self, origin: Any, examples: Any):
        """origin: an interop.weights.Weights; examples: a tasks.finetune.reading.Examples."""
        self._origin, self._examples, self.result = origin, examples, None

    def reading(self, config, directory, say):
        return self._examples.reading(config)

    def step(self, config, platform, mesh, reading):
        from gptjax.tasks.finetune import classifier

        return classifier.build(config, platform, mesh)

    def state(self, config, step, mesh, reading, out):
        import jax

        from gptjax.learn import state
        from gptjax.learn import step as pretraining
        from gptjax.tasks.finetune import transfer

        self._origin.check(self._origin.config, self._examples.tokenizer)
        origin = dataclasses.replace(self._origin.config, mesh=config.mesh)
        now = state.created(config, step.model, step.tx, mesh)
        built = pretraining.build(origin, jax.devices()[0].platform, mesh, end_of_text=0)
        wanted = state.abstract(origin, built.model, built.tx, mesh).params
        given = self._origin.params(wanted)

        def begun(new, old):
            gpt = transfer.taken(new["gpt"], old, config.model, origin.model.n_vocab, config.task.transfer)
            return step.model.place.stored(new | {"gpt": gpt})

        return now.replace(params=jax.jit(begun, donate_argnums=0)(now.params, given))

    def evaluation(self, session, put):
        import jax
        from jax.sharding import NamedSharding, PartitionSpec

        from gptjax.mesh import xla
        from gptjax.tasks.finetune import inputs, scores

        task = session.config.task
        _, rows = self._examples.split("dev")
        everywhere = NamedSharding(session.mesh, PartitionSpec())  # each host reads all answers
        asked = jax.jit(session.step.answers, out_shardings=everywhere, compiler_options=xla.options(session.mesh.devices.flat[0]))
        labels = rows[:, 0] / inputs.PARTS

        def evaluated(params):
            y_BC, loss = scores.answered(asked, params, rows, session.microbatch, put)
            return {"validation_loss": loss, task.metric: scores.score(task.metric, y_BC, labels)}

        self._asked, self._put = asked, put
        return evaluated

    def said(self, session, now, step, last):
        """At the end: the result on dev and test, by the epoch that was best on dev."""
        if last:
            self.result = self._concluded(session)
        return []

    def _concluded(self, session) -> dict[str, Any]:
        """Restores the best epoch, answers, writes predictions/ and result.json, and shows a table."""
        import jax

        from gptjax.learn import state
        from gptjax.report import events
        from gptjax.tasks.finetune import submission

        config, task, out, party = session.config, session.config.task, session.out, session.party
        session.checkpoints.wait()
        there = set(session.checkpoints.steps())
        lines = [line for line in events.read(session.directory) if task.metric in line and line["step"] in there]
        steps = party.first(lambda: max(lines, key=lambda line: line[task.metric])["step"])
        abstract = state.abstract(config, session.step.model, session.step.tx, session.mesh).params
        with jax.transfer_guard("allow"):
            restored = session.checkpoints.restore({"params": abstract}, part="params/", step=steps)
            params = restored[1]["params"]
            found = {"config": config.name, "seed": config.seed, "metric": task.metric, "paper": task.paper, "step": steps}
            found["epoch"] = steps * task.epochs // session.batches.n_steps
            for name in task.given[1:]:
                examples, rows = self._examples.split(name)
                found |= submission.concluded(session, self._asked, self._put, params, name, examples, rows)
        if party.process == 0:
            (session.directory / "result.json").write_text(json.dumps(found, indent=1) + "\n")
        told(out, [found])
        return found


def told(out: Any, results: list[dict[str, Any]]) -> None:
    """A table of results; of several, median, lowest and highest, as the released code reports its runs."""
    rows = []
    for name in ("dev", "test"):
        found = [result[name] for result in results if name in result and result[name] is not None]
        if found:
            spread = f"  ({min(found):.2f} to {max(found):.2f}, {len(found)} seeds)" if len(found) > 1 else ""
            rows.append((name, f"{statistics.median(found):.2f}{spread}"))
    if results[0]["paper"] is not None:
        rows.append(("GPT-1, the paper", f"{results[0]['paper']:.2f}  (test, pre-trained on BooksCorpus)"))
    out.table(f"{results[0]['config']}: {results[0]['metric']}, in percent", rows)


if __name__ == "__main__":
    command.run(main)
