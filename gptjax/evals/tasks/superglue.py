"""The SuperGLUE tasks (Wang et al. 2019) that GPT-3 presents as a text with named answers or a
clause to continue: BoolQ, CB, COPA, RTE, WiC. GPT-3 Figures G.29 to G.32 and G.5, K=32 sampled for
each problem; the development sets of Table H.1.

Answers are compared as choices, as section 2.4 says of binary tasks. (Table H.1 gives zero-shot WiC
as 0.0 for every size and CB as 0.0 for the smallest: no choice between two answers scores that, so
the paper probably generated freely.) Most sentences of CB and RTE lack a full stop and are shown as
in the figures: CB's with one, RTE's unchanged. COPA's clauses start with a lower-case letter,
except the word I. Examples are joined by two newlines [chosen].
"""

import dataclasses
from collections.abc import Callable

from gptjax.config.evaluation import PerToken, Protocol
from gptjax.evals.task import Item, PaperScores, Row, Task, gpt3_scores

# A row -> its context and completions, in the order of the labels.
Template = Callable[[Row], tuple[str, tuple[str, ...]]]


def boolq(row: Row) -> tuple[str, tuple[str, ...]]:
    """BoolQ: a passage and a yes-no question."""
    return f"{row['passage'].strip()}\nquestion: {row['question'].strip().rstrip('?')}?\nanswer:", (
        " no",
        " yes",
    )


def cb(row: Row) -> tuple[str, tuple[str, ...]]:
    """CommitmentBank: a premise and whether a hypothesis is true, false or neither."""
    hypothesis = row["hypothesis"].strip().rstrip(".")
    return f"{row['premise'].strip()}\nquestion: {hypothesis}. true, false, or neither?\nanswer:", (
        " true",
        " false",
        " neither",
    )


def copa(row: Row) -> tuple[str, tuple[str, ...]]:
    """COPA: a premise and its cause or effect."""
    joint = {"cause": "because", "effect": "therefore"}[row["question"]]
    choices = [row[name].strip() for name in ("choice1", "choice2")]
    lowered = (
        text
        if text.split()[0] in ("I", "I'm", "I'd", "I've", "I'll")
        else text[0].lower() + text[1:]
        for text in choices
    )
    return f"{row['premise'].strip().rstrip('.')} {joint}", tuple(f" {text}" for text in lowered)


def rte(row: Row) -> tuple[str, tuple[str, ...]]:
    """RTE: a premise and whether a hypothesis is true."""
    return (
        f"{row['premise'].strip()}\nquestion: {row['hypothesis'].strip()} True or False?\nanswer:",
        (" True", " False"),
    )


def wic(row: Row) -> tuple[str, tuple[str, ...]]:
    """WiC: whether a word has the same meaning in two sentences."""
    question = (
        f"question: Is the word '{row['word']}' used in the same way in the two sentences above?"
    )
    return f"{row['sentence1'].strip()}\n{row['sentence2'].strip()}\n{question}\nanswer:", (
        " no",
        " yes",
    )


def make_task(
    name: str,
    summary: str,
    template: Template,
    labels: str,
    example: Row,
    paper_scores: tuple[PaperScores, ...],
) -> Task:
    """A task with the given template. labels: the meaning of the label's values."""

    def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
        context, completions = template(row)
        right = (row["label"],) if row["label"] >= 0 else ()
        return [Item(id=row["id"], contexts=(context,), completions=completions, right=right)]

    def from_tfds(row: Row) -> Row:
        return {"id": str(row["idx"]), "label": row["label"]} | {
            column: row[column] for column in columns
        }

    protocol = Protocol(shots=32, method=PerToken(), metric="accuracy")
    columns = [column for column in example if column not in ("id", "label")]
    return Task(
        name=name,
        summary=summary,
        protocol=protocol,
        items=items,
        schema={column: "text" for column in columns}
        | {"label": f"number: {labels}; -1 if not known"},
        example=example,
        tfds=f"super_glue/{name}",
        from_tfds=from_tfds,
        data_hint=(
            f"val.jsonl and train.jsonl of {name}, super.gluebenchmark.com/tasks, with a number "
            "for the label"
        ),
        scorer_source=(
            "accuracy; github.com/nyu-mll/jiant, SuperGLUE's own (CB: the mean of accuracy and "
            "macro-F1 there)"
        ),
        paper_scores=paper_scores,
        conventions={"macro_f1": dataclasses.replace(protocol, metric="macro_f1")}
        if name == "cb"
        else {},
    )


