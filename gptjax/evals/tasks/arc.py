"""ARC (Clark et al. 2018), easy and challenge: school science with about four choices. GPT-3
Figures G.11 and G.16; the test sets.

The score is P(answer | question) / P(answer | "Answer: ") (section 2.4). Here an answer includes
its leading space, as after every context, so the answer context is "Answer:". Table C.1 counts
2,268 and 1,144 of the 2,376 and 1,172 questions; which ones is not stated. Examples are joined by
two newlines [chosen].
"""

from gptjax.config.evaluation import Protocol, Unconditional
from gptjax.evals.task import Item, PaperScores, Row, Task, gpt3_scores

PROTOCOL = Protocol(shots=50, method=Unconditional(answer_context="Answer:"), metric="accuracy")
SCHEMA = {
    "question": "text",
    "choices": "[text]",
    "labels": "[text]: of the choices, A B C D or 1 2 3 4",
    "answer": "text: the label of the right one; empty if not known",
}


def choice_item(row: Row, context: str) -> Item:
    """The item of a question: its choices after `context`."""
    completions = tuple(f" {choice.strip()}" for choice in row["choices"])
    right = tuple(number for number, label in enumerate(row["labels"]) if label == row["answer"])
    return Item(id=row["id"], contexts=(context,), completions=completions, right=right)


def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
    r"""The item of a question, "Question: ...\nAnswer:"."""
    return [choice_item(row, f"Question: {row['question'].strip()}\nAnswer:")]


def from_tfds(row: Row) -> Row:
    """Maps a TFDS example to a row."""
    number = row["answerKey"]
    choices = row["choices"]
    answer = "ABCDE"[number] if number >= 0 else ""
    labels = [answer_letter(label) for label in choices["label"]]
    return {
        "id": row["id"],
        "question": row["question"],
        "choices": choices["text"],
        "labels": labels,
        "answer": answer,
    }


def answer_letter(label: str | int) -> str:
    """The letter of a choice; TFDS stores its index."""
    return label if isinstance(label, str) else "ABCDE"[label]


def make_task(name: str, part: str, summary: str, paper_scores: tuple[PaperScores, ...]) -> Task:
    """The task of one part, Easy or Challenge."""
    return Task(
        name=name,
        summary=summary,
        protocol=PROTOCOL,
        items=items,
        schema=SCHEMA,
        example={
            "id": "0",
            "question": "Which of these gives off light of its own?",
            "choices": ["the sun", "the moon", "a mirror", "a window"],
            "labels": ["A", "B", "C", "D"],
            "answer": "A",
        },
        splits=("test", "train"),
        tfds=f"ai2_arc/{part}",
        from_tfds=from_tfds,
        data_hint=f"{part}-Test.jsonl and {part}-Train.jsonl of "
        "ARC-V1-Feb2018, allenai.org/data/arc, "
        "question.stem and choices made columns",
        scorer_source=(
            "accuracy; github.com/allenai/arc-solvers (a tie of k answers with the right one "
            "counts 1/k there)"
        ),
        paper_scores=paper_scores,
    )


TASKS = (
    make_task(
        "arc_easy",
        "ARC-Easy",
        "school science, what simple methods can answer",
        gpt3_scores(
            "accuracy",
            "43.6/46.5/53.0/53.8/58.2/60.2/63.8/68.8",
            "42.7/48.2/54.6/55.9/60.3/62.6/66.8/71.2",
            "42.7/51.0/58.1/59.1/62.1/65.8/69.1/70.1",
        ),
    ),
    make_task(
        "arc_challenge",
        "ARC-Challenge",
        "school science, what simple methods cannot answer",
        gpt3_scores(
            "accuracy",
            "26.6/29.5/31.8/35.5/38.0/41.4/43.7/51.4",
            "25.5/30.2/31.6/36.4/38.4/41.5/43.1/53.2",
            "25.5/28.4/32.3/36.7/39.5/43.7/44.8/51.5",
        ),
    ),
)
