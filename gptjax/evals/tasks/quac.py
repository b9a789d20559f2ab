"""QuAC (Choi et al. 2018): a student's questions about a section of Wikipedia that only the teacher
sees. GPT-3 section 3.5.

`TITLE:`, `PARAGRAPH:` on the next line and, after blank lines, the earlier questions with their
answers (Figure G.25). Demonstrations show the teacher's answer; if there is none it is
CANNOTANSWER, which the data append to each section. TFDS does not keep the order of a dialogue's
questions, so it cannot be used.
"""

from gptjax.config.evaluation import Beam, Protocol
from gptjax.evals import scorers
from gptjax.evals.task import Item, Row, Task, gpt3_scores


def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
    """An item per question of a dialogue, after the earlier ones."""
    if not len(row["questions"]) == len(row["answers"]) or not all(row["answers"]):
        raise ValueError(
            f"quac, row {row['id']}: {len(row['questions'])} questions, {len(row['answers'])} "
            "lists of answers; give one each"
        )
    context, result = f"TITLE: {row['title']} - {row['section']}\nPARAGRAPH: {row['context']}", []
    for turn, (question, right) in enumerate(zip(row["questions"], row["answers"], strict=True)):
        context += f"\n\nQ: {question}\n\nA:"
        result.append(
            Item(
                id=f"{row['id']}-{turn}",
                contexts=(context,),
                completions=(f" {right[0]}",),
                answers=tuple(right[1:] or right),
            )
        )
        context += f" {right[0]}"
    return result


TASKS = (
    Task(
        name="quac",
        summary="a conversation about a section of Wikipedia",
        protocol=Protocol(shots=5, method=Beam(n_tokens=64), metric="f1"),
        items=items,
        schema={
            "title": "text",
            "section": "text",
            "context": "text",
            "questions": "[text]",
            "answers": (
                "[[text]]: of each question, orig_answer's and then the others': the first is "
                "shown, the others are right"
            ),
        },
        example={
            "id": "0",
            "title": "Anna Lind",
            "section": "Early work",
            "context": "Lind built her first bridge in 1891. It stood for ten years. CANNOTANSWER",
            "questions": ["When did she build her first bridge?", "Who paid for it?"],
            "answers": [
                ["in 1891", "her first bridge in 1891", "1891"],
                ["CANNOTANSWER", "CANNOTANSWER", "CANNOTANSWER"],
            ],
        },
        data_hint=(
            "val_v0.2.json of quac.ai, a dialogue a line: TFDS' quac has the questions in another "
            "order, and not their numbers"
        ),
        score=scorers.quac,
        scorer_source="quac.ai scorer.py",
        paper_scores=gpt3_scores(
            "f1",
            "21.2/26.8/31.0/30.1/34.7/36.1/38.4/41.5",
            "21.1/26.9/31.9/32.3/37.4/39.0/40.6/43.4",
            "21.6/27.6/32.9/34.2/38.2/39.9/40.9/44.3",
        ),
    ),
)
