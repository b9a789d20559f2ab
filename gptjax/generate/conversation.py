"""A conversation with a model that was trained to chat: messages, their ids, and the KV cache that
is kept between turns.
"""

import bisect
import dataclasses
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import jax

from gptjax.config import parse
from gptjax.data import unicode
from gptjax.data.tokenizers import build, chat_template, control_tokens
from gptjax.generate import prefix_cache, sampling, streaming
from gptjax.model import inference


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How answers are generated: max_new_tokens, the most tokens of one; sampling_params; stops,
    strings before which an answer ends; seed, the same one for the same answers to the same
    messages."""

    max_new_tokens: int = 512
    sampling_params: sampling.SamplingParams = sampling.SamplingParams()
    stops: Sequence[str] = ()
    seed: int = 0


class Turn(NamedTuple):
    """A user's message and the model's answer to it."""

    message: str
    answer: str


class Conversation:
    """A conversation, to which `reply` adds a message and its answer.

    The model reads the whole conversation as its chat template writes it, at every turn; of that
    only what its KV cache does not hold yet is computed. So an answer is the one to the same
    messages given at once, whatever a template makes of earlier turns.

    turns: all of them, oldest first. n_dropped: how many of the oldest the model does not see,
    since the context has no room for them. finish_reason: how the last answer ended: "stop" (the
    model ended it, or a stop string), "length" (max_new_tokens, or the end of the context) or "cut"
    (by the caller). n_prompt, n_read: tokens of the conversation before the last answer, and how
    many of them were computed.
    """

    def __init__(
        self,
        template: chat_template.ChatTemplate | chat_template.TurnTemplate,
        tokenizer: build.Tokenizer,
        inference_model: inference.InferenceModel,
        options: AnswerOptions = AnswerOptions(),
        system: str | None = None,
    ):
        """system: what stands before all messages; None: what the template puts there, if
        anything. Raises ValueError for a template that takes none, and for stop strings that the
        tokenizer cannot write."""
        self.turns: list[Turn] = []
        self.n_dropped = self.n_prompt = 0
        self.finish_reason = "stop"
        self._options, self._template, self._tokenizer = options, template, tokenizer
        self._n_ctx = inference_model.model.config.n_ctx
        self._cache = prefix_cache.PrefixCache(inference_model)
        self._n_retries = 0
        self._answer: Generator[str, None, None] | None = None
        streaming.normalize_stops(tokenizer, options.stops)
        self.system = system

    @property
    def n_read(self) -> int:
        return self._cache.n_read

    @property
    def system(self) -> str | None:
        """The system message. Setting one raises ValueError, and changes nothing, if the template
        takes none."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        text = None if text is None else unicode.replace_surrogates(text)
        self._template.encode(_messages(text, [], "Hello"))  # raises
        self._system = text

    @property
    def messages(self) -> list[dict[str, str]]:
        """The whole conversation as {"role": ..., "content": ...}: the system message if there is
        one, then user and assistant in turn."""
        return _messages(self.system, self.turns)

    @messages.setter
    def messages(self, messages: chat_template.Messages) -> None:
        """Raises ValueError, and changes nothing, for messages in another order."""
        self._close()
        system, turns = _parse_messages(messages)
        self._template.encode(_messages(system, turns, "Hello"))  # raises
        self._system = system
        self._restart(turns)

    def reset(self) -> None:
        """Forgets all turns; the system message stays."""
        self._close()
        self._restart([])

    def forget_cache(self) -> None:
        """Drops the KV cache: its memory is free, and the next answer reads the conversation from
        its beginning."""
        self._close()
        self._cache.forget()

    def undo(self) -> Turn:
        """Takes the last message and its answer back, and returns them. ValueError if there are
        none."""
        self._close()
        turn = self._last_turn()
        self._restart(self.turns[:-1])
        return turn

    def reply(self, message: str) -> Generator[str, None, None]:
        """Returns an iterator over the text of the answer, in pieces of whole characters.

        Message and answer become a turn when the iterator ends. If it is closed before (as by a
        `break`) or an exception is raised there, the text up to there is the answer, which the
        template then ends as any other; without any text the message is taken back. A new reply
        closes the last one.

        Raises ValueError for a message that does not fit into the context next to the system
        message, with room for an answer of a quarter of the context or max_new_tokens; while
        iterating, inference.NonFiniteLogits for NaN logits.
        """
        self._close()
        self._n_retries = 0
        return self._begin(self.turns, unicode.replace_surrogates(message))

    def retry(self) -> Generator[str, None, None]:
        """Another answer to the last message, as `reply`; it replaces the last one as soon as it
        has any text. ValueError if there is no message."""
        self._close()
        last = self._last_turn()
        self._n_retries += 1
        return self._begin(self.turns[:-1], last.message)

    def _begin(self, turns: list[Turn], message: str) -> Generator[str, None, None]:
        self.n_dropped, ids = self._fit(turns, message)
        self.n_prompt = len(ids)
        number = len(turns) + (self._n_retries << 16)
        # the first as gptjax.sample's
        key = sampling.random_key(self._options.seed, *([number] if number else []))
        self._answer = self._generate(turns, message, ids, key)
        return self._answer

    def _generate(
        self, turns: list[Turn], message: str, ids: list[int], key: jax.Array
    ) -> Generator[str, None, None]:
        """Yields the answer to `ids`, and adds it to `turns`."""
        options, self.finish_reason, answer = self._options, "cut", ""
        n_tokens = min(options.max_new_tokens, self._n_ctx + 1 - len(ids))
        text = streaming.StreamingDetokenizer(self._tokenizer, ids, options.stops)
        tokens = self._cache.stream(
            ids, n_tokens, options.sampling_params, key, self._template.end_ids
        )
        try:
            n_written = 0
            for token in tokens:
                n_written += 1
                if new := text.add([token]):
                    answer += new
                    yield new
                if text.is_stopped:
                    break
            is_ended = text.is_stopped or n_written < n_tokens
            if new := text.end():
                answer += new
                yield new
            self.finish_reason = "stop" if is_ended else "length"
        finally:
            tokens.close()
            if answer or self.finish_reason != "cut":
                # No message may have these: chat_template marks text with them.
                answer = control_tokens.NONCHARACTERS.sub(streaming.REPLACEMENT_CHAR, answer)
                self.turns = [*turns, Turn(message, answer)]

    def _fit(self, turns: list[Turn], message: str) -> tuple[int, list[int]]:
        """How many of the oldest turns have no room in the context, and the ids of the rest. Once
        any must go, a quarter of the room is made free, so that the next turns find theirs and the
        cache is of use."""
        room = self._n_ctx - min(self._options.max_new_tokens, self._n_ctx // 4)
        n_dropped = min(self.n_dropped, len(turns))

        def encode(first: int) -> list[int]:
            return self._template.encode(_messages(self.system, turns[first:], message))

        ids = encode(n_dropped)
        if len(ids) > room:
            n_dropped = bisect.bisect_left(
                range(len(turns)),
                -(room - room // 4),
                lo=min(n_dropped + 1, len(turns)),
                key=lambda first: -len(encode(first)),
            )
            ids = encode(n_dropped)
        if len(ids) > room:
            raise ValueError(
                f"the message is too long: with what stands before it, it has {len(ids):,} tokens; "
                f"the context of {self._n_ctx:,} has room for {room:,} before an answer; shorten it"
            )
        return n_dropped, ids

    def _last_turn(self) -> Turn:
        if not self.turns:
            raise ValueError("there is no message yet")
        return self.turns[-1]

    def _restart(self, turns: list[Turn]) -> None:
        self.turns, self.n_dropped, self._n_retries = turns, 0, 0

    def _close(self) -> None:
        """Ends an answer that is still being generated."""
        if self._answer is not None:
            self._answer.close()


def _messages(
    system: str | None, turns: Sequence[Turn], message: str | None = None
) -> list[dict[str, str]]:
    """Turns, and a message that is to be answered, as a chat template takes them."""
    pairs = [("system", system)]
    for turn in turns:
        pairs += [("user", turn.message), ("assistant", turn.answer)]
    pairs += [("user", message)]
    return [{"role": role, "content": text} for role, text in pairs if text is not None]


def _parse_messages(messages: Any) -> tuple[str | None, list[Turn]]:
    """Inverse of `_messages`. Raises ValueError for other orders of roles."""
    checked = chat_template.check_messages(messages)
    system = checked[0]["content"] if checked[0]["role"] == "system" else None
    rest = checked[1 if system is not None else 0 :]
    expected = ["user", "assistant"] * (len(rest) // 2)
    roles = [message["role"] for message in rest]
    if roles != expected:
        raise ValueError(
            f"the roles {parse.one_line(', '.join(roles), 100) or '(none)'}: give user and "
            "assistant in turn, after at most one system message, and an answer at the end"
        )
    texts = [unicode.replace_surrogates(message["content"]) for message in rest]
    return system, [Turn(*pair) for pair in zip(texts[::2], texts[1::2], strict=True)]