TASKS = (
    make_task(
        "boolq",
        "yes or no, from a passage (the test server: 76.4)",
        boolq,
        "0 is no, 1 is yes",
        {
            "id": "0",
            "passage": (
                "Tidal island -- A tidal island is land that is joined to the mainland by a way "
                "that is under water at high tide."
            ),
            "question": "can you walk to a tidal island",
            "label": 1,
        },
        gpt3_scores(
            "accuracy",
            "49.7/60.3/58.9/62.4/67.1/65.4/66.2/60.5",
            "52.6/61.7/60.4/63.7/68.4/68.7/69.0/76.7",
            "43.1/60.6/62.0/64.1/70.3/70.0/70.2/77.5",
        ),
    ),
    make_task(
        "cb",
        "CommitmentBank: does who wrote a text hold a sentence for true (the test server: 75.6)",
        cb,
        "0 is entailment, 1 contradiction, 2 neutral",
        {
            "id": "0",
            "premise": (
                "Nobody at the inn believed that the bridge had fallen. They had crossed it that "
                "morning."
            ),
            "hypothesis": "the bridge had fallen",
            "label": 1,
        },
        gpt3_scores(
            "accuracy",
            "0.0/32.1/8.93/19.6/19.6/28.6/19.6/46.4",
            "55.4/53.6/53.6/48.2/57.1/33.9/55.4/64.3",
            "42.9/58.9/53.6/69.6/67.9/60.7/66.1/82.1",
        ),
    ),
    make_task(
        "copa",
        "which of two sentences is the cause, or the effect, of another (the test server: 92)",
        copa,
        "0 is the first choice",
        {
            "id": "0",
            "premise": "The candle went out.",
            "choice1": "The wind blew through the window.",
            "choice2": "The table was made of oak.",
            "question": "cause",
            "label": 0,
        },
        gpt3_scores(
            "accuracy",
            "66/68/73/77/76/80/84/91",
            "62/64/66/74/76/82/86/87",
            "67/64/72/77/83/83/86/92",
        ),
    ),
    make_task(
        "rte",
        "does a text say that a sentence is true (the test server: 69.0)",
        rte,
        "0 is entailment, 1 is not",
        {
            "id": "0",
            "premise": "The ferry to the island was cancelled on Monday because of the storm.",
            "hypothesis": "The ferry sailed on Monday.",
            "label": 1,
        },
        gpt3_scores(
            "accuracy",
            "47.7/49.8/48.4/56.0/46.6/55.2/62.8/63.5",
            "53.1/47.3/49.5/49.5/54.9/54.9/56.3/70.4",
            "52.3/48.4/46.9/50.9/56.3/49.5/60.6/72.9",
        ),
    ),
    make_task(
        "wic",
        "has a word the same meaning in two sentences (the test server: 49.4)",
        wic,
        "0 is no, 1 is yes",
        {
            "id": "0",
            "word": "bank",
            "sentence1": "They fished from the bank.",
            "sentence2": "The bank closes at four.",
            "label": 0,
        },
        gpt3_scores(  # of lower confidence (task.gpt3_scores)
            "accuracy",
            "0.0/0.0/0.0/0.0/0.0/0.0/0.0/0.0",
            "50.0/50.3/50.3/49.2/49.4/50.3/50.0/48.6",
            "49.8/55.0/53.0/53.0/51.6/53.1/51.1/55.3",
        ),
    ),
)
