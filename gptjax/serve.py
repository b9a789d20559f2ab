"""Serve a model over OpenAI's HTTP API: `python -m gptjax.serve --model=DIR`. Requests are batched
as they come, and an answer does not depend on the others.
"""

import argparse
import contextlib
import getpass
import io
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gptjax import cli, sample
from gptjax.config import parse
from gptjax.config.safety import Policy
from gptjax.configs import registry
from gptjax.server import api_keys

EXAMPLE = """python -m gptjax.serve --model=runs/nano --port=8000
  python -m gptjax.serve --model=runs/nano --moderation_model=runs/refusal:harmful"""

BACKLOG = 1024  # connections that wait to be accepted


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the program's arguments."""
    parser = cli.make_parser(
        "serve",
        "Answer /v1/completions, /v1/chat/completions and /v1/embeddings as OpenAI's API does, "
        "with the newest checkpoint of a run, or weights of others, and /v1/moderations with a "
        "classifier. /health and /metrics are for "
        "who runs it, and with --users there is a chat page at /. SIGTERM or Ctrl-C ends it when "
        "the answers that run are given.",
        EXAMPLE,
    )
    sample.add_model_flags(parser, is_required=False)
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        type=parse.line_argument,
        default="127.0.0.1",
        help="the address to listen on (default: 127.0.0.1, this machine alone)",
    )
    parser.add_argument(
        "--port",
        type=parse.int_argument(0, 65535),
        default=8000,
        help="the port; 0 is any that is free (default: 8000)",
    )
    parser.add_argument(
        "--api_keys",
        metavar="FILE",
        type=parse.path_argument,
        help="who may use it: lines of NAME KEY [requests=N] [tokens=N], the limits a minute",
    )
    parser.add_argument(
        "--allow_unauthenticated",
        action="store_true",
        help="serve anyone who reaches --host, without keys",
    )
    parser.add_argument(
        "--users",
        metavar="FILE",
        type=parse.path_argument,
        help="serve a chat page at / to the accounts of this file, which has their conversations",
    )
    parser.add_argument(
        "--add_user",
        metavar="NAME",
        type=parse.line_argument,
        help="add an account to --users, or give it a new password, which is read from the "
        "terminal or, if there is none, from the first line of standard input; then end",
    )
    parser.add_argument("--served_model_name", metavar="NAME", help="what requests call the model")
    add_engine_flags(parser)
    parser.add_argument(
        "--time_limit",
        metavar="SECONDS",
        type=parse.float_argument(0, 1e6, above=True),
        default=600.0,
        help="the longest that a request may take (default: 600)",
    )
    parser.add_argument(
        "--drain",
        metavar="SECONDS",
        type=parse.float_argument(0, 1e6),
        default=60.0,
        help="how long answers that run may take to end after SIGTERM (default: 60)",
    )
    parser.add_argument(
        "--log_prompts", action="store_true", help="write prompts into the access log"
    )
    add_policy_flags(parser)
    return parser


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of how generations are batched."""
    parser.add_argument(
        "--slots",
        type=parse.int_argument(1, 4096),
        default=8,
        help="how many answers are generated at once (default: 8)",
    )
    parser.add_argument(
        "--context",
        type=parse.int_argument(1),
        help="the most tokens of a prompt and its answer (default: the model's context)",
    )
    parser.add_argument(
        "--max_queue",
        type=parse.int_argument(1, 1_000_000),
        default=256,
        help="how many answers may wait for a slot; beyond that, requests get 503 (default: 256)",
    )


def add_policy_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of what is filtered."""
    cli.add_policy_flag(parser)
    parser.add_argument(
        "--intervention_log",
        metavar="FILE",
        type=parse.path_argument,
        help="what the policy found, a line of JSON each, added to the file: the request's id, the "
        "kind and what was done, never the text",
    )
    parser.add_argument(
        "--moderation_model",
        metavar="DIR:LABEL,...",
        type=parse.line_argument,
        help="answer /v1/moderations by this run of gptjax.finetune; LABEL: its labels of what is "
        "harmful",
    )


