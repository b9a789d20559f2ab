"""Errors as OpenAI's API gives them: a status, and {"error": {message, type, param, code}}.

Statuses, types and codes follow platform.openai.com/docs/guides/error-codes and what the client
`openai` makes of a status (its _exceptions.py)."""

import json
from collections.abc import Mapping
from typing import Any

import pydantic
from starlette.responses import Response

from gptjax.config import parse
from gptjax.runtime import errors

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}  # status -> type; every other one is invalid_request_error
MAX_PARAM_CHARS = 100


class ApiError(Exception):
    """A request that is answered with an error.

    status: of HTTP. message: one line. param: the field of the body that is wrong, as
    "messages[0].role". code: for programs, as "model_not_found". headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON of the error."""
        kind = TYPES[self.status] if self.status in TYPES else "invalid_request_error"
        message = errors.one_line(self.message)
        error = {"message": message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> Response:
        """The response that carries it."""
        return Response(
            json.dumps(self.body()), self.status, self.headers, media_type="application/json"
        )


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that is wrong in itself: status 400."""
    return ApiError(400, message, param, code)


def too_many(message: str, wait_s: int) -> ApiError:
    """A client over its limit: status 429. wait_s: seconds until it may try again."""
    return ApiError(429, message, None, "rate_limit_exceeded", {"Retry-After": str(wait_s)})


def unavailable(message: str, code: str, wait_s: int) -> ApiError:
    """A server that cannot take the request now: status 503."""
    return ApiError(503, message, None, code, {"Retry-After": str(wait_s)})


def shutting_down() -> ApiError:
    """A server that ends: status 503."""
    return unavailable("this server is shutting down", "shutting_down", 5)


def timed_out(limit_s: float) -> ApiError:
    """A request that took too long: status 503. The client `openai` tries it again unless a header
    forbids it, and it would take as long again."""
    return ApiError(
        503,
        f"the answer took longer than {limit_s:g} seconds, this server's limit: ask for fewer "
        "tokens",
        None,
        "timeout",
        {"x-should-retry": "false"},
    )


def server_error() -> ApiError:
    """A bug, or a device that failed: status 500. What it was is for the log."""
    return ApiError(500, "the server had an error while answering; its log has more")


def from_validation(error: pydantic.ValidationError) -> ApiError:
    """The first error that pydantic found, as one line of what was given and what is allowed."""
    first = error.errors(include_url=False)[0]
    param = param_name(first["loc"])
    match first["type"]:
        case "missing":
            return invalid(f"{param} is missing: give it", param, "missing_required_parameter")
        case "extra_forbidden":
            return invalid(
                f"Unrecognized request argument supplied: {param}", param, "unknown_parameter"
            )
        case "not_supported":
            return invalid(
                f"{param} is {_quote(first['input'])}, which this server does not support: "
                "leave it out",
                param,
                "unsupported_parameter",
            )
        case "model_type" | "model_attributes_type" | "dict_type":
            allowed = "an object"
        case "list_type":
            allowed = "a list"
        case "too_short":
            allowed = "at least one"
        case _:
            allowed = first["msg"]
    return invalid(f"{param} is {_quote(first['input'])}: give {allowed}", param)


def _quote(value: Any) -> str:
    """A value as JSON writes it, in one line of at most 60 characters."""
    if not isinstance(value, bool | list | dict | None):
        return parse.quote(value)
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def param_name(location: tuple[int | str, ...]) -> str:
    """A place in a body as OpenAI writes it: messages[0].role."""
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return parse.one_line(name.removeprefix("."), MAX_PARAM_CHARS) or "body"
