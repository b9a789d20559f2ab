"""Scores of written answers against sums made by hand, at the corners where the official scorers
differ from each other."""

import pytest

from gptjax.evals import scorers
from gptjax.evals.task import Item


def item(*right, **facts):
    return Item(id="0", contexts=("",), completions=("",), answers=right, facts=facts)


def test_normalized_text():
    assert scorers.normalize(" The  U.S. and\nan Apple-pie, a the ") == "us and applepie"
    assert (
        scorers.normalize("theory anthem a.b") == "theory anthem ab"
    )  # articles are whole words, after punctuation went
    assert scorers.normalize("The. a! an?") == ""
    assert (
        scorers.normalize_trivia("The U.S._of `A\u2019") == "u s of"
    )  # a lone a is an article once the quotation marks are spaces
    assert scorers.normalize_trivia("Apple-pie") == "apple pie"


@pytest.mark.parametrize(
    "written,right,f1",
    [
        ("the cat sat", "cat sat down", 0.8),  # 2 shared of 2 and 3
        ("a a cat", "The cat", 1.0),
        ("cat cat dog", "cat", 0.5),  # a word counts as often as both have it
        ("cat cat dog", "cat cat", 0.8),
        ("", "", 1.0),
        ("the", "", 1.0),
        ("cat", "", 0.0),
        ("", "cat", 0.0),
        ("dog", "cat", 0.0),
    ],
)
def test_f1_of_words(written, right, f1):
    assert scorers.word_f1(written, right) == pytest.approx(f1)
    assert scorers.word_f1(right, written) == pytest.approx(f1)
    assert scorers.exact_match(written, right) == (f1 == 1)


def test_closed_book_answers_are_any_right_one():
    asked = item("Anna Lind", "A. Lind")  # whose "A." is an article
    assert [
        scorers.closed_book("exact_match", text, asked)
        for text in (" the anna lind.", "Lind", "Berg")
    ] == [1, 1, 0]
    assert scorers.closed_book("f1", "Anna", asked) == pytest.approx(2 / 3)
    assert scorers.closed_book("exact_match", "x", item()) == 0
    assert (
        scorers.trivia_qa("exact_match", "U.S", item("the u-s")) == 1
        and scorers.trivia_qa("exact_match", "US", item("the u-s")) == 0
    )


def test_squad_without_an_answer():
    none = item(none="unanswerable")
    assert [
        scorers.squad("f1", text, none) for text in (" Unanswerable.", "", "the", "a bell")
    ] == [1, 1, 1, 0]
    some = item("nine", "nine arches", none="unanswerable")
    assert scorers.squad("exact_match", "Nine!", some) == 1 and scorers.squad(
        "f1", "nine big arches", some
    ) == pytest.approx(0.8)
    assert scorers.squad("f1", "unanswerable", some) == scorers.squad("f1", "", some) == 0
    assert scorers.squad("f1", "cat", item("the", "cat", none="x")) == 1
    assert (
        scorers.squad("f1", "", item("the", none="x")) == 1
    )  # a right answer of no words is no answer


def test_a_reference_is_left_out_in_turn():
    right = item("boat", "big boat", "big boat")
    # Left out: boat -> best of (big boat, big boat) = 2/3; either of the others -> boat = 1.
    assert scorers.coqa("f1", "the boat", right) == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert scorers.coqa("exact_match", "boat", right) == pytest.approx(2 / 3)
    assert scorers.coqa("exact_match", "big boat", right) == 1
    assert scorers.coqa("f1", "boat", item("boat")) == 1  # one reference: as it is
    assert scorers.coqa("f1", "boat", item("boat", "ship")) == 0.5
    assert scorers.coqa("f1", "yes", item()) == 0


def test_cannot_answer_counts_when_half_say_so():
    cannot = scorers.CANNOT_ANSWER
    assert scorers.quac("f1", f" {cannot}", item(cannot, "in May")) == 1
    assert scorers.quac("f1", "in May", item(cannot, "in May")) == 0
    assert scorers.quac("f1", "cannotanswer", item(cannot)) == 0  # as it is spelt
    few = item(cannot, "in May", "in May 1901")
    assert scorers.quac("f1", cannot, few) == 0
    assert scorers.quac("f1", "in May", few) == pytest.approx(
        (0.8 + 1) / 2
    )  # of the two that answer, each left out
    # as a tokenizer without capitals writes it, and so the right answers too
    lower = cannot.lower()
    assert scorers.quac("f1", f"{lower} ", item(lower, lower, "in may")) == 1
    assert scorers.quac("f1", "in may", item(lower, "in may", "in may 1901")) == pytest.approx(
        (0.8 + 1) / 2
    )


def test_drops_words():
    assert scorers.drop_tokens("The well-known 1,200 $4.5 5 -3.") == [
        "well",
        "known",
        "1200.0",
        "45.0",
        "5.0",
        "3.0",
    ]  # as theirs
    assert scorers.drop_tokens("-3 3-yard") == [
        "3.0",
        "3.0",
        "yard",
    ]  # the hyphen cuts, of a minus too
    assert scorers.drop_tokens("the U.S. 1.50") == ["us", "1.5"]


def test_drops_numbers_and_spans():
    def f1(written, *right):
        return scorers.score_spans("f1", list(written), list(right))

    assert (
        f1(["3"], "3.0 metres") == 0.67 and f1(["4 metres"], "3 metres") == 0
    )  # a right number must be there
    assert (
        f1(["metres 3"], "3 metres") == 1
        and scorers.score_spans("exact_match", ["metres 3"], ["3 metres"]) == 0
    )
    assert (
        f1(["Berg", "Anna Lind"], "Lind", "Berg") == 0.83
    )  # paired as well as can be: (1 + 2/3) / 2
    assert f1(["Berg"], "Lind", "Berg") == 0.5 and f1(["Berg", "Lind", "x"], "Berg") == 0.33
    assert scorers.score_spans("exact_match", ["the Berg", "lind"], ["Lind", "Berg"]) == 1
    assert scorers.score_spans("exact_match", ["Berg", "Berg"], ["Berg"]) == 0
    asked = item(spans=[["3"], ["Lind", "Berg"], [""]])
    assert (
        scorers.drop("exact_match", " Berg, Lind", asked) == 1
        and scorers.drop("f1", "3.", asked) == 1
    )
    assert scorers.drop("f1", "", asked) == 0 and scorers.drop("f1", "", item(spans=[[""]])) == 0


def test_spans_with_commas_are_what_they_agree_with_best():
    def drop(metric, written, *spans):
        return scorers.drop(metric, written, item(spans=list(spans)))

    for right in (
        ["Portland, Oregon"],
        ["March 5, 1862"],
        ["Berlin, Germany", "Paris, France"],
        ["a", "b, c", "d"],
        ["Lind", "Berg"],
    ):
        assert (
            drop("exact_match", f" {', '.join(right)}", right)
            == drop("f1", f" {', '.join(right)}", right)
            == 1
        )
    assert drop("exact_match", "Berg, Lind", ["Lind", "Berg"]) == 1
    assert (
        drop("exact_match", "Portland, Oregon", ["Portland"]) == 0
        and drop("f1", "Portland, Oregon", ["Portland"]) == 0.67
    )
    long = ", ".join(f"name{n}" for n in range(60))  # not every way to cut it is tried
    assert (
        drop("exact_match", long, [f"name{n}" for n in range(60)]) == 1
        and drop("f1", long, ["name1", "name2"]) < 0.1
    )
