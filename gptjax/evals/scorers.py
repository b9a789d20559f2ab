"""Exact match and F1 of generated answers, from 0 to 1, reimplemented from the data sets' official
scorers."""

import collections
import itertools
import re
import string
from collections.abc import Callable, Sequence

from gptjax.evals.task import Item

ScoreFn = Callable[[str, str, Item], float]  # (metric, prediction, item): a task's `score`
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = frozenset(string.punctuation)
QUOTES = "\u2018\u2019\u00b4`"


# --- texts ----------------------------------------------------------------------------------------


def normalize(text: str) -> str:
    """Lower-cases text, removes punctuation and articles, and joins words by one space: SQuAD,
    evaluate-v2.0.py; CoQA's and QuAC's are the same.
    """
    letters = "".join(character for character in text.lower() if character not in PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", letters).split())


def normalize_trivia(text: str) -> str:
    """As `normalize`, but punctuation and some quotation marks become spaces ("U.S." is "u s"):
    TriviaQA, utils/triviaqa_evaluation.py.
    """
    letters = "".join(
        " " if character in PUNCTUATION or character in QUOTES else character
        for character in text.lower()
    )
    return " ".join(ARTICLES.sub(" ", letters).split())


def word_f1(prediction: str, reference: str) -> float:
    """F1 of the two bags of normalized words: SQuAD, compute_f1."""
    return token_f1(normalize(prediction).split(), normalize(reference).split())


def token_f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of two bags of tokens; if one is empty, whether both are."""
    if not prediction or not reference:
        return float(prediction == reference)
    n_shared = (collections.Counter(prediction) & collections.Counter(reference)).total()
    return 2 * n_shared / (len(prediction) + len(reference))


def exact_match(prediction: str, reference: str) -> float:
    """Whether the normalized texts are equal."""
    return float(normalize(prediction) == normalize(reference))


ANSWER_METRICS = {"exact_match": exact_match, "f1": word_f1}


# --- scores of an item ----------------------------------------------------------------------------


def plain_text(metric: str, prediction: str, item: Item) -> float:
    """exact_match: literal comparison apart from surrounding spaces, for tasks with numbers or
    words as answers. f1: of words.
    """
    return (
        float(prediction.strip() in item.answers)
        if metric == "exact_match"
        else closed_book(metric, prediction, item)
    )


def closed_book(metric: str, prediction: str, item: Item) -> float:
    """Best score over the correct answers, normalized as SQuAD's: Natural Questions and
    WebQuestions, as scored by Lee et al. 2019 (1906.00300) and Roberts et al. 2020 (2002.08910).
    """
    return max(
        (ANSWER_METRICS[metric](prediction, reference) for reference in item.answers), default=0.0
    )


def trivia_qa(metric: str, prediction: str, item: Item) -> float:
    """Whether the prediction is one of the aliases, or its best word F1 with one: TriviaQA,
    utils/triviaqa_evaluation.py.
    """
    answer, references = (
        normalize_trivia(prediction),
        {normalize_trivia(reference) for reference in item.answers},
    )
    return (
        float(answer in references)
        if metric == "exact_match"
        else max(
            (token_f1(answer.split(), reference.split()) for reference in references), default=0.0
        )
    )


def squad(metric: str, prediction: str, item: Item) -> float:
    """Best score over the correct answers. A question without one is answered by nothing or by
    `item.facts["none"]`, which becomes the empty text first: SQuAD, evaluate-v2.0.py.
    """
    answer = "" if normalize(prediction) == normalize(item.facts["none"]) else prediction
    references = [reference for reference in item.answers if normalize(reference)] or [""]
    return max(ANSWER_METRICS[metric](answer, reference) for reference in references)


def leave_one_out(metric: str, prediction: str, references: Sequence[str]) -> float:
    """Mean, over references each left out in turn, of the best score over the others, so that human
    answers, which cannot be compared with themselves, are scored alike: CoQA's evaluate-v1.0.py,
    QuAC's scorer.py.
    """
    scores = [ANSWER_METRICS[metric](prediction, reference) for reference in references]
    if len(scores) < 2:
        return max(scores, default=0.0)
    return sum(max(scores[:i] + scores[i + 1 :]) for i in range(len(scores))) / len(scores)


def coqa(metric: str, prediction: str, item: Item) -> float:
    """leave_one_out over the answers of all annotators: CoQA, evaluate-v1.0.py."""
    return leave_one_out(metric, prediction, item.answers)


CANNOT_ANSWER = "CANNOTANSWER"


def quac(metric: str, prediction: str, item: Item) -> float:
    """leave_one_out over the answers; those that are CANNOTANSWER are dropped if they are a
    minority, and are the only correct ones otherwise: QuAC, scorer.py, its unfiltered F1. Its
    official F1 leaves out questions with low annotator agreement; GPT-3 counts all 7,353.
    """
    # Some tokenizers have no capitals.
    cannot = [answer for answer in item.answers if answer.casefold() == CANNOT_ANSWER.casefold()]
    if 2 * len(cannot) >= len(item.answers):
        return float(prediction.strip() in (cannot or [CANNOT_ANSWER]))
    return leave_one_out(
        metric, prediction, [answer for answer in item.answers if answer not in cannot]
    )


# --- DROP -----------------------------------------------------------------------------------------


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def drop_tokens(text: str) -> list[str]:
    """Normalized words of a span, also split at hyphens, with numbers in one form ("5" and "5.0"):
    DROP's drop_eval.py.
    """
    words = []
    for word in re.split(" |-", text.lower()):
        token = (
            word
            if _is_number(word)
            else "".join(character for character in word if character not in PUNCTUATION)
        )
        token = str(float(token)) if _is_number(token) else token
        words += ARTICLES.sub(" ", token).split()
    return words


def _drop_f1(prediction: set[str], reference: set[str]) -> float:
    """F1 of two bags of words; 0 if the correct answer has numbers and the prediction has none of
    them.
    """
    numbers = {word for word in reference if _is_number(word)}
    if numbers and not numbers & prediction:
        return 0.0
    n_shared = len(prediction & reference)
    precision, recall = (
        (n_shared / len(prediction) if prediction else 1.0),
        (n_shared / len(reference) if reference else 1.0),
    )
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def score_spans(metric: str, prediction: Sequence[str], references: Sequence[str]) -> float:
    """Exact match, or the mean F1 of optimally paired spans over the length of the longer list:
    DROP's drop_eval.py.
    """
    predicted_spans, reference_spans = (
        [drop_tokens(span) for span in prediction],
        [drop_tokens(span) for span in references],
    )
    if metric == "exact_match":
        return float(
            len(predicted_spans) == len(reference_spans)
            and {" ".join(x) for x in predicted_spans} == {" ".join(x) for x in reference_spans}
        )
    import scipy.optimize

    table = [
        [_drop_f1(set(one), set(other)) for one in predicted_spans] for other in reference_spans
    ]
    matching = zip(*scipy.optimize.linear_sum_assignment(table, maximize=True), strict=True)
    return round(
        sum(table[i][j] for i, j in matching) / max(len(predicted_spans), len(reference_spans)), 2
    )


def possible_spans(prediction: str, n: int) -> list[list[str]]:
    """The lists of spans that a text could stand for, with ", " between spans as in demonstrations
    [chosen], given that spans may contain commas ("Portland, Oregon"): one span, a span per part
    between commas, and every grouping into n spans.
    """
    parts = prediction.strip().split(", ")
    readings = [[", ".join(parts)], parts]
    if n < len(parts) <= 12:
        for cuts in itertools.combinations(range(1, len(parts)), n - 1):
            readings.append(
                [", ".join(parts[i:j]) for i, j in itertools.pairwise((0, *cuts, len(parts)))]
            )
    return readings


def drop(metric: str, prediction: str, item: Item) -> float:
    """Best score over the correct answers in facts["spans"], each a list of spans, and over the
    `possible_spans` of the prediction.
    """
    references = [spans for spans in item.facts["spans"] if any(spans)]
    return max(
        (
            score_spans(metric, predicted, spans)
            for spans in references
            for predicted in possible_spans(prediction, len(spans))
        ),
        default=0.0,
    )
