"""The routes of the chat page: the page at /, and what it calls under /chat/.

Who may: a session cookie (HttpOnly, SameSite=Strict) by log-in; a request that changes anything
needs the session's token in X-CSRF-Token too, and must come from this site's own pages.
"""

import asyncio
import functools
import json
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import pydantic
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gptjax.server import answer, openai_errors, request_body, work
from gptjax.server.chat_completions import ChatFormat
from gptjax.server.chat_page import answers, attention, page, page_types, sessions, uploads
from gptjax.server.chat_page.accounts import Accounts, User
from gptjax.server.chat_page.conversations import Conversations, NotFound, Turn
from gptjax.server.chat_page.database import Database
from gptjax.server.chat_page.login_limits import LoginLimits
from gptjax.server.generation_stream import GenerationStream
from gptjax.server.metrics import Metrics
from gptjax.server.openai_errors import ApiError
from gptjax.server.openai_types import Record
from gptjax.server.policy_filter import AnswerFilter, PolicyFilter, filter_form
from gptjax.server.served_model import ServedModel

T = TypeVar("T")
Body = TypeVar("Body", bound=Record)
Endpoint = Callable[[Request], Awaitable[Response]]
HASHERS = 2  # passwords that are checked at a time: each takes 64 MiB
READERS = 2  # conversations and files that are read and tokenized at a time
CONVERSATION = "/chat/conversations/{id}"


