"""Runs one task on one model with a number of demonstrations: prompts, requests, outcomes saved as
they come, scores.

NAME.jsonl has a line per item (see metrics.py), from which each score can be recomputed; NAME.json
has the protocol, the seed, the model and the scores (outcomes.py describes both formats). NAME
consists of task, shots and a digest of everything that the outcomes depend on, so finished work is
not repeated, and other protocols are stored separately. An item that cannot be evaluated is listed
with the reason, and the others go on. With a sampling method (TopK), texts also depend on which
prompts are generated together, so a resumed evaluation samples different ones.
"""

import collections
import dataclasses
import hashlib
import random
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptjax.config import evaluation, legacy
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.evals import eval_model, metrics, outcomes, prompts, task_data
from gptjax.evals.eval_model import EvalModel
from gptjax.evals.task import Item, Task
from gptjax.generate import streaming
from gptjax.runtime.errors import classify_error

Refusals = dict[str, str]  # item id -> why it cannot be evaluated


@dataclasses.dataclass(frozen=True)
class TaskRun:
    """A task with the settings of one evaluation. label: the name it was requested by. shots:
    demonstrations per item. examples: number of items, sampled with the seed; None: all.
    use_paper_shots: whether shots come from the protocol, so that a task without its own
    (Task.auto_fields) fits them to its data.
    """

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
        """Returns (items to evaluate, pool of demonstrations). read_rows: split -> its rows.

        errors: collects rows that cannot be used while the others go on. Raises a one-line
        ValueError if none can be used, or for the first one if errors is None.
        """
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
        """Returns the run with the fields that the task leaves open (Task.auto_fields) fitted to
        its data: at most as many shots as there are demonstrations for each item; no stop string
        that occurs in a correct answer; as many new tokens as the longest correct answer has, up to
        half of the context.
        """
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
        """Returns the prompt of each item, with as many demonstrations as fit.

        errors: collects items that have no prompt while the others go on. Raises a one-line
        ValueError if none has one, or for the first such item if errors is None.
        """
        n_ctx, prompt_list = model.inference_model.model.config.n_ctx, []
        if self.shots > len(pool):
            # No item has enough, and finding that out for each would take pool x pool comparisons.
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
        """Display name of the run."""
        return f"{self.label}, {self.shots} shots"

    def digest(self, model: EvalModel, prompt_list: Sequence[prompts.Prompt]) -> str:
        """16 hexadecimal digits of everything that the outcomes depend on, the same as in earlier
        versions, so that what these have evaluated is not evaluated again."""
        protocol = legacy.restore_record(repr(self.protocol))
        digest = hashlib.sha256(f"({protocol}, {self.seed!r}, {model.metadata!r})".encode())
        for prompt in prompt_list:
            digest.update(repr((prompt.item, prompt.contexts, prompt.n_cut)).encode())
        return digest.hexdigest()[:16]


def _too_few_message(task_run: TaskRun, n_available: int) -> str:
    return (
        f"{task_run.task.name}: {task_run.shots} demonstrations are requested, and {n_available} "
        "are available; give fewer --num_fewshot"
    )


def _record_error(item_id: str, error: ValueError, errors: Refusals | None) -> None:
    """Records why an item cannot be evaluated. Raises errors that are not a user's again, and all
    if errors is None.
    """
    status, reason = classify_error(error)
    if status != 2 or errors is None:
        raise error
    errors[item_id] = reason


def _check_not_empty(items: Sequence[Any], errors: Refusals | None, where: str) -> None:
    if not items:
        raise ValueError(
            next(iter(errors.values())) if errors else f"{where} has no item that can be evaluated"
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
    """Runs the evaluation and returns the record of NAME.json; finished outcomes are read from
    NAME.jsonl. warn: called for damaged files. errors: reasons why other items could not be
    evaluated.
    """
    name = (
        f"{task_run.label.replace(':', '-')}-{task_run.shots}-{task_run.digest(model, prompt_list)}"
    )
    path = directory / f"{name}.jsonl"
    done = outcomes.read(path, warn)
    remaining = [prompt for prompt in prompt_list if prompt.item.id not in done]
    with path.open("a") as file:
        for outcome in eval_model.generate_outcomes(
            task_run.protocol.method, task_run.seed, model, remaining
        ):
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
    """Whether the stop string, in the tokenizer's form, occurs in none of the texts."""
    (form,) = streaming.normalize_stops(tokenizer, [stop])
    return not any(form in text for text in texts)


def _unreachable_items(
    protocol: evaluation.Protocol, items: Sequence[Item], tokenizer: Tokenizer
) -> list[str]:
    """Ids of items none of whose correct answers can be generated."""
    if not isinstance(protocol.method, evaluation.GenerationMethod):
        return []
    stops = streaming.normalize_stops(tokenizer, protocol.method.stops)
    return [
        item.id
        for item in items
        if not metrics.can_generate_answer(item, tokenizer, protocol.method.n_tokens, stops)
    ]


def _baseline_pairs(
    task_run: TaskRun, model: EvalModel, prompt: prompts.Prompt
) -> tuple[list[prompts.Pair], ...]:
    """Returns the pairs that completions are compared with in contexts without the item, for each
    such context; the beginning is cut where a pair exceeds the model's context.
    """
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
    # The last token of a completion is never fed to the model.
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
            f"item {item.id}: a completion leaves no space in the model's context; use a model "
            "with a larger context"
        )
    return truncated


def _content_free_context(task_run: TaskRun, text: str) -> str:
    """The context of an item with `text` in place of all its texts."""
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
