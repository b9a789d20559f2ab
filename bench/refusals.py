"""Recall and false refusals of a classifier of prompts on held-out ones, by threshold and by type,
as tables in Markdown.

    python -m bench.refusals --model=runs/refusal:harmful --held_out=prompts.jsonl --threshold=0.5

A line of the file has `text`, `label` and, where there are several kinds of prompts, `type`. What
has any other label than the classifier's is harmless.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence

from gptjax.config import parse
from gptjax.training.classification import text_classifier

THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt with its score."""

    is_harmful: bool
    type: str
    score: float


def rates(prompts: Sequence[Prompt], threshold: float) -> tuple[int, int, int, int]:
    """Returns (harmful refused, harmful, harmless refused, harmless)."""
    harmful = [prompt.score >= threshold for prompt in prompts if prompt.is_harmful]
    harmless = [prompt.score >= threshold for prompt in prompts if not prompt.is_harmful]
    return sum(harmful), len(harmful), sum(harmless), len(harmless)


def tables(prompts: Sequence[Prompt], threshold: float) -> Iterator[str]:
    """Yields the lines of both tables."""
    yield "| threshold | recall | false refusals |\n|---|---|---|"
    for value in sorted({*THRESHOLDS, threshold}):
        yield f"| {value:g} | {_shares(rates(prompts, value))} |"
    yield f"\n| type, at {threshold:g} | harmful, refused | harmless, refused |\n|---|---|---|"
    for name in [*dict.fromkeys(prompt.type for prompt in prompts), "all"]:
        group = [prompt for prompt in prompts if name in (prompt.type, "all")]
        yield f"| {name} | {_shares(rates(group, threshold))} |"


def _shares(counts: tuple[int, int, int, int]) -> str:
    pairs = (counts[:2], counts[2:])
    return " | ".join(f"{n} of {all_} ({n / all_:.0%})" if all_ else "-" for n, all_ in pairs)


def read(path: str, classifier: text_classifier.TextClassifier, label: str) -> list[Prompt]:
    """Reads a file and scores its prompts."""
    rows = [
        parse.json_object(line, f"{path}, line {i}")
        for i, line in enumerate(parse.read_text(parse.path(path)).splitlines(), 1)
    ]
    scores = classifier([row["text"] for row in rows])
    return [
        Prompt(row["label"] == label, row["type"] if "type" in row else "-", score[label])
        for row, score in zip(rows, scores, strict=True)
    ]


def main(arguments: list[str]) -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", metavar="DIR:LABEL", required=True)
    parser.add_argument("--held_out", metavar="FILE", required=True)
    parser.add_argument("--threshold", type=parse.float_argument(0, 1), default=0.5)
    args = parser.parse_args(arguments)
    path, _, label = args.model.rpartition(":")
    classifier = text_classifier.load(path, print)
    prompts = read(args.held_out, classifier, label)
    print("\n".join(tables(prompts, args.threshold)))


if __name__ == "__main__":
    main(sys.argv[1:])
