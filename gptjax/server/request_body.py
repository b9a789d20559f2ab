"""The body of a request: read up to a limit, and parsed as JSON without what JSON lacks or leaves
open."""

import asyncio
import json
from typing import Any

from starlette.requests import Request

from gptjax.config import parse
from gptjax.data import unicode
from gptjax.server.openai_errors import ApiError, invalid, param_name, unavailable

MAX_BODY_BYTES = 8 << 20
MAX_BYTES = 256 << 20  # of the bodies of all requests that are being answered
MAX_BODY_S = 60.0  # seconds in which a body must have come
MAX_DEPTH = 64  # objects and lists within each other


async def read(
    request: Request, allowed: str = "application/json", max_bytes: int = MAX_BODY_BYTES
) -> bytes:
    """Returns the body. Raises ApiError, before it is read to its end, for one of another type than
    `allowed` (415), that is too long (413), does not come (408) or is one too many (503)."""
    kind = _header(request, "content-type").partition(";")[0].strip().lower()
    if kind != allowed:
        # A page of any site may post forms and plain text here: a browser asks first for others.
        raise ApiError(415, f"Content-Type is {parse.quote(kind)}: give {allowed}", "Content-Type")
    encoding = _header(request, "content-encoding").strip().lower()
    if encoding not in ("", "identity"):
        raise ApiError(
            415,
            f"Content-Encoding is {parse.quote(encoding)}: give the body uncompressed",
            "Content-Encoding",
        )
    length = _header(request, "content-length")
    if length.isdigit() and int(length[:20]) > max_bytes:
        raise _too_long(max_bytes)
    body, record, load = bytearray(), request.state.record, request.state.load
    try:
        async with asyncio.timeout(MAX_BODY_S):
            async for chunk in request.stream():
                body += chunk
                record.body_bytes += len(chunk)
                load.body_bytes += len(chunk)
                if len(body) > max_bytes:
                    raise _too_long(max_bytes)
                if load.body_bytes > MAX_BYTES:
                    raise unavailable(
                        "this server is sent more than it can hold: try again later",
                        "overloaded",
                        1,
                    )
    except TimeoutError:
        raise ApiError(
            408, f"the body had not come after {MAX_BODY_S:g} seconds: send it again", "body"
        ) from None
    return bytes(body)


def _header(request: Request, name: str) -> str:
    return request.headers[name] if name in request.headers else ""


def _too_long(max_bytes: int) -> ApiError:
    return ApiError(
        413, f"the body is longer than {max_bytes:,} bytes: send less in one request", "body"
    )


def parse_object(content: bytes) -> dict[str, Any]:
    """Parses a JSON object. Raises ApiError for anything else, for NaN and Infinity, for a name
    that an object has twice, and for values nested deeper than MAX_DEPTH."""
    try:
        value = json.loads(
            parse.utf8(content, "the body"),
            object_pairs_hook=_check_names,
            parse_constant=_refuse_constant,
        )
        _check_depth(value)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno:,} column {error.colno:,}"
        raise invalid(f"the body is not JSON: {error.msg} at {where}", "body") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        digits = "Exceeds the limit" in str(error)  # of Python, for the digits of an integer
        message = "the body holds an integer of too many digits" if digits else str(error)
        raise invalid(message, "body") from None
    if not isinstance(value, dict):
        raise invalid(
            f"the body is {parse.quote(value)}: give an object with a name for each value", "body"
        )
    return value


def _check_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    for name in result:
        if unicode.replace_surrogates(name) != name:
            raise invalid(
                f"the name {parse.quote(name)} has half of a surrogate pair, which is no character",
                param_name((name,)),
            )
    if len(result) < len(pairs):
        seen: set[str] = set()
        name = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise invalid(
            f"the name {parse.quote(name)} stands twice in one object", param_name((name,))
        )
    return result


def _refuse_constant(name: str) -> None:
    raise invalid(f"the body holds {name}, which is no JSON: give a number", "body")


def _check_depth(value: Any) -> None:
    level, depth = [value] * isinstance(value, dict | list), 0
    while level:
        if depth > MAX_DEPTH:
            raise _too_deep()
        depth += 1
        children = (x.values() if isinstance(x, dict) else x for x in level)
        level = [x for values in children for x in values if isinstance(x, dict | list)]


def _too_deep() -> ApiError:
    return invalid(
        f"the body has more than {MAX_DEPTH} objects and lists within each other", "body"
    )
