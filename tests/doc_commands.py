"""The commands that README.md and docs/ show, and a check of each by the program's own parser.

A fenced block of the language `bash` holds commands; one of `console` holds commands after `$ ` and
what they print; those of `python` on a page are one program, which runs after the commands. A
comment right before a block says how tests treat it:

    (none)                             run as it stands, page by page in order, by `make test-docs`
    <!-- run short: ARGUMENTS -->      run so, with ARGUMENTS added to its gptjax commands
    <!-- quick -->                     run as it stands by `make test`, too
    <!-- not run: REASON -->           only parsed
    <!-- refused -->                   refused as it is parsed, by the error shown
"""

import argparse
import dataclasses
import importlib
import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptjax import __main__ as programs
from gptjax import cli
from gptjax.config import overrides
from gptjax.configs import registry

ROOT = Path(__file__).parents[1]
FENCE = re.compile(
    r"(?P<marker><!--[^\n]*-->\n\s*)?"
    r"^(?P<indent> *)```(?P<language>[a-z]*)[^\n]*\n(?P<text>.*?)^ *```$",
    re.M | re.S,
)
MARKER = re.compile(r"<!-- (?P<kind>quick|refused|not run|run short)(?:: (?P<text>.+?))? -->")
INLINE = re.compile(r"(?<!`)`((?:python -m|gptjax|make) [^`]*)`(?!`)")
HEREDOC = re.compile(r"<<'?(\w+)'?\n.*?^\1$", re.M | re.S)
COMMAND = re.compile(r"^\s*(\$ )?(python -m (gptjax|bench)|gptjax |make [a-z])", re.M)
PROGRAMS = ("gptjax", "bench", "tests", "docs")


@dataclasses.dataclass(frozen=True)
class Block:
    """kind: "run", "quick", "short", "parsed" or "refused". argument: of the marker. text: what
    is run."""

    page: Path
    line: int
    is_python: bool
    kind: str
    argument: str
    text: str

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def lines(self) -> list[str]:
        """The lines of commands, each whole; the lines of here-documents are left out."""
        if self.is_python:
            return []
        text = HEREDOC.sub("", self.text).replace("\\\n", " ")
        return [line for line in text.splitlines() if words(line)]

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command that the block shows, also of those between pipes."""
        return [
            command for line in self.lines for command in _split_at_pipes(_split(line)) if command
        ]


def words(line: str) -> list[str]:
    """The words of the first command of a line, without variables and redirections around it."""
    return next(iter(_split_at_pipes(_split(line))), [])


def _split_at_pipes(words: list[str]) -> list[list[str]]:
    commands: list[list[str]] = [[]]
    for word in words:
        if word in ("|", "&&", ";", "&"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [_without_environment(command) for command in commands]


def _split(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    return list(lexer)


def _without_environment(words: list[str]) -> list[str]:
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    stop = next((i for i, word in enumerate(words) if set(word) <= set("<>")), len(words))
    return words[:stop]


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, content: str | None = None) -> list[Block]:
    """The blocks of commands and programs of a page. ValueError for a comment before one that is no
    marker, for a marker without its text, and for commands in a block without a language."""
    content, found = page.read_text() if content is None else content, []
    for match in FENCE.finditer(content):
        if match["language"] not in ("bash", "console", "python"):
            if not match["language"] and COMMAND.search(match["text"]):
                raise ValueError(
                    f"{page.name}: commands without a language: {match['text'][:60]!r}"
                )
            continue
        line = content[: match.start("language")].count("\n") + 1
        kind, argument = _read_marker(match["marker"], f"{page.name}:{line}")
        text = match["text"].replace(f"\n{match['indent']}", "\n").removeprefix(match["indent"])
        if match["language"] == "console":
            text = "\n".join(re.findall(r"^\$ (.*(?:\\\n.*)*)", text, re.M)) + "\n"
        found.append(Block(page, line, match["language"] == "python", kind, argument, text))
    return found


def _read_marker(marker: str | None, where: str) -> tuple[str, str]:
    """(kind, argument) of a block that follows this comment."""
    if marker is None:
        return "run", ""
    match = MARKER.fullmatch(marker.strip())
    if match is None or (match["text"] is None) != (match["kind"] in ("quick", "refused")):
        raise ValueError(
            f"{where}: {marker.strip()} is not one of the markers of tests/doc_commands.py"
        )
    kinds = {"not run": "parsed", "run short": "short"}
    return kinds.get(match["kind"], match["kind"]), match["text"] or ""


def inline_commands(page: Path, content: str | None = None) -> Iterator[list[str]]:
    """The words of each command in running text or a table; an ellipsis stands for more."""
    content = FENCE.sub("", page.read_text() if content is None else content)
    for command in INLINE.findall(content):
        words = _split(" ".join(command.replace("\\|", "|").split()))
        yield [word for word in words if word not in ("...", "…")]


class _Parsed(Exception):
    def __init__(self, args: argparse.Namespace):
        self.args_of_program = args


def program(words: list[str]) -> tuple[str, list[str]] | None:
    """(module, arguments) of a command of this repository."""
    if words[0] == "gptjax" and len(words) > 1:
        known = programs.list_programs()
        return known[words[1]] if words[1] in known else f"gptjax.{words[1]}", words[2:]
    if (
        re.fullmatch(r"(.*/)?python", words[0])
        and words[1:2] == ["-m"]
        and words[2].split(".")[0] in PROGRAMS
    ):
        return words[2], words[3:]
    return None


def check(words: list[str], shown: str = "") -> str:
    """What is wrong with a command, "" if nothing can be seen without running it: flags, --config,
    --set, --tasks, targets, files. shown: its page, which may write a task or recipe."""
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))
        unknown = [
            word
            for word in words[1:]
            if "=" not in word and not word.startswith("-") and word not in targets
        ]
        return f"no target of the Makefile: {', '.join(unknown)}" if unknown else ""
    if "-r" in words and "pip" in " ".join(words[:3]):
        missing = [
            name
            for flag, name in zip(words, words[1:], strict=False)
            if flag == "-r" and not (ROOT / name).is_file()
        ]
        return f"no such file: {', '.join(missing)}" if missing else ""
    called = program(words)
    return _check_program(*called, shown) if called is not None else ""


def _check_program(module: str, arguments: list[str], shown: str = "") -> str:
    path = ROOT / module.replace(".", "/")
    if not path.with_suffix(".py").is_file() and not (path / "__main__.py").is_file():
        return f"no such program: {module}"
    if not arguments:
        return ""  # a mention, or a program that needs nothing
    own, launched = cli.split_at_dashes(arguments)
    other = "gptjax.serve" if module == "gptjax.launch.k8s" else "gptjax.train"
    try:
        if (
            module.startswith("gptjax.launch.")
            and launched
            and (error := _check_program(other, launched))
        ):
            return error
        if module == "gptjax.lm_eval":  # its flags are lm_eval's own, which need not be installed
            return (
                ""
                if {"--model", "--model_args", "--tasks"} <= {word.split("=")[0] for word in own}
                else "no --model, --model_args and --tasks"
            )
        _check_values(module, _parse(module, arguments), shown)
    except SystemExit as error:
        return f"{module}: exit status {error.code}"
    except ValueError as error:
        return f"{module}: {error}"
    return ""


def _parse(module: str, arguments: list[str]) -> argparse.Namespace:
    """What the program's own parser makes of the arguments: its main is called, and left then."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        raise _Parsed(original(self, args, namespace))

    main = importlib.import_module(module).main
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", [module, *arguments])
        try:
            main(arguments) if inspect.signature(main).parameters else main()
        except _Parsed as parsed:
            return parsed.args_of_program
    raise ValueError(f"{' '.join(arguments)}: main did not parse its arguments")


