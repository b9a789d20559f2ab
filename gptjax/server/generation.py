"""Requests for generations and what comes of them: the values between HTTP routes and engine."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

MAX_LOGPROBS = 20  # alternatives that are given for a token
GrammarKind = Literal["json_schema", "regex"]
FinishReason = Literal["stop", "length", "content_filter"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowSampling:
    """How the tokens of one generation are sampled.

    temperature: 0 is greedy. top_k: only the k likeliest tokens; 0: all. top_p: only the likeliest
    tokens that make up probability p; 1: all. min_p: only tokens with at least this share of the
    likeliest one's probability; 0: all. presence_penalty, frequency_penalty: subtracted from the
    logit of a token that was generated already, once and for each time. repetition_penalty: divides
    a positive and multiplies a negative logit of a token in prompt or answer (Keskar et al.,
    1909.05858, section 4.1); 1: none. logit_bias: id -> what is added to its logit, at most 300.
    seed: of the random numbers; the same one for the same answer.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One continuation of a prompt.

    prompt: token ids, at least one; with max_tokens at most the context. max_tokens: the most new
    tokens; 0: none, the prompt is only scored. stops: strings before which the text ends. end_ids:
    tokens at which it ends, which are no part of it. logprobs: None, or how many alternatives are
    given for each token, at most MAX_LOGPROBS. echo: whether the prompt's own tokens are given
    first, as TokenScores. grammar: None, or what the text must match.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: RowSampling = RowSampling()
    stops: tuple[str, ...] = ()
    end_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    echo: bool = False
    grammar: "Grammar | None" = None


@dataclasses.dataclass(frozen=True)
class Grammar:
    """What a text must match. kind: a JSON schema (as JSON text), or a regular expression."""

    kind: GrammarKind
    source: str


@dataclasses.dataclass(frozen=True)
class TokenScore:
    """A token and its log-probability by the model, before temperature and the like. token: id.
    text: as the tokenizer decodes it alone. logprob: None for the first token of a prompt.
    alternatives: (id, log-probability) of the likeliest tokens in its place, likeliest first.
    """

    token: int
    text: str
    logprob: float | None
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Piece:
    """What has come since the last piece. text: whole characters, without any part of a stop
    string; "" if none is certain yet. scores: of the tokens since, where the request has
    logprobs or echo. Those of the prompt come in the first piece. An end token has one, too,
    though it is no part of the text: lm-evaluation-harness takes the last score after an echoed
    prompt for that of the new token. n_tokens: new tokens since. finish_reason: how it ended, in
    the last piece: at a stop string or end token, at max_tokens, or by a policy, which is not
    the engine's; else None.
    """

    text: str = ""
    scores: tuple[TokenScore, ...] = ()
    n_tokens: int = 0
    finish_reason: FinishReason | None = None


class Full(Exception):
    """The queue has no room for another generation."""


class GrammarError(ValueError):
    """A grammar that is none, that nothing matches, or that takes too long, in one line. kind: the
    grammar's."""

    def __init__(self, kind: GrammarKind, message: str):
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class Generator(Protocol):
    """Runs generations; `batcher.Batcher`, or another in tests.

    on_piece and on_error are called in another thread than the caller's, in order, and not after
    `cancel`: pieces, of which the last has a finish_reason, or an error instead of the rest.
    """

    n_ctx: int
    max_generations: int  # that run or wait

    def submit(
        self,
        request: GenerationRequest,
        on_piece: Callable[[Piece], None],
        on_error: Callable[[Exception], None],
    ) -> "Handle":
        """Puts a generation into the queue. Raises Full if that has no room, ValueError for a
        request that cannot be run, such as a prompt longer than n_ctx, and of these GrammarError.
        """
        ...

    def stats(self) -> "Stats": ...


class Handle(Protocol):
    """A generation that was submitted."""

    def cancel(self) -> None:
        """Ends it: its slot is free at the next step. Of no effect after its end."""
        ...


@dataclasses.dataclass(frozen=True)
class Stats:
    """A generator's state. is_running: False once nothing is generated any more. slots: how many
    generations it can run at once; active: how many it runs; queued: how many wait. prompt_tokens,
    cached_tokens, new_tokens: since the start; cached ones are those of prompts that were not read
    again.
    """

    is_running: bool
    slots: int
    active: int
    queued: int
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