def main(arguments: list[str]) -> None:
    """Runs the program."""
    args = make_parser().parse_args(arguments)
    if args.add_user is not None:
        return add_user(args.users, args.add_user)
    if args.model is None:
        raise ValueError("there is nothing to serve: give --model=DIR")
    check_args(args)
    keys = None if args.api_keys is None else api_keys.load(args.api_keys)
    policy = registry.policy(args.policy)
    check_policy(args, policy)
    with (  # all raise before the model is read
        bind(args.host, args.port) as listener,
        open_users(args.users) as users,
        line_writer(args.intervention_log) as write,
    ):
        from gptjax.report import console
        from gptjax.server import (
            app,  # noqa: F401  a package that is missing is noticed before the model is read
            batcher,
        )

        out = console.Console(quiet=False, vital=True)
        filters, moderation = open_classifiers(policy, args.moderation_model, write, out.warn)
        loaded = sample.load_model(args.model, args.assignments, out)
        engine = batcher.Batcher(
            loaded.inference_model, loaded.tokenizer, args.slots, args.context, args.max_queue
        )
        try:
            out.print(f"{loaded.config.name}, {loaded.description}", "bold")
            server = served_model(args, loaded, engine)
            run(args, server, keys, users, filters, moderation, listener, out)
        finally:
            engine.close()


def check_args(args: argparse.Namespace) -> None:
    """Raises ValueError for a server that anyone could use though no flag allows it."""
    if args.api_keys is not None and args.allow_unauthenticated:
        raise ValueError("--api_keys and --allow_unauthenticated exclude each other: give one")
    if not (api_keys.is_loopback(args.host) or args.api_keys or args.allow_unauthenticated):
        raise ValueError(
            f"--host={args.host} lets others than this machine in: give --api_keys=FILE, or "
            "--allow_unauthenticated if anyone may use the model"
        )


def has_filters(policy: Policy) -> bool:
    """Whether a policy searches for anything."""
    return bool(policy.input or policy.output or policy.classifiers)


def check_policy(args: argparse.Namespace, policy: Policy) -> None:
    """Raises ValueError for a policy that records what is written nowhere, or the reverse."""
    parts = (*policy.input, *policy.output, *policy.classifiers)
    records = any(part.action == "log" for part in parts)
    if records and args.intervention_log is None:
        raise ValueError(
            f"--policy={args.policy} only records what it finds: give --intervention_log=FILE"
        )
    if args.intervention_log is not None and not has_filters(policy):
        raise ValueError(
            f"--intervention_log: --policy={args.policy} searches for nothing: give a policy with "
            "filters, such as mask"
        )


def open_classifiers(
    policy: Policy, moderation_model: str | None, write: Callable[[str], None], warn: Any
) -> tuple[Any, Any]:
    """Returns (the filters, the moderation): see open_filters and open_moderation. A run that both
    use is read once. warn: prints a line."""
    from gptjax.server import work
    from gptjax.training.classification import text_classifier

    load, load_words = text_classifier.make_loaders(warn, work.check_canceled)
    filters = open_filters(policy, write, load, load_words)
    return filters, open_moderation(moderation_model, load)


def open_filters(policy: Policy, write: Callable[[str], None], load: Any, load_words: Any) -> Any:
    """Returns the server.policy_filter.PolicyFilter of a policy; None if it searches for nothing.
    load: from a run's path to its text_classifier.TextClassifier. load_words: as of
    safety.stream_filter.rules. Raises ValueError for a classifier that cannot be had."""
    from gptjax.safety import prompt_classifier
    from gptjax.server import policy_filter

    if not has_filters(policy):
        return None
    classifiers = prompt_classifier.load_all(policy, load)
    return policy_filter.PolicyFilter(policy, write, classifiers, load_words)


def open_moderation(flag: str | None, load: Any) -> Any:
    """Returns the server.moderations.ModerationModel of --moderation_model; None without that flag.
    load: as of open_filters. Raises ValueError for a run or a label that is not there."""
    from gptjax.safety import prompt_classifier
    from gptjax.server import moderations

    if flag is None:
        return None
    path, _, names = flag.rpartition(":")
    labels = tuple(name.strip() for name in names.split(","))
    if not path or not all(labels) or names.startswith("//"):
        raise ValueError(
            f"--moderation_model={flag} names no label: give DIR:LABEL, or several with commas, "
            "the labels of what is harmful"
        )
    classifier = load(path)
    prompt_classifier.check_labels(labels, classifier.labels, path)
    return moderations.ModerationModel(classifier.name, classifier, labels, classifier.tokenize)


@contextlib.contextmanager
def line_writer(path: Path | None) -> Iterator[Callable[[str], None]]:
    """Yields what adds a line to a file, which only its owner may read; to none for None. Raises
    ValueError if it cannot be opened."""
    if path is None:
        yield lambda line: None
        return
    try:
        number = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None
    with os.fdopen(number, "ab", buffering=0) as file:
        yield lambda line: _write_whole(file, f"{line}\n".encode())


