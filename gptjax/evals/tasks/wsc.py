"""SuperGLUE's WSC: what does a pronoun refer to? GPT-3 Figure G.33: an exam with its answer key,
with stars around the pronoun.

The data ask whether the pronoun refers to a given noun. In the figure the answer is the noun in
lower case; so it is generated here, and scored like T5's wsc_simple, since GPT-3's scoring is not
stated [chosen]. The answer counts as yes if all words of the given noun are in it or vice versa, in
lower case and without 21 determiners, and if both or neither have an apostrophe ("Bob" is not
"Bob's hat"); punctuation stays, so "miller." is not "miller". An answer without words is always
wrong. Only rows whose label is yes are demonstrations, one fixed set of 32 for all; a row whose
label is no has no correct text. prompt_variant=choice asks as the data do, and compares the answers
yes and no: the convention "choice". Examples are separated by one newline [chosen].
"""

import re

from gptjax.config.evaluation import Beam, PerToken, Protocol
from gptjax.evals.task import Item, Row, Task, gpt3_scores, prompt_variant

EXAM_HEADER = (
    "Final Exam with Answer Key\n"
    "Instructions: Please carefully read the following passages. "
    "For each passage, you must identify which noun the pronoun marked in *bold* refers to.\n"
    "====="
)
DETERMINERS = frozenset(
    "a an each every few her his many much my our some that the their these this those which "
    "whose your".split()
)


def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
    """The item of a passage with a marked pronoun."""
    noun, pronoun, label = row["span1_text"].strip(), row["span2_text"].strip(), row["label"]
    passage = mark_pronoun(row["text"], row["span2_index"], pronoun)
    if prompt_variant(protocol, "written", "choice") == "choice":
        question = (
            f'Question: In the passage above, does the pronoun "*{pronoun}*" refer to "{noun}"?'
        )
        completions, right = (" no", " yes"), (label,) if label >= 0 else ()
    else:
        question = f'Question: In the passage above, what does the pronoun "*{pronoun}*" refer to?'
        completions, right = (f" {noun.lower()}",), (0,) if label == 1 else ()
    facts = {"noun": noun, "label": label}
    answers = (noun.lower(),) if label == 1 else ()
    context = f"Passage: {passage}\n{question}\nAnswer:"
    none = label == 0 and not right
    return [
        Item(
            id=row["id"],
            contexts=(context,),
            completions=completions,
            right=right,
            answers=answers,
            facts=facts,
            none_is_right=none,
        )
    ]


def mark_pronoun(text: str, number: int, pronoun: str) -> str:
    """Puts stars around the pronoun, which starts at word `number` of the text. Raises ValueError
    if it is not there.
    """
    words = list(re.finditer(r"\S+", text))
    start = words[number].start() if number < len(words) else len(text)
    match = re.compile(re.escape(pronoun), re.IGNORECASE).search(text, max(0, start - 1))
    if match is None:
        raise ValueError(
            f"span2_text is {pronoun!r}, which the text does not have at its word {number}: "
            f"{text!r}"
        )
    return f"{text[: match.start()]}*{match[0]}*{text[match.end() :]}"


def without_determiners(noun: str) -> str:
    """The noun in lower case without determiners; words are separated by single spaces."""
    return " ".join(word for word in noun.strip().lower().split(" ") if word not in DETERMINERS)


def score(metric: str, prediction: str, item: Item) -> float:
    """Whether the answer agrees with the label, as T5's wsc_simple."""
    answer, noun = without_determiners(prediction), without_determiners(item.facts["noun"])
    answer_words, noun_words = set(answer.split(" ")), set(noun.split(" "))
    agrees = ("'" in answer) == ("'" in noun) and (
        answer_words <= noun_words or noun_words <= answer_words
    )
    return float(bool(answer) and agrees == bool(item.facts["label"]))


TASKS = (
    Task(
        name="wsc",
        summary="does a pronoun refer to a noun (the test server: 80.1)",
        protocol=Protocol(
            shots=32,
            method=Beam(n_tokens=20),
            metric="accuracy",
            description=EXAM_HEADER,
            separator="\n",
            fixed_shots=True,
        ),
        items=items,
        schema={
            "text": "text",
            "span1_text": "text: the noun",
            "span2_text": "text: the pronoun",
            "span2_index": "number: of the pronoun's word in the text, from 0",
            "label": "number: 1 if it refers to the noun, else 0; -1 if not known",
        },
        example={
            "id": "0",
            "text": "The baker thanked the miller because he had brought the flour early.",
            "span1_text": "The miller",
            "span2_text": "he",
            "span2_index": 6,
            "label": 1,
        },
        tfds="super_glue/wsc.fixed",
        from_tfds=lambda row: (
            {"id": str(row["idx"])} | {name: row[name] for name in TASKS[0].schema}
        ),
        data_hint=(
            "val.jsonl and train.jsonl of WSC, super.gluebenchmark.com/tasks, target's entries "
            "made columns, a number for the label"
        ),
        score=score,
        scorer_source=(
            "accuracy; github.com/google-research/text-to-text-transfer-transformer, "
            "t5/data/postprocessors.py, wsc_simple"
        ),
        conventions={
            "choice": Protocol(
                shots=32,
                method=PerToken(),
                metric="accuracy",
                description=EXAM_HEADER,
                separator="\n",
                fixed_shots=True,
                prompt_variant="choice",
            )
        },
        paper_scores=gpt3_scores(  # of lower confidence (task.gpt3_scores)
            "accuracy",
            "59.6/56.7/65.4/61.5/66.3/60.6/64.4/65.4",
            "58.7/58.7/60.6/62.5/66.3/60.6/66.3/69.2",
            "58.7/60.6/54.8/49.0/62.5/67.3/75.0/75.0",
        ),
    ),
)
