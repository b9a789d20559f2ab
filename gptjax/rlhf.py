"""Learn from a reward of the answers that the model samples: `python -m gptjax.rlhf --config=ppo
--init=RUN --set task.prompts=FILE`. InstructGPT (2203.02155) section 3.5, its third step."""

import dataclasses
from typing import Any

from gptjax import cli, finetune, sft
from gptjax.config import find_files, overrides, rlhf, rlhf_recipe
from gptjax.config.batch_schedule import BatchSchedule
from gptjax.configs import registry
from gptjax.distributed import cluster

EXAMPLE = (
    "python -m gptjax.rlhf --config=ppo --init=runs/sft --set task.prompts=prompts.jsonl "
    """--set "task.reward=RewardModel(path='runs/reward')\""""
)


@find_files.list_once()
def main(arguments: list[str]) -> int:
    """Exit status as gptjax.train's."""
    parser = cli.make_config_parser(
        "rlhf",
        "Learn from a reward of sampled answers: PPO, PPO-ptx, GRPO, RLOO. The same command "
        "continues an interrupted run.",
        EXAMPLE,
    )
    finetune.add_run_flags(parser)
    args = parser.parse_args(arguments)
    if args.config is None:
        raise ValueError(f"say which recipe with --config=NAME: {', '.join(registry.RLHF)}")
    recipe = overrides.override(registry.rlhf_recipe(args.config), *args.assignments)
    if args.init is None:
        raise ValueError("say which model with --init=PATH: a run of gptjax.sft, or weights")

    from gptjax.data.prompts import PromptRows
    from gptjax.data.tokenizers import build, chat_template
    from gptjax.report import console
    from gptjax.training.rlhf import objective
    from gptjax.weights import load, reward_model

    process_info = cluster.detect(
        args.coordinator, args.num_processes, args.process_id, args.initialization_timeout
    )
    out = console.Console(quiet=process_info is not None and process_info.process_id != 0)
    weights = load.load(args.init)
    spec, n_vocab = weights.config.data.tokenizer, weights.config.model.n_vocab
    if recipe.task.text == "chat":
        sft.warn_of_base_model(recipe, weights.config, out)
        spec, n_vocab = sft.add_template(weights.config)
    tokenizer = build.build(spec)
    template = chat_template.of(tokenizer) if recipe.task.text == "chat" else None
    chat_data = dataclasses.replace(weights.config.data, tokenizer=spec)
    config = rlhf_recipe.resolve_config(recipe, weights.config, chat_data, n_vocab)
    BatchSchedule(config)
    end_token = end_token_of(recipe.task, tokenizer, template)
    with out.status("reading"):
        prompts = PromptRows(recipe.task, tokenizer, template, out.print)
    first = prompts.train[0]
    out.print_samples([tokenizer.decode(first[1 : 1 + first[0]].tolist())], ["the first prompt"])
    learner = objective.RlhfObjective(weights, reward_model.load, prompts, end_token)
    return sft.train(args, config, process_info, learner)


def end_token_of(task: rlhf.Rlhf, tokenizer: Any, template: Any) -> int | None:
    """Returns the id of the token that ends an answer, or None if nothing does. Raises ValueError
    if the text of CutAt is not one token."""
    from gptjax.data import preferences

    match task.ending:
        case rlhf.CutAt(text=text):
            ids = tokenizer.encode(text)
            if len(ids) != 1:
                raise ValueError(
                    f"task.ending.text={text!r} is {len(ids)} tokens; give a text of one token"
                )
            return ids[0]
    return preferences.end_token(tokenizer, template)


if __name__ == "__main__":
    cli.run(main)
