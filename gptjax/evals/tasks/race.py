"""RACE (Lai et al. 2017): questions of English exams about an article, with four options. GPT-3
section 3.6.

The article, its other questions with their answers, then the question; options are compared by
P(option | context) / P(option | "A:"). An option includes its leading space, so the answer context
ends without one. Which other questions are shown is not stated: all, in their order [chosen]. An
article is a row.
"""

from gptjax.config.evaluation import Protocol, Unconditional
from gptjax.evals.task import Item, PaperScores, Row, Task, gpt3_scores

LETTERS = "ABCD"


def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
    """An item per question of an article."""
    questions, options, letters = row["questions"], row["options"], row["answers"]
    if not len(questions) == len(options) == len(letters) or any(
        letter not in LETTERS[: len(o)] for o, letter in zip(options, letters, strict=True)
    ):
        raise ValueError(
            f"race, row {row['id']}: give each question its options and the letter of the right one"
        )
    right = [LETTERS.index(letter) for letter in letters]
    pairs = [
        f"Q: {question}\n\nA: {choices[number]}"
        for question, choices, number in zip(questions, options, right, strict=True)
    ]
    result = []
    for turn, (question, choices) in enumerate(zip(questions, options, strict=True)):
        context = "\n\n".join(
            [
                f"Article:\n{row['article']}",
                *pairs[:turn],
                *pairs[turn + 1 :],
                f"Q: {question}\n\nA:",
            ]
        )
        completions = tuple(f" {option}" for option in choices)
        result.append(
            Item(
                id=f"{row['id']}-{turn}",
                contexts=(context,),
                completions=completions,
                right=(right[turn],),
            )
        )
    return result


def make_task(name: str, config: str, summary: str, paper_scores: tuple[PaperScores, ...]) -> Task:
    """The task of one level of schools."""
    return Task(
        name=name,
        summary=f"questions of {summary} exams about an article",
        protocol=Protocol(shots=10, method=Unconditional(answer_context="A:"), metric="accuracy"),
        items=items,
        schema={
            "article": "text",
            "questions": "[text]",
            "options": "[[text]]: of each question",
            "answers": "[text]: A, B, C or D of each",
        },
        example={
            "id": "0",
            "article": (
                "Ida lives by the river. Each Sunday she rows to the island, for there is no "
                "bridge."
            ),
            "questions": ["How does Ida reach the island?", "Ida goes there _ ."],
            "options": [
                ["By bus", "By boat", "On foot", "By train"],
                ["daily", "never", "weekly", "once"],
            ],
            "answers": ["B", "C"],
        },
        splits=("test", "train"),
        tfds=f"race/{config}",
        from_tfds=lambda row: {**row, "id": row["example_id"]},
        data_hint=(
            f"RACE.tar.gz of cs.cmu.edu/~glai1/data/race, the files of its {config} folder, one a "
            "line"
        ),
        paper_scores=paper_scores,
    )


TASKS = (
    make_task(
        "race_h",
        "high",
        "high school",
        gpt3_scores(
            "accuracy",
            "35.2/37.9/40.1/40.9/42.4/44.1/44.6/45.5",
            "34.3/37.7/40.0/42.0/43.8/44.3/44.6/45.9",
            "34.3/37.0/40.4/41.4/42.3/44.7/45.1/46.8",
        ),
    ),
    make_task(
        "race_m",
        "middle",
        "middle school",
        gpt3_scores(
            "accuracy",
            "42.1/47.2/52.1/52.3/54.7/54.4/56.7/58.4",
            "42.3/47.3/51.7/55.2/56.1/54.7/56.9/57.4",
            "42.3/47.0/52.7/53.0/55.6/55.4/58.1/58.1",
        ),
    ),
)
