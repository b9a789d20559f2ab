"""ANLI (Nie et al. 2019), three rounds: is a sentence true according to a text?

GPT-3 Figures G.2, G.7 and G.10 (whose "anli 2: anli 2: " is not our typo); the test sets (Table
C.1: 1,000, 1,000 and 1,200). Examples are joined by two newlines [chosen].
"""

from gptjax.config.evaluation import PerToken, Protocol
from gptjax.evals.task import Item, Row, Task, gpt3_scores

LABEL_WORDS = {"e": " True", "n": " Neither", "c": " False"}
FEW_SHOT_SCORES = (  # Table H.1, of lower confidence (task.gpt3_scores); few-shot alone was found
    "32.1/32.5/30.9/32.5/33.5/33.1/33.3/36.8",
    "35.7/33.8/32.1/31.4/32.6/33.3/32.6/34.0",
    "35.0/34.4/35.1/36.0/32.7/33.9/34.5/40.2",
)


def make_task(number: int) -> Task:
    """The task of one round."""

    def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
        question = f"Question: {row['hypothesis'].strip()} True, False, or Neither?"
        context = f"anli {number}: anli {number}: {row['context'].strip()}\n{question}"
        right = (list(LABEL_WORDS).index(row["label"]),) if row["label"] in LABEL_WORDS else ()
        return [
            Item(
                id=row["id"],
                contexts=(context,),
                completions=tuple(LABEL_WORDS.values()),
                right=right,
            )
        ]

    return Task(
        name=f"anli_r{number}",
        summary=f"does a text say that a sentence is true, is false, or neither; round {number}",
        protocol=Protocol(shots=50, method=PerToken(), metric="accuracy"),
        items=items,
        schema={
            "context": "text",
            "hypothesis": "text",
            "label": "text: e, n or c; empty if not known",
        },
        example={
            "id": "0",
            "context": (
                "The lighthouse of the island was built in 1871 and has been dark since 1990."
            ),
            "hypothesis": "The lighthouse shone for more than a century.",
            "label": "e",
        },
        splits=("test", "train"),
        tfds=f"anli/r{number}",
        from_tfds=from_tfds,
        data_hint=(
            f"R{number}/test.jsonl and train.jsonl of anli_v0.1.zip, "
            "github.com/facebookresearch/anli"
        ),
        scorer_source="accuracy; github.com/facebookresearch/anli",
        paper_scores=gpt3_scores("accuracy", few=FEW_SHOT_SCORES[number - 1]),
    )


def from_tfds(row: Row) -> Row:
    """Maps a TFDS example to a row."""
    label = "enc"[row["label"]] if row["label"] >= 0 else ""
    return {
        "id": row["uid"],
        "context": row["context"],
        "hypothesis": row["hypothesis"],
        "label": label,
    }


TASKS = tuple(make_task(number) for number in (1, 2, 3))
