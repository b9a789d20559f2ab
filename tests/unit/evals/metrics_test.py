"""What is chosen, what it scores, and how sure that is: by hand-made outcomes."""

import dataclasses
import math
import random
import statistics
from typing import Any

import numpy as np
import pytest

from gptjax.config import evaluation
from gptjax.evals import metrics, rouge_bleu, scorers
from gptjax.evals.task import Task, gpt3_scores


def task(method, metric, **more):
    how = evaluation.Protocol(shots=0, method=method, metric=metric)
    return Task(
        name="t", summary="", protocol=how, items=lambda *given: [], schema={}, example={}, **more
    )


def outcome(number=0, **more):
    empty = {
        "group": "",
        "answers": (),
        "facts": {},
        "units": 0,
        "demonstration": "",
        "contexts": ("c",),
        "none_is_right": False,
    }
    return (
        empty
        | {"id": str(number), "completions": (" a", " bb cc"), "right": (0,), "tokens": [1, 2]}
        | more
    )


LIKELY: dict[str, Any] = {"log_probabilities": [-3.0, -4.0], "before": [-1.0, -3.0]}


@pytest.mark.parametrize(
    "method,number",
    [
        (evaluation.Total(), 0),  # -3 against -4
        (evaluation.PerToken(), 1),  # -3 against -2
        (evaluation.PerByte(), 1),  # -3 against -4/5
        (evaluation.Unconditional(), 1),  # -2 against -1
        (evaluation.Calibrated(), 1),
    ],
)
def test_each_method_chooses_by_its_score(method, number):
    how = evaluation.Protocol(shots=0, method=method, metric="accuracy")
    assert metrics.choose_completion(how, outcome(**LIKELY)) == number


@pytest.mark.parametrize(
    "texts,log_probabilities,number",
    [
        ((" a", " bbbb"), [-1.0, -3.0], 1),  # without the space that leads: -1 against -3/4
        ((" \u00e9\u00e9", " bbb"), [-2.0, -2.4], 0),  # UTF-8: -2/4 against -2.4/3
    ],
)
def test_per_byte_divides_by_the_bytes_of_the_words(texts, log_probabilities, number):
    how = evaluation.Protocol(shots=0, method=evaluation.PerByte(), metric="accuracy")
    assert (
        metrics.choose_completion(
            how, outcome(completions=texts, log_probabilities=log_probabilities)
        )
        == number
    )


def test_a_choice_is_right_if_it_is_one_of_the_right_ones():
    asked = task(evaluation.Total(), "accuracy")
    for right, score in [((0,), 1.0), ((1,), 0.0), ((0, 1), 1.0)]:
        judged = metrics.score_item(asked, asked.protocol, outcome(**LIKELY, right=right))
        assert judged["chosen"] == 0 and judged["scores"] == {"accuracy": score}


def test_partial_evaluation_compares_one_ending_after_each_context():
    asked = task(evaluation.PerByte(), "accuracy")
    judged = metrics.score_item(
        asked,
        asked.protocol,
        outcome(**LIKELY, contexts=("c", "d"), completions=(" end",), right=(0,)),
    )
    assert judged["chosen"] == 0 and judged["scores"]["accuracy"] == 1


def scored(asked, outcomes):
    judged = [metrics.score_item(asked, asked.protocol, one) for one in outcomes]
    return {
        score.metric: score for score in metrics.aggregate(asked, asked.protocol, judged, seed=0)
    }


def test_accuracy_has_the_standard_error_of_a_mean():
    asked = task(evaluation.Total(), "accuracy")
    found = scored(asked, [outcome(n, **LIKELY, right=(int(n >= 30),)) for n in range(40)])
    assert found["accuracy"].value == 75 and found["accuracy"].n == 40
    assert found["accuracy"].error == pytest.approx(100 * math.sqrt(0.75 * 0.25 / 39))


def test_items_with_unknown_answers_do_not_count():
    asked = task(evaluation.Total(), "accuracy")
    assert scored(asked, [outcome(0, **LIKELY), outcome(1, **LIKELY, right=())])["accuracy"].n == 1
    assert scored(asked, [outcome(0, **LIKELY, right=())]) == {}


def test_that_none_is_right_is_known():
    asked = task(
        evaluation.Greedy(n_tokens=3),
        "accuracy",
        score=lambda metric, said, item: float(said == "x"),
    )
    outcomes = [outcome(n, right=(), none_is_right=n < 3, written="x") for n in range(4)]
    assert (
        scored(asked, outcomes)["accuracy"].n == 3
        and scored(asked, outcomes)["accuracy"].value == 100
    )


