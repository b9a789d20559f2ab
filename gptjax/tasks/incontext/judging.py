"""From what the model said to scores with standard errors: a dict an item, which JSON keeps, and a Score of many.

An outcome holds all that its score is made of: the fields of its Item; "asked" (its contexts with what stood before them), "shown" (ids of
the demonstrations) and "cut"; and, by method, "log_probabilities" and "tokens" (of each completion, or window), "before" (log-probabilities
without the item), "greedy", "last_greedy", "written". `judged` adds "chosen" and "scores"."""

import dataclasses
import math
import random
import statistics
import typing
from collections.abc import Callable, Sequence
from typing import Any

from gptjax.config import protocol
from gptjax.tasks.incontext import answers
from gptjax.tasks.incontext.task import Item, Task

TOGETHER = ("group_accuracy", "macro_f1", "f1a", "bleu", "bleu_mb", "perplexity", "bits_per_byte", "bits_per_character")  # no item's own
SAID = {  # kind of method -> what it can tell
    protocol.Choice: ("accuracy", "group_accuracy", "macro_f1", "f1a", "f1"),
    protocol.LastWord: ("accuracy", "perplexity"),
    protocol.Writing: ("accuracy", "exact_match", "f1", "bleu", "bleu_mb", "rouge", "rouge_1", "rouge_2", "rouge_l"),
    protocol.Windows: ("perplexity", "bits_per_byte", "bits_per_character"),
}
ALIKE = (("exact_match", "f1"), ("bleu", "bleu_mb"), ("rouge", "rouge_1", "rouge_2", "rouge_l"))  # scored by the same scorer
RESAMPLES = 1000  # of the bootstrap, for metrics that are no mean of items'
Outcome = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Score:
    """value: in percent, but perplexities and bits as they are; error: its standard error; n: of so many items, or groups."""

    metric: str
    value: float
    error: float
    n: int


def told(score: Score) -> dict[str, Any]:
    """As JSON has it: no error of a single item."""
    return dataclasses.asdict(score) | {"error": None if math.isnan(score.error) else score.error}


