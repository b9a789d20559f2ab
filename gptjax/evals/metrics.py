"""Computes scores with standard errors from outcomes: a dict per item, stored as JSON, and a Score
for many.

An outcome has everything that its score depends on: the fields of its Item; "asked" (its contexts
with the text before them), "shown" (ids of the demonstrations) and "cut"; and, by method,
"log_probabilities" and "tokens" (of each completion or window), "before" (log-probabilities without
the item), "greedy", "last_greedy", "written" with "spelling". `score_item` adds "chosen" and
"scores".

A tokenizer that does not restore the text it was given, such as GPT-1's, which has no capitals and
puts a space after each word, cannot write most answers literally: then the generated text is
compared with the correct answers as the tokenizer writes them ("spelling").
"""

import dataclasses
import math
import random
import statistics
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gptjax.config import evaluation
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.evals import rouge_bleu
from gptjax.evals.task import GRADE, GRADES, Item, Task

# Metrics of a whole set of items.
CORPUS_METRICS = (
    "group_accuracy",
    "macro_f1",
    "f1a",
    "bleu",
    "bleu_mb",
    "perplexity",
    "bits_per_byte",
    "bits_per_character",
)
METHOD_METRICS = {  # kind of method -> the metrics it supports
    evaluation.ChoiceMethod: ("accuracy", GRADE, "group_accuracy", "macro_f1", "f1a", "f1"),
    evaluation.LastWordMethod: ("accuracy", "perplexity"),
    evaluation.GenerationMethod: (
        "accuracy",
        "exact_match",
        "f1",
        "bleu",
        "bleu_mb",
        "rouge",
        "rouge_1",
        "rouge_2",
        "rouge_l",
    ),
    evaluation.Windows: ("perplexity", "bits_per_byte", "bits_per_character"),
}
METRIC_GROUPS = (  # metrics of the same scorer
    ("exact_match", "f1"),
    ("bleu", "bleu_mb"),
    ("rouge", "rouge_1", "rouge_2", "rouge_l"),
)
N_RESAMPLES = 1000  # of the bootstrap, for metrics that are not means over items
Outcome = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Score:
    """The value of a metric. value: in percent, except perplexities and bits. error: its standard
    error. n: the number of items, or groups.
    """

    metric: str
    value: float
    error: float
    n: int


def to_json(score: Score) -> dict[str, Any]:
    """A score as JSON, with no error for a single item."""
    return dataclasses.asdict(score) | {"error": None if math.isnan(score.error) else score.error}


