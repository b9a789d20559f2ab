"""GPT-3's ten arithmetic tasks (section 3.9.1), and three that it released but did not report. They
are generated from the seed.

prompt_variant=paper: as in section 3.9.1; the composite is `6+(4*8)`, with digits 0 to 9, the last
two in brackets. prompt_variant=released: as in OpenAI's files (github.com/openai/gpt-3, data/,
counted); the composite is `(9 + 8) * 2`, with digits 1 to 9, the first two in brackets, nine forms.
Their contexts start with the two newlines that join them: here the separator adds those, and
without demonstrations the context has them. Both have 2,000 distinct instances.

Not stated [chosen]: how the answer is obtained. It must be "generated exactly", so it is generated
by the beam search of section 2.4, up to the end of the line, and compared without surrounding
spaces. Demonstrations come from the set itself, since there is only one, excluding the item.
"""

import dataclasses
import operator
import random
from collections.abc import Callable, Iterator

from gptjax.config.evaluation import Beam, Protocol
from gptjax.evals import scorers
from gptjax.evals.task import Item, PaperScores, Row, Task, gpt3_scores, prompt_variant

N_ITEMS = 2000
PROTOCOL = Protocol(shots=50, method=Beam(n_tokens=12), metric="exact_match")
WORD_OPERATORS = {"plus": operator.add, "minus": operator.sub, "times": operator.mul}
SYMBOL_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
DrawFn = Callable[[random.Random, str], tuple[str, int]]  # (rng, variant) -> question, answer


def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
    r"""The item of a question, "Q: What is ...?\n\nA:"."""
    prefix = (
        protocol.separator
        if shots == 0 and prompt_variant(protocol, "paper", "released") == "released"
        else ""
    )
    answer = str(row["answer"])
    return [
        Item(
            id=row["id"],
            contexts=(f"{prefix}Q: What is {row['question']}?\n\nA:",),
            completions=(f" {answer}",),
            answers=(answer,),
        )
    ]


def two_numbers(n_digits: int, word: str) -> DrawFn:
    """Returns a function that samples two numbers, each uniform below 10^n_digits, and their
    operation.
    """

    def draw(rng: random.Random, variant: str) -> tuple[str, int]:
        a, b = rng.randrange(10**n_digits), rng.randrange(10**n_digits)
        return f"{a} {word} {b}", WORD_OPERATORS[word](a, b)

    return draw


def composite(rng: random.Random, variant: str) -> tuple[str, int]:
    """Samples three digits and two operations, with two of the digits in brackets."""
    first, second = rng.choice("+-*"), rng.choice("+-*")
    a, b, c = (rng.randrange(1 if variant == "released" else 0, 10) for _ in range(3))
    if variant == "released":
        return f"({a} {first} {b}) {second} {c}", SYMBOL_OPERATORS[second](
            SYMBOL_OPERATORS[first](a, b), c
        )
    return f"{a}{first}({b}{second}{c})", SYMBOL_OPERATORS[first](a, SYMBOL_OPERATORS[second](b, c))


def digit_sum(rng: random.Random, variant: str) -> tuple[str, int]:
    """Samples a number below 10,000, whose digits are to be summed."""
    number = rng.randrange(10_000)
    return f"the sum of the digits of the number {number}", sum(map(int, str(number)))


