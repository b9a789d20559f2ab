"""What every program shares: its --help, how --config and --set become a Config, and how it speaks of an error."""

import argparse
import contextlib
import dataclasses
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NoReturn

from gptjax.config import data, find_files, overrides, parse, registry
from gptjax.config.schema import Config

CHECKOUT = Path(__file__).parents[2]
OURS = ("gptjax", "launch", "configs", "bench")
EXTRAS = ("gcsfs", "wandb", "lm_eval", "spacy", "tqdm")  # packages of requirements-extra.txt, and what comes with them
LIMIT = 2000  # characters of an error


class _Parser(argparse.ArgumentParser):
    """Flags are written with underscores; dashes do as well: --dry-run is --dry_run."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace=None):  # type: ignore[override]
        words = sys.argv[1:] if args is None else list(args)
        end = words.index("--") if "--" in words else len(words)
        return super().parse_known_args([*map(self._canonical, words[:end]), *words[end:]], namespace)

    def _canonical(self, word: str) -> str:
        name, equals, value = word.partition("=")
        flags = {option.replace("-", "_"): option for option in self._option_string_actions if option.startswith("--")}
        underscored = name.replace("-", "_")
        return flags[underscored] + equals + value if name.startswith("--") and underscored in flags else word

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {_one_line(message)}; {self.prog} --help shows what there is\n")


def bare_parser(program: str, description: str, example: str) -> argparse.ArgumentParser:
    """A parser for `python -m gptjax.PROGRAM` whose --help ends with `example` and whose errors are one line."""
    return _Parser(
        prog=f"python -m gptjax.{program}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parser(program: str, description: str, example: str, text: bool = False) -> argparse.ArgumentParser:
    """`bare_parser` with --config NAME, --set path=value and, if `text`, --text FILE, which `resolved` reads."""
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
    if text:
        text_help = "read this: a file, a directory or a glob of .txt, .jsonl or .parquet; the ends of a lone file are validated on"
        made.add_argument("--text", metavar="FILE", help=text_help)
    return made


def resolved(args: argparse.Namespace, here: bool = True) -> Config:
    """Returns the config that --config names, with the text that --text names and every --set applied. here: whether the text is on this
    machine; if not, it is not looked for. ValueError for no or an unknown name, a wrong assignment, or a text that is not there."""
    if args.config is None:
        raise ValueError(f"say which config with --config=NAME: {', '.join(registry.names())}")
    recipe = registry.config(args.config)
    if "text" not in args or not here:
        return overrides.override(recipe, *args.assignments)
    if args.text is not None:
        if any(assignment.startswith("data.sources=") for assignment in args.assignments):
            raise ValueError("--text and --set data.sources both say what to read: give one of them")
        return overrides.override(with_text(recipe, args.text), *args.assignments)
    config, source = overrides.override(recipe, *args.assignments), registry.text(args.config)
    if source is not None and config.data.sources == recipe.data.sources:
        path, advice = source
        try:
            find_files.find(path)
        except ValueError as error:
            raise ValueError(f"--config={args.config} is of a text that is not here ({error}): {advice}") from None
    return config


FEW = 100  # .txt files, of which a hundredth would be none


def with_text(recipe: Config, path: str) -> Config:
    """Returns the recipe with the text at `path` as its source and in its name. Of a lone file, and of fewer than FEW .txt
    files, the last tenth of every document is held out: whole documents might be none, and one flag is to be enough."""
    where = parse.path(path)
    if where.is_dir() and any(where.glob("train-*.tokens.npy")):
        raise ValueError(f'{path} is tokenised already: give it by --set "data.sources=Shards(path={path!r})" instead of --text')
    files = find_files.find(path).files
    source = dataclasses.replace(recipe.data, sources=(data.Text(path=path),))
    if len(files) == 1 or (len(files) < FEW and all(find_files.kind(file)[0] == ".txt" for file in files)):
        source = dataclasses.replace(source, held_out=data.Tail(fraction=0.1))
    stem = where.resolve().name if where.is_dir() else find_files.stem(files[0]) if len(files) == 1 else where.parent.resolve().name
    name = f"{recipe.name}-{re.sub(r'[^A-Za-z0-9._-]+', '_', stem)[:60]}"
    return dataclasses.replace(recipe, name=name, data=source)


def passed_on(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What stands before and after `--`: a launcher's own arguments, and those of the program that it launches."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Call main(arguments) and exit with its status; None is 0.

    What a user can cause (OSError, a package that is not there, too little memory, and ValueError raised by a `raise` of this checkout)
    becomes one line `error: ...` on stderr and status 2; Ctrl-C becomes 130. Any other exception is a bug and keeps its trace, a ValueError
    from inside a library among them. Standard streams may be closed, full, or of an encoding that lacks a character.
    """
    _open_streams()
    line = ""
    try:
        status = main(sys.argv[1:])
    except SystemExit as left:
        status = left.code
    except (Exception, KeyboardInterrupt) as error:
        status, line = verdict(error)
        if status == 1:
            raise
    try:
        sys.stdout.flush()
    except OSError as error:
        if not status:
            status, line = verdict(type(error)(error.errno, error.strerror, "standard output"))
        mute(sys.stdout)
    if status == 2 and line:
        _print_error(line)
    sys.exit(status)


