"""Requests of OpenAI's API as pydantic models: what of them there is here, and what is refused.

The fields are those of platform.openai.com/docs/api-reference. From vLLM (docs.vllm.ai, "OpenAI-
Compatible Server") come top_k, min_p, repetition_penalty, ignore_eos, structured_outputs with a
regex, stream_options.continuous_usage_stats, and response_format in /v1/completions. A field of
OpenAI's that this server lacks is refused unless its value asks for nothing; null is the default of
every field. An error's text is what is allowed: openai_errors.from_validation adds the rest.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field
from pydantic_core import PydanticCustomError

from gptjax.config import parse
from gptjax.server.generation import MAX_LOGPROBS

MAX_CHOICES = 128  # of a request: prompts times n
MAX_STOPS, MAX_STOP_CHARS = 16, 256
MAX_LOGIT_BIAS = 300  # tokens


def validator(
    description: str, check: Callable[[Any], Any] = lambda value: value
) -> pydantic.WrapValidator:
    """Checks a field strictly by its type, then by `check`, which returns the value or raises
    ValueError. description: what is allowed, in words."""

    def validate(value: Any, handler: pydantic.ValidatorFunctionWrapHandler) -> Any:
        try:
            return check(handler(value))
        except (ValueError, OverflowError):  # pydantic's errors are ValueErrors
            raise PydanticCustomError("allowed", "{allowed}", {"allowed": description}) from None

    return pydantic.WrapValidator(validate)


def number_range(low: float, high: float, above: bool = False) -> pydantic.WrapValidator:
    """Checks a number to be from low to high. above: not low itself."""
    return validator(
        parse.describe_range(float, low, high, above),
        lambda x: _require(x, parse.in_range(x, low, high, above)),
    )


def int_range(low: int, high: int = parse.MAX_INT) -> pydantic.WrapValidator:
    """Checks a whole number to be from low to high."""
    return validator(
        parse.describe_range(int, low, high), lambda x: _require(x, parse.in_range(x, low, high))
    )


def one_of(*words: str) -> pydantic.WrapValidator:
    """Describes a Literal of these words."""
    return validator(" or ".join(words))


def unsupported(*values: Any) -> pydantic.AfterValidator:
    """Refuses a field that the server lacks. values: those that ask for nothing."""

    def check(given: Any) -> None:
        if not any(type(given) is type(value) and given == value for value in values):
            raise PydanticCustomError("not_supported", "not supported")

    return pydantic.AfterValidator(check)


def _require(value: Any, is_allowed: bool) -> Any:
    if not is_allowed:
        raise ValueError
    return value


def _check_stops(value: str | list[str]) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    are_short = all(1 <= len(stop) <= MAX_STOP_CHARS for stop in stops)
    return _require(stops, are_short and len(stops) <= MAX_STOPS)


def _check_bias(value: dict[str, float]) -> dict[str, float]:
    are_ids = all(name.isascii() and name.isdigit() and len(name) < 10 for name in value)
    are_small = all(-100 <= bias <= 100 for bias in value.values())
    return _require(value, are_ids and are_small and len(value) <= MAX_LOGIT_BIAS)


def _check_prompts(value: Any) -> Any:
    return _require(value, isinstance(value, str) or value and [] not in value)


def _check_content(value: Any) -> Any:
    """The parts of a message's content."""
    if not isinstance(value, str | list) or value == []:
        message = "a text, or a list of parts as {allowed}"
        raise PydanticCustomError("allowed", message, {"allowed": '{"type": "text", "text": ""}'})
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Flag = Annotated[bool, validator("true or false")]
Text = Annotated[str, validator("a text")]
Stops = Annotated[
    str | list[str],
    validator(
        f"a text, or a list of up to {MAX_STOPS}, each of 1 to {MAX_STOP_CHARS} characters",
        _check_stops,
    ),
]
LogitBias = Annotated[
    dict[str, float],
    validator(
        f"an object of up to {MAX_LOGIT_BIAS} token ids, each with a number from -100 to 100",
        _check_bias,
    ),
]
Prompts = Annotated[
    str | list[str] | list[int] | list[list[int]],
    validator(
        "a text, a list of texts, a list of token ids or a list of such lists, none of them empty",
        _check_prompts,
    ),
]
Labels = Annotated[dict[str, str], validator("an object of texts")]


