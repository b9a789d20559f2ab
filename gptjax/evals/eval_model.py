"""The model to evaluate, and what it answers: prompts -> outcomes, by an evaluation's method.

An outcome is a dict: the item, its prompt, and the log-likelihoods or the generated text, from
which metrics.py computes each score."""

import collections
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from gptjax.config import evaluation
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.evals import generation, loglikelihood, metrics, prompts, stop_words, tree_batches
from gptjax.generate import sampling
from gptjax.model import inference
from gptjax.sharding import rules


@dataclasses.dataclass(frozen=True)
class EvalModel:
    """The model to evaluate. sharding: of parameters and batch rows. metadata: identifies the model
    in the records: name, parameters, digest ...
    """

    inference_model: inference.InferenceModel
    tokenizer: Tokenizer
    sharding: rules.Sharding
    metadata: dict[str, Any]


def generate_outcomes(
    method: evaluation.Method, seed: int, model: EvalModel, prompt_list: Sequence[prompts.Prompt]
) -> Iterator[metrics.Outcome]:
    """Yields the outcome of each prompt, without its scores, as it is computed. seed: of sampled
    text."""
    if isinstance(method, evaluation.GenerationMethod):
        key = sampling.random_key(seed)
        for number, output in generation.generate_until(
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
        yield from _score_completions(method, model, prompt_list)


def _score_windows(
    method: evaluation.Windows, model: EvalModel, prompt_list: Sequence[prompts.Prompt]
) -> Iterator[metrics.Outcome]:
    """Scores whole texts window by window: each token given as many tokens before it as its window
    holds.
    """
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
                tree_batches.Request(
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
    method: evaluation.Method, model: EvalModel, prompt_list: Sequence[prompts.Prompt]
) -> Iterator[metrics.Outcome]:
    """Scores completions by log-likelihood: all requests of all prompts together, yielding each
    outcome with its last result. Baseline pairs were built with the prompts.
    """
    requests: list[tree_batches.Request] = []
    # Of each request: its prompt's index; 0 for the item, 1 and up for baselines; its completions.
    slots: list[tuple[int, int, list[int]]] = []
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
                    tree_batches.Request(context, tuple(pairs[i][1] for i in completions))
                )
                slots.append((index, side, completions))
    n_pending = collections.Counter(index for index, _, _ in slots)
    for request_index, likelihoods in loglikelihood.loglikelihood(
        model.inference_model, requests, model.sharding, _banned_tokens(method, model.tokenizer)
    ):
        index, side, completions = slots[request_index]
        results[index][side] |= dict(zip(completions, likelihoods, strict=True))
        n_pending[index] -= 1
        if n_pending[index] == 0:
            yield _prompt_fields(prompt_list[index]) | _likelihood_fields(results[index])


def _likelihood_fields(sides: dict[int, dict[int, loglikelihood.LogLikelihood]]) -> metrics.Outcome:
    """Outcome fields from log-likelihoods per completion; for several baselines, the mean of their
    probabilities.
    """
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
    """Outcome fields that are known from the prompt."""
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
