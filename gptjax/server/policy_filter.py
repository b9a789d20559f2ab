"""A safety policy between HTTP and engine: what its filters find in prompts and answers is masked,
refused or recorded, and prompts that its classifiers take for harmful are refused or recorded.

An answer leaves as plain text only while the policy hides any of it: token ids, log-probabilities
and echoed prompts would go past its filters, and a form such as JSON would not outlast them.
"""

import dataclasses
import secrets
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from gptjax.config import safety
from gptjax.safety import prompt_classifier, stream_filter, word_classifier
from gptjax.server import openai_types
from gptjax.server.generation import Piece
from gptjax.server.openai_errors import ApiError, invalid

Body = TypeVar("Body", bound=openai_types.Record)


class PolicyFilter:
    """The filters of a policy. write: takes the line of JSON of each intervention, in any thread;
    digests in them are comparable until the server ends. classifiers: those of the policy, loaded.
    load, errors: as of stream_filter.rules. has_input_models: whether models read prompts.
    hides_output: whether answers leave as text only.
    """

    def __init__(
        self,
        policy: safety.Policy,
        write: Callable[[str], None],
        classifiers: Sequence[prompt_classifier.PromptClassifier] = (),
        load: Callable[[str], word_classifier.WordScorer] = stream_filter.load_nothing,
    ):
        self._classifiers = classifiers
        self._input = stream_filter.rules(policy.input, load)
        self._output = stream_filter.rules(policy.output, load)
        self._has_output_models = _has_models(policy.output)
        self.has_input_models = bool(classifiers) or _has_models(policy.input)
        self.hides_output = any(rule.action != "log" for rule in self._output)
        self._write, self._key = write, secrets.token_bytes(32)

    def filter_request(self, body: Body, request_id: str) -> Body:
        """Returns a request with its texts after the filters of input. Raises ApiError (400) for
        what they or the classifiers refuse, and for what would go past them or the filters of
        output."""
        if self.hides_output and isinstance(body, openai_types.SamplingRequest):
            _check_form(body)
        match body:
            case openai_types.EmbeddingRequest():
                changes = {"input": self._prompts(body.input, "input", request_id)}
            case openai_types.ChatRequest():
                if self.hides_output and body.logprobs:
                    raise _goes_past("logprobs", "leave it out")
                changes = {"messages": self._messages(body.messages, request_id)}
                self._classify(
                    {
                        f"messages[{number}]": message.content[0].text
                        for number, message in enumerate(changes["messages"])
                        if message.role != "assistant"
                    },
                    request_id,
                )
            case openai_types.CompletionRequest():
                if self.hides_output:
                    _check_completion(body)
                prompts = self._prompts(body.prompt, "prompt", request_id)
                changes = {"prompt": prompts}
                if self._classifiers and not _is_text(prompts):
                    raise _goes_past("prompt", "give a text instead of token ids")
                is_one = isinstance(prompts, str)
                named = (
                    {"prompt": prompts}
                    if is_one
                    else {f"prompt[{number}]": prompt for number, prompt in enumerate(prompts)}
                )
                self._classify(named, request_id)
            case _:
                raise TypeError(type(body))
        return body.model_copy(update=changes)

    def filter_answer(self, request_id: str, number: int, before: str) -> "AnswerFilter":
        """Returns the filter of a choice of an answer. before: what it continues."""
        found = stream_filter.StreamFilter(self._output, self._key, before)
        labels = {"request": request_id, "choice": number}
        return AnswerFilter(found, self._write, labels, self._has_output_models)

    def _prompts(self, prompts: Any, param: str, request_id: str) -> Any:
        if not self._input:
            return prompts
        if not _is_text(prompts):
            raise _goes_past(param, "give a text instead of token ids")
        if isinstance(prompts, str):
            return self._text(prompts, param, request_id)
        return [self._text(x, f"{param}[{i}]", request_id) for i, x in enumerate(prompts)]

    def _messages(
        self, messages: Sequence[openai_types.Message], request_id: str
    ) -> list[openai_types.Message]:
        """Parts of a message are one text for the model, so that they are for the filters."""
        result = []
        for number, message in enumerate(messages):
            text = "".join(part.text for part in message.content)
            text = self._text(text, f"messages[{number}]", request_id)
            part = openai_types.TextPart(type="text", text=text)
            result.append(message.model_copy(update={"content": [part]}))
        return result

    def _classify(self, texts: dict[str, str], request_id: str) -> None:
        """texts: param -> text. Raises ApiError (400) for the first that is refused."""
        refused = []
        for classifier in self._classifiers:
            findings = classifier.find(list(texts.values()))
            for param, found in zip(texts, findings, strict=True):
                if found is not None:
                    self._write(found.to_json(request=request_id, side="input", param=param))
                    refused += [(param, found.kind)] * (found.action == "refuse")
        if refused:
            param, label = refused[0]
            raise invalid(
                f"{param} is taken for {label}, which the policy of this server refuses: ask for "
                "something else",
                param,
                "content_filter",
            )

    def _text(self, text: str, param: str, request_id: str) -> str:
        text, used = stream_filter.filter_text(text, self._input, self._key)
        for found in used.interventions:
            self._write(found.to_json(request=request_id, side="input", param=param))
        if used.is_refused:
            reason = next(x.reason for x in used.interventions if x.action == "refuse")
            raise invalid(
                f"{param} holds {reason}, which the policy of this server refuses: leave it out",
                param,
                "content_filter",
            )
        return text


