"""Fine-tune a pre-trained GPT on a labelled task: `python -m gptjax.finetune --config=gpt1_sst2 --init=RUN`. GPT-1 sections 3.2 and 3.3."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptjax import train
from gptjax.config import command, finetuning, overrides, parse, registry
from gptjax.config.batch_schedule import Batches
from gptjax.config.schema import Config
from gptjax.distributed import rendezvous
from gptjax.runtime import atomic, run_dir
from gptjax.training import resume

EXAMPLE = "python -m gptjax.finetune --config=own --init=runs/gpt1 --set task.train=train.tsv --set task.dev=dev.tsv --seeds=5"


def main(arguments: list[str]) -> int:
    """Exit status as gptjax.train's."""
    parser = command.parser("finetune", "Fine-tune a model on a task. The same command continues an interrupted run.", EXAMPLE)
    parser.add_argument("--init", metavar="PATH", help="the pre-trained model: a run's directory, or a folder of weights")
    parser.add_argument("--run", metavar="DIR", help="where the run goes, or lies (default: runs/CONFIG)")
    seeds, count = parse.whole_argument(1, 1000), parse.whole_argument(0)
    parser.add_argument("--seeds", metavar="N", type=seeds, default=1, help="so many runs from seed on, below DIR; shows median and spread")
    parser.add_argument("--profile", metavar="N", type=count, default=0, help="trace N steps for xprof and Perfetto into DIR/profile")
    train.add_new_record(parser)
    rendezvous.flags(parser)
    args = parser.parse_args(arguments)
    if args.config is None:
        raise ValueError(f"say which task with --config=NAME: {', '.join(registry.finetunings())}")
    recipe = read_recipe(args.config, args.assignments)
    if args.init is None:
        raise ValueError("say which model with --init=PATH: a run's directory, or a folder of weights")

    from gptjax.report import console

    here = rendezvous.place(args.coordinator, args.processes, args.process, args.join_seconds)
    if here is not None and args.seeds > 1:
        raise ValueError(f"--seeds={args.seeds} is for one process: on several give each seed its own run, with --set seed=N and --run")
    out = console.Console(quiet=here is not None and here.process != 0)
    dataclasses.replace(recipe, seed=recipe.seed + args.seeds - 1)  # is refused here, not when the others are done
    learning, config = prepared(recipe, args.init, out)
    directory, results = args.run or str(run_dir.directory(None, config.name)), []
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
        atomic.save(run_dir.directory(directory) / "results.json", atomic.json_bytes(results))
    return 0


RUN_FIELDS = {"train.optimizer.": "optimizer.", "model.dropout.": "dropout."}  # fields as a run's config calls them -> the recipe's


def read_recipe(name: str, assignments: Sequence[str]) -> finetuning.Finetuning:
    """The recipe of that name with the assignments, which may name fields as the run's config, and a refusal to continue it, does. Files of
    one's own are another test than a paper's and the GLUE server's: they are neither compared with the one nor written for the other,
    unless an assignment says so."""
    recipe, assignments = registry.finetuning(name), list(assignments)
    for theirs, ours in RUN_FIELDS.items():
        assignments = [ours + one.removeprefix(theirs) if one.startswith(theirs) else one for one in assignments]
    result = overrides.override(recipe, *assignments)
    if not result.task.files:
        return result
    plain = dataclasses.replace(recipe, task=dataclasses.replace(recipe.task, paper=None, submission=None))
    return overrides.override(plain, *assignments)


def prepared(recipe: finetuning.Finetuning, init: str, out: Any) -> tuple["Finetuned", Config]:
    """The examples, read, and the whole config. ValueError, in one line, for anything wrong with the model or the data."""
    from gptjax.data.tokenizers import build
    from gptjax.training.classification import batches
    from gptjax.training.classification import examples as labelled
    from gptjax.weights import load

    origin = load.found(init)
    fixed_labels = bool(recipe.task.labels)
    recipe = dataclasses.replace(recipe, task=labelled.labelled(recipe.task))
    text = build.tokenizer(origin.config.data.tokenizer)
    with out.working("reading examples") as progress:
        examples = batches.Examples(recipe.task, text, origin.config.model.n_ctx, out.say, progress)
    config = finetuning.resolved(recipe, origin.config, len(examples), examples.n_ctx)
    Batches(config)
    return Finetuned(origin, examples, fixed_labels), config


