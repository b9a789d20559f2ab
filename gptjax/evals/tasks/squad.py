"""SQuAD 2.0 (Rajpurkar et al. 2018): questions about a paragraph of Wikipedia, some without an
answer. GPT-3 section 3.5.

The paragraph's earlier questions with their answers precede the question: Figure G.28 has one. Not
stated [chosen]: that it is all of them, in the order of the data (which TFDS shuffles); that a
missing answer is written as `unanswerable`.
"""

import collections
from collections.abc import Iterable, Iterator

from gptjax.config.evaluation import Beam, Protocol
from gptjax.evals import scorers
from gptjax.evals.task import Item, Row, Task, gpt3_scores

NO_ANSWER = "unanswerable"


def link(rows: Iterable[Row]) -> Iterator[Row]:
    """Adds to each question the earlier ones about the same paragraph, as "earlier": each question
    with its shown answer.
    """
    by_paragraph: dict[tuple[str, str], list[list[str]]] = collections.defaultdict(list)
    for row in rows:
        earlier = by_paragraph[row["title"], row["context"]]
        yield {**row, "earlier": list(earlier)}
        earlier.append([row["question"], first_answer(row)])


def first_answer(row: Row) -> str:
    """The answer that demonstrations show."""
    return next((answer for answer in row["answers"] if answer.strip()), NO_ANSWER)


def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
    """The item of a question about a paragraph."""
    earlier = "".join(
        f"Q: {question}\n\nA: {answer}\n\n" for question, answer in row.get("earlier", ())
    )
    context = (
        f"Title: {row['title']}\n\nBackground: {row['context']}\n\n{earlier}Q: "
        f"{row['question']}\n\nA:"
    )
    return [
        Item(
            id=row["id"],
            contexts=(context,),
            completions=(f" {first_answer(row)}",),
            answers=tuple(row["answers"]),
            facts={"none": NO_ANSWER},
        )
    ]


TASKS = (
    Task(
        name="squad2",
        summary="questions about a paragraph, some without an answer",
        protocol=Protocol(shots=16, method=Beam(n_tokens=48), metric="f1"),
        items=items,
        schema={
            "title": "text",
            "context": "text",
            "question": "text",
            "answers": "[text]: every right one; none if there is none",
        },
        example={
            "id": "0",
            "title": "Old_Ferry",
            "context": "The bridge at Old Ferry has nine arches. Its bell weighs two tons.",
            "question": "How many arches does the bridge have?",
            "answers": ["nine", "nine arches"],
            "earlier": [["What weighs two tons?", "Its bell"]],
        },
        link=link,
        tfds="squad/v2.0",
        from_tfds=lambda row: {**row, "answers": row["answers"]["text"]},
        data_hint="dev-v2.0.json of rajpurkar.github.io/SQuAD-explorer, a question a line",
        score=scorers.squad,
        scorer_source="rajpurkar.github.io/SQuAD-explorer evaluate-v2.0.py",
        paper_scores=(
            *gpt3_scores(
                "f1",
                "28.3/40.2/41.4/50.3/51.0/52.7/56.3/59.5",
                "30.1/43.6/44.1/54.0/54.1/57.1/61.8/65.4",
                "32.1/45.5/44.9/58.7/55.9/62.1/67.7/69.8",
            ),
            *gpt3_scores("exact_match", few="64.9"),
        ),
    ),
)