class ChatRoutes:
    """The endpoints for one model and one database."""

    def __init__(
        self,
        model: ServedModel,
        database: Database,
        metrics: Metrics,
        time_limit_s: float,
        log_prompts: bool,
        policy: PolicyFilter | None = None,
    ):
        self._model, self._metrics = model, metrics
        self._time_limit_s, self._log_prompts = time_limit_s, log_prompts
        self._policy = policy
        self._has_token_view = policy is None or not policy.hides_output
        self._secret, self._accounts = database.secret, Accounts(database)
        self._conversations, self._running = Conversations(database), answers.RunningAnswers()
        self._limits = LoginLimits()
        self._hashing = anyio.CapacityLimiter(HASHERS)
        self._reading = anyio.CapacityLimiter(READERS)
        self._attending = anyio.CapacityLimiter(1)
        self._page, self._page_headers = page.load()

    def table(self, route: Callable[..., Route]) -> list[Route]:
        """The routes. route: makes one: app.Routes.route."""

        def private(method: str, path: str, endpoint: Endpoint, is_work: bool = False) -> Route:
            return route(method, path, self._guard(endpoint), is_open=True, is_work=is_work)

        return [
            route("GET", "/", self.show_page, is_open=True),
            route("POST", "/chat/login", self.log_in, is_open=True),
            private("POST", "/chat/logout", self.log_out),
            private("GET", "/chat/session", self.show_session),
            private("POST", "/chat/settings", self.save_settings),
            private("GET", "/chat/conversations", self.list_conversations),
            private("POST", "/chat/conversations", self.create_conversation),
            private("GET", CONVERSATION, self.show_conversation),
            private("DELETE", CONVERSATION, self.delete_conversation),
            private("POST", f"{CONVERSATION}/answer", self.write_answer, is_work=True),
            private("POST", f"{CONVERSATION}/stop", self.stop_answer),
            private("POST", f"{CONVERSATION}/attention", self.show_attention, is_work=True),
            private("POST", "/chat/files", self.read_file),
            private("GET", "/chat/export", self.export),
            private("DELETE", "/chat/data", self.delete_data),
        ]

    def _guard(self, endpoint: Endpoint) -> Endpoint:
        async def handle(request: Request) -> Response:
            try:
                request.state.user = await self._find_user(request)
                request.state.record.user = request.state.user.name
                response = await endpoint(request)
            except NotFound:
                raise ApiError(404, "there is no such conversation of yours", "id") from None
            except sqlite3.OperationalError as error:
                raise _cannot_store(error) from None
            response.headers.setdefault("Cache-Control", "no-store")
            return response

        return handle

    # --- who --------------------------------------------------------------------------------------

    async def _find_user(self, request: Request) -> User:
        cookie = request.cookies[sessions.COOKIE] if sessions.COOKIE in request.cookies else ""
        claims = sessions.read_cookie(self._secret, cookie)
        user = await _in_thread(self._accounts.find, *claims) if claims else None
        if user is None:
            raise ApiError(401, "you are not logged in: log in", None, "no_session")
        if request.method not in ("GET", "HEAD"):
            _check_origin(request)
            token = request.headers.get("x-csrf-token") or ""
            if not sessions.is_csrf_token(self._secret, cookie, token):
                raise ApiError(
                    403, "X-CSRF-Token is not that of your session: load the page anew", None
                )
        return user

    async def log_in(self, request: Request) -> Response:
        """Begins a session: {name, password}."""
        _check_origin(request)
        body = _parse(page_types.Login, await request_body.read(request))
        address = request.client.host if request.client else ""
        wait_s = self._limits.take(body.name[:100], address)
        if wait_s:
            raise openai_errors.too_many(f"too many tries to log in: wait {wait_s} s", wait_s)
        try:
            user = await anyio.to_thread.run_sync(
                self._accounts.verify, body.name, body.password, limiter=self._hashing
            )
        except sqlite3.OperationalError as error:
            raise _cannot_store(error) from None
        if user is None:
            raise ApiError(401, "name or password is wrong", None, "wrong_password")
        request.state.record.user = user.name
        response = answer.json_response({"name": user.name})
        response.headers["Cache-Control"] = "no-store"
        _set_cookie(request, response, sessions.make_cookie(self._secret, user))
        return response

    async def log_out(self, request: Request) -> Response:
        """Ends all sessions of the user, in other browsers too."""
        await _in_thread(self._accounts.end_sessions, request.state.user)
        response = answer.json_response({})
        response.delete_cookie(sessions.COOKIE)
        return response

    # --- page and settings ------------------------------------------------------------------------

    async def show_page(self, request: Request) -> Response:
        """The HTML, the same for everyone."""
        return Response(self._page, headers=self._page_headers, media_type="text/html")

    async def show_session(self, request: Request) -> Response:
        """What the page begins with."""
        user: User = request.state.user
        settings = await _in_thread(self._settings, user)
        maps = self._model.attention
        model = {
            "id": self._model.name,
            "max_model_len": self._model.generator.n_ctx,
            "attention": maps and {"n_layers": maps.n_layers, "n_heads": maps.n_heads},
            "token_view": self._has_token_view,
        }
        return answer.json_response(
            {
                "name": user.name,
                "csrf": sessions.csrf_token(self._secret, request.cookies[sessions.COOKIE]),
                "settings": settings.model_dump(),
                "models": [model],
            }
        )

    async def save_settings(self, request: Request) -> Response:
        """Stores the user's settings, all of them."""
        settings = _parse(page_types.Settings, await request_body.read(request))
        await _in_thread(self._accounts.save_settings, request.state.user, settings.model_dump())
        return answer.json_response(settings.model_dump())

    def _settings(self, user: User) -> page_types.Settings:
        return page_types.Settings.model_validate(self._accounts.settings(user))

    # --- conversations ----------------------------------------------------------------------------

    async def list_conversations(self, request: Request) -> Response:
        """The user's conversations, without messages."""
        found = await _in_thread(self._conversations.list_all, request.state.user.id)
        return answer.json_response({"conversations": found})

    async def create_conversation(self, request: Request) -> Response:
        """An empty one."""
        await request_body.read(request)
        conversation = await _in_thread(self._conversations.create, request.state.user.id)
        return answer.json_response({"id": conversation})

    async def show_conversation(self, request: Request) -> Response:
        """Its messages."""
        where = request.state.user.id, request.path_params["id"]
        messages = await _in_thread(self._conversations.read, *where)
        return answer.json_response({"messages": [vars(message) for message in messages]})

    async def delete_conversation(self, request: Request) -> Response:
        """Deletes it; an answer that is being written ends."""
        where = request.state.user.id, request.path_params["id"]
        self._running.stop(*where)
        await _in_thread(self._conversations.delete, *where)
        return answer.json_response({})

    async def write_answer(self, request: Request) -> Response:
        """Answers a message, as a stream of OpenAI's events after one with ids of messages."""
        deadline = asyncio.get_running_loop().time() + self._time_limit_s
        user, conversation = request.state.user, request.path_params["id"]
        content = await request_body.read(request)
        self._running.reserve(user.id, conversation)
        stream = None
        try:
            request_id = request.state.record.id
            turn, form, filters = await self._run(
                request, self._reading, self._read_turn, user, conversation, content, request_id
            )
            self._note(request, form)
            stream = GenerationStream(
                self._model.generator,
                form.requests,
                request.state.record,
                self._metrics,
                deadline,
                self._time_limit_s,
                filters,
            )
            await answer.until_disconnect(request, stream.submit())
            user_message, message = await _in_thread(
                self._conversations.begin_turn, user.id, conversation, turn
            )
        except BaseException:
            if stream is not None:
                stream.cancel()
            self._running.release(user.id, conversation)
            raise
        stored = answers.StoredAnswer(stream, form, self._conversations, message)
        self._running.start(user.id, conversation, stored)
        ids = {"user_message": user_message, "answer": message}
        return answers.AnswerStream(
            form, stream, stored, ids, lambda: self._running.release(user.id, conversation)
        )

    def _read_turn(
        self, user: User, conversation: str, content: bytes, request_id: str
    ) -> tuple[Turn, ChatFormat, list[AnswerFilter] | None]:
        messages = self._conversations.read(user.id, conversation)
        body = _parse(page_types.AnswerRequest, content)
        self._model.check_name(body.model)
        kept, turn = answers.plan_turn(messages, body)
        settings = self._settings(user)
        # Stored where a server has no policy, it is no reason to refuse all messages here.
        changes = {"token_view": settings.token_view and self._has_token_view}
        chat = answers.make_request(kept, turn, settings.model_copy(update=changes), body.model)
        make_form = functools.partial(ChatFormat, self._model)
        return turn, *filter_form(self._policy, chat, make_form, request_id)

    def _note(self, request: Request, form: ChatFormat) -> None:
        request.state.record.prompt_tokens = form.n_prompt
        if self._log_prompts:
            request.state.record.prompts = form.prompt_texts()

    async def stop_answer(self, request: Request) -> Response:
        """Ends the answer that is being written, if there is one; its stream ends in order."""
        await request_body.read(request)
        where = request.state.user.id, request.path_params["id"]
        self._running.stop(*where)  # the user's own alone, before anything that may take long
        await _in_thread(self._conversations.check_owner, *where)
        return answer.json_response({})

    async def show_attention(self, request: Request) -> Response:
        """The attention weights of a layer over an answer and what stands before it."""
        user, conversation = request.state.user, request.path_params["id"]
        content = await request_body.read(request)
        request_id = request.state.record.id
        body, form, ids = await self._run(
            request, self._reading, self._read_attention, user, conversation, content, request_id
        )
        self._note(request, form)
        found = await self._run(request, self._attending, attention.compute, self._model, ids, body)
        return answer.json_response(found)

    async def _run(self, request: Request, limiter: Any, function: Callable[..., T], *args) -> T:
        return await work.run(request, limiter, self._time_limit_s, function, *args)

    def _read_attention(
        self, user: User, conversation: str, content: bytes, request_id: str
    ) -> tuple[page_types.AttentionRequest, ChatFormat, list[int]]:
        messages = self._conversations.read(user.id, conversation)
        body = _parse(page_types.AttentionRequest, content)
        attention.check_request(self._model, body)
        written, chat = attention.find_answer(
            messages, body.message, self._settings(user), self._model.name
        )
        make_form = functools.partial(ChatFormat, self._model)
        form, _ = filter_form(self._policy, chat, make_form, request_id)
        return body, form, attention.join(self._model, form, written)

    # --- files and data ---------------------------------------------------------------------------

    async def read_file(self, request: Request) -> Response:
        """The text of a file, which is not stored: ?name=NAME, and its bytes."""
        name = uploads.clean_name(request.query_params.get("name") or "")
        content = await request_body.read(
            request, "application/octet-stream", uploads.MAX_FILE_BYTES
        )
        text, n_tokens = await anyio.to_thread.run_sync(
            self._read_text, name, content, limiter=self._reading
        )
        return answer.json_response({"name": name, "text": text, "n_tokens": n_tokens})

    def _read_text(self, name: str, content: bytes) -> tuple[str, int]:
        text = uploads.read_text(name, content)
        n_tokens, n_ctx = len(self._model.tokenizer.encode(text)), self._model.generator.n_ctx
        if n_tokens >= n_ctx:
            raise openai_errors.invalid(
                f"{name} has {n_tokens:,} tokens, and the model's context {n_ctx:,}: give a "
                "shorter file; it is never cut",
                "file",
                "context_length_exceeded",
            )
        return text, n_tokens

    async def export(self, request: Request) -> Response:
        """All that is stored of the user, but the password's hash."""
        user: User = request.state.user
        settings = await _in_thread(self._settings, user)
        found = await _in_thread(self._conversations.export, user.id)
        whole = {"name": user.name, "settings": settings.model_dump(), "conversations": found}
        headers = {"Content-Disposition": 'attachment; filename="conversations.json"'}
        return Response(json.dumps(whole, indent=1), headers=headers, media_type="application/json")

    async def delete_data(self, request: Request) -> Response:
        """Deletes all conversations and the settings; the account stays."""
        self._running.stop(request.state.user.id)
        await _in_thread(self._conversations.delete_all, request.state.user.id)
        return answer.json_response({})


async def _in_thread(function: Callable[..., T], *args: Any) -> T:
    return await anyio.to_thread.run_sync(function, *args)


def _parse(kind: type[Body], content: bytes) -> Body:
    try:
        return kind.model_validate(request_body.parse_object(content))
    except pydantic.ValidationError as error:
        raise openai_errors.from_validation(error) from None


def _check_origin(request: Request) -> None:
    """Browsers give with every POST and DELETE whose page sent it."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise ApiError(
            403, f"Origin is {origin[:100]!r}, another site than Host: use this server's own page"
        )


def _set_cookie(request: Request, response: Response, cookie: str) -> None:
    response.set_cookie(
        sessions.COOKIE,
        cookie,
        max_age=sessions.LIFETIME_S,
        httponly=True,
        samesite="strict",
        # This server itself has no TLS; a browser that came through a proxy's TLS says so here.
        secure=(request.headers.get("origin") or "").startswith("https://"),
    )


def _cannot_store(error: sqlite3.OperationalError) -> ApiError:
    return openai_errors.unavailable(
        f"conversations cannot be read or stored now ({error}): try again later", "storage", 5
    )
