"""Turn annotated texts into examples for a classifier of words.

There is one for each word that may have a label. A line of the input is {"text": "I met Jane.",
"spans": [[6, 10, "person"]]}, with positions in characters; words outside of the spans get the
label none.
"""

import collections
import json

from gptjax import cli
from gptjax.config import parse

EXAMPLE = "python -m gptjax.word_examples --text=annotated.jsonl --out=train.jsonl"


def main(arguments: list[str]) -> int:
    """Runs the program; returns exit status 0."""
    parser = cli.make_parser("word_examples", __doc__ or "", EXAMPLE)
    parser.add_argument(
        "--text",
        metavar="FILE",
        type=parse.path_argument,
        required=True,
        help="annotated texts (.jsonl)",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=parse.path_argument,
        required=True,
        help="where the examples go (.jsonl), with the columns left, right and label",
    )
    args = parser.parse_args(arguments)

    from gptjax.runtime import atomic
    from gptjax.safety import word_classifier

    rows = [
        row
        for number, line in enumerate(parse.read_text(args.text).split("\n"), 1)
        if line.strip()
        for where in [f"{args.text}, line {number}"]
        for row in word_classifier.examples(parse.json_object(line, where), where)
    ]
    if not rows:
        raise ValueError(f"{args.text} has no word with a capital letter, a digit or the like")
    counts = collections.Counter(row["label"] for row in rows)
    atomic.save(args.out, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
    print(", ".join(f"{label}: {count:,}" for label, count in sorted(counts.items())))
    return 0


if __name__ == "__main__":
    cli.run(main)
