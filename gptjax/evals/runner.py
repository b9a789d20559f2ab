"""One task asked of one model with one number of demonstrations: prompts, questions, outcomes kept as they come, scores.

NAME.jsonl holds a line an item (see judging.py), from which each number can be computed again; NAME.json the protocol, the seed, the model
and the scores (outcomes.py says how both are kept). NAME tells task, shots and a digest of all that the outcomes depend on, so what is
done is not done again, and another protocol stands beside it. An item that cannot be asked is named with the reason, and the others go on.
Where the method samples (TopK), what is written also depends on which prompts are written together: an
evaluation that was resumed has sampled otherwise."""

import collections
import dataclasses
import hashlib
import math
import random
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from gptjax.config import command, evaluation
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.evals import loglikelihood, metrics, outcomes, prompts, stop_words, task_data
from gptjax.evals.task import Item, Task
from gptjax.generate import streaming
from gptjax.model import inference
from gptjax.sharding import rules


@dataclasses.dataclass(frozen=True)
class Model:
    """Who is asked. place: where its parameters lie, and rows shall. about: what identifies it, to be written beside the scores: name,
    parameters, digest ..."""

    reader: inference.Reader
    text: Tokenizer
    place: rules.Placement
    about: dict[str, Any]


Refusals = dict[str, str]  # of items that cannot be asked, by their ids: why


