"""One task asked of one model with one number of demonstrations: prompts, questions, outcomes kept
as they come, scores.

NAME.jsonl holds a line an item (see metrics.py), from which each number can be computed again;
NAME.json the protocol, the seed, the model and the scores (outcomes.py says how both are kept).
NAME tells task, shots and a digest of all that the outcomes depend on, so what is done is not done
again, and another protocol stands beside it. An item that cannot be asked is named with the reason,
and the others go on. Where the method samples (TopK), what is written also depends on which
prompts are written together: an evaluation that was resumed has sampled otherwise."""

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

from gptjax.config import evaluation
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.evals import loglikelihood, metrics, outcomes, prompts, stop_words, task_data
from gptjax.evals.task import Item, Task
from gptjax.generate import streaming
from gptjax.model import inference
from gptjax.runtime.errors import classify_error
from gptjax.sharding import rules


@dataclasses.dataclass(frozen=True)
class EvalModel:
    """Who is asked. sharding: where its parameters lie, and rows shall. metadata: what identifies
    it, to be written beside the scores:
    name, parameters, digest ..."""

    inference_model: inference.InferenceModel
    tokenizer: Tokenizer
    sharding: rules.Sharding
    metadata: dict[str, Any]


Refusals = dict[str, str]  # of items that cannot be asked, by their ids: why