CHAT_RECIPES = {
    "gptjax.sft": registry.SFT,
    "gptjax.dpo": registry.DPO,
    "gptjax.reward": registry.REWARD,
}  # program -> its recipes


def _check_values(module: str, args: argparse.Namespace, shown: str) -> None:
    """ValueError for names and edits that the program would refuse."""
    if module == "gptjax.finetune" and args.config != "NAME":
        overrides.override(registry.finetuning(args.config), *args.assignments)
    elif module == "gptjax.rlhf":
        overrides.override(registry.rlhf_recipe(args.config), *args.assignments)
    elif module in CHAT_RECIPES and args.config is not None:
        recipes = CHAT_RECIPES[module]
        overrides.override(registry.chat_recipe(args.config, recipes), *args.assignments)
    elif module == "gptjax.sweep" and "sweep" in args:
        if args.sweep not in (None, "NAME"):
            registry.sweep(args.sweep)
        if args.config not in (None, "NAME"):
            for axis in args.grid:
                path, _, values = axis.partition("=")
                for value in values.split("|"):
                    overrides.override(
                        registry.config(args.config), *args.assignments, f"{path}={value}"
                    )
    elif "config" in args and str(args.config).partition(".py:")[0] + ".py" in shown:
        pass  # a recipe in a file that the page writes
    elif "config" in args and args.config not in (None, "NAME") and "assignments" in args:
        cli.resolve_config(args, local=False)
    if module in ("gptjax.evaluate", "gptjax.decontaminate") and args.tasks not in (None, "NAMES"):
        from gptjax.evals import registry as tasks

        names = [name for name in args.tasks.split(",") if f"{name}_test.jsonl" not in shown]
        found = tasks.get_tasks(names, None if args.task_data is None else Path(args.task_data))
        for assignment in args.assignments if module == "gptjax.evaluate" else ():
            name, _, change = assignment.partition(".")
            for task in found.values() if name == "all" else [found[name]]:
                overrides.override(task.protocol, change)
