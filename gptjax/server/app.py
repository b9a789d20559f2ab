"""The HTTP application: OpenAI's routes on Starlette, with keys, limits and errors.

A page of another site cannot use it: no CORS header is sent, bodies must be JSON, and where no key
is needed the Host must be this machine's own name, which a name that was rebound to it is not.
"""

import asyncio
import dataclasses
import functools
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import pydantic
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from gptjax.server import (
    answer,
    api_keys,
    embeddings,
    metrics,
    moderations,
    openai_errors,
    openai_types,
    policy_filter,
    request_body,
    work,
)
from gptjax.server.access_log import CLIENT_GONE, AccessLog, Load, RequestRecord
from gptjax.server.chat_completions import ChatFormat
from gptjax.server.chat_page.chat_routes import ChatRoutes
from gptjax.server.chat_page.database import Database
from gptjax.server.completions import CompletionFormat
from gptjax.server.generation_stream import GenerationStream
from gptjax.server.openai_errors import ApiError
from gptjax.server.served_model import ServedModel

MAX_ACTIVE = 1024  # requests that are answered, or wait, at a time
READERS = 4  # threads that parse and tokenize bodies: of 8 MB, JSON may make 300 in memory
Record = TypeVar("Record", bound=openai_types.Record)
T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """keys: who may use it; None: anyone who reaches it. local_only: only by a name of this machine
    itself. time_limit_s: of a request. log: takes the lines of the access log. log_prompts: whether
    they have the prompts. policy: the filters of prompts and answers; None: none. moderation: of
    /v1/moderations; None: it answers none. chat: of the chat page; None: there is none."""

    keys: api_keys.ApiKeys | None = None
    local_only: bool = False
    time_limit_s: float = 600.0
    log: Callable[[str], None] = print
    log_prompts: bool = False
    policy: policy_filter.PolicyFilter | None = None
    moderation: moderations.ModerationModel | None = None
    chat: Database | None = None


