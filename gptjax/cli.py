"""Command-line interface shared by all programs: --help, --config, --set, and one-line errors."""

import argparse
import dataclasses
import difflib
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NoReturn

from gptjax.config import data, find_files, overrides, parse, synonyms
from gptjax.config.schema import Config
from gptjax.configs import registry
from gptjax.runtime import errors


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wraps the paragraphs and the list of terms of a description, and the commands of an example
    between their words."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = []
        for paragraph in text.split("\n\n"):
            lines = paragraph.splitlines()
            if paragraph.startswith("example:"):
                paragraphs.append("\n".join(_wrap_command(line, width) for line in lines))
            elif paragraph.startswith(" "):
                paragraphs.append(_wrap_terms(lines, width))
            else:
                paragraphs.append(textwrap.fill(" ".join(paragraph.split()), width))
        return "\n\n".join(paragraphs)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        """TEXT for a string, N for what is converted: such values without a metavar are numbers."""
        return "TEXT" if action.type is None else "N"


def _wrap_terms(lines: list[str], width: int) -> str:
    """A list of terms, each a line `  term   explanation` and more lines under the explanation,
    with the explanations wrapped."""
    column = " " * re.match(r" *\S+ *", lines[0]).end()  # type: ignore[union-attr]
    terms = re.split(r"\n(?!" + column + ")", "\n".join(lines))
    return "\n".join(
        textwrap.fill(
            term[len(column) :].replace("\n" + column, " "),
            width,
            initial_indent=term[: len(column)],
            subsequent_indent=column,
        )
        for term in terms
    )


def _wrap_command(line: str, width: int) -> str:
    """The command of a line, over several lines if it is longer than `width`."""
    if len(line) <= width or line.endswith("\\"):
        return line
    lines = [""]
    for word in re.findall(r"""\s*(?:"[^"]*"|'[^']*'|[^\s"'])+""", line):
        if len(lines[-1]) + len(word) > width - 2 and lines[-1].strip():
            lines.append(f"     {word}")
        else:
            lines[-1] += word
    return " \\\n".join(lines)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose flags have underscores but may be typed with dashes: --dry-run is
    --dry_run. With --set, assignments may also be written a.b=1 or --a.b=1.
    """

    fields: frozenset[str] = frozenset()  # names without a dot that may be written --name=value

    def parse_known_args(self, args: Sequence[str] | None = None, namespace=None):  # type: ignore[override]
        words = sys.argv[1:] if args is None else list(args)
        end = words.index("--") if "--" in words else len(words)
        return super().parse_known_args([*self._normalize(words[:end]), *words[end:]], namespace)

    def _normalize(self, words: list[str]) -> Iterator[str]:
        """Flags with underscores; `a.b=1` and `--a.b=1` as `--set=a.b=1` where that is a flag. A
        word after a flag that takes one is left alone.
        """
        flags, rest = self._option_string_actions, iter(words)
        for word in map(self._canonical, rest):
            name, equals, _ = word.partition("=")
            field = name.removeprefix("--")
            is_path = bool(re.fullmatch(r"[A-Za-z_][\w:-]*(\.[\w:-]+)*", field))
            is_spelled = name == field or "." in field or field in self.fields
            if word in flags:
                yield word
                if flags[word].nargs is None and (value := next(rest, None)) is not None:
                    yield value
            elif is_path and is_spelled and equals and "--set" in flags and name not in flags:
                yield f"--set={word.removeprefix('--')}"
            elif name.startswith("--") and name not in flags and (hint := self._hint(name)):
                self.error(f"{word}: {hint}")
            else:
                yield word

    def _hint(self, name: str) -> str:
        """What an unknown flag is called here; "" if nothing is like it."""
        known = [
            flag for flag in synonyms.FLAGS.get(name, ()) if flag in self._option_string_actions
        ]
        if known:
            return f"that is {known[0]} here"
        word = name.removeprefix("--")
        if "--config" in self._option_string_actions and (found := overrides.synonym(word, word)):
            return found
        close = difflib.get_close_matches(name, self._option_string_actions, n=1)
        return f"did you mean {close[0]}?" if close else ""

    def _canonical(self, word: str) -> str:
        name, equals, value = word.partition("=")
        flags = {
            option.replace("-", "_"): option
            for option in self._option_string_actions
            if option.startswith("--")
        }
        underscored = name.replace("-", "_")
        return (
            flags[underscored] + equals + value
            if name.startswith("--") and underscored in flags
            else word
        )

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message and not unknown.startswith("-"):
            form = "an assignment, as train.steps=100, nor " * (
                "--set" in self._option_string_actions
            )
            message = (
                f"{unknown}: neither {form}a value of a flag" if form else f"{unknown}: no flag"
            )
        self.exit(2, f"error: {errors.one_line(message)}; {self.prog} --help shows what there is\n")


def make_parser(program: str, description: str, example: str) -> _Parser:
    """Returns a parser for `python -m gptjax.PROGRAM` with one-line errors; --help ends with
    `example`.
    """
    return _Parser(
        prog=f"python -m gptjax.{program}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )


def add_set_flag(
    parser: argparse.ArgumentParser, help_text: str, metavar: str = "PATH=VALUE"
) -> None:
    """Adds --set, which may be given several times, as `assignments`."""
    parser.add_argument(
        "--set", metavar=metavar, action="append", default=[], dest="assignments", help=help_text
    )


def add_policy_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --policy, for registry.policy."""
    parser.add_argument(
        "--policy",
        metavar="NAME",
        default="off",
        help=f"filters of prompts and answers: {', '.join(registry.POLICIES)}, or FILE.py:NAME of "
        "your own (default: %(default)s)",
    )