def _write_whole(file: io.RawIOBase, content: bytes) -> None:
    """Writes in one call, so that lines of several threads stay whole."""
    if file.write(content) != len(content):
        raise OSError("the disk is full")


def bind(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound; it does not listen yet. Raises ValueError if it cannot be."""
    listener = None
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        if listener is not None:
            listener.close()
        raise ValueError(
            f"--host={host} --port={port}: {error.strerror or error}: give an address of this "
            "machine and a port that is free"
        ) from None
    return listener


@contextlib.contextmanager
def open_users(file: Path | None) -> Iterator[Any]:
    """Yields the server.chat_page.database.Database of --users; None without that flag. Raises
    ValueError if it has no account."""
    if file is None:
        yield None
        return
    from gptjax.server.chat_page import accounts, database

    command = f"python -m gptjax.serve --users={file} --add_user=NAME"
    if not file.exists():
        raise ValueError(f"--users={file} is not there: make it by {command}")
    with contextlib.closing(database.Database(file)) as users:
        if not accounts.Accounts(users).count():
            raise ValueError(f"--users={file} has no account: add one by {command}")
        yield users


def add_user(file: Path | None, name: str) -> None:
    """Reads a password and stores it. Raises ValueError for one that is not allowed."""
    if file is None:
        raise ValueError("--add_user needs the file of accounts: give --users=FILE")
    from gptjax.server.chat_page import accounts, database

    with contextlib.closing(database.Database(file)) as users:
        if sys.stdin.isatty():
            password = getpass.getpass(f"password of {name}: ")
            if getpass.getpass("once more: ") != password:
                raise ValueError("the two passwords differ: nothing is changed; try again")
        else:
            password = sys.stdin.readline().rstrip("\r\n")
        is_new = accounts.Accounts(users).put(name, password)
    print(f"{name} is added" if is_new else f"the password of {name} is changed")


def served_model(args: argparse.Namespace, loaded: Any, engine: Any) -> Any:
    """Returns the server.served_model.ServedModel of a weights.open_model.LoadedModel."""
    from gptjax.server import attention_maps, embeddings, grammar, served_model

    try:
        template = loaded.chat_template
    except ValueError:  # it was not trained to chat
        if args.users is not None:
            raise
        template = None
    pieces = grammar.find_token_bytes(loaded.tokenizer)
    # On several devices two programs with collectives at once may wait for each other.
    is_alone = loaded.mesh.size == 1
    return served_model.ServedModel(
        name=args.served_model_name or loaded.config.name,
        generator=engine,
        tokenizer=loaded.tokenizer,
        chat_template=template,
        digest=loaded.digest,
        created=int(time.time()),
        embed=embeddings.make_embed(loaded.inference_model) if is_alone else None,
        attention=attention_maps.make_maps(loaded.inference_model) if is_alone else None,
        token_bytes=pieces,
        token_bound=None if pieces is None else grammar.token_bound(loaded.tokenizer, pieces),
    )


def app_options(
    args: argparse.Namespace, keys: Any, users: Any, filters: Any, moderation: Any
) -> Any:
    """Returns the server.app.Options of the arguments; of the rest see `run`."""
    from gptjax.server import app

    return app.Options(
        keys=keys,
        local_only=api_keys.is_loopback(args.host)
        and keys is None
        and not args.allow_unauthenticated,
        time_limit_s=args.time_limit,
        log=lambda line: print(line, flush=True),
        log_prompts=args.log_prompts,
        policy=filters,
        moderation=moderation,
        chat=users,
    )


def run(
    args: argparse.Namespace,
    model: Any,
    keys: Any,
    users: Any,
    filters: Any,
    moderation: Any,
    listener: socket.socket,
    out: Any,
) -> None:
    """Serves until SIGTERM or Ctrl-C. users: of the chat page. filters, moderation: of open_filters
    and open_moderation. out: a report.console.Console; access log lines go to standard output."""
    from gptjax.server import access_log, app, http_server

    load = access_log.Load()
    application = app.make_app(model, app_options(args, keys, users, filters, moderation), load)
    server = http_server.Server(application, load, args.host, args.port, args.drain)
    listener.listen(BACKLOG)  # who connects from here on is answered
    host = f"[{args.host}]" if ":" in args.host else args.host
    url = f"http://{host}:{listener.getsockname()[1]}"
    out.print(f"{model.name} at {url}/v1" + f", the chat page at {url}/" * (users is not None))
    server.run([listener])


if __name__ == "__main__":
    cli.run(main)
