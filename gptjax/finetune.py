"""Fine-tune a pre-trained GPT on a labeled task: `python -m gptjax.finetune --config=gpt1_sst2
--init=RUN`. GPT-1 sections 3.2 and 3.3.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptjax import cli, train
from gptjax.config import finetuning, overrides, parse
from gptjax.config.batch_schedule import BatchSchedule
from gptjax.config.schema import Config
from gptjax.configs import registry
from gptjax.distributed import cluster
from gptjax.runtime import atomic, run_dir
from gptjax.training import loop, resume

EXAMPLE = (
    "python -m gptjax.finetune --config=own --init=runs/gpt1 --set task.train=train.tsv --set "
    "task.dev=dev.tsv --seeds=5"
)


def main(arguments: list[str]) -> int:
    """Exit status as gptjax.train's."""
    parser = cli.make_config_parser(
        "finetune",
        "Fine-tune a model on a task. The same command continues an interrupted run.",
        EXAMPLE,
    )
    add_run_flags(parser)
    parser.add_argument(
        "--seeds",
        metavar="N",
        type=parse.int_argument(1, 1000),
        default=1,
        help="so many runs from seed on, below DIR; shows median and spread",
    )
    args = parser.parse_args(arguments)
    if args.config is None:
        raise ValueError(
            f"say which task with --config=NAME: {', '.join(registry.finetuning_names())}"
        )
    recipe = read_recipe(args.config, args.assignments)
    if args.init is None:
        raise ValueError(
            "say which model with --init=PATH: a run's directory, or a folder of weights"
        )

    from gptjax.report import console

    process_info = cluster.detect(
        args.coordinator, args.num_processes, args.process_id, args.initialization_timeout
    )
    if process_info is not None and args.seeds > 1:
        raise ValueError(
            f"--seeds={args.seeds} is for one process: on several give each seed its own run, with "
            "--set seed=N and --run_dir"
        )
    out = console.Console(quiet=process_info is not None and process_info.process_id != 0)
    dataclasses.replace(
        recipe, seed=recipe.seed + args.seeds - 1
    )  # is refused here, not when the others are done
    objective, config = load_examples(recipe, args.init, out)
    directory, results = args.run_dir or str(run_dir.directory(None, config.name)), []
    for index in range(args.seeds):
        seed_config = dataclasses.replace(config, seed=config.seed + index)
        run_path = directory if args.seeds == 1 else f"{directory}/seed_{seed_config.seed}"
        objective.result = None
        status = run_seed(seed_config, run_path, objective, args, process_info)
        if status or objective.result is None:
            return status
        results.append(objective.result)
    if args.seeds > 1:
        print_results(out, results)
        atomic.save(run_dir.directory(directory) / "results.json", atomic.json_bytes(results))
    return 0


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a run that begins with a model."""
    parser.add_argument(
        "--init",
        metavar="PATH",
        help="the model to begin with: a run's directory, or a folder of weights",
    )
    parser.add_argument(
        "--run_dir", metavar="DIR", help="where the run goes, or lies (default: runs/CONFIG)"
    )
    parser.add_argument(
        "--profile",
        metavar="N",
        type=parse.int_argument(0),
        default=0,
        help="trace N steps for xprof and Perfetto into DIR/profile",
    )
    train.add_new_record(parser)
    cluster.add_distributed_flags(parser)


RUN_FIELDS = {
    "train.optimizer.": "optimizer.",
    "model.dropout.": "dropout.",
}  # fields as a run's config calls them -> the recipe's


def read_recipe(name: str, assignments: Sequence[str]) -> finetuning.Finetuning:
    """The recipe of that name with the assignments, which may name fields as the run's config, and
    a refusal to continue it, does. Files of one's own are another test than a paper's and the GLUE
    server's: they are neither compared with the one nor written for the other, unless an
    assignment says so."""
    recipe, assignments = registry.finetuning(name), list(assignments)
    for run_prefix, recipe_prefix in RUN_FIELDS.items():
        assignments = [
            recipe_prefix + a.removeprefix(run_prefix) if a.startswith(run_prefix) else a
            for a in assignments
        ]
    result = overrides.override(recipe, *assignments)
    if not result.task.has_files:
        return result
    own_recipe = dataclasses.replace(
        recipe, task=dataclasses.replace(recipe.task, paper=None, submission=None)
    )
    return overrides.override(own_recipe, *assignments)


def load_examples(
    recipe: finetuning.Finetuning, init: str, out: Any
) -> tuple["ClassificationObjective", Config]:
    """The examples, read, and the whole config. ValueError, in one line, for anything wrong with
    the model or the data."""
    from gptjax.data.tokenizers import build
    from gptjax.training.classification import batches
    from gptjax.training.classification import examples as labeled
    from gptjax.weights import load

    init_weights = load.load(init)
    fixed_labels = bool(recipe.task.labels)
    recipe = dataclasses.replace(recipe, task=labeled.infer_labels(recipe.task))
    tokenizer = build.build(init_weights.config.data.tokenizer)
    with out.status("reading examples") as progress:
        examples = batches.Examples(
            recipe.task, tokenizer, init_weights.config.model.n_ctx, out.print, progress
        )
    config = finetuning.resolve_config(recipe, init_weights.config, len(examples), examples.n_ctx)
    BatchSchedule(config)
    return ClassificationObjective(init_weights, examples, fixed_labels), config


def run_seed(
    config: Config,
    run_path: str,
    objective: "ClassificationObjective",
    args: Any,
    process_info: Any,
) -> int:
    """One run, which goes to `run_path`, given as --run_dir is, to its result. Exit status as
    train's."""
    from gptjax.distributed import processes

    objective.check(config, run_dir.directory(run_path))
    request = resume.Request(run_dir.directory(run_path), config, new_record=args.new_record)
    with processes.initialize(process_info, config, args.initialization_timeout) as process_group:
        return loop.train(
            request, run_dir.bucket_url(run_path), process_group, args.profile, objective
        )


