"""What a pre-trained model knows of a task before any fine-tuning: GPT-1's heuristics (section 5, "Zero-shot Behaviors", Figure 2 right).

All of them compare log-probabilities that the language model gives to texts; nothing is learnt."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gptjax.config.classification import Task
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.evals import loglikelihood
from gptjax.model import gpt, inference
from gptjax.training.classification.examples import Example

SENTIMENT = ("negative", "positive")  # "we append the token very to each example and restrict the output to positive and negative"


def answered(task: Task, examples: Sequence[Example], model: gpt.GPT, params: Any, text: Tokenizer) -> np.ndarray:
    """Scores (examples, classes), of which the highest is the answer. A choice: the mean log-probability of each answer's tokens after the
    context. A classification with SENTIMENT as its labels: the log-probability of each word after the text and "very"; with two other
    labels: the mean log-probability of the text, against the median of all (the paper has a threshold and does not say which).

    ValueError for other tasks: the paper has no heuristic for them, but for Winograd schemas, which are no task here."""
    if task.kind == "choice":
        asked = [(" ".join(example.texts), answer) for example in examples for answer in example.answers]
        return _given(asked, model, params, text, mean=True).reshape(len(examples), -1)
    if task.kind == "classification" and task.labels == SENTIMENT:
        asked = [(f"{example.texts[0]} very", word) for example in examples for word in SENTIMENT]
        return _given(asked, model, params, text, mean=False).reshape(len(examples), -1)
    if task.kind == "classification" and len(task.labels) == 2:
        means = _given([("", example.texts[0]) for example in examples], model, params, text, mean=True)
        return np.stack([np.zeros_like(means), means - np.median(means)], 1)
    raise ValueError(f"there is no zero-shot heuristic for a task of kind {task.kind} with labels {', '.join(task.labels)}")


def _given(asked: list[tuple[str, str]], model: gpt.GPT, params: Any, text: Tokenizer, mean: bool) -> np.ndarray:
    """The log-probability of each second text after the first: of all its tokens, or their mean. Of what is too long the begin is cut."""
    questions = {}
    for number, (first, second) in enumerate(asked):
        whole = tuple(text.encode(f"{first} {second}".strip()))
        cut = max(0, len(whole) - model.config.n_ctx - 1)
        start = max(cut + 1, _shared(text.encode(first), whole))  # a text's first token has nothing before it that would tell of it
        if whole[start:]:
            questions[number] = loglikelihood.Question(whole[cut:start], (whole[start:],))
    found, numbers = np.zeros(len(asked)), list(questions)
    for question, (answer,) in loglikelihood.likelihoods(inference.reader(model, params), list(questions.values()), model.place):
        found[numbers[question]] = answer.log_probability / (answer.n_tokens if mean else 1)
    return found


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
