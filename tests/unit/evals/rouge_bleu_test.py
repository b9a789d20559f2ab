"""ROUGE and BLEU against sums made by hand, at the corners where the official scripts differ from
each other."""

import pytest

from gptjax.evals import rouge_bleu
from tests.unit.evals.scorers_test import item


def test_sentences():
    text = 'He said "Stop." Then he left. It was 3.5 km!\nSo (he said.) End'
    assert rouge_bleu.split_sentences(text) == [
        'He said "Stop."',
        "Then he left.",
        "It was 3.5 km!",
        "So (he said.)",
        "End",
    ]
    assert rouge_bleu.split_sentences(" \n ") == []


def test_rouge():
    asked = item("The cats sat down .", sentences=3)
    assert rouge_bleu.rouge("rouge_1", "the cat sat", asked) == pytest.approx(
        6 / 7
    )  # 3 of 3 and 4; words are stemmed
    assert rouge_bleu.rouge("rouge_2", "the cat sat", asked) == pytest.approx(0.8)  # 2 of 2 and 3
    assert rouge_bleu.rouge("rouge_l", "sat the cat", asked) == pytest.approx(
        4 / 7
    )  # the cat, or sat, in order
    assert rouge_bleu.rouge("rouge", "the cat sat", asked) == pytest.approx(
        (6 / 7 + 0.8 + 6 / 7) / 3
    )
    assert (
        rouge_bleu.rouge("rouge_1", "The cats. Sat. Down. Never.", asked) == 1
    )  # the fourth sentence is not kept
    assert rouge_bleu.rouge("rouge", "", asked) == 0


def test_the_longest_sequence_goes_sentence_by_sentence():
    lines = item("a b c .\nd e f .", sentences=3)
    assert (
        rouge_bleu.rouge("rouge_l", "d e f a b c", lines) == 1
    )  # as one text, only three words are in order


def test_rouge_of_what_it_leaves_at_0():
    assert (
        rouge_bleu.rouge("rouge", "Yes.", item("yes")) == 1
        and rouge_bleu.rouge("rouge_2", "no", item("yes")) == 0
    )
    assert (
        rouge_bleu.rouge(
            "rouge",
            "\u0434\u0430 \u0438 \u043d\u0435\u0442",
            item("\u0434\u0430 \u0438 \u043d\u0435\u0442"),
        )
        == 1
    )
    assert (
        rouge_bleu.rouge("rouge_1", "the dog", item("the cat", "a dog", "the dog")) == 1
    )  # the best of several
    assert rouge_bleu.rouge("rouge", "x", item()) == 0


def test_bleu_by_hand():
    written, items = ["the cat sat on the mat"], [item("the cat sat on a mat", language="en")]
    expected = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert rouge_bleu.corpus_bleu("bleu", written, items) == pytest.approx(expected)
    assert rouge_bleu.corpus_bleu("bleu_mb", written, items) == pytest.approx(expected)
    # Matches and lengths are summed over the corpus first: 9 of 10 words, 6 of 8 pairs, 4 of 6, 2
    # of 4.
    written, items = (
        [*written, "one two three four"],
        [*items, item("one two three four", language="en")],
    )
    assert rouge_bleu.corpus_bleu("bleu_mb", written, items) == pytest.approx(
        (9 / 10 * 6 / 8 * 4 / 6 * 2 / 4) ** 0.25
    )


def test_bleu_has_the_best_of_several_right_answers():
    one = "the cat sat on a mat"
    for right in ((one, "no such words at all"), ("no such words at all", one)):
        assert rouge_bleu.corpus_bleu(
            "bleu", [one], [item(*right, language="en")]
        ) == pytest.approx(1)


def test_bleu_is_zero_without_four_words_in_a_row_unless_smoothed():
    written, items = ["a b x d e"], [item("a b c d e", language="en")]
    assert rouge_bleu.corpus_bleu("bleu_mb", written, items) == 0
    assert rouge_bleu.corpus_bleu("bleu", written, items) > 0.1


def test_a_short_translation_is_penalized_and_the_first_sentence_kept():
    whole = "one two three four five six seven eight ."
    asked = item(whole, language="en", sentences=1)
    short = rouge_bleu.corpus_bleu(
        "bleu_mb", ["one two three four five six ."], [item(whole, language="en")]
    )
    assert short == pytest.approx(
        2.718281828 ** (1 - 9 / 7) * (7 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25
    )
    assert rouge_bleu.corpus_bleu(
        "bleu_mb", [" one two three four five six seven eight. Nine ten."], [asked]
    ) == pytest.approx(1)


@pytest.mark.parametrize(
    "language,text,words",
    [
        ("en", "one\uff0c two\u200b\u3002", "one , two ."),
        ("en", "It isn't 3,000 & x/y (e.g. here)...", "It isn 't 3,000 & x / y ( e.g. here ) ..."),
        (
            "fr",
            "C\u2019est l'\u00e9t\u00e9, \u00ab non \u00bb ?",
            "C' est l' \u00e9t\u00e9 , \" non \" ?",
        ),
        ("de", "\u201eGut\u201c, z.B. am 3. Mai \u2013 ja", '" Gut " , z.B. am 3. Mai - ja'),
        ("ro", "\u015ei \u021bara, \u00een\u0103l\u021bat\u00e2", "Si tara , inaltata"),
    ],
)
def test_words_of_moses(language, text, words):
    assert rouge_bleu.moses_tokenizer(language)(text) == words
