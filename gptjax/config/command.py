"""What every program shares: its --help, how --config and --set become a Config, and how it speaks of an error."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from gptjax.config import overrides, registry
from gptjax.config.schema import Config

CHECKOUT = Path(__file__).parents[2]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; {self.prog} --help shows what there is\n")


def bare_parser(program: str, description: str, example: str) -> argparse.ArgumentParser:
    """A parser for `python -m gptjax.PROGRAM` whose --help ends with `example` and whose errors are one line."""
    return _Parser(
        prog=f"python -m gptjax.{program}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parser(program: str, description: str, example: str) -> argparse.ArgumentParser:
    """`bare_parser` with --config NAME and --set path=value, which `resolved` reads."""
    made = bare_parser(program, description, example)
    made.add_argument("--config", metavar="NAME", help="a recipe of configs/; python -m gptjax.plan shows all")
    made.add_argument(
        "--set",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        dest="assignments",
        help="change one field, as in train.steps=100; repeatable",
    )
    return made


def resolved(args: argparse.Namespace) -> Config:
    """The config that --config names with every --set applied. Raises ValueError: no or an unknown name, or a wrong assignment."""
    if args.config is None:
        raise ValueError(f"say which config with --config=NAME: {', '.join(registry.names())}")
    return overrides.override(registry.config(args.config), *args.assignments)


def passed_on(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What stands before and after `--`: a launcher's own arguments, and those of the program that it launches."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Call main(arguments) and exit with its status; None is 0.

    What a user can cause (OSError, and ValueError raised by a `raise` of this checkout) becomes one line `error: ...` on stderr and
    status 2; Ctrl-C becomes 130. Any other exception is a bug and keeps its trace, a ValueError from inside a library among them.
    """
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        status, line = verdict(error)
        if status == 1:
            raise
        if status == 2:
            print(f"error: {line}", file=sys.stderr)
        if status == 141:  # nothing may be written on the way out
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def verdict(error: BaseException) -> tuple[int, str]:
    """(exit status, what is wrong in one line): 2 for what a user can mend, 130 for Ctrl-C, 141 where the reader has gone, as in `| head`;
    1 for a bug."""
    match error:
        case KeyboardInterrupt():
            return 130, "Ctrl-C"
        case BrokenPipeError():
            return 141, "nobody reads its output"
        case OSError():
            return 2, " ".join(_sentence(error).split())
        case ValueError() if _raised_here(error):
            return 2, " ".join(str(error).split())
        case _:
            return 1, f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """What an error of a library says, as far as it fits in a line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _sentence(error: OSError) -> str:
    if error.strerror is None:
        return str(error) or type(error).__name__
    return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror


def _raised_here(error: ValueError) -> bool:
    """Did a raise statement of this checkout raise it? jax drops its own frames from traces, so the last frame alone does not tell."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(last.filename).is_relative_to(CHECKOUT) and "site-packages" not in last.filename and (last.line or "").startswith("raise")
