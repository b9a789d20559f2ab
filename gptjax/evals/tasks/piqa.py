"""PIQA (Bisk et al. 2019): which of two solutions reaches a goal?

GPT-3 Figure G.4: the goal, then a solution, without labels; 1,838 items of the development set. The
test server gave 82.8 (few-shot, 175B). Zero-shot 175B is 81.0 in the text and in Table H.1, 80.5 in
Table 3.6. Not stated [chosen]: examples are joined by two newlines.
"""

from gptjax.config.evaluation import PerToken, Protocol
from gptjax.evals.task import Item, Row, Task, gpt3_scores


def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
    """The item of a goal with two solutions."""
    completions = tuple(f" {row[name].strip()}" for name in ("sol1", "sol2"))
    right = (row["label"],) if row["label"] >= 0 else ()
    return [
        Item(id=row["id"], contexts=(row["goal"].strip(),), completions=completions, right=right)
    ]


def from_tfds(row: Row) -> Row:
    """Maps a TFDS example to a row."""
    return {name: row[name] for name in ("goal", "sol1", "sol2", "label")}


TASKS = (
    Task(
        name="piqa",
        summary="which of two ways leads to an everyday goal",
        protocol=Protocol(shots=50, method=PerToken(), metric="accuracy"),
        items=items,
        schema={
            "goal": "text",
            "sol1": "text",
            "sol2": "text",
            "label": "number: 0 or 1; -1 if not known",
        },
        example={
            "id": "0",
            "goal": "How to keep a door open.",
            "sol1": "Push a wedge under its lower edge.",
            "sol2": "Push a wedge under its handle.",
            "label": 0,
        },
        tfds="piqa",
        from_tfds=from_tfds,
        data_hint=(
            "valid.jsonl and train.jsonl of physicaliqa-train-dev.zip, yonatanbisk.com/piqa, with "
            "the labels of their .lst files"
        ),
        scorer_source="accuracy; github.com/ybisk/ybisk.github.io, piqa/",
        paper_scores=gpt3_scores(
            "accuracy",
            "64.6/70.2/72.9/75.1/75.6/78.0/78.5/81.0",
            "64.3/69.3/71.8/74.4/74.3/76.3/77.8/80.5",
            "64.3/69.4/72.0/74.3/75.4/77.8/79.9/82.3",
        ),
    ),
)
