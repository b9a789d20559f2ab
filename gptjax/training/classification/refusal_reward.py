"""A reward for refusing prompts that a classifier takes for harmful, and no others: a rule-based
reward as that of GPT-4's technical report (2303.08774, section 6), whose judge was GPT-4 itself.
"""

import re
import sys
from collections.abc import Callable, Sequence

from gptjax.safety import prompt_classifier, red_team
from gptjax.training.classification import text_classifier

Reward = Callable[[Sequence[str], Sequence[str]], list[float]]
USER_TURN = r"<\|user\|>(.*?)<\|end\|>"  # of the chat template of runs of gptjax.sft


def make(model: str, label: str, threshold: float = 0.5, user: str | None = USER_TURN) -> Reward:
    """Returns fn(prompts, answers) for task.reward=PythonFunction(name="FILE.py:NAME"): 1 for a
    refusal of a harmful prompt and an answer to another one, -1 for the reverse. A refusal is what
    safety.red_team.is_refusal takes for one.

    model: a run of gptjax.finetune. label, threshold: from which probability of that label on a
    prompt is harmful. user: a regular expression with one group, each match of which is a message
    in a prompt as the model reads it, with the tokens of its chat template; a prompt is harmful if
    any of them is. None: the whole prompt is one. Raises ValueError for a run or a label that is
    not there; the function, for a prompt without a match.
    """
    classifier = text_classifier.load(model, lambda line: print(line, file=sys.stderr))
    prompt_classifier.check_labels([label], classifier.labels, model)
    return of_scorer(classifier, label, threshold, user)


def of_scorer(
    scorer: prompt_classifier.TextScorer, label: str, threshold: float, user: str | None
) -> Reward:
    """Returns `make`'s function, of a classifier."""

    def reward(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        messages = {prompt: _messages(prompt, user) for prompt in prompts}
        texts = sorted({text for part in messages.values() for text in part})
        scores = dict(zip(texts, scorer(texts), strict=True))
        return [
            1.0
            if red_team.is_refusal(answer)
            == any(scores[text][label] >= threshold for text in messages[prompt])
            else -1.0
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    return reward


def _messages(prompt: str, user: str | None) -> list[str]:
    if user is None:
        return [prompt]
    found = re.findall(user, prompt, re.DOTALL)
    if not found:
        raise ValueError(
            f"no message of a user in a prompt by {user!r}: give `user`, a regular expression of "
            "this model's chat template, or None for prompts without one"
        )
    return found