class Routes:
    """The endpoints of a model."""

    def __init__(self, model: ServedModel, options: Options, load: Load):
        self._model, self._options, self.load = model, options, load
        self.metrics = metrics.Metrics(model.generator)
        self._computing, self._reading = anyio.CapacityLimiter(1), anyio.CapacityLimiter(READERS)
        if options.policy is not None and options.policy.has_input_models:
            self._filtering = anyio.CapacityLimiter(1)
        else:
            self._filtering = self._reading

    def table(self) -> list[Route]:
        """The routes."""
        return [
            self.route("GET", "/health", self.health, is_open=True),
            self.route("GET", "/metrics", self.show_metrics),
            self.route("GET", "/v1/models", self.list_models),
            self.route("GET", "/v1/models/{name:path}", self.show_model),
            self.route("POST", "/v1/completions", self.complete, is_work=True),
            self.route("POST", "/v1/chat/completions", self.chat, is_work=True),
            self.route("POST", "/v1/embeddings", self.embed, is_work=True),
            self.route("POST", "/v1/moderations", self.moderate, is_work=True),
        ]

    def route(
        self,
        method: str,
        path: str,
        endpoint: Endpoint,
        is_open: bool = False,
        is_work: bool = False,
    ) -> Route:
        """Returns a route. is_open: no key is needed. is_work: it counts against limits, and is
        refused while draining."""

        async def handle(request: Request) -> Response:
            record: RequestRecord = request.state.record
            record.route = path
            self._check_host(request)
            if not is_open:
                self._check_key(request, record)
            if is_work:
                self._check_load(record)
            try:
                return await endpoint(request)
            except ClientDisconnect:
                return Response(status_code=CLIENT_GONE)

        return Route(path, handle, methods=[method])

    # --- who may ----------------------------------------------------------------------------------

    def _check_host(self, request: Request) -> None:
        host = request.headers.get("host") or ""
        name = re.sub(r":\d*$", "", host).strip("[]").rstrip(".").lower()
        if self._options.local_only and not api_keys.is_loopback(name):
            raise ApiError(
                403,
                f"Host is {host[:100]!r}: this server answers on localhost only; start it with "
                "--api_keys to serve others",
            )

    def _check_key(self, request: Request, record: RequestRecord) -> None:
        if self._options.keys is None:
            return
        kind, _, secret = (request.headers.get("authorization") or "").partition(" ")
        if kind.lower() == "bearer" and secret.strip():
            record.key = self._options.keys.find(secret.strip())
            message = "Incorrect API key provided"
        else:
            message = "You didn't provide an API key: send it as Authorization: Bearer KEY"
        if record.key is None:
            headers = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, message, None, "invalid_api_key", headers)

    def _check_load(self, record: RequestRecord) -> None:
        if self.load.is_draining:
            raise openai_errors.shutting_down()
        if self.load.n_active > MAX_ACTIVE:
            raise openai_errors.unavailable(
                "this server has more requests than it can hold: try again later", "overloaded", 1
            )
        if record.key is not None:
            wait_s, limit = record.key.wait_s()
            if wait_s:
                raise openai_errors.too_many(
                    f"Rate limit reached for {limit} per minute of this key: try again in {wait_s} "
                    "s",
                    wait_s,
                )
            record.key.take("requests")

    # --- endpoints --------------------------------------------------------------------------------

    async def health(self, request: Request) -> Response:
        """Whether new requests are taken: 200, or 503 while draining and after an error of the
        device."""
        if self.load.is_draining or not self._model.generator.stats().is_running:
            raise openai_errors.shutting_down()
        return answer.json_response({"status": "ok"})

    async def show_metrics(self, request: Request) -> Response:
        """Prometheus' metrics."""
        return Response(self.metrics.render(), media_type=metrics.CONTENT_TYPE)

    async def list_models(self, request: Request) -> Response:
        """The one model."""
        return answer.json_response({"object": "list", "data": [self._describe_model()]})

    async def show_model(self, request: Request) -> Response:
        """The model of a name."""
        self._model.check_name(request.path_params["name"])
        return answer.json_response(self._describe_model())

    def _describe_model(self) -> dict[str, Any]:
        return {
            "id": self._model.name,
            "object": "model",
            "created": self._model.created,
            "owned_by": "gptjax",
            "max_model_len": self._model.generator.n_ctx,
        }

    async def complete(self, request: Request) -> Response:
        """Continues prompts."""
        return await self._generate(request, openai_types.CompletionRequest, CompletionFormat)

    async def chat(self, request: Request) -> Response:
        """Answers a conversation."""
        return await self._generate(request, openai_types.ChatRequest, ChatFormat)

    async def _generate(self, request: Request, kind: Any, make_format: Any) -> Response:
        deadline = asyncio.get_running_loop().time() + self._options.time_limit_s
        record, policy = request.state.record, self._options.policy

        def read(content: bytes) -> tuple[Any, Any, Any]:
            body = self._parse(kind, content)
            if body.stream_options is not None and not body.stream:
                raise openai_errors.invalid(
                    "stream_options is given without stream: give stream=true too", "stream_options"
                )
            form, filters = policy_filter.filter_form(
                policy, body, functools.partial(make_format, self._model), record.id
            )
            return body, form, filters

        content = await request_body.read(request)
        body, form, filters = await self._run(request, self._filtering, read, content)
        self._count(record, form.n_prompt, form.prompt_texts)
        stream = GenerationStream(
            self._model.generator,
            form.requests,
            record,
            self.metrics,
            deadline,
            self._options.time_limit_s,
            filters,
        )
        return await answer.respond(request, body, form, stream)

    async def embed(self, request: Request) -> Response:
        """Embeds texts."""
        embed = self._model.embed
        if embed is None:
            raise ApiError(404, f"{self._model.name} has no embeddings here", "model")

        def read(content: bytes) -> tuple[openai_types.EmbeddingRequest, list[tuple[int, ...]]]:
            body = self._parse(openai_types.EmbeddingRequest, content)
            texts = embeddings.read_request(self._model, body)
            if self._options.policy is None:
                return body, texts
            body = self._options.policy.filter_request(body, request.state.record.id)
            return body, embeddings.read_request(self._model, body)

        content = await request_body.read(request)
        body, texts = await self._run(request, self._filtering, read, content)
        n_tokens = sum(map(len, texts))
        decode = self._model.tokenizer.decode
        self._count(request.state.record, n_tokens, lambda: [decode(ids) for ids in texts])
        vectors = await self._run(request, self._computing, embed, texts)
        return answer.json_response(
            embeddings.format_response(self._model, body, n_tokens, vectors)
        )

    async def moderate(self, request: Request) -> Response:
        """Scores texts, which no log has."""
        model = self._options.moderation
        if model is None:
            raise ApiError(
                404,
                "this server moderates no texts: start it with --moderation_model=DIR:LABEL, a run "
                "of python -m gptjax.finetune and its label of what is harmful",
            )

        def read(content: bytes) -> tuple[list[str], int]:
            return moderations.read_request(
                model, self._validate(openai_types.ModerationRequest, content)
            )

        content = await request_body.read(request)
        texts, n_tokens = await self._run(request, self._reading, read, content)
        self._count(request.state.record, n_tokens)
        scores = await self._run(request, self._computing, model.scorer, texts)
        return answer.json_response(moderations.format_response(model, scores))

    async def _run(
        self, request: Request, limiter: anyio.CapacityLimiter, function: Callable[[Any], T], x: Any
    ) -> T:
        return await work.run(request, limiter, self._options.time_limit_s, function, x)

    def _parse(self, kind: type[Record], content: bytes) -> Record:
        body = self._validate(kind, content)
        self._model.check_name(body.model)  # type: ignore[attr-defined]
        return body

    def _validate(self, kind: type[Record], content: bytes) -> Record:
        try:
            return kind.model_validate(request_body.parse_object(content))
        except pydantic.ValidationError as error:
            raise openai_errors.from_validation(error) from None

    def _count(
        self, record: RequestRecord, n_prompt: int, texts: Callable[[], list[str]] = list
    ) -> None:
        record.prompt_tokens = n_prompt
        if record.key is not None:
            record.key.take("tokens", n_prompt)
        if self._options.log_prompts:
            record.prompts = texts()


