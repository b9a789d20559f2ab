"""Run red-team cases through a model and count what fails.

A model is a Python function: it is given a list of messages, each with role and content, and
returns the answer. Exit status 1: a case failed.
"""

import functools
import json
import sys

from gptjax import cli
from gptjax.config import overrides, parse
from gptjax.configs import registry

EXAMPLE = "python -m gptjax.red_team --cases=cases.jsonl --model=my.py:answer --out=results"


def main(arguments: list[str]) -> int:
    """Runs the program."""
    parser = cli.make_parser("red_team", __doc__ or "", EXAMPLE)
    parser.add_argument(
        "--cases",
        metavar="FILE",
        type=parse.path_argument,
        required=True,
        help="prompts with must_not_contain, must_not_contain_kinds or must_refuse (.jsonl)",
    )
    parser.add_argument(
        "--model", metavar="FILE.py:NAME", required=True, help="the function that answers"
    )
    cli.add_policy_flag(parser)
    cli.add_set_flag(
        parser, "change a field of the policy, as output.0.region=GB or classifiers.0.threshold=0.8"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=parse.path_argument,
        required=True,
        help="where results.jsonl and interventions.jsonl go",
    )
    args = parser.parse_args(arguments)
    policy = overrides.override(registry.policy(args.policy), *args.assignments)

    from gptjax.runtime import atomic
    from gptjax.safety import prompt_classifier, red_team
    from gptjax.training.classification import text_classifier

    cases, (model, _) = red_team.read(args.cases), registry.function(args.model)
    load, load_words = text_classifier.make_loaders(functools.partial(print, file=sys.stderr))
    classifiers = prompt_classifier.load_all(policy, load)
    results = list(red_team.run(cases, model, policy, classifiers=classifiers, load=load_words))
    args.out.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"id": result.id, "category": result.category, "reasons": result.reasons})
        for result in results
    ]
    log = [line for result in results for line in result.interventions]
    for name, part in (("results.jsonl", lines), ("interventions.jsonl", log)):
        atomic.save(args.out / name, "".join(f"{line}\n" for line in part).encode())
    print("\n".join(red_team.table(results)))
    return int(any(result.reasons for result in results))


if __name__ == "__main__":
    cli.run(main)