def chosen(how: protocol.Protocol, outcome: Outcome) -> int:
    """The number of the completion that the method chooses; the first of equals."""
    totals, tokens = outcome["log_probabilities"], outcome["tokens"]
    match how.method:
        case protocol.PerToken():
            found = [total / n for total, n in zip(totals, tokens, strict=True)]
        case protocol.Total():
            found = totals
        case protocol.PerByte():
            texts = outcome["completions"] * (len(totals) // len(outcome["completions"]))
            found = [total / len(text.strip().encode()) for total, text in zip(totals, texts, strict=True)]
        case protocol.Unconditional() | protocol.Calibrated():
            found = [total - before for total, before in zip(totals, outcome["before"], strict=True)]
        case _:
            raise AssertionError(f"{how.method} does not choose")
    return max(range(len(found)), key=lambda number: found[number])


def judged(task: Task, how: protocol.Protocol, outcome: Outcome) -> Outcome:
    """The outcome with "chosen", where there was a choice, and "scores": 0 to 1 by metric, of those that are a mean over items."""
    own: dict[str, float] = {}
    said = ""
    if isinstance(how.method, protocol.Choice):
        number = chosen(how, outcome)
        outcome = outcome | {"chosen": number}
        own = {"accuracy": float(number in outcome["right"])}
        said = outcome["completions"][number if len(outcome["completions"]) > 1 else 0].strip()
    elif isinstance(how.method, protocol.LastWord):
        own = {"accuracy": float(outcome["greedy" if isinstance(how.method, protocol.Word) else "last_greedy"][0])}
    elif isinstance(how.method, protocol.Writing):
        said = outcome["written"]
    if task.score is not None:
        left = [metric for metric in metrics(task, how) if metric not in (*TOGETHER, *own)]
        own |= {metric: task.score(metric, said, item(outcome)) for metric in left}
    return outcome | {"scores": own}


def metrics(task: Task, how: protocol.Protocol) -> list[str]:
    """The protocol's metric, then others that papers report of the task and that its method can tell. ValueError for a method of another
    kind than the task's own, whose items it cannot score, and for a metric that is not of that kind."""
    (kind,) = [kind for kind in SAID if isinstance(task.protocol.method, kind)]
    if not isinstance(how.method, kind):
        kinds = ", ".join(one.__name__ for one in typing.get_args(kind) or [kind])
        raise ValueError(f"{task.name}: its items cannot be asked by {how.method}; give one of {kinds}")
    like = next((group for group in ALIKE if task.protocol.metric in group), ())
    if kind is protocol.Writing:
        able = [metric for metric in SAID[kind] if metric in (task.protocol.metric, *like)]
    else:  # F1 of words is a scorer's, as ReCoRD's
        able = [metric for metric in SAID[kind] if metric != "f1" or task.score is not None]
    if how.metric not in able:
        raise ValueError(f"{task.name}: {how.method} cannot tell {how.metric}, but {', '.join(able)}; set another metric")
    also = [] if kind is protocol.Windows else [published.metric for published in task.published]
    return list(dict.fromkeys([how.metric, *(metric for metric in also if metric in able)]))


def scored(task: Task, how: protocol.Protocol, outcomes: Sequence[Outcome], seed: int) -> list[Score]:
    """A Score for each of `metrics`. Standard errors: of a mean, from the items' spread; of a perplexity likewise, carried over; of what is
    no mean (f1 of classes, BLEU), by a bootstrap over items with `seed`. Items whose answer is not known do not count."""
    known = [outcome for outcome in outcomes if item(outcome).known]
    return [_score(task, how, metric, known, seed) for metric in (metrics(task, how) if known else [])]


def _score(task: Task, how: protocol.Protocol, metric: str, outcomes: Sequence[Outcome], seed: int) -> Score:
    if metric in outcomes[0]["scores"]:
        return Score(metric, *mean([100 * outcome["scores"][metric] for outcome in outcomes]), len(outcomes))
    match metric:
        case "group_accuracy":
            groups: dict[str, list[float]] = {}
            for outcome in outcomes:
                groups.setdefault(outcome["group"], []).append(outcome["scores"]["accuracy"])
            return Score(metric, *mean([100.0 * all(found) for found in groups.values()]), len(groups))
        case "perplexity" if isinstance(how.method, protocol.LastWord):
            nats, error = mean([-outcome["log_probabilities"][0] for outcome in outcomes])
            return Score(metric, _exp(nats), _exp(nats) * error, len(outcomes))
        case "perplexity" | "bits_per_byte" | "bits_per_character":
            nats, error = _per_unit(outcomes)
            bits = metric != "perplexity"
            value = nats / math.log(2) if bits else _exp(nats)
            return Score(metric, value, error / math.log(2) if bits else value * error, len(outcomes))
        case "macro_f1" | "f1a":
            return _bootstrapped(metric, outcomes, {"macro_f1": macro_f1, "f1a": f1a}[metric], seed)
        case "bleu" | "bleu_mb":
            items = {id(outcome): item(outcome) for outcome in outcomes}
            return _bootstrapped(
                metric,
                outcomes,
                lambda some: 100 * answers.corpus(metric, [o["written"] for o in some], [items[id(o)] for o in some]),
                seed,
            )
        case _:
            raise AssertionError(f"{task.name} has no score for {metric}")


def mean(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and its standard error; of a single value, not a number."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _exp(x: float) -> float:
    return math.exp(min(x, 700.0))


def _per_unit(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """Nats a unit, and the standard error, windows being what varies."""
    nats = [-x for outcome in outcomes for x in outcome["log_probabilities"]]
    tokens = [n for outcome in outcomes for n in outcome["tokens"]]
    units = sum(outcome["units"] or sum(outcome["tokens"]) for outcome in outcomes)
    rate, n = sum(nats) / sum(tokens), len(nats)
    spread = math.sqrt(sum((x - rate * t) ** 2 for x, t in zip(nats, tokens, strict=True)) * n / (n - 1)) if n > 1 else math.nan
    return sum(nats) / units, spread / units


def f1(outcomes: Sequence[Outcome], number: int) -> float:
    """Of choosing the completion of that number, in percent."""
    hits = sum(outcome["chosen"] == number and number in outcome["right"] for outcome in outcomes)
    told = sum((outcome["chosen"] == number) + (number in outcome["right"]) for outcome in outcomes)
    return 200 * hits / told if told else 0.0


def macro_f1(outcomes: Sequence[Outcome]) -> float:
    """The mean of `f1` over the completions that are right somewhere: CommitmentBank's."""
    return statistics.fmean(f1(outcomes, number) for number in {number for outcome in outcomes for number in outcome["right"]})


def f1a(outcomes: Sequence[Outcome]) -> float:
    """`f1` of the first completion: MultiRC's, where it says that an answer is true."""
    return f1(outcomes, 0)


def item(outcome: Outcome) -> Item:
    """The item that an outcome is of."""
    return Item(**{field.name: outcome[field.name] for field in dataclasses.fields(Item)})


def _bootstrapped(metric: str, outcomes: Sequence[Outcome], measure: Callable[[Sequence[Outcome]], float], seed: int) -> Score:
    draw = random.Random(f"{seed} bootstrap")
    values = [measure(draw.choices(outcomes, k=len(outcomes))) for _ in range(RESAMPLES)]
    return Score(metric, measure(outcomes), statistics.stdev(values), len(outcomes))
