"""Prompts that a classifier takes for harmful, refused or recorded before a model reads them."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from gptjax.config import safety

REASON = "a classifier takes it for {}: its score reaches the policy's threshold"


class TextScorer(Protocol):
    """Texts -> of each, label -> probability; training.classification.text_classifier's
    TextClassifier, or another in tests."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    def __call__(self, texts: Sequence[str]) -> Sequence[Mapping[str, float]]: ...


@dataclasses.dataclass(frozen=True)
class Finding:
    """A prompt whose score reached the threshold, without its text. kind: the label."""

    kind: str
    action: safety.PromptAction
    score: float
    threshold: float
    reason: str

    def to_json(self, **more: Any) -> str:
        """Returns a line of JSON. more: further entries, such as the request's id."""
        return json.dumps(more | dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class PromptClassifier:
    """What a policy does about prompts of one label."""

    spec: safety.PromptClassifier
    scorer: TextScorer

    def find(self, texts: Sequence[str]) -> list[Finding | None]:
        """Returns what was found of each text; None: its score is below the threshold."""
        spec = self.spec
        scores = [scores[spec.label] for scores in self.scorer(texts)] if texts else []
        return [
            Finding(
                spec.label, spec.action, round(score, 6), spec.threshold, REASON.format(spec.label)
            )
            if score >= spec.threshold
            else None
            for score in scores
        ]


def check_labels(labels: Sequence[str], known: Sequence[str], model: str) -> None:
    """Raises ValueError for a label that a classifier lacks. known: its labels. model: where it
    lies."""
    for label in labels:
        if label not in known:
            raise ValueError(
                f"the classifier in {model} has no label {label!r}: its labels are "
                f"{', '.join(known)}"
            )


def load_all(
    policy: safety.Policy, load: Callable[[str], TextScorer]
) -> tuple[PromptClassifier, ...]:
    """Returns the classifiers of a policy. load: from a run's path to its classifier. Raises
    ValueError for a label that it lacks."""
    result = []
    for spec in policy.classifiers:
        scorer = load(spec.model)
        check_labels([spec.label], scorer.labels, spec.model)
        result.append(PromptClassifier(spec, scorer))
    return tuple(result)
