"""Writes four-way choices of the next sentence, made from a text, as a custom task.

    python -m bench.continuations --text=FILE --out=tasks/continuations_test.jsonl [--n=200]
    python -m gptjax.evaluate --model=MODEL --task_data=tasks --tasks=continuations --num_fewshot=0

In the manner of HellaSwag (Zellers et al. 1905.07830): the context is two sentences, the
completions the sentence that follows and three from elsewhere in the text whose lengths differ from
it by at most a fifth. HellaSwag's wrong endings are written by a model and filtered until models
fail on them; these are not, so that the scores of the two are not comparable. Chance is 25%.
"""

import argparse
import json
import pathlib
import random
import re

from gptjax.config import parse


def make_items(text: str, n: int, seed: int) -> list[dict]:
    """Returns at most n items with the columns context, completions and label."""
    text = re.sub(r"\s+", " ", text)
    sentences = [s for s in re.split(r"(?<=[.!?])\s+", text) if 40 <= len(s) <= 200]
    draw, items = random.Random(seed), []
    for i in draw.sample(range(len(sentences) - 2), len(sentences) - 2):
        right = sentences[i + 2]
        # The two before it must be its neighbors in the text, too.
        if " ".join(sentences[i : i + 3]) not in text:
            continue
        near = [s for s in sentences if abs(len(s) - len(right)) <= len(right) / 5 and s != right]
        if len(near) < 3:
            continue
        completions = [right, *draw.sample(near, 3)]
        draw.shuffle(completions)
        items.append(
            {
                "context": f"{sentences[i]} {sentences[i + 1]}",
                "completions": [f" {c}" for c in completions],
                "label": completions.index(right),
            }
        )
        if len(items) == n:
            break
    return items


def main() -> None:
    """Writes the file and says how many items it has."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=parse.path_argument, required=True, help="a text file")
    parser.add_argument("--out", type=parse.path_argument, required=True, help="a .jsonl file")
    parser.add_argument("--n", type=parse.int_argument(), default=200, help="items")
    args = parser.parse_args()
    items = make_items(args.text.read_text(), args.n, seed=0)
    out = pathlib.Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(item) + "\n" for item in items))
    print(f"{len(items)} items in {out}")


if __name__ == "__main__":
    main()