@dataclasses.dataclass(frozen=True)
class TaskRun:
    """A task with its protocol, as it is put. label: what it was asked for by; shots:
    demonstrations wanted; examples: so many items, drawn with the seed; None: all. use_paper_shots:
    shots are the protocol's own, which a task that chose none (Task.auto_fields) fits to its
    data."""

    label: str
    task: Task
    protocol: evaluation.Protocol
    shots: int
    seed: int
    examples: int | None
    use_paper_shots: bool = False

    def load_items(
        self, read_rows: Callable[[str], task_data.Rows], errors: Refusals | None = None
    ) -> tuple[list[Item], list[Item]]:
        """(what is asked, what demonstrations are drawn from). read_rows: a split -> its rows.
        errors: is told of rows that cannot be asked, and the others go on. ValueError, in one
        line, where none can, or where nothing is told."""
        eval_split, fewshot_split = self.task.splits
        items = self._parse_items(read_rows(eval_split), errors)
        pool = (
            items
            if fewshot_split == eval_split or not self.shots
            else self._parse_items(read_rows(fewshot_split), None if errors is None else {})
        )
        if self.examples is not None and self.examples < len(items):
            items = random.Random(f"{self.seed} {self.task.name}").sample(items, self.examples)
        return items, pool

    def _parse_items(self, rows: task_data.Rows, errors: Refusals | None) -> list[Item]:
        items = []
        if errors is not None:
            errors |= rows.errors
        for row in rows.rows:
            try:
                items += list(self.task.items(row, self.protocol, self.shots))
            except ValueError as error:
                _record_error(row["id"], error, errors)
        duplicate = next(
            (name for name, n in collections.Counter(item.id for item in items).items() if n > 1),
            None,
        )
        if duplicate is not None:
            raise ValueError(
                f"{rows.source}: two items have the id {duplicate!r}; give each its own"
            )
        _check_not_empty(items, errors, rows.source)
        return items

    def fit_to_data(
        self, items: list[Item], pool: list[Item], tokenizer: Tokenizer, n_ctx: int
    ) -> "TaskRun":
        """With what the task leaves open (Task.auto_fields) as its data want it: no more shots than
        there are demonstrations for each item; no stop that stands in a right answer; and so
        many new tokens as the longest has, up to half of the context."""
        if not self.task.auto_fields:
            return self
        protocol, shots = self.protocol, self.shots
        if "shots" in self.task.auto_fields and self.use_paper_shots:
            shots = min(len(self._draw(item, pool)) for item in items)
        default_method = self.task.protocol.method
        if isinstance(protocol.method, evaluation.GenerationMethod) and isinstance(
            default_method, evaluation.GenerationMethod
        ):
            answers = [answer for item in items for answer in metrics.target_texts(item)]
            texts = [tokenizer.decode(tokenizer.encode(answer)) for answer in answers]
            method = protocol.method
            if "stops" in self.task.auto_fields and method.stops == default_method.stops:
                stops = [stop for stop in method.stops if _is_absent(stop, texts, tokenizer)]
                stops = stops or [
                    stop
                    for stop in [protocol.separator]
                    if stop and _is_absent(stop, texts, tokenizer)
                ]
                method = dataclasses.replace(method, stops=tuple(stops))
            if "n_tokens" in self.task.auto_fields and method.n_tokens == default_method.n_tokens:
                longest = max((len(tokenizer.encode(answer)) for answer in answers), default=0)
                method = dataclasses.replace(
                    method, n_tokens=max(1, min(max(method.n_tokens, longest), n_ctx // 2))
                )
            protocol = dataclasses.replace(protocol, method=method)
        return dataclasses.replace(self, protocol=protocol, shots=shots)

    def _draw(self, item: Item, pool: list[Item]) -> list[Item]:
        return prompts.sample_fewshot(
            self.task.name, item, pool, self.shots, self.seed, self.protocol.fixed_shots
        )

    def build_prompts(
        self,
        items: list[Item],
        pool: list[Item],
        model: EvalModel,
        progress: Callable[[str], None],
        errors: Refusals | None = None,
    ) -> list[prompts.Prompt]:
        """Each item with as many demonstrations as fit. errors: is told of those that cannot be
        put, and the others go on. ValueError, in one line, where none can, or where nothing is
        told."""
        n_ctx, prompt_list = model.inference_model.model.config.n_ctx, []
        if self.shots > len(pool):
            # of no item will there be enough, and to find that out for each takes pool x pool
            # comparisons
            raise ValueError(_too_few_message(self, len(pool)))
        for index, item in enumerate(items):
            try:
                demonstrations = self._draw(item, pool)
                if len(demonstrations) < self.shots:
                    raise ValueError(_too_few_message(self, len(demonstrations)))
                prompt = prompts.fit_context(
                    item, demonstrations, self.protocol, model.tokenizer, n_ctx
                )
                prompt_list.append(
                    dataclasses.replace(prompt, baseline_pairs=_baseline_pairs(self, model, prompt))
                )
            except ValueError as error:
                _record_error(item.id, error, errors)
            if index % 100 == 0:
                progress(f"{self.name}: {index:,} of {len(items):,} prompts")
        _check_not_empty(prompt_list, errors, self.task.name)
        return prompt_list

    @property
    def name(self) -> str:
        return f"{self.label}, {self.shots} shots"

    def digest(self, model: EvalModel, prompt_list: Sequence[prompts.Prompt]) -> str:
        """Sixteen hexadecimal digits of all that outcomes depend on."""
        digest = hashlib.sha256(repr((self.protocol, self.seed, model.metadata)).encode())
        for prompt in prompt_list:
            digest.update(repr((prompt.item, prompt.contexts, prompt.n_cut)).encode())
        return digest.hexdigest()[:16]


def _too_few_message(task_run: TaskRun, n_available: int) -> str:
    shots = f"{task_run.shots} demonstrations were asked for"
    return (
        f"{task_run.task.name}: {shots}, and there are {n_available} to draw from; give fewer "
        "--shots"
    )


def _record_error(item_id: str, error: ValueError, errors: Refusals | None) -> None:
    """Notes why an item cannot be asked. An error that no user causes, and one where nothing is
    noted, is raised again."""
    status, reason = classify_error(error)
    if status != 2 or errors is None:
        raise error
    errors[item_id] = reason


def _check_not_empty(items: Sequence[Any], errors: Refusals | None, where: str) -> None:
    if not items:
        raise ValueError(
            next(iter(errors.values())) if errors else f"{where} has no item that can be asked"
        )


def run_task(
    task_run: TaskRun,
    prompt_list: Sequence[prompts.Prompt],
    model: EvalModel,
    directory: Path,
    progress: Callable[[str], None],
    warn: Callable[[str], None],
    errors: Mapping[str, str] = types.MappingProxyType({}),
) -> dict[str, Any]:
    """The record that NAME.json holds; what of it was done before is taken from there. warn: is
    told of what was changed there since. errors: why other items could not be asked."""
    name = (
        f"{task_run.label.replace(':', '-')}-{task_run.shots}-{task_run.digest(model, prompt_list)}"
    )
    path = directory / f"{name}.jsonl"
    done = outcomes.read(path, warn)
    remaining = [prompt for prompt in prompt_list if prompt.item.id not in done]
    with path.open("a") as file:
        for outcome in generate_outcomes(task_run, model, remaining):
            done[outcome["id"]] = outcome
            file.write(outcomes.encode_line(outcome, name))
            file.flush()
            progress(f"{task_run.name}: {len(done):,} of {len(prompt_list):,}")
    scored_outcomes = [
        metrics.score_item(task_run.task, task_run.protocol, done[prompt.item.id])
        for prompt in prompt_list
    ]
    record = {
        "task": task_run.label,
        "shots": task_run.shots,
        "seed": task_run.seed,
        "examples": len(prompt_list),
        "protocol": repr(task_run.protocol),
        "described": bool(task_run.protocol.description),
        "model": model.metadata,
        "fewer_shots": sum(
            len(prompt.demonstration_ids) < task_run.shots for prompt in prompt_list
        ),
        "mean_shots": sum(len(prompt.demonstration_ids) for prompt in prompt_list)
        / len(prompt_list),
        "cut": sum(prompt.n_cut > 0 for prompt in prompt_list),
        "cut_at": "end"
        if any("hint" in prompt.item.facts for prompt in prompt_list)
        else "beginning",
        "refused": dict(errors),
        "unwritable": _unreachable_items(
            task_run.protocol, [prompt.item for prompt in prompt_list], model.tokenizer
        ),
        "scores": {
            score.metric: metrics.to_json(score)
            for score in metrics.aggregate(
                task_run.task, task_run.protocol, scored_outcomes, task_run.seed
            )
        },
        "outcomes": path.name,
    }
    outcomes.save_record(directory / f"{name}.json", record, warn)
    return record


def _is_absent(stop: str, texts: Sequence[str], tokenizer: Tokenizer) -> bool:
    """Does the stop, as the tokenizer writes it, stand in none of the texts?"""
    (form,) = streaming.normalize_stops(tokenizer, [stop])
    return not any(form in text for text in texts)


def _unreachable_items(
    protocol: evaluation.Protocol, items: Sequence[Item], tokenizer: Tokenizer
) -> list[str]:
    """Of items none of whose right answers can be written, the ids."""
    if not isinstance(protocol.method, evaluation.GenerationMethod):
        return []
    stops = streaming.normalize_stops(tokenizer, protocol.method.stops)
    return [
        item.id
        for item in items
        if not metrics.can_generate_answer(item, tokenizer, protocol.method.n_tokens, stops)
    ]


def generate_outcomes(
    task_run: TaskRun, model: EvalModel, prompt_list: Sequence[prompts.Prompt]
) -> Iterator[metrics.Outcome]:
    """The outcome of each prompt, as it comes, without its scores."""
    method = task_run.protocol.method
    if isinstance(method, evaluation.GenerationMethod):
        key = jax.random.key(task_run.seed)
        for number, output in loglikelihood.generate_until(
            model.inference_model,
            [prompt.context_tokens[0] for prompt in prompt_list],
            method,
            model.tokenizer,
            key,
        ):
            yield _prompt_fields(prompt_list[number]) | {
                "written": output,
                "spelling": metrics.tokenizer_forms(prompt_list[number].item, model.tokenizer),
            }
    elif isinstance(method, evaluation.Windows):
        yield from _score_windows(method, model, prompt_list)
    else:
        yield from _score_completions(task_run, model, prompt_list)


def _score_windows(
    method: evaluation.Windows, model: EvalModel, prompt_list: Sequence[prompts.Prompt]
) -> Iterator[metrics.Outcome]:
    """Texts as a whole, window by window: each token after as many before it as its window has."""
    n_ctx = model.inference_model.model.config.n_ctx
    step = n_ctx if method.stride is None else method.stride
    if not 0 < step <= n_ctx:
        raise ValueError(f"stride={method.stride}: give 1 to {n_ctx}, the model's context")
    windows, owners = [], []
    for index, prompt in enumerate(prompt_list):
        tokens = prompt.context_tokens[0] + prompt.completion_tokens[0]
        for start in range(len(prompt.context_tokens[0]), len(tokens), step):
            stop = min(start + step, len(tokens))
            windows.append(
                loglikelihood.Request(
                    tokens[max(0, stop - n_ctx - 1) : start], (tokens[start:stop],)
                )
            )
            owners.append(index)
    results: dict[int, dict[int, loglikelihood.LogLikelihood]] = {index: {} for index in owners}
    n_pending = collections.Counter(owners)
    for window_index, (likelihood,) in loglikelihood.loglikelihood(
        model.inference_model, windows, model.sharding
    ):
        results[owners[window_index]][window_index] = likelihood
        n_pending[owners[window_index]] -= 1
        if not n_pending[owners[window_index]]:
            window_results = [
                results[owners[window_index]][window]
                for window in sorted(results[owners[window_index]])
            ]
            fields = {
                "log_probabilities": [result.log_prob for result in window_results],
                "tokens": [result.n_tokens for result in window_results],
            }
            yield _prompt_fields(prompt_list[owners[window_index]]) | fields


def _score_completions(
    task_run: TaskRun, model: EvalModel, prompt_list: Sequence[prompts.Prompt]
) -> Iterator[metrics.Outcome]:
    """By likelihoods of completions: all questions of all prompts together, each outcome as soon as
    its last one is answered. What they are compared with where the item is not there was put
    with the prompt."""
    requests: list[loglikelihood.Request] = []
    slots: list[
        tuple[int, int, list[int]]
    ] = []  # of each question: its prompt; 0 or, without the item, 1 ...; which completions
    results: list[dict[int, dict[int, loglikelihood.LogLikelihood]]] = [{} for _ in prompt_list]
    for index, prompt in enumerate(prompt_list):
        sides = [
            list(zip(prompt.context_tokens, prompt.completion_tokens, strict=True)),
            *prompt.baseline_pairs,
        ]
        for side, pairs in enumerate(sides):
            results[index][side] = {}
            for context in dict.fromkeys(context for context, _ in pairs):
                completions = [i for i, pair in enumerate(pairs) if pair[0] == context]
                requests.append(
                    loglikelihood.Request(context, tuple(pairs[i][1] for i in completions))
                )
                slots.append((index, side, completions))
    n_pending = collections.Counter(index for index, _, _ in slots)
    for request_index, likelihoods in loglikelihood.loglikelihood(
        model.inference_model,
        requests,
        model.sharding,
        _banned_tokens(task_run.protocol.method, model.tokenizer),
    ):
        index, side, completions = slots[request_index]
        results[index][side] |= dict(zip(completions, likelihoods, strict=True))
        n_pending[index] -= 1
        if n_pending[index] == 0:
            yield _prompt_fields(prompt_list[index]) | _likelihood_fields(results[index])


def _baseline_pairs(
    task_run: TaskRun, model: EvalModel, prompt: prompts.Prompt
) -> tuple[list[prompts.Pair], ...]:
    """What the completions are compared with where the item is not there: for each such context,
    pairs as of the prompt; of what is longer than the model's context the beginning is left out."""
    item = prompt.item
    match task_run.protocol.method:
        case evaluation.Unconditional(answer_context=context):
            contexts = [context]
        case evaluation.Calibrated(content_free=texts):
            prefix = prompt.contexts[0].removesuffix(item.contexts[0])
            contexts = [prefix + _content_free_context(task_run, text) for text in texts]
        case _:
            return ()
    sides = [
        prompts.encode_pairs(
            model.tokenizer, [(context, completion) for _, completion in item.pairs], item.id
        )
        for context in contexts
    ]
    # the last token of a completion is not read
    max_tokens = model.inference_model.model.config.n_ctx + 1
    truncated = tuple(
        [
            (prefix[max(0, len(prefix) + len(completion_ids) - max_tokens) :], completion_ids)
            for prefix, completion_ids in pairs
        ]
        for pairs in sides
    )
    if not all(prefix for pairs in truncated for prefix, _ in pairs):
        raise ValueError(
            f"item {item.id}: a completion leaves no room in the model's context; use a model with "
            "a larger one"
        )
    return truncated


def _content_free_context(task_run: TaskRun, text: str) -> str:
    """The context of an item whose every text is `text`."""
    row = {
        name: text if isinstance(value, str) else value
        for name, value in task_run.task.example.items()
    }
    try:
        return next(iter(task_run.task.items(row, task_run.protocol, task_run.shots))).contexts[0]
    except (ValueError, LookupError) as error:
        raise ValueError(
            f"{task_run.task.name} cannot be calibrated: it has no item whose texts are {text!r}; "
            "set another method"
        ) from error


def _likelihood_fields(sides: dict[int, dict[int, loglikelihood.LogLikelihood]]) -> metrics.Outcome:
    """What likelihoods say, completion by completion; of several contexts without the item the
    mean of the probabilities."""
    own, *others = ([side[i] for i in range(len(side))] for side in sides.values())
    fields = {
        "log_probabilities": [result.log_prob for result in own],
        "tokens": [result.n_tokens for result in own],
        "greedy": [result.is_greedy for result in own],
        "last_greedy": [result.last_is_greedy for result in own],
    }
    if others:
        columns = zip(*([result.log_prob for result in side] for side in others), strict=True)
        fields["before"] = [_log_mean_exp(column) for column in columns]
    return fields


def _log_mean_exp(logs: Sequence[float]) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(x - top) for x in logs) / len(logs))


def _prompt_fields(prompt: prompts.Prompt) -> metrics.Outcome:
    """What is known of the prompt before it is asked."""
    return dataclasses.asdict(prompt.item) | {
        "asked": prompt.contexts,
        "shown": prompt.demonstration_ids,
        "cut": prompt.n_cut,
    }


def _banned_tokens(method: evaluation.Method, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that are whole stop words."""
    if not isinstance(method, evaluation.LastWordMethod) or not method.stop_words:
        return ()
    encoded = [tokenizer.encode(f" {word}") for word in stop_words.STOP_WORDS]
    return tuple(tokens[0] for tokens in encoded if len(tokens) == 1)
