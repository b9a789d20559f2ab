"""DROP (Dua et al. 2019): questions about a passage that require counting, sums or comparisons.
GPT-3 section 3.5.

Not stated [chosen]: blank lines between passage, question and answer; ", " between the spans of an
answer.
"""

from gptjax.config.evaluation import Beam, Protocol
from gptjax.evals import scorers
from gptjax.evals.task import Item, Row, Task, gpt3_scores


def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
    """The item of a question about a passage."""
    context = f"Passage: {row['passage']}\n\nQuestion: {row['question']}\n\nAnswer:"
    right = tuple(", ".join(spans) for spans in row["answers"] if any(spans))
    return [
        Item(
            id=row["id"],
            contexts=(context,),
            completions=(f" {right[0]}" if right else "",),
            right=(0,) if right else (),
            answers=right,
            facts={"spans": row["answers"]},
        )
    ]


def from_tfds(row: Row) -> Row:
    """Maps a TFDS example to a row. TFDS has only the first of several spans; its dates are
    year-month-day.
    """
    return {
        "id": row["query_id"],
        "passage": row["passage"],
        "question": row["question"],
        "answers": [[answer] for answer in [row["answer"], *row["validated_answers"]] if answer],
    }


TASKS = (
    Task(
        name="drop",
        summary="questions about a passage that need counting and sums",
        protocol=Protocol(shots=20, method=Beam(n_tokens=32), metric="f1"),
        items=items,
        schema={
            "passage": "text",
            "question": "text",
            "answers": (
                "[[text]]: every person's, each a list of spans; a number is one span, a date is "
                "one, `day month year`"
            ),
        },
        example={
            "id": "0",
            "passage": (
                "The north arch is 12 metres wide and the south arch 9. Lind and Berg built them "
                "in 1891."
            ),
            "question": "How many metres wider is the north arch?",
            "answers": [["3"], ["3 metres"]],
        },
        splits=("dev", "train"),
        tfds="drop",
        from_tfds=from_tfds,
        data_hint="drop_dataset_dev.json of allenai.org/data/drop, its "
        "answer and validated_answers; the "
        "official score needs all spans, "
        "of which TFDS has the first",
        score=scorers.drop,
        scorer_source="allenai/allennlp-models allennlp_models/rc/tools/drop.py (drop_eval.py)",
        paper_scores=gpt3_scores(
            "f1",
            "9.40/13.6/14.4/16.4/19.7/17.0/24.0/23.6",
            "11.7/18.1/20.9/23.0/26.4/27.3/29.2/34.3",
            "12.9/18.7/24.0/25.6/29.7/29.7/32.3/36.5",
        ),
    ),
)