class Record(pydantic.BaseModel):
    """An object of a request, with the fields that it declares and no other."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    @pydantic.model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: x for k, x in value.items() if x is not None or k not in cls.model_fields}


class StreamOptions(Record):
    """include_usage: a last event has the usage. continuous_usage_stats: every event has it, so
    far."""

    include_usage: Flag = False
    continuous_usage_stats: Flag = False
    include_obfuscation: Annotated[Any, unsupported(False)] = None


class JsonSchema(Record):
    """A JSON schema that the answer must match; whether it is `strict` or not."""

    name: Text
    schema_: Annotated[dict[str, Any], validator("a JSON schema, an object")] = Field(
        alias="schema"
    )
    description: Text = ""
    strict: Flag = False


class ResponseFormat(Record):
    """Which form the answer has."""

    type: Annotated[
        Literal["text", "json_object", "json_schema"], one_of("text", "json_object", "json_schema")
    ]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Record):
    """regex: what the whole answer must match."""

    regex: Text


class SamplingRequest(Record):
    """What /v1/completions and /v1/chat/completions have in common.

    seed: the same one for the same answer; drawn if none is given. user, metadata,
    safety_identifier and prompt_cache_key change nothing.
    """

    model: Text
    n: Annotated[int, int_range(1, MAX_CHOICES)] = 1
    stream: Flag = False
    stream_options: StreamOptions | None = None
    stop: Stops = Field(default_factory=list)
    temperature: Annotated[float, number_range(0, 2)] = 1.0
    top_p: Annotated[float, number_range(0, 1, above=True)] = 1.0
    top_k: Annotated[int, int_range(-1)] = 0
    min_p: Annotated[float, number_range(0, 1)] = 0.0
    presence_penalty: Annotated[float, number_range(-2, 2)] = 0.0
    frequency_penalty: Annotated[float, number_range(-2, 2)] = 0.0
    repetition_penalty: Annotated[float, number_range(0.01, 100)] = 1.0
    logit_bias: LogitBias = Field(default_factory=dict)
    seed: Annotated[
        int | None,
        validator(
            f"a whole number from {-(2**63):,} to {2**63 - 1:,}",
            lambda seed: _require(seed, -(2**63) <= seed < 2**63),
        ),
    ] = None
    ignore_eos: Flag = False
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    user: Text = ""
    metadata: Labels = Field(default_factory=dict)
    safety_identifier: Text = ""
    prompt_cache_key: Text = ""


class CompletionRequest(SamplingRequest):
    """POST /v1/completions."""

    prompt: Prompts
    max_tokens: Annotated[int, int_range(0)] = 16
    echo: Flag = False
    logprobs: Annotated[int | None, int_range(0, MAX_LOGPROBS)] = None
    best_of: Annotated[Any, unsupported(1)] = None
    suffix: Annotated[Any, unsupported()] = None


class TextPart(Record):
    """A part of a message's content."""

    type: Annotated[Literal["text"], validator("text, the only type that this model reads")]
    text: Text


class Message(Record):
    """A message of a conversation. `type` is what lm-evaluation-harness adds to each."""

    role: Annotated[
        Literal["system", "developer", "user", "assistant"],
        one_of("system", "developer", "user", "assistant"),
    ]
    content: Annotated[list[TextPart], pydantic.BeforeValidator(_check_content)]
    name: Annotated[Any, unsupported()] = None
    refusal: Annotated[Any, unsupported()] = None
    audio: Annotated[Any, unsupported()] = None
    annotations: Annotated[Any, unsupported([])] = None
    tool_calls: Annotated[Any, unsupported([])] = None
    tool_call_id: Annotated[Any, unsupported()] = None
    function_call: Annotated[Any, unsupported()] = None
    type: Annotated[Any, unsupported("text")] = None


class ChatRequest(SamplingRequest):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: Annotated[int | None, int_range(1)] = None
    max_completion_tokens: Annotated[int | None, int_range(1)] = None
    logprobs: Flag = False
    top_logprobs: Annotated[int | None, int_range(0, MAX_LOGPROBS)] = None
    audio: Annotated[Any, unsupported()] = None
    function_call: Annotated[Any, unsupported("none", "auto")] = None
    functions: Annotated[Any, unsupported([])] = None
    modalities: Annotated[Any, unsupported(["text"])] = None
    moderation: Annotated[Any, unsupported()] = None
    parallel_tool_calls: Annotated[Any, unsupported(True, False)] = None
    prompt_cache_options: Annotated[Any, unsupported()] = None
    prompt_cache_retention: Annotated[Any, unsupported()] = None
    prediction: Annotated[Any, unsupported()] = None
    reasoning_effort: Annotated[Any, unsupported("none")] = None
    service_tier: Annotated[Any, unsupported("auto", "default")] = None
    store: Annotated[Any, unsupported(False)] = None
    tool_choice: Annotated[Any, unsupported("none", "auto")] = None
    tools: Annotated[Any, unsupported([])] = None
    verbosity: Annotated[Any, unsupported("medium")] = None
    web_search_options: Annotated[Any, unsupported()] = None


class ModerationRequest(Record):
    """POST /v1/moderations. A list of parts is one text."""

    model: Text = ""
    input: Annotated[
        str | list[str] | list[TextPart],
        validator(
            'a text, a list of texts, or a list of parts as {"type": "text", "text": ""}; none of '
            "the lists empty",
            lambda value: _require(value, value != []),
        ),
    ]


class EmbeddingRequest(Record):
    """POST /v1/embeddings."""

    model: Text
    input: Prompts
    encoding_format: Annotated[Literal["float", "base64"], one_of("float", "base64")] = "float"
    dimensions: Annotated[Any, unsupported()] = None
    user: Text = ""