def finetuned(config: Config, there: str, learning: "Finetuned", args: Any, here: Any) -> int:
    """One run, which goes to `there`, given as --run is, to its result. Exit status as train's."""
    from gptjax.distributed import processes

    learning.check(config, run_dir.directory(there))
    request = resume.Request(run_dir.directory(there), config, new_record=args.new_record)
    with processes.joined(here, config, args.join_seconds) as party:
        return train.train(request, run_dir.bucket(there), party, args.profile, learning)


class Finetuned:
    """Learning of a task: GPT-1 equation 5. A train.Learning; `result`: of the run that ended last."""

    def __init__(self, origin: Any, examples: Any, fixed_labels: bool = True):
        """origin: a weights.load.Weights; examples: a training.classification.batches.Examples; fixed_labels: not found in them."""
        self._origin, self._examples, self.result = origin, examples, None
        self._data_fields = ("kind", "fields", "answers", "label", "metric", "train", "dev", "test", "tfds", *["labels"] * fixed_labels)

    def check(self, config: Config, directory: Path) -> None:
        """ValueError if a run lies there that read other examples of the same files; nothing is written."""
        record = directory / "data.json"
        if not (record.is_file() and (directory / "metrics.jsonl").exists()):
            return
        old_digests, old_task = parse.json_file(record).get("splits"), run_dir.config(directory).task
        if not isinstance(old_digests, dict) or old_task is None or config.task is None:
            return  # an older run: its checkpoints have a digest of the whole
        same = {name: getattr(config.task, name) for name in self._data_fields}
        changed = [f"task.{split}" for split, digest in self._examples.digests().items() if old_digests.get(split) != digest]
        if changed and dataclasses.replace(old_task, **same) == old_task:
            raise ValueError(
                f"the data of {directory} have changed since it began: {' and '.join(changed)} holds other examples; give back what it "
                f"read, or another --run"
            )

    def reading(self, config, directory, say):
        return self._examples.reading(config)

    def step(self, config, platform, mesh, reading):
        from gptjax.training.classification import model

        return model.build(config, platform, mesh)

    def state(self, config, step, mesh, reading, out):
        import jax

        from gptjax.training import state
        from gptjax.training import step as pretraining
        from gptjax.training.classification import transfer

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

        from gptjax.sharding import xla_options
        from gptjax.training.classification import metrics, transformations

        task = session.config.task
        _, rows = self._examples.split("dev")
        everywhere = NamedSharding(session.mesh, PartitionSpec())  # each host reads all answers
        asked = jax.jit(session.step.answers, out_shardings=everywhere, compiler_options=xla_options.options(session.mesh.devices.flat[0]))
        labels = rows[:, 0] / transformations.PARTS

        def evaluated(params):
            y_BC, loss = metrics.answered(asked, params, rows, session.microbatch, put)
            return {"validation_loss": loss, task.metric: metrics.score(task.metric, y_BC, labels)}

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

        from gptjax.report import events
        from gptjax.training import state
        from gptjax.training.classification import metrics, predictions

        config, task, out, party = session.config, session.config.task, session.out, session.party
        session.checkpoints.wait()
        there = session.checkpoints.steps()
        steps = party.first(lambda: metrics.best(events.read(session.directory), task.metric, there))
        abstract = state.abstract(config, session.step.model, session.step.tx, session.mesh).params
        with jax.transfer_guard("allow"):
            step, params, _ = restore_best(session.checkpoints, session.directory, steps, abstract)
            found = {"config": config.name, "seed": config.seed, "metric": task.metric, "paper": task.paper, "step": step}
            found["epoch"] = step * task.epochs // session.batches.n_steps
            for name in task.given[1:]:
                examples, rows = self._examples.split(name)
                found |= predictions.concluded(session, self._asked, self._put, params, name, examples, rows)
        if party.process == 0:
            atomic.save(session.directory / "result.json", atomic.json_bytes(found))
        told(out, [found])
        return found


def restore_best(saved: Any, directory: Path, steps: Sequence[int], abstract: Any) -> tuple[int, Any, dict]:
    """(step, parameters, about) of the first of these checkpoints that is whole; saved: a training.checkpoint.Saved, which names others.
    ValueError if none is."""
    if not steps:
        raise ValueError(
            f"{directory} has no epoch that was evaluated and saved: let python -m gptjax.finetune go on, or begin again with --run"
        )
    step, state, about = saved.restore({"params": abstract}, part="params/", steps=steps[::-1])
    return step, state["params"], about


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