def make_config_parser(program: str, description: str, example: str, text: bool = False) -> _Parser:
    """Returns `make_parser` with --config NAME, --set path=value and, if `text`, --text FILE, for
    `resolve_config`.
    """
    parser = make_parser(program, description, example)
    parser.fields = frozenset({"name", "seed"})
    parser.add_argument(
        "--config",
        metavar="NAME",
        help="a recipe: its name (python -m gptjax.plan shows all), or FILE.py:NAME of your own",
    )
    add_set_flag(
        parser,
        (
            "change one field; also PATH=VALUE or --PATH=VALUE, as train.steps=100; repeatable, "
            "the last one wins"
        ),
    )
    if text:
        text_help = (
            "read this: a file, a directory or a glob of .txt, .jsonl or .parquet; the ends of a "
            "lone file are validated on"
        )
        parser.add_argument("--text", metavar="FILE", help=text_help)
    return parser


def add_workers_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --workers: how many processes share the work."""
    parser.add_argument(
        "--workers",
        metavar="N",
        type=parse.int_argument(1, 1024),
        default=os.cpu_count() or 1,
        help="processes (default: a core each)",
    )


def resolve_config(args: argparse.Namespace, local: bool = True) -> Config:
    """Returns the config of --config with the text of --text and every --set applied.

    local: whether the text is on this machine; if not, it is not looked for. Raises ValueError for
    a missing or unknown name, an invalid assignment, or a missing text.
    """
    if args.config is None:
        raise ValueError(
            f"say which config with --config=NAME: {', '.join(registry.config_names())}"
        )
    recipe = registry.config(args.config)
    if "text" not in args or not local:
        return overrides.override(recipe, *args.assignments)
    if args.text is not None:
        if any(assignment.startswith("data.sources=") for assignment in args.assignments):
            raise ValueError(
                "--text and --set data.sources both say what to read: give one of them"
            )
        return overrides.override(with_text(recipe, args.text), *args.assignments)
    config, source = (
        overrides.override(recipe, *args.assignments),
        registry.text_source(args.config),
    )
    if source is not None and config.data.sources == recipe.data.sources:
        path, advice = source
        try:
            find_files.find(path)
        except ValueError as error:
            raise ValueError(
                f"--config={args.config} is of a text that is not here ({error}): {advice}"
            ) from None
    return config


MIN_FILES_FOR_DOCUMENT_SPLIT = 100  # .txt files, of which a hundredth would be none


def with_text(recipe: Config, path: str) -> Config:
    """Returns the recipe with the text at `path` as its source and in its name.

    For a single file, and for fewer than MIN_FILES_FOR_DOCUMENT_SPLIT .txt files, the last tenth of
    every document is held out, since a split by documents might select none.
    """
    where = parse.path(path)
    if where.is_dir() and any(where.glob("train-*.tokens.npy")):
        raise ValueError(
            f'{path} is tokenized already: give it by --set "data.sources=Shards(path={path!r})" '
            "instead of --text"
        )
    files = find_files.find(path).files
    source = dataclasses.replace(recipe.data, sources=(data.Text(path=path),))
    is_small = len(files) < MIN_FILES_FOR_DOCUMENT_SPLIT and all(
        find_files.file_type(file)[0] == ".txt" for file in files
    )
    if len(files) == 1 or is_small:
        source = dataclasses.replace(source, validation=data.Tail(fraction=0.1))
    stem = (
        where.resolve().name
        if where.is_dir()
        else find_files.stem(files[0])
        if len(files) == 1
        else where.parent.resolve().name
    )
    name = f"{recipe.name}-{re.sub(r'[^A-Za-z0-9._-]+', '_', stem)[:60]}"
    return dataclasses.replace(recipe, name=name, data=source)


def set_flags(assignments: Iterable[str]) -> str:
    """Returns the flags that make assignments, quoted for a shell: --set "a.b=1" --set "c=2"."""
    quoted = (
        shlex.quote(text) if any(c in text for c in '"$`\\') else f'"{text}"'
        for text in assignments
    )
    return " ".join(f"--set {text}" for text in quoted)


def split_at_dashes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Splits arguments at `--`: those of a launcher, and those of the program that it launches."""
    index = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:index], arguments[index + 1 :]


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Calls main(arguments) and exits with its status; None is 0.

    Errors that a user can cause (OSError, a missing package, too little memory, and a ValueError
    raised by a `raise` of this package) become one line `error: ...` on stderr and status 2; Ctrl-C
    becomes 130. Any other exception is a bug and keeps its trace, including a ValueError from a
    library. Standard streams may be closed, full, or of an encoding that lacks a character.
    """
    errors.open_streams()
    line = ""
    try:
        status = main(sys.argv[1:])
    except SystemExit as system_exit:
        status = system_exit.code
    except (Exception, KeyboardInterrupt) as error:
        status, line = errors.classify_error(error)
        if status == 1:
            raise
    try:
        sys.stdout.flush()
    except OSError as error:
        if not status:
            status, line = errors.classify_error(
                type(error)(error.errno, error.strerror, "standard output")
            )
        errors.mute(sys.stdout)
    if status == 2 and line:
        errors.print_error(line)
    sys.exit(status)
