"""MultiRC (Khashabi et al. 2018): which answers to a question about a passage are true? GPT-3
Figure G.15.

An item is an answer, as "- [True] answer" or "- [False] answer"; a question, the item's group, is
correct if all its answers are. K counts questions: a demonstration is a passage, a question and all
its answers with their marks; one fixed set of 32 for all items. The metric f1a is F1 over all
answers predicted true. Examples are joined by two newlines [chosen].
"""

import dataclasses
from collections.abc import Iterable, Iterator

from gptjax.config.evaluation import PerToken, Protocol
from gptjax.evals.task import Item, Row, Task, gpt3_scores

PROTOCOL = Protocol(
    shots=32,
    method=PerToken(),
    metric="group_accuracy",
    description="READING COMPREHENSION ANSWER KEY",
    fixed_shots=True,
)
TRUTH_MARKS = ("[True]", "[False]")


def items(row: Row, protocol: Protocol, shots: int) -> Iterator[Item]:
    """An item per answer to a question."""
    context = f"{row['paragraph'].strip()}\n\n{row['question'].strip()}"
    is_labeled = all(label >= 0 for label in row["labels"])
    labeled_answers = (
        f"\n- {TRUTH_MARKS[1 - label]} {answer.strip()}"
        for answer, label in zip(row["answers"], row["labels"], strict=True)
    )
    demonstration = context + "".join(labeled_answers) if is_labeled else ""
    for number, (answer, label) in enumerate(zip(row["answers"], row["labels"], strict=True)):
        yield Item(
            id=f"{row['id']}-{number}",
            contexts=(context,),
            completions=tuple(f"\n- {mark} {answer.strip()}" for mark in TRUTH_MARKS),
            right=(1 - label,) if label >= 0 else (),
            group=row["id"],
            demonstration=demonstration,
        )


def from_tfds(row: Row) -> Row:
    """Maps a TFDS example, a single answer, to a row with one answer; `merge_rows`
    combines them.
    """
    index = row["idx"]
    return {
        "id": f"{index['paragraph']}-{index['question']}",
        "paragraph": row["paragraph"],
        "question": row["question"],
        "answers": [(index["answer"], row["answer"], row["label"])],
    }


def merge_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """Combines the answers of each question, in the order of their indices; TFDS shuffles them."""
    questions: dict[str, Row] = {}
    for row in rows:
        if row["id"] in questions:
            questions[row["id"]]["answers"].extend(row["answers"])
        else:
            questions[row["id"]] = row
    for row in questions.values():
        answers = sorted(row["answers"])
        yield {
            **row,
            "answers": [text for _, text, _ in answers],
            "labels": [label for _, _, label in answers],
        }


TASKS = (
    Task(
        name="multirc",
        summary=(
            "which answers to a question about a passage are true (the test server: 30.5; F1a 75.4)"
        ),
        protocol=PROTOCOL,
        items=items,
        schema={
            "paragraph": "text",
            "question": "text",
            "answers": "[text]",
            "labels": "[number]: for each answer 1 if it is true, 0 if not, -1 if not known",
        },
        example={
            "id": "0",
            "paragraph": (
                "Ida rowed to the island at dawn. She took bread, a lamp and her brother's map. "
                "At noon the fog came."
            ),
            "question": "What did Ida take along?",
            "answers": ["A lamp", "Her brother", "A map and some bread"],
            "labels": [1, 0, 1],
        },
        tfds="super_glue/multirc",
        from_tfds=from_tfds,
        merge_rows=merge_rows,
        data_hint=(
            "val.jsonl and train.jsonl of MultiRC, super.gluebenchmark.com/tasks, a line a question"
        ),
        scorer_source=(
            "exact match of questions, and F1a; cogcomp.seas.upenn.edu/multirc, multirc_measures.py"
        ),
        conventions={"f1a": dataclasses.replace(PROTOCOL, metric="f1a")},
        paper_scores=gpt3_scores(  # of lower confidence (task.gpt3_scores)
            "group_accuracy",
            "4.72/9.65/12.3/13.6/14.3/18.4/24.2/27.6",
            "4.72/9.65/12.3/13.6/14.3/18.4/24.2/27.6",
            "6.09/11.8/16.8/20.8/24.7/23.8/25.0/32.5",
        ),
    ),
)