def make_task(name: str, summary: str, draw: DrawFn, paper_scores: tuple[PaperScores, ...]) -> Task:
    """An arithmetic task whose questions `draw` samples."""

    def make_rows(protocol: Protocol, seed: int, split: str) -> Iterator[Row]:
        variant = prompt_variant(protocol, "paper", "released")
        rng = random.Random(f"{name} {variant} {split} {seed}")
        seen: set[str] = set()
        while len(seen) < N_ITEMS:
            question, answer = draw(rng, variant)
            if question not in seen:
                yield {"id": str(len(seen)), "question": question, "answer": answer}
                seen.add(question)

    return Task(
        name=name,
        summary=summary,
        protocol=PROTOCOL,
        items=items,
        schema={
            "question": "text: what stands after `Q: What is` and before the question mark",
            "answer": "number",
        },
        example=next(make_rows(PROTOCOL, 0, "test")),
        splits=("test", "test"),
        make_rows=make_rows,
        data_hint=(
            "it is made from the seed; OpenAI's own instances are data/ of github.com/openai/gpt-3"
        ),
        score=scorers.plain_text,
        scorer_source="GPT-3 section 3.9.1: the answer must be generated exactly",
        paper_scores=paper_scores,
        conventions={"released": dataclasses.replace(PROTOCOL, prompt_variant="released")},
    )


def table_scores(zero: str, one: str, few: str) -> tuple[PaperScores, ...]:
    """Table H.1's scores, of lower confidence (task.gpt3_scores); the 175B column agrees with
    Tables 3.9 and 3.10.
    """
    return gpt3_scores("exact_match", zero, one, few)


NUMBERS = ("one", "two", "three", "four", "five", "six")
PAPER_SCORES = {
    ("two", "plus"): table_scores(
        ".70/.65/.70/.85/1.10/2.54/15.4/76.9",
        "2.00/.55/3.15/4.00/12.1/19.6/73.0/99.6",
        "2.00/4.10/3.50/4.50/8.90/11.9/55.5/100.0",
    ),
    ("two", "minus"): table_scores(
        "1.25/1.25/1.25/1.25/1.60/7.60/12.6/58.0",
        "1.15/.95/1.45/1.95/3.85/11.5/44.6/86.4",
        "1.15/1.45/2.25/2.70/7.35/13.6/52.4/98.9",
    ),
    ("three", "plus"): table_scores(
        ".10/.10/.05/.10/.10/.25/1.40/34.2",
        ".15/0/.10/.30/.45/.95/15.4/65.5",
        ".15/.45/.30/.55/.75/.90/8.40/80.4",
    ),
    ("three", "minus"): table_scores(
        ".05/.05/.05/.05/.05/.45/1.35/48.3",
        ".05/.15/.25/.30/.55/1.60/6.15/78.7",
        ".05/.10/.15/.35/.65/1.05/9.20/94.2",
    ),
    ("four", "plus"): table_scores("4.0", "14.0", "25.5"),
    ("four", "minus"): table_scores("7.5", "14.0", "26.8"),
    ("five", "plus"): table_scores("0.7", "3.5", "9.3"),
    ("five", "minus"): table_scores("0.8", "3.8", "9.9"),
    ("two", "times"): table_scores(
        "2.20/2.25/2.65/2.10/2.55/5.80/6.15/19.8",
        "1.35/2.35/3.35/2.35/4.75/9.15/11.0/27.4",
        "1.35/2.90/2.70/2.85/4.25/6.10/7.05/29.2",
    ),
    ("six", "plus"): (),
    ("six", "minus"): (),
}
OPERATION_NAMES = {"plus": "addition", "minus": "subtraction", "times": "multiplication"}
TASKS = (
    *(
        make_task(
            f"{number}_digit_{OPERATION_NAMES[word]}",
            f"{OPERATION_NAMES[word]} of two numbers of up to {number} digits",
            two_numbers(NUMBERS.index(number) + 1, word),
            paper_scores,
        )
        for (number, word), paper_scores in PAPER_SCORES.items()
    ),
    make_task(
        "single_digit_three_ops",
        "three digits and two operations, two of the digits in brackets",
        composite,
        table_scores(
            "1.25/2.95/2.75/.05/.30/2.35/.75/9.75",
            "1.90/2.80/2.85/3.65/6.45/9.15/8.20/14.3",
            "1.70/2.15/3.90/5.75/6.20/7.60/9.95/21.3",
        ),
    ),
    make_task("sum_of_digits", "the sum of the digits of a number below 10,000", digit_sum, ()),
)
