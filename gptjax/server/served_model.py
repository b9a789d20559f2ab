"""The model that a server answers with, and prompts and settings of requests as it reads them."""

import dataclasses
import hashlib
import json
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from gptjax.data.tokenizers import build, chat_template
from gptjax.generate import streaming
from gptjax.server import openai_types
from gptjax.server.attention_maps import AttentionMaps
from gptjax.server.generation import Generator, Grammar, RowSampling
from gptjax.server.grammar import TokenBound
from gptjax.server.openai_errors import ApiError, invalid

ANY_OBJECT = '{"type": "object"}'
Embed = Callable[[Sequence[Sequence[int]]], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedModel:
    """name: which requests give as `model`. chat_template: None for a model that does not chat.
    digest: of parameters and tokenizer. embed: lists of ids -> float32 (B, D), one embedding each;
    None if there are none. attention: its attention maps; None if there are none. token_bytes: of
    each token, b"" for control tokens; None where tokens are no pieces of text. token_bound:
    how few tokens a text can have; None if not known. created: Unix time."""

    name: str
    generator: Generator
    tokenizer: build.Tokenizer
    chat_template: chat_template.ChatTemplate | chat_template.TurnTemplate | None
    digest: str
    created: int
    embed: Embed | None = None
    attention: AttentionMaps | None = None
    token_bytes: Sequence[bytes] | None = None
    token_bound: TokenBound | None = None

    @property
    def fingerprint(self) -> str:
        """OpenAI's system_fingerprint: the same one for the same weights and tokenizer."""
        return f"fp_{self.digest}"

    def check_name(self, name: str) -> None:
        """Raises ApiError (404) for the name of another model."""
        if name != self.name:
            raise ApiError(
                404,
                f"The model {name[:100]!r} does not exist: this server has {self.name!r}",
                "model",
                "model_not_found",
            )


@dataclasses.dataclass(frozen=True)
class Prompt:
    """ids: of tokens. n_silent: how many of the first stand before a text and are none of it."""

    ids: tuple[int, ...]
    n_silent: int = 0


def encode_prompts(model: ServedModel, given: Any, param: str) -> list[Prompt]:
    """Returns the prompts of openai_types.Prompts: one or several, as texts or ids. Raises ApiError
    for ids that the model has not."""
    if isinstance(given, str) or isinstance(given[0], int):
        given = [given]
    for x in given:
        if isinstance(x, str):
            check_size(model, x, param)
    return [
        _encode_text(model.tokenizer, x) if isinstance(x, str) else _check_ids(model, x, param)
        for x in given
    ]


def _encode_text(tokenizer: build.Tokenizer, text: str) -> Prompt:
    ids = tokenizer.encode(text)
    before = tokenizer.text_prefix if ids else build.encode_prompt(tokenizer, "")
    return Prompt((*before, *ids), len(before))


def _check_ids(model: ServedModel, ids: list[int], param: str) -> Prompt:
    n_vocab = model.tokenizer.n_vocab
    wrong = next((i for i in ids if not 0 <= i < n_vocab), None)
    if wrong is not None:
        shown = str(wrong) if abs(wrong) < 10**12 else "a number of many digits"
        raise invalid(
            f"{param} has the token id {shown}: give ids from 0 to {n_vocab - 1:,}", param
        )
    return Prompt(tuple(ids))


def check_choices(model: ServedModel, n: int, param: str) -> None:
    """Raises ApiError for a request of more answers than one may have, or the server can hold."""
    check_number(n, param, min(openai_types.MAX_CHOICES, model.generator.max_generations))


def check_number(n: int, param: str, limit: int) -> None:
    """Raises ApiError for a request of more answers than one may have."""
    if n > limit:
        raise invalid(
            f"{param} asks for {n:,} answers, prompts times n: give at most {limit:,} in one "
            "request",
            param,
        )


def check_size(model: ServedModel, text: str, param: str) -> None:
    """Raises ApiError for a text that is longer than the context whatever its tokens are, so that
    nobody waits for its tokens."""
    if model.token_bound is not None:
        n_least, n_ctx = model.token_bound.least_tokens(text), model.generator.n_ctx
        if n_least > n_ctx:
            raise invalid(
                f"This model's maximum context length is {n_ctx:,} tokens. However, the {param} "
                f"has at least {n_least:,} tokens: shorten it",
                param,
                "context_length_exceeded",
            )


def check_length(model: ServedModel, n_prompt: int, max_tokens: int, param: str) -> None:
    """Raises ApiError for a prompt that, with its answer, is longer than the context: it is never
    cut."""
    n_ctx = model.generator.n_ctx
    if n_prompt + max_tokens > n_ctx:
        raise invalid(
            f"This model's maximum context length is {n_ctx:,} tokens. However, you requested "
            f"{n_prompt + max_tokens:,} tokens ({n_prompt:,} in the {param}, {max_tokens:,} in the "
            f"completion): shorten the {param} or ask for fewer tokens",
            param,
            "context_length_exceeded",
        )


def sampling(model: ServedModel, body: openai_types.SamplingRequest) -> list[RowSampling]:
    """Returns the sampling of each of n choices. That of choice 0 has the request's own seed, so
    that it is the answer for n=1; without a seed one is drawn."""
    n_vocab = model.tokenizer.n_vocab
    logit_bias = {int(token): bias for token, bias in body.logit_bias.items()}
    for token in logit_bias:
        if token >= n_vocab:
            raise invalid(
                f"logit_bias has the token id {token}: give ids from 0 to {n_vocab - 1:,}",
                "logit_bias",
            )
    seed = secrets.randbits(32) if body.seed is None else body.seed
    return [
        RowSampling(
            temperature=body.temperature,
            top_k=max(body.top_k, 0),
            top_p=body.top_p,
            min_p=body.min_p,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            repetition_penalty=body.repetition_penalty,
            logit_bias=logit_bias,
            seed=choice_seed(seed, number),
        )
        for number in range(body.n)
    ]


def choice_seed(seed: int, number: int) -> int:
    """The seed of choice `number` of a request, of 64 bits: for choice 0 the request's own unless
    it is negative, else a hash."""
    if number == 0 and seed >= 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:8], "big")


def check_stops(model: ServedModel, stops: Sequence[str]) -> tuple[str, ...]:
    """Returns stop strings. Raises ApiError for one that the tokenizer cannot write."""
    try:
        streaming.normalize_stops(model.tokenizer, stops)
    except ValueError as error:
        raise invalid(str(error), "stop") from None
    return tuple(stops)


def grammar(body: openai_types.SamplingRequest) -> Grammar | None:
    """What a request's answer must match. Raises ApiError for two of them."""
    form = body.response_format
    if form is not None and form.type == "text":
        form = None
    if form is not None and body.structured_outputs is not None:
        raise invalid(
            "response_format and structured_outputs each state what the answer is like: give one "
            "of them",
            "structured_outputs",
        )
    if body.structured_outputs is not None:
        return Grammar("regex", body.structured_outputs.regex)
    if form is None:
        return None
    if form.type == "json_object":
        return Grammar("json_schema", ANY_OBJECT)
    if form.json_schema is None:
        raise invalid(
            "response_format.json_schema is missing: give it for the type json_schema",
            "response_format.json_schema",
            "missing_required_parameter",
        )
    return Grammar("json_schema", json.dumps(form.json_schema.schema_))