def choose_completion(protocol: evaluation.Protocol, outcome: Outcome) -> int:
    """Index of the completion that the method chooses; the first one in a tie."""
    totals, tokens = outcome["log_probabilities"], outcome["tokens"]
    match protocol.method:
        case evaluation.PerToken():
            scores = [total / n for total, n in zip(totals, tokens, strict=True)]
        case evaluation.Total():
            scores = totals
        case evaluation.PerByte():
            texts = outcome["completions"] * (len(totals) // len(outcome["completions"]))
            scores = [
                total / max(1, len(text.strip().encode()))
                for total, text in zip(totals, texts, strict=True)
            ]
        case evaluation.Unconditional() | evaluation.Calibrated():
            scores = [
                total - before for total, before in zip(totals, outcome["before"], strict=True)
            ]
        case _:
            raise AssertionError(f"{protocol.method} does not choose")
    return max(range(len(scores)), key=lambda number: scores[number])


def target_texts(item: Item) -> list[str]:
    """Texts that count as correct, with a leading space: what a demonstration shows, and each
    correct answer.
    """
    demonstrated = (
        [item.completions[0]]
        if item.completions and item.completions[0].strip() and item.has_answer
        else []
    )
    return demonstrated + [f" {answer.strip()}" for answer in item.answers if answer.strip()]


def can_generate_answer(
    item: Item, tokenizer: Tokenizer, n_tokens: int, stops: Sequence[str]
) -> bool:
    """Whether the tokenizer can write one of the correct answers in n_tokens and before the
    (normalized) stops. True if no answer is known.
    """
    targets = target_texts(item)
    for answer in targets:
        tokens = tokenizer.encode(answer)
        if 0 < len(tokens) <= n_tokens and not any(
            stop in tokenizer.decode(tokens).rstrip() for stop in stops
        ):
            return True
    return not targets


def tokenizer_forms(item: Item, tokenizer: Tokenizer) -> dict[str, str]:
    """Maps each text of the item that a generated answer is compared with to the tokenizer's form
    of it, where that differs.
    """
    texts = [
        *item.answers,
        *_iter_strings([fact for fact in item.facts.values() if not isinstance(fact, int)]),
    ]
    forms = {text: tokenizer.decode(tokenizer.encode(text)).strip() for text in texts}
    return {text: form for text, form in forms.items() if form != text.strip()}


def _iter_strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for element in value:
            yield from _iter_strings(element)


def respell(item: Item, forms: Mapping[str, str]) -> Item:
    """Returns the item with its correct answers and facts in the tokenizer's form."""

    def replace(value: Any) -> Any:
        if isinstance(value, str):
            return forms[value] if value in forms else value
        return [replace(element) for element in value] if isinstance(value, list | tuple) else value

    facts = {name: replace(value) for name, value in item.facts.items()}
    return dataclasses.replace(item, answers=tuple(map(replace, item.answers)), facts=facts)


def score_item(task: Task, protocol: evaluation.Protocol, outcome: Outcome) -> Outcome:
    """Returns the outcome with "chosen", for choices, and "scores": 0 to 1 for each metric that is
    a mean over items.
    """
    scores: dict[str, float] = {}
    prediction = ""
    if isinstance(protocol.method, evaluation.ChoiceMethod):
        choice = choose_completion(protocol, outcome)
        outcome = outcome | {"chosen": choice}
        scores = {"accuracy": float(choice in outcome["right"])}
        if GRADES in outcome["facts"]:
            scores[GRADE] = outcome["facts"][GRADES][choice]
        prediction = outcome["completions"][
            choice if len(outcome["completions"]) > 1 else 0
        ].strip()
    elif isinstance(protocol.method, evaluation.LastWordMethod):
        scores = {
            "accuracy": float(
                outcome[
                    "greedy" if isinstance(protocol.method, evaluation.LastWord) else "last_greedy"
                ][0]
            )
        }
    elif isinstance(protocol.method, evaluation.GenerationMethod):
        prediction = outcome["written"]
    if task.score is not None:
        remaining = [
            metric
            for metric in metric_names(task, protocol)
            if metric not in (*CORPUS_METRICS, *scores)
        ]
        scores |= {
            metric: task.score(metric, prediction, item_from_outcome(outcome))
            for metric in remaining
        }
    return outcome | {"scores": scores}


def metric_names(task: Task, protocol: evaluation.Protocol) -> list[str]:
    """Returns the protocol's metric, then those that papers report for the task and its method
    supports.

    Raises ValueError for a method of another kind than the task's, which cannot score its items,
    and for a metric that the method does not support.
    """
    (kind,) = [kind for kind in METHOD_METRICS if isinstance(task.protocol.method, kind)]
    if not isinstance(protocol.method, kind):
        kinds = ", ".join(method.__name__ for method in typing.get_args(kind) or [kind])
        raise ValueError(
            f"{task.name}: its items do not work with {protocol.method}; give one of {kinds}"
        )
    similar = next((group for group in METRIC_GROUPS if task.protocol.metric in group), ())
    if kind is evaluation.GenerationMethod:
        supported = [
            metric
            for metric in METHOD_METRICS[kind]
            if metric in (task.protocol.metric, *similar, *task.extra_metrics)
        ]
    else:  # F1 of words is a scorer's, as ReCoRD's; grades are of tasks that have them
        missing = [GRADE] * (GRADE not in task.extra_metrics) + ["f1"] * (task.score is None)
        supported = [metric for metric in METHOD_METRICS[kind] if metric not in missing]
    if protocol.metric not in supported:
        raise ValueError(
            f"{task.name}: {protocol.method} does not support {protocol.metric}, but "
            f"{', '.join(supported)}; set another metric"
        )
    paper_metrics = (
        [] if kind is evaluation.Windows else [paper.metric for paper in task.paper_scores]
    )
    return list(
        dict.fromkeys(
            [protocol.metric, *(metric for metric in paper_metrics if metric in supported)]
        )
    )


def aggregate(
    task: Task, protocol: evaluation.Protocol, outcomes: Sequence[Outcome], seed: int
) -> list[Score]:
    """Returns a Score for each of `metric_names`, ignoring items whose answer is unknown.

    Standard errors: of a mean, from the spread over items; of a perplexity likewise, propagated; of
    other metrics (class F1, BLEU), by a bootstrap over items with `seed`.
    """
    known = [outcome for outcome in outcomes if item_from_outcome(outcome).has_answer]
    return [
        _aggregate_metric(task, protocol, metric, known, seed)
        for metric in (metric_names(task, protocol) if known else [])
    ]


def _aggregate_metric(
    task: Task, protocol: evaluation.Protocol, metric: str, outcomes: Sequence[Outcome], seed: int
) -> Score:
    if metric in outcomes[0]["scores"]:
        return Score(
            metric,
            *mean_and_error([100 * outcome["scores"][metric] for outcome in outcomes]),
            len(outcomes),
        )
    match metric:
        case "group_accuracy":
            groups: dict[str, list[float]] = {}
            for outcome in outcomes:
                groups.setdefault(outcome["group"], []).append(outcome["scores"]["accuracy"])
            return Score(
                metric,
                *mean_and_error([100.0 * all(accuracies) for accuracies in groups.values()]),
                len(groups),
            )
        case "perplexity" if isinstance(protocol.method, evaluation.LastWordMethod):
            nats, error = mean_and_error([-outcome["log_probabilities"][0] for outcome in outcomes])
            return Score(metric, _safe_exp(nats), _safe_exp(nats) * error, len(outcomes))
        case "perplexity" | "bits_per_byte" | "bits_per_character":
            nats, error = _nats_per_unit(outcomes)
            bits = metric != "perplexity"
            value = nats / math.log(2) if bits else _safe_exp(nats)
            return Score(
                metric, value, error / math.log(2) if bits else value * error, len(outcomes)
            )
        case "macro_f1" | "f1a":
            return _bootstrap(
                metric, f1_counts(outcomes), {"macro_f1": macro_f1, "f1a": f1a}[metric], seed
            )
        case "bleu" | "bleu_mb":
            counts = rouge_bleu.bleu_counts(
                metric,
                [outcome["written"] for outcome in outcomes],
                list(map(item_from_outcome, outcomes)),
            )
            return _bootstrap(
                metric, counts, lambda total: 100 * rouge_bleu.bleu(metric, total), seed
            )
        case _:
            raise AssertionError(f"{task.name} has no score for {metric}")


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Returns (mean, standard error); the error of a single value is NaN."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)) if len(
        values
    ) > 1 else math.nan


