"""Fine-tune a model on conversations: `python -m gptjax.sft --config=sft --init=RUN --set
task.train=FILE`. InstructGPT (2203.02155) section 3.5, its first step."""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from gptjax import cli, finetune
from gptjax.config import chat_recipe, data, find_files, overrides
from gptjax.config.batch_schedule import BatchSchedule
from gptjax.config.chat import Conversations
from gptjax.config.model import Model
from gptjax.config.positions import Learned
from gptjax.config.schema import Config
from gptjax.configs import registry
from gptjax.distributed import cluster
from gptjax.runtime import run_dir
from gptjax.training import loop, resume

EXAMPLE = "python -m gptjax.sft --config=sft --init=runs/nano --set task.train=conversations.jsonl"


@find_files.list_once()
def main(arguments: list[str]) -> int:
    """Exit status as gptjax.train's."""
    parser = cli.make_config_parser(
        "sft",
        "Fine-tune a model on conversations. The same command continues an interrupted run.",
        EXAMPLE,
    )
    finetune.add_run_flags(parser)
    args = parser.parse_args(arguments)

    from gptjax.training import sft
    from gptjax.weights import reward_model

    make_objective = functools.partial(sft.SftObjective, load_reward=reward_model.load)
    return run(args, registry.SFT, sft.ConversationRows, make_objective)


def run(
    args: argparse.Namespace,
    recipes: Mapping[str, Any],
    make_rows: Callable[..., Any],
    make_objective: Callable[..., Any],
    check: Callable[[chat_recipe.ChatRecipe, Config, Any], None] = lambda recipe, config, out: None,
) -> int:
    """Trains as the arguments say; returns the exit status of gptjax.train.

    make_rows, make_objective: training.sft.ConversationRows and SftObjective, or those of dpo or
    reward. check(recipe, config of the model to begin with, console): called first."""
    if args.config is None:
        raise ValueError(f"say which recipe with --config=NAME: {', '.join(recipes)}")
    recipe = overrides.override(registry.chat_recipe(args.config, recipes), *args.assignments)
    if args.init is None:
        raise ValueError(
            "say which model with --init=PATH: a run's directory, or a folder of weights"
        )

    from gptjax.data.tokenizers import build, chat_template
    from gptjax.report import console
    from gptjax.weights import load

    process_info = cluster.detect(
        args.coordinator, args.num_processes, args.process_id, args.initialization_timeout
    )
    out = console.Console(quiet=process_info is not None and process_info.process_id != 0)
    weights = load.load(args.init)
    check(recipe, weights.config, out)
    check_context(recipe, weights.config.model, args.init)
    has_template = has_chat_template(recipe.task)
    spec, n_vocab = weights.config.data.tokenizer, weights.config.model.n_vocab
    if has_template:
        spec, n_vocab = add_template(weights.config)
    tokenizer = build.build(spec)
    with out.status("reading"):
        rows = make_rows(
            recipe.task,
            tokenizer,
            chat_template.of(tokenizer) if has_template else None,
            recipe.n_ctx or weights.config.model.n_ctx,
            out.print,
        )
    recipe = dataclasses.replace(recipe, task=rows.task)  # with what the data decide
    chat_data = dataclasses.replace(weights.config.data, tokenizer=spec)
    config = chat_recipe.resolve_config(recipe, weights.config, chat_data, n_vocab, len(rows.train))
    BatchSchedule(config)
    text, title = rows.example()
    out.print_samples([text], [title])
    return train(args, config, process_info, make_objective(weights, rows))


def train(args: argparse.Namespace, config: Config, process_info: Any, objective: Any) -> int:
    """Trains a run that begins with a model; returns the exit status of gptjax.train. args: those
    of finetune.add_run_flags. process_info: as cluster.detect returns it."""
    from gptjax.distributed import processes

    directory = args.run_dir or str(run_dir.directory(None, config.name))
    request = resume.Request(run_dir.directory(directory), config, new_record=args.new_record)
    with processes.initialize(process_info, config, args.initialization_timeout) as process_group:
        bucket = run_dir.bucket_url(directory)
        return loop.train(request, bucket, process_group, args.profile, objective)


def check_context(recipe: chat_recipe.ChatRecipe, model: Model, init: str) -> None:
    """Raises ValueError if the recipe's context needs more learned positions than the model at
    `init` has, and no rule that makes them."""
    if recipe.n_ctx is None or recipe.n_ctx <= model.n_ctx or model.positions != (Learned(),):
        return
    if recipe.longer_positions == "refuse":
        raise ValueError(
            f"n_ctx={recipe.n_ctx:,}, but the weights in {init} have learned {model.n_ctx:,} "
            "positions: say how they become more with --set longer_positions=repeat or "
            f"=interpolate, or give at most n_ctx={model.n_ctx}"
        )


def warn_of_base_model(recipe: Any, config: Config, out: Any) -> None:
    """Prints a warning if the texts of a recipe are conversations, and the model to begin with has
    read none."""
    if has_chat_template(recipe.task) and add_template(config)[0] != config.data.tokenizer:
        out.warn(
            "the model of --init was never fine-tuned on conversations, so that it does not know "
            "the control tokens: python -m gptjax.sft comes first, or give task.text=plain"
        )


def has_chat_template(task: Any) -> bool:
    """Whether the texts of a task are conversations, and no plain texts."""
    return isinstance(task, Conversations) or task.text == "chat"


def add_template(config: Config) -> tuple[data.Tokenizer, int]:
    """Returns (the tokenizer with which a model reads conversations, its model's n_vocab): its own
    if it has a chat template, else with the four tokens of data.ChatTokens. With GPT-2's 50,257 ids
    these lie in the 47 rows that pad its token table, and no parameter changes its shape."""
    from gptjax.data.tokenizers import chat_tokens

    spec, n_vocab = config.data.tokenizer, config.model.n_vocab
    match spec:
        case data.TokenizerJson() | data.Tiktoken() | data.ChatTokens():
            return spec, n_vocab
    return data.ChatTokens(base=spec), n_vocab + len(chat_tokens.NAMES)


if __name__ == "__main__":
    cli.run(main)
