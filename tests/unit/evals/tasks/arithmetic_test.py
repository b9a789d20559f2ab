"""GPT-3's arithmetic, counted against section 3.9.1 of its paper and against the released files
(openai/gpt-3, data/)."""

import collections
import dataclasses
import re

import pytest

from gptjax.evals.tasks import arithmetic

TASKS = {task.name: task for task in arithmetic.TASKS}
PAPER, RELEASED = (
    dataclasses.replace(arithmetic.PROTOCOL, prompt_variant=wording)
    for wording in ("paper", "released")
)
WORDS = {"plus": "+", "minus": "-", "times": "*"}


def rows(name, protocol=PAPER, seed=0):
    return list(TASKS[name].make_rows(protocol, seed, "test"))


def test_the_ten_tasks_of_the_paper_and_the_three_that_were_only_released():
    unreported = {name for name, task in TASKS.items() if not task.paper_scores}
    assert len(TASKS) == 13 and unreported == {
        "six_digit_addition",
        "six_digit_subtraction",
        "sum_of_digits",
    }


@pytest.mark.parametrize("protocol", [PAPER, RELEASED], ids=["paper", "released"])
@pytest.mark.parametrize("name", TASKS)
def test_2000_instances_none_twice_all_answers_right(name, protocol):
    found = rows(name, protocol)
    assert (
        len({row["question"] for row in found})
        == len({row["id"] for row in found})
        == len(found)
        == 2000
    )
    for row in found:
        question = row["question"]
        if name == "sum_of_digits":
            assert row["answer"] == sum(int(digit) for digit in question.rpartition(" ")[2])
        else:
            assert row["answer"] == eval(
                re.sub("plus|minus|times", lambda word: WORDS[word[0]], question)
            )
        assert re.search(r"\b0\d", question) is None, "no leading zeros"


@pytest.mark.parametrize(
    "name,most",
    [
        ("two_digit_addition", 100),
        ("three_digit_subtraction", 1000),
        ("five_digit_addition", 10**5),
    ],
)
def test_operands_are_uniform_from_0_to_below_a_power_of_ten(name, most):
    numbers = [int(number) for row in rows(name) for number in re.findall(r"\d+", row["question"])]
    assert min(numbers) < most / 50 and most * 0.98 < max(numbers) < most
    tenths = collections.Counter(number * 10 // most for number in numbers)
    assert all(abs(tenths[tenth] - 400) < 5 * 19 for tenth in range(10)), (
        tenths
    )  # 4,000 numbers, standard deviation 19


def test_subtractions_may_be_negative_and_multiplications_are_of_two_digits():
    assert 0.4 < sum(row["answer"] < 0 for row in rows("two_digit_subtraction")) / 2000 < 0.6
    assert all(
        re.fullmatch(r"\d{1,2} times \d{1,2}", row["question"])
        for row in rows("two_digit_multiplication")
    )


def test_the_composite_of_the_paper_and_that_of_the_files():
    paper = [row["question"] for row in rows("single_digit_three_ops")]
    released = [row["question"] for row in rows("single_digit_three_ops", RELEASED)]
    assert all(re.fullmatch(r"\d[-+*]\(\d[-+*]\d\)", question) for question in paper)
    assert all(
        re.fullmatch(r"\([1-9] [-+*] [1-9]\) [-+*] [1-9]", question) for question in released
    )
    assert {digit for question in paper for digit in question if digit.isdigit()} == set(
        "0123456789"
    )
    for questions in (paper, released):
        forms = collections.Counter(re.sub(r"\d", "d", question) for question in questions)
        assert len(forms) == 9 and all(abs(count - 2000 / 9) < 70 for count in forms.values()), (
            forms
        )


def test_one_seed_one_set():
    assert (
        rows("two_digit_addition")
        == rows("two_digit_addition")
        != rows("two_digit_addition", seed=1)
    )
    assert rows("two_digit_addition")[:5] != rows("two_digit_subtraction")[:5]


def item(name, question, answer, protocol=PAPER, shots=0):
    (only,) = TASKS[name].items(
        {"id": "7", "question": question, "answer": answer}, protocol, shots
    )
    return only


def test_the_prompt_is_that_of_the_released_files():
    whole = item("two_digit_addition", "98 plus 45", 143, RELEASED)
    assert (whole.contexts, whole.completions) == (("\n\nQ: What is 98 plus 45?\n\nA:",), (" 143",))
    joined = PAPER.separator.join(
        item("two_digit_addition", "1 plus 2", 3, RELEASED, shots=1).as_demonstration
        for _ in range(2)
    )
    assert joined == "Q: What is 1 plus 2?\n\nA: 3\n\nQ: What is 1 plus 2?\n\nA: 3"
    assert item("two_digit_addition", "98 plus 45", 143).contexts == (
        "Q: What is 98 plus 45?\n\nA:",
    )
    summed = item(
        "sum_of_digits", arithmetic.digit_sum(__import__("random").Random(0), "paper")[0], 0
    )
    assert re.fullmatch(
        r"Q: What is the sum of the digits of the number \d+\?\n\nA:", summed.contexts[0]
    )


def test_the_answer_must_be_exact():
    asked = item("two_digit_subtraction", "33 minus 88", -55)
    score = TASKS["two_digit_subtraction"].score
    assert [
        score("exact_match", written, asked)
        for written in (" -55", "-55", " 55", " -55.", " -5", "")
    ] == [1, 1, 0, 0, 0, 0]


def test_another_wording_is_refused():
    with pytest.raises(ValueError, match="prompt_variant=papers: this task has paper, released"):
        next(
            TASKS["two_digit_addition"].make_rows(
                dataclasses.replace(PAPER, prompt_variant="papers"), 0, "test"
            )
        )


def test_scores_of_the_paper():
    few = {p.shots: p for p in TASKS["two_digit_addition"].paper_scores}["few"]
    assert (
        few.scores["gpt3_175b"] == 100.0
        and few.scores["gpt3_small"] == 2.0
        and few.metric == "exact_match"
    )
    assert TASKS["five_digit_subtraction"].paper_scores[0].scores == {"gpt3_175b": 0.8}
