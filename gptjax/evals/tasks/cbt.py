"""Children's Book Test (Hill et al. 2016): which of ten words fills the blank of a sentence, after
the twenty sentences before it.

GPT-2 section 3.2: each candidate is scored with the rest of the sentence, all tokens together;
detokenized text; the validation set, since one of the test set's books is in WebText. Not stated
[chosen]: a space between sentences; the candidate belongs to the scored text, with the space before
it.
"""

from gptjax.config.evaluation import Protocol, Total
from gptjax.evals import detokenizers
from gptjax.evals.task import Item, Row, Task, gpt2_scores

BLANK = "XXXXX"
MARK = "\x00"  # marks the start of the candidate during detokenization; occurs in no text


def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
    """The item of a question: ten candidates with the rest of the sentence."""
    candidates = row["candidates"]
    if row["question"].split().count(BLANK) != 1 or candidates.count(row["answer"]) != 1:
        raise ValueError(
            f"cbt, row {row['id']}: a question has one {BLANK}, and the answer is one of the "
            "candidates"
        )
    words = row["question"].split()
    blank_index = words.index(BLANK)
    halves = []
    for candidate in candidates:
        text = " ".join(
            [*row["sentences"], *words[:blank_index], MARK + candidate, *words[blank_index + 1 :]]
        )
        halves.append(detokenizers.apply(text, detokenizers.CBT).split(MARK))
    context = halves[0][0].rstrip()
    gap = halves[0][0][len(context) :]
    right = candidates.index(row["answer"])
    return [
        Item(
            id=row["id"],
            contexts=(context,),
            completions=tuple(gap + rest for _, rest in halves),
            right=(right,),
        )
    ]


def make_task(name: str, summary: str, example: Row, *scores: float) -> Task:
    """The task of one word class."""
    return Task(
        name=name,
        summary=f"which of ten {summary} stood in a blank",
        protocol=Protocol(shots=0, method=Total(), metric="accuracy"),
        items=items,
        schema={
            "sentences": "[text]: the twenty before, as the data have them",
            "question": f"text: the next one, with {BLANK}",
            "candidates": "[text]: ten",
            "answer": "text: one of them",
        },
        example=example,
        data_hint=f"cbtest_{name[-2:].upper()}_valid_2000ex.txt of "
        "CBTest.tgz (research.facebook.com, "
        "bAbI), a line of numbers, sentences, "
        "question, answer and candidates made an object",
        paper_scores=gpt2_scores("accuracy", *scores),
    )


STORY = [
    "The miller had a cat that slept by the oven .",
    "`` It is lazy , '' said his wife , but the miller did n't mind .",
]
NOUNS = {
    "id": "0",
    "sentences": STORY,
    "question": "One night a mouse ran over the XXXXX , and the cat woke up .",
    "candidates": [
        "oven",
        "wife",
        "miller",
        "floor",
        "night",
        "bread",
        "river",
        "door",
        "moon",
        "king",
    ],
    "answer": "floor",
}
NAMES = {
    "id": "0",
    "sentences": [*STORY, "Their daughter Greta liked it , and so did her friend Anton ."],
    "question": "`` Come here , '' said XXXXX , who had some milk .",
    "candidates": [
        "Greta",
        "Anton",
        "Miller",
        "Oven",
        "Peter",
        "Maria",
        "Hilda",
        "Klaus",
        "Jakob",
        "Elsa",
    ],
    "answer": "Greta",
}
TASKS = (
    make_task("cbt_cn", "common nouns", NOUNS, 87.65, 92.35, 93.45, 93.30),
    make_task("cbt_ne", "names", NAMES, 83.4, 87.1, 88.0, 89.05),
)
