"""POST /v1/completions: continuations of prompts."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from gptjax.data.tokenizers import build
from gptjax.generate import streaming
from gptjax.server import openai_types, served_model
from gptjax.server.generation import GenerationRequest, Piece, TokenScore
from gptjax.server.served_model import Prompt, ServedModel


class CompletionFormat:
    """The answers to a request: choice p * n + i is the i-th of prompt p. An answer.Format.

    Raises ApiError for prompts or settings that the model cannot be given.
    """

    kind = event_kind = "text_completion"

    def __init__(self, model: ServedModel, body: openai_types.CompletionRequest):
        self._tokenizer, self._body = model.tokenizer, body
        prompts = served_model.encode_prompts(model, body.prompt, "prompt")
        served_model.check_choices(model, len(prompts) * body.n, "prompt" if body.n == 1 else "n")
        for prompt in prompts:
            served_model.check_length(model, len(prompt.ids), body.max_tokens, "prompt")
        self._prompts = [prompt for prompt in prompts for _ in range(body.n)]
        self.n_prompt = sum(len(prompt.ids) for prompt in prompts)
        self.requests = self._make_requests(model, prompts)
        self.head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": model.fingerprint,
        }
        self._offsets = [_Offsets(self._tokenizer, prompt, body.echo) for prompt in self._prompts]
        self._begun: set[int] = set()

    def _make_requests(
        self, model: ServedModel, prompts: Sequence[Prompt]
    ) -> list[GenerationRequest]:
        body = self._body
        grammar = served_model.grammar(body)
        stops = served_model.check_stops(model, body.stop)
        samplings = served_model.sampling(model, body)
        end = model.tokenizer.end_of_text
        end_ids = frozenset(() if body.ignore_eos or end is None else (end,))
        return [
            GenerationRequest(
                prompt=prompt.ids,
                max_tokens=body.max_tokens,
                sampling=sampling,
                stops=stops,
                end_ids=end_ids,
                logprobs=body.logprobs,
                echo=(body.echo and body.logprobs is not None) or body.max_tokens == 0,
                grammar=grammar,
            )
            for prompt in prompts
            for sampling in samplings
        ]

    def prompt_texts(self) -> list[str]:
        """The prompts, for a log."""
        return [self._echo(prompt) for prompt in self._prompts[:: self._body.n]]

    def text_before(self, number: int) -> str:
        """The prompt."""
        return self._echo(self._prompts[number])

    def choice(self, number: int, piece: Piece) -> dict[str, Any]:
        """A choice, or the next piece of it; with `echo` the prompt stands first."""
        text = piece.text
        if self._body.echo and number not in self._begun:
            text = self._echo(self._prompts[number]) + text
        self._begun.add(number)
        scores = piece.scores if self._body.echo or self._body.max_tokens else ()
        logprobs = None if self._body.logprobs is None else self._logprobs(number, scores)
        reason = piece.finish_reason
        return {"text": text, "index": number, "logprobs": logprobs, "finish_reason": reason}

    event = choice

    def _echo(self, prompt: Prompt) -> str:
        """The text of a prompt as the model reads it: a tokenizer may change a text."""
        return self._tokenizer.decode(prompt.ids[prompt.n_silent :])

    def _logprobs(self, number: int, scores: Sequence[TokenScore]) -> dict[str, Any]:
        return {
            "tokens": [score.text for score in scores],
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [self._alternatives(score) for score in scores],
            "text_offset": [self._offsets[number].add(score.token) for score in scores],
        }

    def _alternatives(self, score: TokenScore) -> dict[str, float] | None:
        """Text -> log-probability, likeliest first; the token itself is always among them. Of
        several tokens of one text, as parts of characters are, the likeliest."""
        if score.logprob is None:
            return None
        tops = {}
        for token, logprob in score.alternatives:
            tops.setdefault(self._tokenizer.decode([token]), logprob)
        tops.setdefault(score.text, score.logprob)
        return tops


class _Offsets:
    """Where in the text of a choice each token begins, in characters; within a character of several
    tokens, where that begins."""

    def __init__(self, tokenizer: build.Tokenizer, prompt: Prompt, echo: bool):
        before = prompt.ids[: prompt.n_silent] if echo else prompt.ids
        self._text = streaming.StreamingDetokenizer(tokenizer, before)
        self._n_silent = prompt.n_silent if echo else 0
        self._n_chars = 0

    def add(self, token: int) -> int:
        """The offset of the next token."""
        start = self._n_chars
        if self._n_silent:
            self._n_silent -= 1
        else:
            self._n_chars += len(self._text.add([token]))
        return start
