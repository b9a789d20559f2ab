"""POST /v1/moderations: texts as probabilities of harmful labels.

Fields and the form of the answer are those of platform.openai.com/docs/api-reference/moderations;
categories are the labels of the classifier that mean harm.
"""

import dataclasses
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gptjax.safety.prompt_classifier import TextScorer
from gptjax.server import openai_types
from gptjax.server.openai_errors import ApiError, invalid

MAX_TEXTS = 128  # of a request
MAX_TOKENS = 32_768  # of its texts in all, as those of OpenAI's text-moderation models
THRESHOLD = 0.5  # from which on a category is true


@dataclasses.dataclass(frozen=True)
class ModerationModel:
    """name: which requests may give as `model`. scorer: of texts. labels: those that are harmful.
    tokenize: a text -> the tokens that are read."""

    name: str
    scorer: TextScorer
    labels: tuple[str, ...]
    tokenize: Callable[[str], Sequence[int]]


def read_request(
    model: ModerationModel, body: openai_types.ModerationRequest
) -> tuple[list[str], int]:
    """Returns the texts of a request and the number of their tokens. Raises ApiError for another
    model, and for more than one request may have."""
    if body.model not in ("", model.name):
        raise ApiError(
            404,
            f"The model {body.model[:100]!r} does not exist: texts are moderated by {model.name!r}",
            "model",
            "model_not_found",
        )
    given = [body.input] if isinstance(body.input, str) else body.input
    parts = [part.text for part in given if isinstance(part, openai_types.TextPart)]
    texts = [text for text in given if isinstance(text, str)] or ["\n".join(parts)]
    if len(texts) > MAX_TEXTS:
        raise invalid(
            f"input has {len(texts):,} texts: give at most {MAX_TEXTS} in one request", "input"
        )
    n_tokens = sum(len(model.tokenize(text)) for text in texts)
    if n_tokens > MAX_TOKENS:
        raise invalid(
            f"input has {n_tokens:,} tokens: give at most {MAX_TOKENS:,} in one request", "input"
        )
    return texts, n_tokens


def format_response(
    model: ModerationModel, scores: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """OpenAI's results. scores: of each text, label -> probability."""
    results = []
    for text_scores in scores:
        harms = {label: text_scores[label] for label in model.labels}
        categories = {label: score >= THRESHOLD for label, score in harms.items()}
        results.append(
            {
                "flagged": any(categories.values()),
                "categories": categories,
                "category_scores": harms,
            }
        )
    return {"id": f"modr-{uuid.uuid4().hex}", "model": model.name, "results": results}
