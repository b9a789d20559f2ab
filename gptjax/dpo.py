"""Teach a model which of two answers was preferred: `python -m gptjax.dpo --config=dpo --init=RUN
--set task.train=FILE`. Direct preference optimization (2305.18290)."""

from typing import Any

from gptjax import cli, finetune, sft
from gptjax.config import find_files
from gptjax.config.schema import Config
from gptjax.configs import registry

EXAMPLE = "python -m gptjax.dpo --config=dpo --init=runs/assistant --set task.train=pairs.jsonl"


@find_files.list_once()
def main(arguments: list[str]) -> int:
    """Exit status as gptjax.train's."""
    parser = cli.make_config_parser(
        "dpo",
        "Learn from pairs of answers. The same command continues an interrupted run.",
        EXAMPLE,
    )
    finetune.add_run_flags(parser)
    args = parser.parse_args(arguments)

    from gptjax.training import dpo

    return sft.run(args, registry.DPO, dpo.PreferenceRows, dpo.DpoObjective, warn_of_base_model)


def warn_of_base_model(recipe: Any, config: Config, out: Any) -> None:
    """Prints a warning if the model to begin with has read no conversations."""
    if sft.add_template(config)[0] != config.data.tokenizer:
        out.warn(
            "the model of --init was never fine-tuned on conversations, so that it gives its "
            "answers no probability to begin with: python -m gptjax.sft comes first"
        )


if __name__ == "__main__":
    cli.run(main)