async def _handle_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _handle_http_error(request: Request, error: Exception) -> Response:
    """Of Starlette's router: no such route, or not by that method."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"][:200]
    if error.status_code == 404:
        return ApiError(404, f"Unknown request URL: {path}", None, "unknown_url").response()
    message = f"Not allowed to {request.method[:20]} on {path}"
    code = "method_not_supported" if error.status_code == 405 else None
    return ApiError(error.status_code, message, None, code, error.headers).response()


async def _handle_bug(request: Request, error: Exception) -> Response:
    """Of anything else: Starlette raises it again, so that its trace is in the server's log."""
    return openai_errors.server_error().response()


def make_app(model: ServedModel, options: Options, load: Load) -> ASGIApp:
    """Returns the application of a model. load: is kept up to date, for draining."""
    routes = Routes(model, options, load)
    table = routes.table()
    if options.chat is not None:
        chat = ChatRoutes(
            model,
            options.chat,
            routes.metrics,
            options.time_limit_s,
            options.log_prompts,
            options.policy,
        )
        table += chat.table(routes.route)
    app = Starlette(
        routes=table,
        exception_handlers={
            ApiError: _handle_api_error,
            HTTPException: _handle_http_error,
            Exception: _handle_bug,
        },
    )
    app.router.redirect_slashes = False
    return AccessLog(app, write=options.log, metrics=routes.metrics, load=load)
