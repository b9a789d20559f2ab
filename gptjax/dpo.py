"""Teach a model which of two answers was preferred: `python -m gptjax.dpo --config=dpo --init=RUN
--set task.train=FILE`. Direct preference optimization (2305.18290)."""

from gptjax import cli, finetune, sft
from gptjax.config import find_files
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

    return sft.run(args, registry.DPO, dpo.PreferenceRows, dpo.DpoObjective, sft.warn_of_base_model)


if __name__ == "__main__":
    cli.run(main)
