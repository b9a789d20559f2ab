"""The first 273 Winograd schemas (Levesque et al. 2012): what does a pronoun refer to? GPT-2
section 3.4, GPT-3 sections 2.4 and 3.4.

prompt_variant=partial, GPT-3's method and that of GPT-2's better result (Trinh and Le 2018): a
context for each noun in place of the pronoun, with the shared ending scored (Figure G.13).
prompt_variant=full: noun and ending are scored, which compares whole sentences, since the text
before the pronoun is the same.

Not stated [chosen]: in place of my, his, her, its, our or their a noun gets an 's (her counts as
possessive unless a preposition, a conjunction or punctuation follows); demonstrations, from the
only set, are joined by two newlines.
"""

import re

from gptjax.config.evaluation import Protocol, Total
from gptjax.evals.task import Item, Row, Task, gpt2_scores, gpt3_scores, prompt_variant

POSSESSIVE = ("my", "his", "its", "our", "their")
NOT_BEFORE_NOUN = re.compile(
    r"\W*$|[^\w\s]|\s+(?:a|an|and|as|at|because|but|by|for|from|if|in|of|off|on|so|that|the|to|until|up|when|with)\b"
)


def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
    """The item of a schema with two nouns."""
    before, after = row["text"][: row["pronoun_start"]], row["text"][row["pronoun_end"] :]
    pronoun = row["text"][row["pronoun_start"] : row["pronoun_end"]]
    nouns = [inflect(row[name], pronoun, after) for name in ("option1", "option2")]
    right = (row["label"],)
    if prompt_variant(protocol, "partial", "full") == "full":
        shared = before.rstrip()
        completions = tuple(before[len(shared) :] + noun + after for noun in nouns)
        return [Item(id=row["id"], contexts=(shared,), completions=completions, right=right)]
    return [
        Item(
            id=row["id"],
            contexts=tuple(before + noun for noun in nouns),
            completions=(after, after),
            right=right,
        )
    ]


def inflect(noun: str, pronoun: str, after: str) -> str:
    """`noun` in the form that replaces `pronoun` before `after`."""
    word = pronoun.lower()
    possessive = word in POSSESSIVE or (word == "her" and not NOT_BEFORE_NOUN.match(after))
    if not possessive or noun.endswith(("'s", "s'")):
        return noun
    return noun + ("'" if word == "their" and noun.endswith("s") else "'s")


def from_tfds(row: Row) -> Row:
    """Maps a TFDS example to a row. Nouns start with a capital where the pronoun does."""
    return {
        "id": str(row["idx"]),
        "text": row["text"],
        "option1": row["option1_normalized"],
        "option2": row["option2_normalized"],
        **{name: row[name] for name in ("pronoun_start", "pronoun_end", "label")},
    }


TASKS = (
    Task(
        name="winograd",
        summary="which of two nouns a pronoun means",
        protocol=Protocol(shots=7, method=Total(), metric="accuracy"),
        items=items,
        schema={
            "text": "text",
            "option1": "text: a noun, as it may stand where the pronoun does",
            "option2": "text",
            "pronoun_start": "number: where the pronoun begins, in characters",
            "pronoun_end": "number",
            "label": "number: 0 or 1",
        },
        example={
            "id": "0",
            "text": "The trunk would not go into the car because it was too small.",
            "option1": "the trunk",
            "option2": "the car",
            "pronoun_start": 44,
            "pronoun_end": 46,
            "label": 1,
        },
        splits=("test", "test"),
        tfds="wsc273",
        from_tfds=from_tfds,
        data_hint=(
            "WSCollection.xml of cs.nyu.edu/~davise/papers/WinogradSchemas, as tfds build wsc273 "
            "reads it"
        ),
        scorer_source=(
            "accuracy; Trinh and Le 2018 (1806.02847), github.com/tensorflow/models, "
            "research/lm_commonsense"
        ),
        conventions={
            "gpt2": Protocol(shots=0, method=Total(), metric="accuracy"),
            "full": Protocol(shots=7, method=Total(), metric="accuracy", prompt_variant="full"),
        },
        paper_scores=(
            *gpt2_scores("accuracy", 70.70),
            *gpt3_scores(
                "accuracy",
                "66.3/72.9/74.7/76.9/82.4/85.7/87.9/88.3",
                "63.4/68.5/72.9/76.9/82.4/84.6/86.1/89.7",
                "63.4/67.4/73.6/76.9/84.3/85.4/82.4/88.6",
            ),
        ),
    ),
)
