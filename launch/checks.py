"""Argument checks of the launchers, so that a printed job can run and contains nothing but what was
given.
"""

import re
import secrets

from gptjax import cli, train
from gptjax.config import parse

MAX_COUNT = 10_000  # nodes, slices, devices


def split_arguments(
    arguments: list[str], program: str, example: str
) -> tuple[list[str], list[str]]:
    """Returns (a launcher's own arguments, gptjax.train's after `--`).

    Raises a one-line ValueError if the latter are missing, contain a control character, set the
    number of processes, or would be refused by gptjax.train after the queue.
    """
    own_args, train_args = cli.split_at_dashes(arguments)
    if {"-h", "--help"} & {*own_args}:
        return own_args, train_args
    if not train_args:
        raise ValueError(
            "run what? give gptjax.train's arguments after --, as in python -m "
            f"gptjax.launch.{program} ... -- {example}"
        )
    for word in train_args:
        if parse.one_line(word, len(word)) != word:
            raise ValueError(
                f"{parse.quote(word)} holds a control character: in a --set a string may be "
                "quoted, and then '\\n' stands for one"
            )
    args, _ = train.read_arguments(train_args, local=program == "rehearse")
    given = [
        f"--{name}={vars(args)[name]}"
        for name in ("coordinator", "num_processes", "process_id")
        if vars(args)[name] is not None
    ]
    if given:
        raise ValueError(
            f"{' '.join(given)}: the processes of launch.{program} find one another by themselves; "
            "leave that out"
        )
    return own_args, train_args


def check_match(text: str, pattern: str, flag: str, words: str) -> None:
    """Raises ValueError unless the whole text matches `pattern`. words: describes what `flag`
    allows.
    """
    if not re.fullmatch(pattern, text):
        raise ValueError(f"{flag}={parse.one_line(text, 100)}: give {words}")


def check_image(image: str) -> None:
    """Raises ValueError for what is no container image's name."""
    check_match(
        image,
        r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,499}",
        "--image",
        "the name of a container image, as REGISTRY/NAME:TAG",
    )


def check_kubernetes_name(name: str) -> None:
    """Raises ValueError for a --name from which Kubernetes could not make those of pods, which have
    at most 63 characters."""
    check_match(
        name,
        "[a-z]([a-z0-9-]{0,38}[a-z0-9])?",
        "--name",
        "at most 40 of a to z, 0 to 9 and -, a letter first and no - last",
    )


def new_nonce() -> str:
    """Returns a new secret for the processes of one job: see distributed/rendezvous.py."""
    return secrets.token_hex(16)
