"""What a pre-trained model knows of a task before any fine-tuning: GPT-1's heuristics (section 5,
"Zero-shot Behaviors", Figure 2 right).

All of them compare log-probabilities that the language model gives to texts; nothing is learned.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gptjax.config.classification import ClassificationTask
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.evals import loglikelihood, tree_batches
from gptjax.model import gpt, inference
from gptjax.training.classification.examples import Example

SENTIMENT = (
    "negative",
    "positive",
)  # "we append the token very to each example and restrict the output to positive and negative"


def predict(
    task: ClassificationTask,
    examples: Sequence[Example],
    model: gpt.GPT,
    params: Any,
    tokenizer: Tokenizer,
) -> np.ndarray:
    """Scores (examples, classes), of which the highest is the answer. A choice: the mean
    log-probability of each answer's tokens after the context. A classification with SENTIMENT as
    its labels: the log-probability of each word after the text and "very"; with two other labels:
    the mean log-probability of the text, against the median of all (the paper has a threshold and
    does not say which).

    ValueError for other tasks: the paper has no heuristic for them, but for Winograd schemas,
    which are no task here."""
    if task.kind == "choice":
        pairs = [
            (" ".join(example.texts), answer) for example in examples for answer in example.answers
        ]
        return _log_probs(pairs, model, params, tokenizer, mean=True).reshape(len(examples), -1)
    if task.kind == "classification" and task.labels == SENTIMENT:
        pairs = [(f"{example.texts[0]} very", word) for example in examples for word in SENTIMENT]
        return _log_probs(pairs, model, params, tokenizer, mean=False).reshape(len(examples), -1)
    if task.kind == "classification" and len(task.labels) == 2:
        means = _log_probs(
            [("", example.texts[0]) for example in examples], model, params, tokenizer, mean=True
        )
        return np.stack([np.zeros_like(means), means - np.median(means)], 1)
    raise ValueError(
        f"there is no zero-shot heuristic for a task of kind {task.kind} with labels "
        f"{', '.join(task.labels)}"
    )


def _log_probs(
    pairs: list[tuple[str, str]], model: gpt.GPT, params: Any, tokenizer: Tokenizer, mean: bool
) -> np.ndarray:
    """Returns the log-probability of each second text given the first, as a sum or mean over its
    tokens. A pair that is too long loses tokens at its beginning."""
    requests = {}
    for number, (first, second) in enumerate(pairs):
        tokens = tuple(tokenizer.encode(f"{first} {second}".strip()))
        cut = max(0, len(tokens) - model.config.n_ctx - 1)
        start = max(
            cut + 1, _common_prefix_length(tokenizer.encode(first), tokens)
        )  # a text's first token has nothing before it that would predict it
        if tokens[start:]:
            requests[number] = tree_batches.Request(tokens[cut:start], (tokens[start:],))
    log_probs, numbers = np.zeros(len(pairs)), list(requests)
    for request, (likelihood,) in loglikelihood.loglikelihood(
        inference.prepare(model, params), list(requests.values()), model.sharding
    ):
        log_probs[numbers[request]] = likelihood.log_prob / (likelihood.n_tokens if mean else 1)
    return log_probs


def _common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Returns the number of tokens at the beginning that both sequences share."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
