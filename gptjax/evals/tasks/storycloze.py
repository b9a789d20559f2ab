"""StoryCloze 2016 (Mostafazadeh et al.): which of two sentences ends a story of four?

GPT-3 Figure G.17; 1,871 stories of the test set, demonstrations from the development set (section
2.4). Not stated [chosen]: examples are joined by two newlines.
"""

from gptjax.config.evaluation import PerToken, Protocol
from gptjax.evals.task import Item, Row, Task, gpt3_scores


def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
    """The item of a story with two endings."""
    endings = tuple(f" {ending.strip()}" for ending in row["endings"])
    right = (row["label"],) if row["label"] >= 0 else ()
    return [
        Item(id=row["id"], contexts=(row["context"].strip(),), completions=endings, right=right)
    ]


def from_tfds(row: Row) -> Row:
    """Maps a TFDS example to a row; AnswerRightEnding counts from 1."""
    label = int(row["label"])
    return {
        "context": row["context"],
        "endings": row["endings"],
        "label": label - 1 if label > 0 else -1,
    }


TASKS = (
    Task(
        name="storycloze",
        summary="which of two sentences ends a story",
        protocol=Protocol(shots=70, method=PerToken(), metric="accuracy"),
        items=items,
        schema={
            "context": "text: four sentences",
            "endings": "[text]: two",
            "label": "number: 0 or 1; -1 if not known",
        },
        example={
            "id": "0",
            "context": (
                "Ana found a wallet on the bus. There was money in it. She asked the driver for "
                "help. He knew the owner."
            ),
            "endings": [
                "The wallet was back with its owner that evening.",
                "The bus learned to swim that evening.",
            ],
            "label": 0,
        },
        splits=("test", "validation"),
        tfds="story_cloze/2016",
        from_tfds=from_tfds,
        data_hint=(
            "asked for at cs.rochester.edu/nlp/rocstories, then tfds build story_cloze/2016 "
            "--file_format=array_record"
        ),
        scorer_source="accuracy; cs.rochester.edu/nlp/rocstories",
        paper_scores=gpt3_scores(
            "accuracy",
            "63.3/68.5/72.4/73.4/77.2/77.7/79.5/83.2",
            "62.3/68.7/72.3/74.2/77.3/78.7/79.7/84.7",
            "62.3/70.2/73.9/76.1/80.2/81.2/83.0/87.7",
        ),
    ),
)
