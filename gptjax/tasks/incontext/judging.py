"""From what the model said to scores with standard errors: a dict an item, which JSON keeps, and a Score of many.

An outcome holds all that its score is made of: the fields of its Item; "asked" (its contexts with what stood before them), "shown" (ids of
the demonstrations) and "cut"; and, by method, "log_probabilities" and "tokens" (of each completion, or window), "before" (log-probabilities
without the item), "greedy", "last_greedy", "written" with "spelling". `judged` adds "chosen" and "scores".

A tokenizer that does not give back the text it was given, as GPT-1's, which has no capitals and puts a space after each word, cannot write
most answers as they stand: then what was written is compared with the right answers as the tokenizer writes them ("spelling")."""

import dataclasses
import math
import random
import statistics
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gptjax.config import protocol
from gptjax.data.tokenizer import Tokenizer
from gptjax.tasks.incontext import answers
from gptjax.tasks.incontext.task import GRADE, GRADES, Item, Task

TOGETHER = ("group_accuracy", "macro_f1", "f1a", "bleu", "bleu_mb", "perplexity", "bits_per_byte", "bits_per_character")  # no item's own
SAID = {  # kind of method -> what it can tell
    protocol.Choice: ("accuracy", GRADE, "group_accuracy", "macro_f1", "f1a", "f1"),
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
            found = [total / max(1, len(text.strip().encode())) for total, text in zip(totals, texts, strict=True)]
        case protocol.Unconditional() | protocol.Calibrated():
            found = [total - before for total, before in zip(totals, outcome["before"], strict=True)]
        case _:
            raise AssertionError(f"{how.method} does not choose")
    return max(range(len(found)), key=lambda number: found[number])


def written_answers(item: Item) -> list[str]:
    """What a model may write to be right, with the space that stands before it: each right answer, or what a demonstration shows."""
    shown = [item.completions[0]] if item.completions and item.completions[0].strip() and item.known else []
    return shown + [f" {answer.strip()}" for answer in item.answers if answer.strip()]


def writable(item: Item, text: Tokenizer, n_tokens: int, stops: Sequence[str]) -> bool:
    """Can the tokenizer write one of the right answers in n_tokens and before the stops, given as it writes them? True where no answer is
    known."""
    right = written_answers(item)
    for answer in right:
        tokens = text.encode(answer)
        if 0 < len(tokens) <= n_tokens and not any(stop in text.decode(tokens).rstrip() for stop in stops):
            return True
    return not right


def spelling(item: Item, text: Tokenizer) -> dict[str, str]:
    """Each text of the item that a written answer is compared with -> how the tokenizer writes it, where that is another text."""
    texts = [*item.answers, *_strings([fact for fact in item.facts.values() if not isinstance(fact, int)])]
    written = {one: text.decode(text.encode(one)).strip() for one in texts}
    return {one: as_written for one, as_written in written.items() if as_written != one.strip()}


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _strings(one)


def respell(item: Item, found: Mapping[str, str]) -> Item:
    """The item with its right answers and facts as the tokenizer writes them."""

    def respell_value(value: Any) -> Any:
        if isinstance(value, str):
            return found[value] if value in found else value
        return [respell_value(one) for one in value] if isinstance(value, list | tuple) else value

    facts = {name: respell_value(value) for name, value in item.facts.items()}
    return dataclasses.replace(item, answers=tuple(map(respell_value, item.answers)), facts=facts)


def judged(task: Task, how: protocol.Protocol, outcome: Outcome) -> Outcome:
    """The outcome with "chosen", where there was a choice, and "scores": 0 to 1 by metric, of those that are a mean over items."""
    own: dict[str, float] = {}
    said = ""
    if isinstance(how.method, protocol.Choice):
        number = chosen(how, outcome)
        outcome = outcome | {"chosen": number}
        own = {"accuracy": float(number in outcome["right"])}
        if GRADES in outcome["facts"]:
            own[GRADE] = outcome["facts"][GRADES][number]
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
        able = [metric for metric in SAID[kind] if metric in (task.protocol.metric, *like, *task.tells)]
    else:  # F1 of words is a scorer's, as ReCoRD's; grades are of tasks that have them
        lacks = [GRADE] * (GRADE not in task.tells) + ["f1"] * (task.score is None)
        able = [metric for metric in SAID[kind] if metric not in lacks]
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
            return _bootstrapped(metric, f1_counts(outcomes), {"macro_f1": macro_f1, "f1a": f1a}[metric], seed)
        case "bleu" | "bleu_mb":
            counts = answers.bleu_counts(metric, [outcome["written"] for outcome in outcomes], list(map(item, outcomes)))
            return _bootstrapped(metric, counts, lambda total: 100 * answers.bleu(metric, total), seed)
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


def f1_counts(outcomes: Sequence[Outcome]) -> np.ndarray:
    """(items, 3 C): of each completion number in turn whether it was chosen and right, whether it was chosen, whether it was right."""
    n = 1 + max(number for outcome in outcomes for number in (outcome["chosen"], *outcome["right"], 0))
    counts = np.zeros((len(outcomes), n, 3), np.int64)
    for row, outcome in zip(counts, outcomes, strict=True):
        right = list(outcome["right"])
        row[outcome["chosen"], :2] = [outcome["chosen"] in right, 1]
        row[right, 2] = 1
    return counts.reshape(len(outcomes), -1)


def macro_f1(total: np.ndarray) -> float:
    """The mean of F1 of each completion over those that are right somewhere, in percent: CommitmentBank's. total: summed `f1_counts`."""
    right = [one for one in total.reshape(-1, 3) if one[2]]
    return statistics.fmean(map(f1a, right)) if right else 0.0


def f1a(total: np.ndarray) -> float:
    """F1 of choosing the first completion, in percent: MultiRC's, where it says that an answer is true."""
    hits, chosen, right = map(int, total[:3])
    return 200 * hits / (chosen + right) if chosen + right else 0.0


def item(outcome: Outcome) -> Item:
    """The item that an outcome is of; what a written answer is compared with is spelt as the tokenizer writes it."""
    found = Item(**{field.name: outcome[field.name] for field in dataclasses.fields(Item)})
    return respell(found, outcome["spelling"]) if "spelling" in outcome else found


def _bootstrapped(metric: str, counts: np.ndarray, measure: Callable[[np.ndarray], float], seed: int) -> Score:
    """The score of a metric of sums, and its standard error. counts: (items, what is summed): each text is cut and counted once, and what
    is drawn anew is its counts."""
    draw, n = random.Random(f"{seed} bootstrap"), len(counts)
    times = (np.bincount(draw.choices(range(n), k=n), minlength=n) for _ in range(RESAMPLES))
    values = [measure(time @ counts) for time in times]
    return Score(metric, measure(counts.sum(0)), statistics.stdev(values), n)
