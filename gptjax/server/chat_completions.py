"""POST /v1/chat/completions: answers in conversations."""

import time
import uuid
from typing import Any

from gptjax.server import openai_types, served_model
from gptjax.server.generation import GenerationRequest, Piece, TokenScore
from gptjax.server.openai_errors import ApiError, invalid
from gptjax.server.served_model import ServedModel


class ChatFormat:
    """The answers to a request, n choices of one conversation. An answer.Format.

    Raises ApiError for a conversation or settings that the model cannot be given.
    """

    kind, event_kind = "chat.completion", "chat.completion.chunk"

    def __init__(self, model: ServedModel, body: openai_types.ChatRequest):
        self._tokenizer, self._token_bytes, self._body = model.tokenizer, model.token_bytes, body
        served_model.check_choices(model, body.n, "n")
        self._ids, end_ids = _encode(model, body)
        self.n_prompt = len(self._ids)
        max_tokens = _max_tokens(body)
        served_model.check_length(model, self.n_prompt, max_tokens or 1, "messages")
        if body.top_logprobs is not None and not body.logprobs:
            raise invalid(
                "top_logprobs is given without logprobs: give logprobs=true too", "top_logprobs"
            )
        grammar = served_model.grammar(body)
        stops = served_model.check_stops(model, body.stop)
        self.requests = [
            GenerationRequest(
                prompt=self._ids,
                max_tokens=max_tokens or model.generator.n_ctx - self.n_prompt,
                sampling=sampling,
                stops=stops,
                end_ids=frozenset() if body.ignore_eos else end_ids,
                logprobs=(body.top_logprobs or 0) if body.logprobs else None,
                grammar=grammar,
            )
            for sampling in served_model.sampling(model, body)
        ]
        self.head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": model.fingerprint,
        }
        self._begun: set[int] = set()

    def prompt_texts(self) -> list[str]:
        """The conversation as the model reads it, for a log."""
        return [self._tokenizer.decode(self._ids)]

    def text_before(self, number: int) -> str:
        """None: an answer is a text of its own."""
        return ""

    def choice(self, number: int, piece: Piece) -> dict[str, Any]:
        """A choice."""
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {
            "index": number,
            "message": message,
            "logprobs": self._logprobs(piece),
            "finish_reason": piece.finish_reason,
        }

    def event(self, number: int, piece: Piece) -> dict[str, Any]:
        """The next piece of a choice; the first one has the role."""
        role = {} if number in self._begun else {"role": "assistant"}
        self._begun.add(number)
        content = {"content": piece.text} if piece.text or role or piece.scores else {}
        return {
            "index": number,
            "delta": role | content,
            "logprobs": self._logprobs(piece),
            "finish_reason": piece.finish_reason,
        }

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        """Of the tokens of the answer; one that ends it is none of them."""
        if not self._body.logprobs:
            return None
        ends = self.requests[0].end_ids
        content = [self._score(score) for score in piece.scores if score.token not in ends]
        return {"content": content, "refusal": None}

    def _score(self, score: TokenScore) -> dict[str, Any]:
        tops = [
            self._entry(token, self._tokenizer.decode([token]), logprob)
            for token, logprob in score.alternatives
        ]
        assert score.logprob is not None  # only the first token of a prompt has none
        return self._entry(score.token, score.text, score.logprob) | {"top_logprobs": tops}

    def _entry(self, token: int, text: str, logprob: float) -> dict[str, Any]:
        """bytes: of a token that is part of a character those that its text does not show; None
        where they are not known."""
        of_text: bytes | None = text.encode()
        if "\ufffd" in text:
            of_text = None if self._token_bytes is None else self._token_bytes[token]
        return {"token": text, "logprob": logprob, "bytes": list(of_text) if of_text else None}


def _encode(
    model: ServedModel, body: openai_types.ChatRequest
) -> tuple[tuple[int, ...], frozenset[int]]:
    """The ids of a conversation, and those at which an answer ends."""
    template = model.chat_template
    if template is None:
        raise ApiError(
            404,
            f"{model.name} is not a chat model: it has no chat template and continues text; use "
            "/v1/completions",
            "model",
        )
    for number, message in enumerate(body.messages):
        for part in message.content:
            served_model.check_size(model, part.text, f"messages[{number}]")
    messages = [
        {
            "role": "system" if message.role == "developer" else message.role,
            "content": "".join(part.text for part in message.content),
        }
        for message in body.messages
    ]
    try:
        return tuple(template.encode(messages)), template.end_ids
    except ValueError as error:
        raise invalid(str(error), "messages") from None


def _max_tokens(body: openai_types.ChatRequest) -> int | None:
    if body.max_tokens is None or body.max_completion_tokens is None:
        return body.max_tokens or body.max_completion_tokens
    raise invalid(
        "max_tokens and max_completion_tokens are the same thing: give one of them",
        "max_completion_tokens",
    )
