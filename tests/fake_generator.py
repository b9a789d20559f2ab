"""A Generator of scripted tokens, and the HTTP application in front of it, for tests."""

import contextlib
import itertools
import json
import re
import socket
import threading
from collections.abc import Callable, Iterable

import numpy as np
from starlette import testclient

from gptjax.data.tokenizers import build
from gptjax.generate import streaming
from gptjax.server import access_log, app, http_server, served_model
from gptjax.server.generation import Full, GenerationRequest, GrammarError, Piece, Stats, TokenScore

TOKENIZER = build.ByteTokenizer()
END = 256
NAME = "tiny"
Script = Callable[[GenerationRequest], Iterable[int]]


def spell(request: GenerationRequest) -> list[int]:
    """The seed in words, and the end."""
    return [*f"seed {request.sampling.seed}".encode(), END]


def logprob(token: int) -> float:
    """Of the token with that id, everywhere."""
    return -(token + 1) / 64


class FakeGenerator:
    """Writes what `script` returns, a token a piece, each generation in a thread of its own. gate:
    released once for each token, where a test decides when they come."""

    def __init__(
        self,
        script: Script = spell,
        n_ctx: int = 64,
        max_live: int = 256,
        gate: threading.Semaphore | None = None,
        error: Exception | None = None,
    ):
        self.script, self.n_ctx, self.max_live, self.gate = script, n_ctx, max_live, gate
        self.max_generations = 1000
        self.error = error
        self.requests: list[GenerationRequest] = []
        self.live: set[Running] = set()
        self.cancelled = threading.Semaphore(0)  # released for each one that was cancelled early

    def submit(self, request, on_piece, on_error):
        if len(self.live) >= self.max_live:
            raise Full
        if request.grammar is not None and request.grammar.kind == "regex":
            try:
                re.compile(request.grammar.source)
            except re.error as error:
                raise GrammarError("regex", f"no regular expression: {error}") from None
        self.requests.append(request)
        running = Running(self, request, on_piece, on_error)
        self.live.add(running)
        running.thread.start()
        return running

    def stats(self):
        return Stats(True, 8, len(self.live), 0, prompt_tokens=5, cached_tokens=2, new_tokens=7)


class Running:
    """A generation, and its Handle."""

    def __init__(self, generator: FakeGenerator, request: GenerationRequest, on_piece, on_error):
        self.generator, self.request = generator, request
        self.on_piece, self.on_error = on_piece, on_error
        self.is_cancelled = False
        self.thread = threading.Thread(target=self.run, daemon=True)

    def cancel(self):
        if self in self.generator.live and not self.is_cancelled:
            self.is_cancelled = True
            self.generator.cancelled.release()
            if self.generator.gate is not None:
                self.generator.gate.release()

    def run(self):
        try:
            for piece in self.pieces():
                if self.is_cancelled:
                    return
                if piece.finish_reason:
                    self.generator.live.discard(self)
                    return self.on_piece(piece)
                self.on_piece(piece)
        finally:
            self.generator.live.discard(self)

    def pieces(self):
        request = self.request
        text = streaming.StreamingDetokenizer(TOKENIZER, request.prompt, request.stops)
        scores = [self.score(t, i > 0) for i, t in enumerate(request.prompt)] * request.echo
        if not request.max_tokens:
            yield Piece("", tuple(scores), 0, "length")
            return
        tokens = itertools.islice(self.generator.script(request), request.max_tokens)
        for number, token in enumerate(tokens):
            if self.generator.gate is not None:
                self.generator.gate.acquire()
            if self.generator.error is not None:
                self.on_error(self.generator.error)
                return
            if request.logprobs is not None:
                scores.append(self.score(token))
            new = "" if token in request.end_ids else text.add([token])
            if text.is_stopped or token in request.end_ids:
                yield Piece(new + text.end(), tuple(scores), 1, "stop")
                return
            is_last = number + 1 == request.max_tokens
            end = text.end() if is_last else ""
            yield Piece(new + end, tuple(scores), 1, "length" if is_last else None)
            scores = []
        yield Piece(text.end(), (), 0, "length")

    def score(self, token: int, has_context: bool = True) -> TokenScore:
        if not has_context:
            return TokenScore(token, TOKENIZER.decode([token]), None)
        others = tuple((i, logprob(i)) for i in range(97, 97 + (self.request.logprobs or 0)))
        return TokenScore(token, TOKENIZER.decode([token]), logprob(token), others)


class Template:
    """A chat template: r:text| of each message, r being the first letter of its role, then a:."""

    end_ids = frozenset((END, ord("|")))

    def encode(self, messages):
        if any("refuse" in message["content"] for message in messages):
            raise ValueError("its chat template does not take this conversation: refused")
        text = "".join(f"{m['role'][0]}:{m['content']}|" for m in messages)
        return TOKENIZER.encode(f"{text}a:")


def embed(texts):
    return np.stack([np.array([len(ids), ids[0], 0.5], np.float32) for ids in texts])


def make_model(generator: FakeGenerator, **changes) -> served_model.ServedModel:
    fields = {
        "name": NAME,
        "generator": generator,
        "tokenizer": TOKENIZER,
        "chat_template": Template(),
        "digest": "0123456789abcdef",
        "created": 1_700_000_000,
        "embed": embed,
    }
    return served_model.ServedModel(**(fields | changes))


def make_client(
    generator: FakeGenerator | None = None, load=None, model=(), lines=None, **options
) -> testclient.TestClient:
    """A client in this process, which gets a 500 as a response. model: changes of it. lines: takes
    those of the access log."""
    log = (lambda line: None) if lines is None else lines.append
    application = app.make_app(
        make_model(generator or FakeGenerator(), **dict(model)),
        app.Options(log=log, **options),
        load or access_log.Load(),
    )
    return testclient.TestClient(application, "http://localhost", raise_server_exceptions=False)


def events(response) -> list:
    """What a stream of server-sent events holds; the last must be [DONE]."""
    parts = [part.removeprefix("data: ") for part in response.text.split("\n\n")]
    assert parts[-2:] == ["[DONE]", ""], parts[-2:]
    return [json.loads(part) for part in parts[:-2]]


@contextlib.contextmanager
def serve(generator: FakeGenerator, drain_s: float = 20.0, lines=None, model=(), **options):
    """Yields (port, Server) of a server in a thread, which has ended afterwards. model: changes of
    it."""
    load = access_log.Load()
    log = (lambda line: None) if lines is None else lines.append
    served = make_model(generator, **dict(model))
    application = app.make_app(served, app.Options(log=log, **options), load)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = http_server.Server(application, load, "127.0.0.1", port, drain_s)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield port, server
        finally:
            server.handle_exit(15)
            server.handle_exit(15)
            thread.join(20)
            assert not thread.is_alive()