def refuse(error: ImportError) -> NoReturn:
    """Ends a program whose file cannot import a package: one line and status 2."""
    _open_streams()
    _print_error(verdict(error)[1])
    sys.exit(2)


def _print_error(line: str) -> None:
    try:
        print(f"error: {line}", file=sys.stderr, flush=True)
    except OSError:
        mute(sys.stderr)


def mute(stream: IO[str]) -> None:
    """Points a stream that failed at /dev/null, so that flushing it at exit does not fail once more."""
    with contextlib.suppress(OSError):  # a test's stream has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_streams() -> None:
    """Opens /dev/null for standard streams that the parent has closed: else the next file that is opened takes their number, and with it
    what is printed. What the encoding of standard output lacks is printed as an escape."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def verdict(error: BaseException) -> tuple[int, str]:
    """(exit status, what is wrong in one line): 2 for what a user can mend, 130 for Ctrl-C, 141 where the reader has gone, as in `| head`;
    1 for a bug."""
    match error:
        case KeyboardInterrupt():
            return 130, "Ctrl-C"
        case BrokenPipeError():
            return 141, "nobody reads its output"
        case OSError():
            return 2, _one_line(_sentence(error))
        case ImportError() if "failed to map segment" in str(error):  # of a library that is there
            return 2, f"there is not enough memory ({first_line(error)}): raise the machine's limits (ulimit -v)"
        case ImportError(name=str(name)) if name.split(".")[0] not in OURS:
            package = name.split(".")[0]
            file = "requirements-extra.txt" if package in EXTRAS else "requirements.txt"
            return 2, f"the package {package} is not installed, or not whole ({first_line(error)}): pip install -r {file}"
        case MemoryError():
            return 2, f"there is not enough memory ({first_line(error)}): choose smaller sizes or batches, or another machine"
        case RuntimeError() if "can't start new thread" in str(error):
            return 2, "the machine lets this program start no more threads: raise its limits (ulimit -u, ulimit -v)"
        case RuntimeError() if re.search("^RESOURCE_EXHAUSTED|bad_alloc", str(error)):  # of jax, which is not imported here
            return 2, f"there is not enough memory of the device ({first_line(error)}): choose smaller sizes or batches"
        case ValueError() if _raised_here(error):
            return 2, _one_line(str(error))
        case _:
            return 1, f"{type(error).__name__}: {first_line(error)}"


def _one_line(text: str) -> str:
    return parse.line(" ".join(text.split()), LIMIT)


def first_line(error: BaseException) -> str:
    """What an error of a library says, as far as it fits in a line."""
    return parse.line((str(error).splitlines() or [type(error).__name__])[0], 200)


def _sentence(error: OSError) -> str:
    if error.strerror is None:
        return str(error) or type(error).__name__
    return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror


def _raised_here(error: ValueError) -> bool:
    """Did a raise statement of this checkout raise it? jax drops its own frames from traces, so the last frame alone does not tell."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(last.filename).is_relative_to(CHECKOUT) and "site-packages" not in last.filename and (last.line or "").startswith("raise")
