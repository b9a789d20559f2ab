"""WinoGrande (Sakaguchi et al. 2019): which of two nouns fits the gap?

GPT-3 Figure G.14: a context for each, the shared ending is scored; 1,267 items of the development
set. Not stated [chosen]: demonstrations are from the largest training set, joined by two newlines.
"""

from gptjax.config.evaluation import Protocol, Total
from gptjax.evals.task import Item, Row, Task, gpt3_scores


def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
    """The item of a sentence with two nouns."""
    before, _, after = row["sentence"].partition("_")
    contexts = tuple(before + row[name] for name in ("option1", "option2"))
    right = (int(row["answer"]) - 1,) if row["answer"] else ()
    return [Item(id=row["id"], contexts=contexts, completions=(after, after), right=right)]


def from_tfds(row: Row) -> Row:
    """Maps a TFDS example to a row."""
    answer = str(row["label"] + 1) if row["label"] >= 0 else ""
    return {**{name: row[name] for name in ("sentence", "option1", "option2")}, "answer": answer}


TASKS = (
    Task(
        name="winogrande",
        summary="which of two nouns fits a gap",
        protocol=Protocol(shots=50, method=Total(), metric="accuracy"),
        items=items,
        schema={
            "sentence": "text: with _ for the gap",
            "option1": "text",
            "option2": "text",
            "answer": "text: 1 or 2; empty if not known",
        },
        example={
            "id": "0",
            "sentence": "Olga lent the bicycle to Tom although the _ had a flat tyre.",
            "option1": "bicycle",
            "option2": "garage",
            "answer": "1",
        },
        splits=("validation", "train_xl"),
        tfds="winogrande",
        from_tfds=from_tfds,
        data_hint="dev.jsonl and train_xl.jsonl of winogrande_1.1.zip, winogrande.allenai.org",
        scorer_source="accuracy; github.com/allenai/winogrande",
        paper_scores=gpt3_scores(
            "accuracy",
            "52.0/52.1/57.4/58.7/62.3/64.5/67.9/70.2",
            "51.3/53.0/58.3/59.1/61.7/65.8/66.9/73.2",
            "51.3/52.6/57.5/59.1/62.6/67.4/70.0/77.7",
        ),
    ),
)
