"""The chat page's attention view: an answer, after the prompt that it was given to, as the model
reads them, and what its tokens look at."""

import base64
from typing import Any

from gptjax.server import openai_types, served_model
from gptjax.server.chat_completions import ChatFormat
from gptjax.server.chat_page import answers
from gptjax.server.chat_page.conversations import Message
from gptjax.server.chat_page.page_types import AnswerRequest, AttentionRequest, Settings
from gptjax.server.openai_errors import ApiError, invalid
from gptjax.server.served_model import ServedModel


def check_request(model: ServedModel, body: AttentionRequest) -> None:
    """Raises ApiError for a model without maps, and for a layer or head that it has not."""
    maps = model.attention
    if maps is None:
        raise ApiError(404, f"{model.name} shows no attention here: it is on several devices")
    for param, given, n in [
        ("layer", body.layer, maps.n_layers),
        ("head", body.head or 0, maps.n_heads),
    ]:
        if given >= n:
            raise invalid(f"{param} is {given}: give a number from 0 to {n - 1}", param)


def find_answer(
    messages: list[Message], message: int, settings: Settings, model: str
) -> tuple[str, openai_types.ChatRequest]:
    """Returns the text of an answer, and the request by which it would be written again. Raises
    ApiError if there is none of that id."""
    written = next((m for m in messages if m.id == message and m.role == "assistant"), None)
    if written is None:
        raise ApiError(404, "there is no such answer: load the conversation anew", "message")
    kept, turn = answers.plan_turn(messages, AnswerRequest(model=model, replaces=message))
    settings = settings.model_copy(update={"token_view": False, "max_tokens": None})
    return written.content, answers.make_request(kept, turn, settings, model)


def join(model: ServedModel, form: ChatFormat, written: str) -> list[int]:
    """Returns the ids of a prompt and its answer. The latter is tokenized anew. Raises ApiError if
    they are more than the context."""
    ids = [*form.requests[0].prompt, *model.tokenizer.encode(written)]
    served_model.check_length(model, len(ids), 0, "messages")
    return ids


def compute(model: ServedModel, ids: list[int], body: AttentionRequest) -> dict[str, Any]:
    """The map of `body`'s layer and head for JSON: AttentionMap's fields, weights as base64 of
    float32 in little-endian order, and the texts of the tokens."""
    assert model.attention is not None  # see check_request
    found = model.attention.compute(ids, body.layer, body.head)
    return {
        "first": found.first,
        "tokens": [model.tokenizer.decode([token]) for token in ids[found.first :]],
        "weights": base64.b64encode(found.weights_TS.astype("<f4").tobytes()).decode(),
        "earlier": found.earlier_T.tolist(),
    }