def test_a_group_is_right_if_all_its_items_are():
    asked = task(evaluation.Total(), "group_accuracy")
    outcomes = [outcome(n, **LIKELY, group=str(n // 2), right=(int(n == 3),)) for n in range(6)]
    found = scored(asked, outcomes)["group_accuracy"]
    assert found.value == pytest.approx(200 / 3) and found.n == 3


def test_f1_of_classes():
    # Chosen 0 every time; right: 0, 0, 1. F1 of 0: 2*2/(3+2); of 1: 0.
    asked = task(evaluation.Total(), "macro_f1", paper_scores=gpt3_scores("f1a", "1"))
    found = scored(asked, [outcome(n, **LIKELY, right=(int(n == 2),)) for n in range(3)])
    assert found["macro_f1"].value == pytest.approx(40.0) and found["f1a"].value == pytest.approx(
        80.0
    )
    assert found["f1a"].error > 0


def test_f1_of_classes_is_of_those_that_are_right_somewhere():
    # Chosen: 0, 0, 0, 2; right: 0, 0, 1, 0; never 2. F1 of 0: 2*2/(3+3); of 1: 0.
    asked, completions = task(evaluation.Total(), "macro_f1"), (" a", " b", " c")
    outcomes = [
        outcome(n, completions=completions, log_probabilities=log_probs, right=(int(n == 2),))
        for n, log_probs in enumerate([[-3.0, -4.0, -5.0]] * 3 + [[-5.0, -4.0, -3.0]])
    ]
    assert scored(asked, outcomes)["macro_f1"].value == pytest.approx(100 / 3)


def test_a_bootstrap_draws_as_many_items_as_there_are():
    sizes, draw = [], random.Random(0)
    metrics._bootstrap(
        "f1a", np.ones((17, 1), int), lambda total: sizes.append(int(total[0])) or draw.random(), 0
    )
    assert len(sizes) > 100 and set(sizes) == {17}


def test_the_last_word_by_all_its_tokens_or_the_last_and_its_perplexity():
    outcomes = [
        outcome(
            n,
            log_probabilities=[-float(n)],
            tokens=[2],
            greedy=[n == 0],
            last_greedy=[n < 2],
            completions=(" w",),
        )
        for n in range(4)
    ]
    for method, value in [(evaluation.LastWord(), 25), (evaluation.LastToken(), 50)]:
        found = scored(
            task(method, "accuracy", paper_scores=gpt3_scores("perplexity", "3")), outcomes
        )
        assert found["accuracy"].value == value
        assert found["perplexity"].value == pytest.approx(math.exp(1.5))
        assert found["perplexity"].error == pytest.approx(
            math.exp(1.5) * statistics.stdev(range(4)) / 2
        )


def test_generated_text_is_scored_by_the_tasks_scorer():
    asked = task(
        evaluation.Greedy(n_tokens=3),
        "exact_match",
        score=lambda metric, said, item: float(said in item.answers),
    )
    found = scored(
        asked, [outcome(n, written="8", answers=("8", "eight") if n else ("9",)) for n in range(2)]
    )
    assert list(found) == ["exact_match"] and found["exact_match"].value == 50


def test_bleu_is_of_the_whole_with_a_bootstrapped_error():
    asked = task(evaluation.Greedy(n_tokens=3), "bleu")
    draw = random.Random(0)
    texts = [" ".join(draw.choices("the cat sat on a mat by day".split(), k=9)) for _ in range(6)]
    same = [outcome(n, written=text, answers=(text,)) for n, text in enumerate(texts)]
    assert scored(asked, same)["bleu"].value == pytest.approx(100) and scored(asked, same)[
        "bleu"
    ].error == pytest.approx(0, abs=1e-9)
    mixed = [one | {"written": texts[0]} if n % 2 else one for n, one in enumerate(same)]
    assert 10 < scored(asked, mixed)["bleu"].value < 90 and scored(asked, mixed)["bleu"].error > 1


def test_a_text_read_whole_is_divided_by_its_units():
    windows = {
        "log_probabilities": [-10.0, -20.0],
        "tokens": [10, 10],
        "completions": ("text",),
        "units": 15,
    }
    found = scored(task(evaluation.Windows(), "perplexity"), [outcome(**windows)])["perplexity"]
    assert found.value == pytest.approx(math.exp(2))
    assert found.error == pytest.approx(
        math.exp(2) * math.sqrt(2 * 25 * 2) / 15
    )  # each window is 5 nats from what its tokens have on average
    bits = scored(task(evaluation.Windows(), "bits_per_byte"), [outcome(**windows | {"units": 0})])[
        "bits_per_byte"
    ]
    assert bits.value == pytest.approx(1.5 / math.log(2))


def test_an_unsupported_metric_is_refused():
    asked = task(evaluation.Total(), "bleu")
    with pytest.raises(ValueError, match="t: Total.. does not support bleu, but accuracy"):
        metrics.metric_names(asked, asked.protocol)
    with pytest.raises(
        ValueError, match="t: Total.. does not support f1"
    ):  # of a task without a scorer
        metrics.metric_names(asked, dataclasses.replace(asked.protocol, metric="f1"))
    for own, metric, other in [
        (
            evaluation.Total(),
            "accuracy",
            evaluation.LastWord(),
        ),  # it would look whether the first completion is said, right or not
        (
            evaluation.Greedy(n_tokens=3),
            "exact_match",
            evaluation.PerToken(),
        ),  # it would choose the only completion there is
        (evaluation.LastWord(), "accuracy", evaluation.Windows()),
    ]:
        one = task(own, metric)
        with pytest.raises(ValueError, match="t: its items do not work with"):
            metrics.metric_names(one, dataclasses.replace(one.protocol, method=other))
    writes = task(evaluation.Greedy(n_tokens=3), "exact_match")
    assert metrics.metric_names(writes, dataclasses.replace(writes.protocol, metric="f1")) == ["f1"]
    with pytest.raises(ValueError, match="does not support bleu, but exact_match, f1"):
        metrics.metric_names(writes, dataclasses.replace(writes.protocol, metric="bleu"))
    also = dataclasses.replace(
        asked,
        protocol=dataclasses.replace(asked.protocol, metric="accuracy"),
        paper_scores=gpt3_scores("perplexity", "3"),
    )
    assert metrics.metric_names(also, also.protocol) == ["accuracy"]


def test_the_bootstrap_of_counts_is_that_of_texts():
    """The same draws of the same items: to the last digit what scoring each drawn set anew
    gives."""
    draw, words = random.Random(1), "the cat sat on a mat , by day . in 1,000 U.S. houses".split()
    for metric in ("bleu", "bleu_mb"):
        asked = task(evaluation.Greedy(n_tokens=3), metric)
        pairs = [
            [" ".join(draw.choices(words, k=draw.randint(2, 9))) for _ in range(3)]
            for _ in range(12)
        ]
        outcomes = [
            outcome(n, written=w, answers=(a, b)[: 1 + n % 2], facts={"language": "en"})
            for n, (w, a, b) in enumerate(pairs)
        ]
        found, again = scored(asked, outcomes)[metric], random.Random("0 bootstrap")
        sets = [again.choices(outcomes, k=len(outcomes)) for _ in range(metrics.N_RESAMPLES)]
        values = [
            rouge_bleu.corpus_bleu(
                metric, [o["written"] for o in some], list(map(metrics.item_from_outcome, some))
            )
            for some in sets[:20]
        ]
        counts = rouge_bleu.bleu_counts(
            metric, [o["written"] for o in outcomes], list(map(metrics.item_from_outcome, outcomes))
        )
        index = {id(o): n for n, o in enumerate(outcomes)}
        quick = [
            rouge_bleu.bleu(metric, counts[[index[id(o)] for o in some]].sum(0)) for some in sets
        ]
        assert quick[:20] == pytest.approx(values, abs=1e-12)
        assert found.error == pytest.approx(100 * statistics.stdev(quick), rel=1e-12)


def test_bleu_is_sacrebleus():
    import sacrebleu

    draw, words = (
        random.Random(2),
        "the cat sat on a mat , by day . in 1,000 \u00abU.S.\u00bb d'un houses".split(),
    )
    pairs = [
        [" ".join(draw.choices(words, k=draw.randint(5, 12))) for _ in range(2)] for _ in range(30)
    ]
    items = [
        metrics.item_from_outcome(outcome(answers=(right,), facts={"language": "fr"}))
        for _, right in pairs
    ]
    written, right = zip(*pairs, strict=True)
    theirs = sacrebleu.corpus_bleu(written, [right], tokenize="intl").score
    assert (
        100 * rouge_bleu.corpus_bleu("bleu", written, items) == pytest.approx(theirs, rel=1e-9)
        and theirs > 1
    )
    cut = rouge_bleu.moses_tokenizer("fr")
    moses = sacrebleu.corpus_bleu(
        [cut(text) for text in written],
        [[cut(text) for text in right]],
        tokenize="none",
        smooth_method="none",
        force=True,
    )
    assert 100 * rouge_bleu.corpus_bleu("bleu_mb", written, items) == pytest.approx(
        moses.score, rel=1e-9
    )


def test_bleu_of_several_right_answers_and_of_short_ones():
    def bleu(metric, written, *right):
        return rouge_bleu.corpus_bleu(
            metric,
            [written],
            [metrics.item_from_outcome(outcome(answers=right, facts={"language": "en"}))],
        )

    import sacrebleu

    one, other, said = (
        "the cat sat on the mat today",
        "a cat was sitting on the mat",
        "the cat was sitting on the mat now",
    )
    theirs = sacrebleu.corpus_bleu([said], [[one], [other]], tokenize="intl").score / 100
    assert bleu("bleu", said, one, other) == pytest.approx(theirs) and theirs > bleu(
        "bleu", said, one
    )
    long, near = "one two three four five six seven eight nine", "one two three five"
    theirs = (
        sacrebleu.corpus_bleu(["one two three four"], [[long], [near]], tokenize="intl").score / 100
    )
    assert bleu("bleu", "one two three four", long, near) == pytest.approx(
        theirs
    ) and theirs > bleu("bleu", "one two three four", long)
    for metric in ("bleu", "bleu_mb"):
        assert [bleu(metric, text, text) for text in ("two words", "42")] == pytest.approx([1, 1])
        assert bleu(metric, "two others", "two words") < 0.8 and bleu(metric, "", "42") == 0


@pytest.mark.parametrize("metric", ["macro_f1", "f1a"])
def test_the_bootstrap_of_classes_is_that_of_items(metric):
    def plainly(outcomes):
        """F1 by the definition, item by item."""

        def of(number):
            hits = sum(o["chosen"] == number and number in o["right"] for o in outcomes)
            both = sum((o["chosen"] == number) + (number in o["right"]) for o in outcomes)
            return 200 * hits / both if both else 0.0

        classes = {number for o in outcomes for number in o["right"]}
        return statistics.fmean(map(of, classes)) if metric == "macro_f1" else of(0)

    draw, asked = random.Random(3), task(evaluation.Total(), metric)
    made = [
        outcome(
            n,
            completions=("a", "b", "c"),
            log_probabilities=[draw.random() for _ in range(3)],
            right=(draw.randrange(3),),
        )
        for n in range(15)
    ]
    judged = [metrics.score_item(asked, asked.protocol, one) for one in made]
    found, again = scored(asked, made)[metric], random.Random("0 bootstrap")
    values = [plainly(again.choices(judged, k=15)) for _ in range(metrics.N_RESAMPLES)]
    assert found.value == pytest.approx(plainly(judged)) and found.error == pytest.approx(
        statistics.stdev(values), rel=1e-9
    )


def test_what_has_no_letter_or_no_right_answer_is_no_error():
    how = evaluation.Protocol(shots=0, method=evaluation.PerByte(), metric="accuracy")
    assert (
        metrics.choose_completion(
            how, outcome(completions=(" ", " bb"), log_probabilities=[-1.0, -4.0])
        )
        == 0
    )
    asked = task(evaluation.Total(), "macro_f1")
    assert (
        scored(asked, [outcome(n, **LIKELY, right=(), none_is_right=True) for n in range(2)])[
            "macro_f1"
        ].value
        == 0
    )


def test_the_grade_is_that_of_the_chosen_completion():
    asked = task(evaluation.Total(), "grade", extra_metrics=("grade",))
    graded = [
        outcome(n, log_probabilities=[-1.0 - n, -1.5], facts={"grades": [0.25, 1.0]}, right=(1,))
        for n in range(2)
    ]
    found = scored(asked, graded)
    assert found["grade"].value == pytest.approx(62.5) and list(found) == ["grade"]
    with pytest.raises(ValueError, match="does not support grade, but accuracy"):
        metrics.metric_names(task(evaluation.Total(), "grade"), asked.protocol)


def test_a_written_answer_is_compared_as_the_tokenizer_writes_it():
    asked = task(evaluation.Greedy(n_tokens=3), "exact_match", score=scorers.plain_text)
    spelling = {"-42": "- 42", "U.S.": "u.s."}
    for written, score in [(" - 42 ", 1), ("-42", 0), ("u.s.", 1), ("U.S.", 0), ("us", 0)]:
        one = outcome(written=written, answers=("-42", "U.S."), spelling=spelling)
        assert metrics.score_item(asked, asked.protocol, one)["scores"] == {"exact_match": score}
    spans = metrics.respell(
        metrics.item_from_outcome(outcome(facts={"spans": [["A, B"], ["C"]], "n": 3})),
        {"A, B": "a , b"},
    )
    assert spans.facts == {"spans": [["a , b"], ["C"]], "n": 3}
