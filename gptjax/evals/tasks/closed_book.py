r"""Closed-book question answering: Natural Questions, WebQuestions, TriviaQA. GPT-3 section 3.2,
Figures of Appendix G.

`Q: ...\n\nA:` with all correct answers; a demonstration shows the first. Natural Questions and
WebQuestions start with a capital letter and end with a question mark, as in Figures G.24 and G.35
but not in the data; TriviaQA is unchanged (G.34). The paper's 7,993 questions are those of
TriviaQA's Wikipedia part, so that is used; any alias is correct. GPT-2 (section 3.8) prompted
Natural Questions with question-answer pairs whose number and form it does not state: five, one per
line, with capital letter and question mark as in its Table 5 [chosen].
"""

import functools
from collections.abc import Mapping

from gptjax.config.evaluation import Beam, Greedy, Protocol
from gptjax.evals import scorers
from gptjax.evals.task import Item, Row, Task, gpt2_scores, gpt3_scores, prompt_variant


def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
    """The item of a question with a capital letter and a question mark."""
    question = row["question"].strip()
    return template(row, f"{question[:1].upper()}{question[1:].rstrip(' ?')}?", protocol)


def verbatim_items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
    """The item of an unchanged question."""
    return template(row, row["question"].strip(), protocol)


def template(row: Row, question: str, protocol: Protocol) -> list[Item]:
    """The item of a question in the format of the prompt variant."""
    context = (
        f"Q: {question}"
        + {"gpt3": "\n\nA:", "gpt2": "\nA:"}[prompt_variant(protocol, "gpt3", "gpt2")]
    )
    right = tuple(row["answers"])
    return [
        Item(
            id=row["id"],
            contexts=(context,),
            completions=(f" {right[0]}" if right else "",),
            right=(0,) if right else (),
            answers=right,
        )
    ]


def trivia_from_tfds(row: Row) -> Row:
    """Maps a TFDS example of TriviaQA to a row."""
    answer = row["answer"]
    return {
        "id": row["question_id"],
        "question": row["question"],
        "answers": [answer["value"], *answer["aliases"]],
    }


def nq_from_tfds(row: Row) -> Row:
    """Maps a TFDS example of Natural Questions to a row."""
    return {"question": row["question"], "answers": row["answer"]}


closed_book_task = functools.partial(
    Task,
    protocol=Protocol(shots=64, method=Beam(n_tokens=32), metric="exact_match"),
    items=items,
    schema={
        "question": "text",
        "answers": "[text]: every right one, the first to be shown in demonstrations",
    },
)
GPT2_CONVENTIONS: Mapping[str, Protocol] = {
    "gpt2": Protocol(
        shots=5,
        method=Greedy(n_tokens=32),
        metric="exact_match",
        separator="\n",
        prompt_variant="gpt2",
    )
}
TASKS = (
    closed_book_task(
        name="natural_questions",
        summary="questions that people asked Google",
        example={
            "id": "0",
            "question": "who built the first bridge at old ferry",
            "answers": ["Anna Lind", "A. Lind"],
        },
        tfds="natural_questions_open",
        from_tfds=nq_from_tfds,
        data_hint=(
            "NQ-open.dev.jsonl of github.com/google-research-datasets/natural-questions, its "
            "`answer` called answers"
        ),
        score=scorers.closed_book,
        scorer_source=(
            "google-research/language orqa (Lee et al. 2019): exact match of normalized answers"
        ),
        paper_scores=(
            *gpt2_scores("exact_match", 4.1),
            *gpt3_scores(
                "exact_match",
                "0.64/1.75/2.71/4.40/6.01/5.79/7.84/14.6",
                "1.19/3.07/4.79/5.43/8.73/9.78/13.7/23.0",
                "1.72/4.46/7.89/9.72/13.2/17.0/21.0/29.9",
            ),
        ),
        conventions=GPT2_CONVENTIONS,
    ),
    closed_book_task(
        name="web_questions",
        summary="questions that Freebase answers",
        example={
            "id": "0",
            "question": "what river runs through old ferry?",
            "answers": ["The Aire", "Aire"],
        },
        splits=("test", "train"),
        tfds="web_questions",
        from_tfds=lambda row: {"question": row["question"], "answers": row["answers"]},
        data_hint=(
            "WebQuestions of nlp.stanford.edu/software/sempre, its utterance called question, its "
            "targetValue taken apart"
        ),
        score=scorers.closed_book,
        scorer_source=(
            "google-research/language orqa (Lee et al. 2019): exact match of normalized answers"
        ),
        paper_scores=gpt3_scores(
            "exact_match",
            "1.77/3.20/4.33/4.63/7.92/7.73/8.22/14.4",
            "2.56/6.20/8.51/9.15/14.5/15.1/19.0/25.3",
            "5.46/12.6/15.9/19.6/24.8/27.7/33.5/41.5",
        ),
    ),
    closed_book_task(
        name="trivia_qa",
        items=verbatim_items,
        summary="quiz questions, any alias of the answer",
        example={
            "id": "0",
            "question": "Which metal is the bell of Old Ferry made of?",
            "answers": ["Bronze", "Bell bronze", "Bell metal"],
        },
        tfds="trivia_qa/rc.wikipedia.nocontext",
        from_tfds=trivia_from_tfds,
        data_hint=(
            "wikipedia-dev.json of nlp.cs.washington.edu/triviaqa, its Question and Answer.Aliases"
        ),
        score=scorers.trivia_qa,
        scorer_source="mandarjoshi90/triviaqa utils/triviaqa_evaluation.py",
        paper_scores=gpt3_scores(
            "exact_match",
            "4.15/7.61/14.0/19.7/31.3/38.7/41.8/64.3",
            "4.19/12.9/20.5/26.5/35.9/44.4/51.3/68.0",
            "6.96/16.3/26.5/32.1/42.3/51.6/57.5/71.2",
        ),
    ),
)
