"""OpenBookQA (Mihaylov et al. 2018): school science with four choices, without the book.

GPT-3 Figure G.8: the bare stem, then an answer, scored as in ARC; the 500 questions of the test
set. Examples are joined by two newlines [chosen].
"""

from gptjax.config.evaluation import Protocol, Unconditional
from gptjax.evals.task import Item, Row, Task, gpt3_scores
from gptjax.evals.tasks import arc


def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
    """The item of a question: four choices after the stem."""
    return [arc.choice_item(row, row["question"].strip())]


def from_tfds(row: Row) -> Row:
    """Maps a TFDS example to a row."""
    question = row["question"]
    answer = "ABCD"[row["answerKey"]] if row["answerKey"] >= 0 else ""
    return {
        "question": question["stem"],
        "choices": [question[f"choice_{x}"] for x in "ABCD"],
        "labels": list("ABCD"),
        "answer": answer,
    }


TASKS = (
    Task(
        name="openbookqa",
        summary="school science without the book",
        protocol=Protocol(
            shots=100, method=Unconditional(answer_context="Answer:"), metric="accuracy"
        ),
        items=items,
        schema=arc.SCHEMA,
        example={
            "id": "0",
            "question": "A plant that stands in a dark cupboard will",
            "choices": ["grow pale.", "sing.", "turn to stone.", "catch mice."],
            "labels": ["A", "B", "C", "D"],
            "answer": "A",
        },
        splits=("test", "train"),
        tfds="openbookqa",
        from_tfds=from_tfds,
        data_hint=(
            "Data/Main/test.jsonl and train.jsonl of OpenBookQA-V1-Sep2018.zip, "
            "allenai.org/data/open-book-qa, choices made columns"
        ),
        scorer_source="accuracy; github.com/allenai/OpenBookQA",
        paper_scores=gpt3_scores(
            "accuracy",
            "35.6/43.2/45.2/46.8/53.0/50.4/55.6/57.6",
            "37.0/39.8/46.2/46.4/53.4/53.0/55.8/58.8",
            "37.0/43.6/48.0/50.6/55.6/55.2/60.8/65.4",
        ),
    ),
)
