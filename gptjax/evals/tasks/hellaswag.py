"""HellaSwag (Zellers et al. 2019): which ending continues a text? GPT-3 Figure G.9: "Making a cake:
Several cake pops ... They" and an ending.

Not stated [chosen]: an incomplete last sentence starts with a capital, as in the figure (the data
have "they"). prompt_variant=plain keeps the marks of the WikiHow part ("[header]", "[title]",
"[step]"); prompt_variant=cleaned turns [title] into a full stop and drops the rest, as
lm-evaluation-harness does; with its normalization by bytes this is the convention "cleaned".
Examples are joined by two newlines. Table H.1 is on the development set.
"""

import re

from gptjax.config.evaluation import PerByte, PerToken, Protocol
from gptjax.evals.task import Item, Row, Task, gpt3_scores, prompt_variant

LAST_SENTENCE_START = re.compile(r"(?<=[.!?] )[a-z](?=[^.!?]*$)")


def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
    """The item of a text with four endings."""
    clean = remove_marks if prompt_variant(protocol, "plain", "cleaned") == "cleaned" else str.strip
    context = (
        f"{row['activity_label']}: "
        f"{LAST_SENTENCE_START.sub(lambda match: match[0].upper(), row['context'].strip())}"
    )
    endings = tuple(f" {clean(ending)}" for ending in row["endings"])
    return [
        Item(
            id=row["id"],
            contexts=(clean(context),),
            completions=endings,
            right=(row["label"],) if row["label"] >= 0 else (),
        )
    ]


def remove_marks(text: str) -> str:
    """Removes the WikiHow marks from a text."""
    return " ".join(re.sub(r"\[.*?\]", " ", text.replace(" [title]", ". ")).split())


def from_tfds(row: Row) -> Row:
    """Maps a TFDS example to a row."""
    return {name: row[name] for name in ("activity_label", "context", "endings", "label")}


TASKS = (
    Task(
        name="hellaswag",
        summary="which of four endings goes on with what someone does",
        protocol=Protocol(shots=20, method=PerToken(), metric="accuracy"),
        items=items,
        schema={
            "activity_label": "text",
            "context": "text: `ctx` of the authors' files",
            "endings": "[text]",
            "label": "number: of the right ending, from 0; -1 if not known",
        },
        example={
            "id": "0",
            "activity_label": "Mending a fence",
            "context": (
                "A man carries a plank into a garden. He holds it against a broken fence. he"
            ),
            "endings": [
                "nails it to the posts, one after the other.",
                "swims to the other side of it.",
                "reads it aloud to the hens.",
                "boils it until it is soft.",
            ],
            "label": 0,
        },
        tfds="hellaswag",
        from_tfds=from_tfds,
        data_hint=(
            "hellaswag_val.jsonl and hellaswag_train.jsonl of github.com/rowanz/hellaswag, data/, "
            "with ctx called context"
        ),
        scorer_source="accuracy; github.com/rowanz/hellaswag, hellaswag_models/",
        conventions={
            "cleaned": Protocol(
                shots=20, method=PerByte(), metric="accuracy", prompt_variant="cleaned"
            )
        },
        paper_scores=gpt3_scores(
            "accuracy",
            "33.7/43.6/51.0/54.7/62.8/67.4/70.9/78.9",
            "33.0/42.9/50.5/53.5/61.9/66.5/70.0/78.1",
            "33.5/43.1/51.3/54.9/62.9/67.3/71.3/79.3",
        ),
    ),
)