class ClassificationObjective:
    """Learning of a task: GPT-1 equation 5. A training.loop.Objective; `result`: of the run that
    ended last."""

    def __init__(self, init_weights: Any, examples: Any, fixed_labels: bool = True):
        """init_weights: a weights.load.Weights; examples: a
        training.classification.batches.Examples; fixed_labels: not found in them."""
        self._init_weights, self._examples, self.result = init_weights, examples, None
        self._data_fields = (
            "kind",
            "fields",
            "answers",
            "label",
            "metric",
            "train",
            "dev",
            "test",
            "tfds",
            *["labels"] * fixed_labels,
        )

    def check(self, config: Config, directory: Path) -> None:
        """ValueError if a run lies there that read other examples of the same files; nothing is
        written."""
        record = directory / "data.json"
        if not (record.is_file() and (directory / "metrics.jsonl").exists()):
            return
        old_digests, old_task = (
            parse.read_json(record).get("splits"),
            run_dir.load_config(directory).task,
        )
        if not isinstance(old_digests, dict) or old_task is None or config.task is None:
            return  # an older run: its checkpoints have a digest of the whole
        unchanged = {name: getattr(config.task, name) for name in self._data_fields}
        changed_splits = [
            f"task.{split}"
            for split, digest in self._examples.digests().items()
            if old_digests.get(split) != digest
        ]
        if changed_splits and dataclasses.replace(old_task, **unchanged) == old_task:
            raise ValueError(
                f"the data of {directory} have changed since it began: "
                f"{' and '.join(changed_splits)} holds other examples; give back "
                f"what it read, or another --run_dir"
            )

    def open_dataset(self, config, directory, log):
        return self._examples.make_dataset(config)

    def build_step(self, config, platform, mesh, dataset):
        from gptjax.training.classification import model

        return model.build(config, platform, mesh)

    def init_state(self, config, step, mesh, dataset, out):
        import jax

        from gptjax.training import state
        from gptjax.training.classification import transfer
        from gptjax.weights import open_model

        pretrained = open_model.read_model(
            self._init_weights,
            config=dataclasses.replace(self._init_weights.config, mesh=config.mesh),
        )
        init_state = state.init_sharded(config, step.model, step.tx, mesh)
        n_vocab = pretrained.config.model.n_vocab

        def transfer_params(new, old):
            gpt = transfer.transfer_params(
                new["gpt"], old, config.model, n_vocab, config.task.transfer
            )
            return step.model.sharding.shard_like_params(new | {"gpt": gpt})

        return init_state.replace(
            params=jax.jit(transfer_params, donate_argnums=0)(init_state.params, pretrained.params)
        )

    def make_program(self, context, put_on_mesh):
        from gptjax.training import one_run

        return one_run.OneRun(context, put_on_mesh, self.make_eval_fn(context, put_on_mesh))

    def make_eval_fn(self, context, put_on_mesh):
        import jax
        from jax.sharding import NamedSharding, PartitionSpec

        from gptjax.sharding import xla_options
        from gptjax.training.classification import metrics, transformations

        task = context.config.task
        _, rows = self._examples.split("dev")
        replicated = NamedSharding(context.mesh, PartitionSpec())  # each host reads all answers
        score_fn = jax.jit(
            context.step.scores_and_losses,
            out_shardings=replicated,
            compiler_options=xla_options.options(context.mesh.devices.flat[0]),
        )
        labels = rows[:, 0] / transformations.LABEL_SCALE

        def eval_fn(params):
            y_BC, loss = metrics.predict(
                score_fn, params, rows, context.microbatch_rows, put_on_mesh
            )
            return {"validation_loss": loss, task.metric: metrics.score(task.metric, y_BC, labels)}

        self._score_fn, self._put_on_mesh = score_fn, put_on_mesh
        return eval_fn

    def generate_samples(self, context, state, step, is_last):
        """At the end: the result on dev and test, by the epoch that was best on dev."""
        if is_last:
            self.result = self._finish(context)
        return []

    def _finish(self, context) -> dict[str, Any]:
        """Restores the best epoch, answers, writes predictions/ and result.json, and shows a
        table."""
        import jax

        from gptjax.report import events
        from gptjax.training import state
        from gptjax.training.classification import metrics, predictions, text_classifier

        config, task, out, processes = (
            context.config,
            context.config.task,
            context.out,
            context.processes,
        )
        context.checkpoints.wait()
        saved_steps = context.checkpoints.steps()
        steps = processes.broadcast_from_zero(
            lambda: metrics.best_steps(events.read(context.directory), task.metric, saved_steps)
        )
        abstract_params = state.abstract_state(
            config, context.step.model, context.step.tx, context.mesh
        ).params
        with jax.transfer_guard_host_to_device("allow"):
            step, params, _ = text_classifier.restore_best(
                context.checkpoints, context.directory, steps, abstract_params
            )
            result = {
                "config": config.name,
                "seed": config.seed,
                "metric": task.metric,
                "paper": task.paper,
                "step": step,
            }
            result["epoch"] = step * task.epochs // context.batch_schedule.n_steps
            for name in task.available_splits[1:]:
                examples, rows = self._examples.split(name)
                result |= predictions.final_scores(
                    context, self._score_fn, self._put_on_mesh, params, name, examples, rows
                )
        if processes.process_id == 0:
            atomic.save(context.directory / "result.json", atomic.json_bytes(result))
        print_results(out, [result])
        return result


def print_results(out: Any, results: list[dict[str, Any]]) -> None:
    """A table of results; of several, median, lowest and highest, as the released code reports
    its runs."""
    rows = []
    for name in ("dev", "test"):
        values = [result[name] for result in results if name in result and result[name] is not None]
        if values:
            range_text = (
                f"  ({min(values):.2f} to {max(values):.2f}, {len(values)} seeds)"
                if len(values) > 1
                else ""
            )
            rows.append((name, f"{statistics.median(values):.2f}{range_text}"))
    if results[0]["paper"] is not None:
        rows.append(
            ("GPT-1, the paper", f"{results[0]['paper']:.2f}  (test, pre-trained on BooksCorpus)")
        )
    out.print_table(f"{results[0]['config']}: {results[0]['metric']}, in percent", rows)


if __name__ == "__main__":
    cli.run(main)
