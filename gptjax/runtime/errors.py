"""Error classification: a user's mistake or a bug, as one line and an exit status."""

import contextlib
import io
import linecache
import os
import re
import sys
import traceback
from typing import IO, NoReturn

from gptjax.config import parse

OWN_PACKAGES = ("gptjax", "bench", "tests")
EXTRA_PACKAGES = {
    "datasets": "stream",
    "fastwarc": "curation",
    "resiliparse": "curation",
    "py3langid": "curation",
    "mmh3": "curation",
    "phonenumbers": "serve",
    "pyspark": "spark",
    "gcsfs": "cloud",
    "wandb": "cloud",
    "lm_eval": "eval",
    "spacy": "eval",
    "tqdm": "eval",
    "starlette": "serve",
    "uvicorn": "serve",
    "pydantic": "serve",
    "prometheus_client": "serve",
    "argon2": "serve",
    "pypdf": "serve",
    "llguidance": "serve",
}  # package -> the extra that brings it
MAX_ERROR_CHARS = 2000  # characters of an error


def exit_with_error(error: ImportError) -> NoReturn:
    """Ends a program whose file cannot import a package: one line and status 2."""
    open_streams()
    print_error(classify_error(error)[1])
    sys.exit(2)


def print_error(line: str) -> None:
    """Prints `error: LINE` on standard error, if that is open."""
    try:
        print(f"error: {line}", file=sys.stderr, flush=True)
    except OSError:
        mute(sys.stderr)


def mute(stream: IO[str]) -> None:
    """Redirects a failed stream to /dev/null, so that flushing it at exit does not fail again."""
    with contextlib.suppress(OSError):  # a test's stream has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def open_streams() -> None:
    """Opens /dev/null for standard streams that the parent closed; otherwise the next opened file
    would get their descriptor, and the printed output with it.

    Characters that standard output cannot encode are printed as escapes.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(
                os.open(os.devnull, os.O_RDWR), True
            )  # takes the lowest number that is free
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def classify_error(error: BaseException) -> tuple[int, str]:
    """Returns (exit status, one-line message): 2 for errors that a user can fix, 130 for Ctrl-C,
    141 if the reader of the output is gone (as in `| head`), 1 for a bug.
    """
    match error:
        case KeyboardInterrupt():
            return 130, "Ctrl-C"
        case BrokenPipeError():
            return 141, "the reader of the output is gone"
        case OSError():
            return 2, one_line(_os_error_message(error))
        case ImportError() if "failed to map segment" in str(error):  # of a library that is there
            return (
                2,
                f"there is not enough memory ({first_line(error)}): raise the machine's limits "
                "(ulimit -v)",
            )
        case ImportError(name=str(name)) if name.split(".")[0] not in OWN_PACKAGES:
            package = name.split(".")[0]
            extra = EXTRA_PACKAGES[package] if package in EXTRA_PACKAGES else None
            hint = install_hint(extra) if extra else "pip install -r requirements.txt"
            return (
                2,
                f"the package {package} is not installed, or not whole ({first_line(error)}): "
                f"{hint}",
            )
        case MemoryError():
            return (
                2,
                f"there is not enough memory ({first_line(error)}): choose smaller sizes or "
                "batches, or another machine",
            )
        case RuntimeError() if "can't start new thread" in str(error):
            return (
                2,
                "the machine lets this program start no more threads: raise its limits (ulimit "
                "-u, ulimit -v)",
            )
        case RuntimeError() if re.search(
            "^RESOURCE_EXHAUSTED|bad_alloc", str(error)
        ):  # of jax, which is not imported here
            return (
                2,
                f"there is not enough memory of the device ({first_line(error)}): choose smaller "
                "sizes or batches",
            )
        case ValueError() if _is_own_error(error):
            return 2, one_line(str(error))
        case _:
            return 1, f"{type(error).__name__}: {first_line(error)}"


def install_hint(extra: str) -> str:
    """How to get the packages of an extra of gptjax: in a checkout, and of an installed package."""
    return f"pip install -r requirements-{extra}.txt, the extra [{extra}] of gptjax"


def one_line(text: str) -> str:
    """Formats text as one line of at most MAX_ERROR_CHARS characters."""
    return parse.one_line(" ".join(text.split()), MAX_ERROR_CHARS)


def first_line(error: BaseException) -> str:
    """Returns the first line of a library's error message, shortened if long."""
    return parse.one_line((str(error).splitlines() or [type(error).__name__])[0], 200)


def _os_error_message(error: OSError) -> str:
    if error.strerror is None:
        return str(error) or type(error).__name__
    return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror


def _is_own_error(error: ValueError) -> bool:
    """Whether a raise statement of this package raised the error. jax removes its own frames from
    tracebacks, so the last frame alone does not show that.
    """
    frame, line_number = list(traceback.walk_tb(error.__traceback__))[-1]
    package = frame.f_globals.get("__package__") or ""
    line = linecache.getline(frame.f_code.co_filename, line_number, frame.f_globals)
    return package.split(".")[0] in OWN_PACKAGES and line.lstrip().startswith("raise")