def _safe_exp(x: float) -> float:
    return math.exp(min(x, 700.0))


def _nats_per_unit(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """Returns (nats per unit, standard error over windows)."""
    nats = [-x for outcome in outcomes for x in outcome["log_probabilities"]]
    tokens = [n for outcome in outcomes for n in outcome["tokens"]]
    units = sum(outcome["units"] or sum(outcome["tokens"]) for outcome in outcomes)
    rate, n = sum(nats) / sum(tokens), len(nats)
    deviation = (
        math.sqrt(sum((x - rate * t) ** 2 for x, t in zip(nats, tokens, strict=True)) * n / (n - 1))
        if n > 1
        else math.nan
    )
    return sum(nats) / units, deviation / units


def f1_counts(outcomes: Sequence[Outcome]) -> np.ndarray:
    """Returns counts (items, 3 C): for each completion index, whether it was chosen and correct,
    whether it was chosen, and whether it was correct.
    """
    n = 1 + max(
        number for outcome in outcomes for number in (outcome["chosen"], *outcome["right"], 0)
    )
    counts = np.zeros((len(outcomes), n, 3), np.int64)
    for row, outcome in zip(counts, outcomes, strict=True):
        right = list(outcome["right"])
        row[outcome["chosen"], :2] = [outcome["chosen"] in right, 1]
        row[right, 2] = 1
    return counts.reshape(len(outcomes), -1)


def macro_f1(total: np.ndarray) -> float:
    """Mean F1 over the completions that are ever correct, in percent: CommitmentBank's metric.
    total: summed `f1_counts`.
    """
    present = [counts for counts in total.reshape(-1, 3) if counts[2]]
    return statistics.fmean(map(f1a, present)) if present else 0.0


def f1a(total: np.ndarray) -> float:
    """F1 of choosing the first completion, in percent: MultiRC's, where that says that an answer is
    true.
    """
    hits, n_chosen, n_right = map(int, total[:3])
    return 200 * hits / (n_chosen + n_right) if n_chosen + n_right else 0.0


def item_from_outcome(outcome: Outcome) -> Item:
    """Returns the item of an outcome, with the texts that a generated answer is compared with in
    the tokenizer's form.
    """
    item = Item(**{field.name: outcome[field.name] for field in dataclasses.fields(Item)})
    return respell(item, outcome["spelling"]) if "spelling" in outcome else item


def _bootstrap(
    metric: str, counts: np.ndarray, measure: Callable[[np.ndarray], float], seed: int
) -> Score:
    """Returns the score of a metric of sums with its bootstrap standard error. counts: (items,
    summands): only counts are resampled, so each text is processed once.
    """
    rng, n = random.Random(f"{seed} bootstrap"), len(counts)
    multiplicities = (
        np.bincount(rng.choices(range(n), k=n), minlength=n) for _ in range(N_RESAMPLES)
    )
    values = [measure(multiplicity @ counts) for multiplicity in multiplicities]
    return Score(metric, measure(counts.sum(0)), statistics.stdev(values), n)