class AnswerFilter:
    """Filters the pieces of one choice. is_slow: whether a model is run, and so none of it in the
    event loop."""

    def __init__(
        self,
        used: stream_filter.StreamFilter,
        write: Callable[[str], None],
        labels: dict[str, Any],
        is_slow: bool,
    ):
        self.is_slow = is_slow
        self._filter, self._write, self._labels = used, write, labels
        self._n_written = 0

    def add(self, piece: Piece) -> Piece:
        """Returns a piece with the text that may leave by now; with the finish reason
        content_filter if it is the last since the policy ends the answer."""
        is_last = piece.finish_reason is not None
        text = self._filter.end(piece.text) if is_last else self._filter.add(piece.text)
        for found in self._filter.interventions[self._n_written :]:
            self._write(found.to_json(**self._labels, side="output"))
        self._n_written = len(self._filter.interventions)
        reason = "content_filter" if self._filter.is_refused else piece.finish_reason
        return dataclasses.replace(piece, text=text, finish_reason=reason)


def filter_form(
    policy: PolicyFilter | None, body: Body, make_form: Callable[[Body], Any], request_id: str
) -> tuple[Any, list[AnswerFilter] | None]:
    """Returns (the form of a request's answers, the filter of each; None without a policy)."""
    form = make_form(body)  # refuses prompts that are long to search
    if policy is None:
        return form, None
    changed = policy.filter_request(body, request_id)
    form = form if changed == body else make_form(changed)
    numbers = range(len(form.requests))
    return form, [policy.filter_answer(request_id, i, form.text_before(i)) for i in numbers]


def _check_form(body: openai_types.SamplingRequest) -> None:
    """Raises ApiError for a form of the answer that the filters may break, as by a label in place
    of a number in JSON, and whose escapes may hold what they search for."""
    is_json = body.response_format is not None and body.response_format.type != "text"
    for param, is_given in (
        ("response_format", is_json),
        ("structured_outputs", body.structured_outputs is not None),
    ):
        if is_given:
            message = (
                f"{param} states a form, which the filters of this server's policy may break: "
                "leave it out"
            )
            raise invalid(message, param, "unsupported_parameter")


def _check_completion(body: openai_types.CompletionRequest) -> None:
    """Raises ApiError for what would go past the filters of output."""
    if body.logprobs is not None:
        raise _goes_past("logprobs", "leave it out")
    if body.echo:
        raise _goes_past("echo", "leave it out")
    if not _is_text(body.prompt):
        raise _goes_past("prompt", "give a text instead of token ids")


def _has_models(parts: Sequence[Any]) -> bool:
    return any(isinstance(part, safety.WordClassifier) for part in parts)


def _is_text(prompts: Any) -> bool:
    return isinstance(prompts, str) or isinstance(prompts[0], str)


def _goes_past(param: str, hint: str) -> ApiError:
    message = f"{param} would go past the filters of this server's policy: {hint}"
    return invalid(message, param, "unsupported_parameter")