@dataclasses.dataclass(frozen=True)
class Examination:
    """A task with its protocol, as it is put. label: what it was asked for by; shots: demonstrations wanted; examples: so many items, drawn
    with the seed; None: all. few: shots are the protocol's own, which a task that is open about them (Task.open) fits to its data."""

    label: str
    task: Task
    how: evaluation.Protocol
    shots: int
    seed: int
    examples: int | None
    few: bool = False

    def items(self, read: Callable[[str], task_data.Found], refused: Refusals | None = None) -> tuple[list[Item], list[Item]]:
        """(what is asked, what demonstrations are drawn from). read: a split -> its rows. refused: is told of rows that cannot be asked,
        and the others go on. ValueError, in one line, where none can, or where nothing is told."""
        asked, drawn = self.task.splits
        found = self._read(read(asked), refused)
        pool = found if drawn == asked or not self.shots else self._read(read(drawn), None if refused is None else {})
        if self.examples is not None and self.examples < len(found):
            found = random.Random(f"{self.seed} {self.task.name}").sample(found, self.examples)
        return found, pool

    def _read(self, read: task_data.Found, refused: Refusals | None) -> list[Item]:
        found = []
        if refused is not None:
            refused |= read.refused
        for row in read.rows:
            try:
                found += list(self.task.items(row, self.how, self.shots))
            except ValueError as error:
                _refuse(row["id"], error, refused)
        twice = next((name for name, n in collections.Counter(item.id for item in found).items() if n > 1), None)
        if twice is not None:
            raise ValueError(f"{read.where}: two items have the id {twice!r}; give each its own")
        _some(found, refused, read.where)
        return found

    def fit_to_data(self, asked: list[Item], pool: list[Item], text: Tokenizer, n_ctx: int) -> "Examination":
        """With what the task is open about (Task.open) as its data want it: no more shots than there are demonstrations for each item; no
        stop that stands in a right answer; and so many new tokens as the longest has, up to half of the context."""
        if not self.task.open:
            return self
        how, shots = self.how, self.shots
        if "shots" in self.task.open and self.few:
            shots = min(len(self._draw(item, pool)) for item in asked)
        own = self.task.protocol.method
        if isinstance(how.method, evaluation.Writing) and isinstance(own, evaluation.Writing):
            right = [answer for item in asked for answer in metrics.written_answers(item)]
            texts = [text.decode(text.encode(answer)) for answer in right]
            method = how.method
            if "stops" in self.task.open and method.stops == own.stops:
                apart = [stop for stop in method.stops if _in_none(stop, texts, text)]
                apart = apart or [stop for stop in [how.separator] if stop and _in_none(stop, texts, text)]
                method = dataclasses.replace(method, stops=tuple(apart))
            if "n_tokens" in self.task.open and method.n_tokens == own.n_tokens:
                longest = max((len(text.encode(answer)) for answer in right), default=0)
                method = dataclasses.replace(method, n_tokens=max(1, min(max(method.n_tokens, longest), n_ctx // 2)))
            how = dataclasses.replace(how, method=method)
        return dataclasses.replace(self, how=how, shots=shots)

    def _draw(self, item: Item, pool: list[Item]) -> list[Item]:
        return prompts.drawn(self.task.name, item, pool, self.shots, self.seed, self.how.fixed_shots)

    def put(
        self, asked: list[Item], pool: list[Item], model: Model, tell: Callable[[str], None], refused: Refusals | None = None
    ) -> list[prompts.Prompt]:
        """Each item with as many demonstrations as fit. refused: is told of those that cannot be put, and the others go on. ValueError, in
        one line, where none can, or where nothing is told."""
        n_ctx, made = model.reader.model.config.n_ctx, []
        if self.shots > len(pool):  # of no item will there be enough, and to find that out for each takes pool x pool comparisons
            raise ValueError(_too_few(self, len(pool)))
        for number, item in enumerate(asked):
            try:
                shown = self._draw(item, pool)
                if len(shown) < self.shots:
                    raise ValueError(_too_few(self, len(shown)))
                prompt = prompts.fitted(item, shown, self.how, model.text, n_ctx)
                made.append(dataclasses.replace(prompt, without=_without(self, model, prompt)))
            except ValueError as error:
                _refuse(item.id, error, refused)
            if number % 100 == 0:
                tell(f"{self.name}: {number:,} of {len(asked):,} prompts")
        _some(made, refused, self.task.name)
        return made

    @property
    def name(self) -> str:
        return f"{self.label}, {self.shots} shots"

    def digest(self, model: Model, made: Sequence[prompts.Prompt]) -> str:
        """Sixteen hexadecimal digits of all that outcomes depend on."""
        digest = hashlib.sha256(repr((self.how, self.seed, model.about)).encode())
        for prompt in made:
            digest.update(repr((prompt.item, prompt.contexts, prompt.cut)).encode())
        return digest.hexdigest()[:16]


def _too_few(exam: Examination, there: int) -> str:
    return f"{exam.task.name}: {exam.shots} demonstrations were asked for, and there are {there} to draw from; give fewer --shots"


def _refuse(item: str, error: ValueError, refused: Refusals | None) -> None:
    """Notes why an item cannot be asked. An error that no user causes, and one where nothing is noted, is raised again."""
    status, why = command.verdict(error)
    if status != 2 or refused is None:
        raise error
    refused[item] = why


def _some(found: Sequence[Any], refused: Refusals | None, where: str) -> None:
    if not found:
        raise ValueError(next(iter(refused.values())) if refused else f"{where} has no item that can be asked")


def examined(
    exam: Examination,
    made: Sequence[prompts.Prompt],
    model: Model,
    directory: Path,
    tell: Callable[[str], None],
    warn: Callable[[str], None],
    refused: Mapping[str, str] = types.MappingProxyType({}),
) -> dict[str, Any]:
    """The record that NAME.json holds; what of it was done before is taken from there. warn: is told of what was changed there since.
    refused: why other items could not be asked."""
    name = f"{exam.label.replace(':', '-')}-{exam.shots}-{exam.digest(model, made)}"
    kept = directory / f"{name}.jsonl"
    done = outcomes.read(kept, warn)
    left = [prompt for prompt in made if prompt.item.id not in done]
    with kept.open("a") as file:
        for outcome in asked(exam, model, left):
            done[outcome["id"]] = outcome
            file.write(outcomes.line(outcome, name))
            file.flush()
            tell(f"{exam.name}: {len(done):,} of {len(made):,}")
    judged = [metrics.judged(exam.task, exam.how, done[prompt.item.id]) for prompt in made]
    record = {
        "task": exam.label,
        "shots": exam.shots,
        "seed": exam.seed,
        "examples": len(made),
        "protocol": repr(exam.how),
        "described": bool(exam.how.description),
        "model": model.about,
        "fewer_shots": sum(len(prompt.shown) < exam.shots for prompt in made),
        "mean_shots": sum(len(prompt.shown) for prompt in made) / len(made),
        "cut": sum(prompt.cut > 0 for prompt in made),
        "cut_at": "end" if any("hint" in prompt.item.facts for prompt in made) else "beginning",
        "refused": dict(refused),
        "unwritable": _unwritable(exam.how, [prompt.item for prompt in made], model.text),
        "scores": {score.metric: metrics.told(score) for score in metrics.scored(exam.task, exam.how, judged, exam.seed)},
        "outcomes": kept.name,
    }
    outcomes.save_record(directory / f"{name}.json", record, warn)
    return record


def _in_none(stop: str, texts: Sequence[str], text: Tokenizer) -> bool:
    """Does the stop, as the tokenizer writes it, stand in none of the texts?"""
    (written,) = streaming.normalize_stops(text, [stop])
    return not any(written in one for one in texts)


def _unwritable(how: evaluation.Protocol, items: Sequence[Item], text: Tokenizer) -> list[str]:
    """Of items none of whose right answers can be written, the ids."""
    if not isinstance(how.method, evaluation.Writing):
        return []
    stops = streaming.normalize_stops(text, how.method.stops)
    return [item.id for item in items if not metrics.writable(item, text, how.method.n_tokens, stops)]


def asked(exam: Examination, model: Model, made: Sequence[prompts.Prompt]) -> Iterator[metrics.Outcome]:
    """The outcome of each prompt, as it comes, without its scores."""
    method = exam.how.method
    if isinstance(method, evaluation.Writing):
        key = jax.random.key(exam.seed)
        for number, written in loglikelihood.written(model.reader, [prompt.context_tokens[0] for prompt in made], method, model.text, key):
            yield _outcome(made[number]) | {"written": written, "spelling": metrics.spelling(made[number].item, model.text)}
    elif isinstance(method, evaluation.Windows):
        yield from _read(method, model, made)
    else:
        yield from _compared(exam, model, made)


def _read(method: evaluation.Windows, model: Model, made: Sequence[prompts.Prompt]) -> Iterator[metrics.Outcome]:
    """Texts as a whole, window by window: each token after as many before it as its window has."""
    n_ctx = model.reader.model.config.n_ctx
    step = n_ctx if method.stride is None else method.stride
    if not 0 < step <= n_ctx:
        raise ValueError(f"stride={method.stride}: give 1 to {n_ctx}, the model's context")
    windows, of = [], []
    for number, prompt in enumerate(made):
        text = prompt.context_tokens[0] + prompt.completion_tokens[0]
        for start in range(len(prompt.context_tokens[0]), len(text), step):
            stop = min(start + step, len(text))
            windows.append(loglikelihood.Question(text[max(0, stop - n_ctx - 1) : start], (text[start:stop],)))
            of.append(number)
    found: dict[int, dict[int, loglikelihood.Likelihood]] = {number: {} for number in of}
    waiting = collections.Counter(of)
    for at, (likelihood,) in loglikelihood.likelihoods(model.reader, windows, model.place):
        found[of[at]][at] = likelihood
        waiting[of[at]] -= 1
        if not waiting[of[at]]:
            inside = [found[of[at]][window] for window in sorted(found[of[at]])]
            told = {"log_probabilities": [one.log_probability for one in inside], "tokens": [one.n_tokens for one in inside]}
            yield _outcome(made[of[at]]) | told


def _compared(exam: Examination, model: Model, made: Sequence[prompts.Prompt]) -> Iterator[metrics.Outcome]:
    """By likelihoods of completions: all questions of all prompts together, each outcome as soon as its last one is answered. What they are
    compared with where the item is not there was put with the prompt."""
    questions: list[loglikelihood.Question] = []
    places: list[tuple[int, int, list[int]]] = []  # of each question: its prompt; 0 or, without the item, 1 ...; which completions
    found: list[dict[int, dict[int, loglikelihood.Likelihood]]] = [{} for _ in made]
    for number, prompt in enumerate(made):
        sides = [list(zip(prompt.context_tokens, prompt.completion_tokens, strict=True)), *prompt.without]
        for side, pairs in enumerate(sides):
            found[number][side] = {}
            for context in dict.fromkeys(context for context, _ in pairs):
                these = [i for i, pair in enumerate(pairs) if pair[0] == context]
                questions.append(loglikelihood.Question(context, tuple(pairs[i][1] for i in these)))
                places.append((number, side, these))
    waiting = collections.Counter(number for number, _, _ in places)
    for at, likelihoods in loglikelihood.likelihoods(model.reader, questions, model.place, _banned(exam.how.method, model.text)):
        number, side, these = places[at]
        found[number][side] |= dict(zip(these, likelihoods, strict=True))
        waiting[number] -= 1
        if waiting[number] == 0:
            yield _outcome(made[number]) | _told(found[number])


def _without(exam: Examination, model: Model, prompt: prompts.Prompt) -> tuple[list[prompts.Pair], ...]:
    """What the completions are compared with where the item is not there: for each such context, pairs as of the prompt; of what is longer
    than the model's context the beginning is left out."""
    item = prompt.item
    match exam.how.method:
        case evaluation.Unconditional(answer_context=context):
            contexts = [context]
        case evaluation.Calibrated(content_free=texts):
            before = prompt.contexts[0].removesuffix(item.contexts[0])
            contexts = [before + _content_free(exam, text) for text in texts]
        case _:
            return ()
    sides = [prompts.paired(model.text, [(context, completion) for _, completion in item.pairs], item.id) for context in contexts]
    most = model.reader.model.config.n_ctx + 1  # the last token of a completion is not read
    cut = tuple([(before[max(0, len(before) + len(after) - most) :], after) for before, after in pairs] for pairs in sides)
    if not all(before for pairs in cut for before, _ in pairs):
        raise ValueError(f"item {item.id}: a completion leaves no room in the model's context; use a model with a larger one")
    return cut


def _content_free(exam: Examination, text: str) -> str:
    """The context of an item whose every text is `text`."""
    row = {name: text if isinstance(value, str) else value for name, value in exam.task.example.items()}
    try:
        return next(iter(exam.task.items(row, exam.how, exam.shots))).contexts[0]
    except (ValueError, LookupError) as error:
        raise ValueError(f"{exam.task.name} cannot be calibrated: it has no item whose texts are {text!r}; set another method") from error


def _told(found: dict[int, dict[int, loglikelihood.Likelihood]]) -> metrics.Outcome:
    """What likelihoods say, completion by completion; of several contexts without the item the mean of the probabilities."""
    given, *others = ([side[i] for i in range(len(side))] for side in found.values())
    told = {
        "log_probabilities": [one.log_probability for one in given],
        "tokens": [one.n_tokens for one in given],
        "greedy": [one.greedy for one in given],
        "last_greedy": [one.last_greedy for one in given],
    }
    if others:
        columns = zip(*([one.log_probability for one in side] for side in others), strict=True)
        told["before"] = [_log_mean(column) for column in columns]
    return told


def _log_mean(logs: Sequence[float]) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(x - top) for x in logs) / len(logs))


def _outcome(prompt: prompts.Prompt) -> metrics.Outcome:
    """What is known of the prompt before it is asked."""
    return dataclasses.asdict(prompt.item) | {"asked": prompt.contexts, "shown": prompt.shown, "cut": prompt.cut}


def _banned(method: evaluation.Method, text: Tokenizer) -> tuple[int, ...]:
    """Tokens that are whole stop words."""
    if not isinstance(method, evaluation.LastWord) or not method.stop_words:
        return ()
    encoded = [text.encode(f" {word}") for word in stop_words.WORDS]
    return tuple(tokens[0] for tokens in encoded if len(tokens) == 1)
