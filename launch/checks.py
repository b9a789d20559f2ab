"""What the launchers ask of their arguments: a job that is printed is one that can run, and says what it was told and nothing else."""

import re
import secrets

from gptjax import train
from gptjax.config import command, parse
from gptjax.mesh import meeting

NONCE = meeting.NONCE

MOST = 10_000  # nodes, slices, devices


def for_training(arguments: list[str], program: str, example: str) -> tuple[list[str], list[str]]:
    """(a launcher's own arguments, gptjax.train's, which stand after `--`). ValueError, in one line, if there are none of the latter, if
    they are not arguments of gptjax.train (a name, a flag or a value that it would refuse after the queue), or hold a control character."""
    own, theirs = command.passed_on(arguments)
    if {"-h", "--help"} & {*own}:
        return own, theirs
    if not theirs:
        raise ValueError(f"run what? give gptjax.train's arguments after --, as in python -m launch.{program} ... -- {example}")
    for word in theirs:
        if parse.line(word, len(word)) != word:
            raise ValueError(
                f"{parse.shown(word)} holds a control character: in a --set a string may be quoted, and then '\\n' stands for one"
            )
    train.read_arguments(theirs, here=program == "rehearse")
    return own, theirs


def named(text: str, pattern: str, flag: str, words: str) -> str:
    """A text that is all of `pattern`, else ValueError: `flag` must be `words`."""
    if not re.fullmatch(pattern, text):
        raise ValueError(f"{flag}={parse.line(text, 100)}: give {words}")
    return text


def nonce() -> str:
    """A new word for the processes of one job, by which they know one another: mesh/meeting.py."""
    return secrets.token_hex(16)
