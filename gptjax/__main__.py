"""`gptjax`, or `python -m gptjax`: lists the programs and runs them."""

import ast
import importlib
import re
import shutil
import sys
import textwrap
from pathlib import Path

from gptjax import __version__, cli
from gptjax.runtime import errors

PACKAGE = Path(__file__).parent


def main(arguments: list[str]) -> int | None:
    """Runs a program: `PROGRAM ARGUMENT ...` is `python -m gptjax.PROGRAM ARGUMENT ...`. Without
    arguments or with --help it lists the programs, each with the first sentence of its docstring.
    Raises ValueError for an unknown program.
    """
    programs = list_programs()
    word = arguments[0] if arguments else "--help"
    if word == "--version":
        print(f"gptjax {__version__}")
        return 0
    if word in ("-h", "--help"):
        command = "gptjax" if Path(sys.argv[0]).name == "gptjax" else "python -m gptjax"
        columns = shutil.get_terminal_size().columns
        indent = max(map(len, programs)) + 4
        print(f"usage: {command} PROGRAM ...\n")
        for name, module in programs.items():
            line = f"  {name}".ljust(indent) + _first_sentence(_file(module).read_text())
            print(textwrap.fill(line, columns, subsequent_indent=" " * indent))
        print("\nEach has --help.\n")
        print(f"example:\n  {command} train --config=nano")
        return 0
    program = word.replace("-", "_")
    if program not in programs:
        raise ValueError(
            f"no program is called {errors.one_line(word)}; there are {', '.join(programs)}"
        )
    sys.argv = [f"{sys.argv[0]} {word}", *arguments[1:]]
    return importlib.import_module(programs[program]).main(arguments[1:])


def list_programs() -> dict[str, str]:
    """Returns name -> module of every program: gptjax's own, then launch_NAME for the launchers."""
    files = [*sorted(PACKAGE.glob("[!_]*.py")), *sorted((PACKAGE / "launch").glob("[!_]*.py"))]
    paths = [file.relative_to(PACKAGE).with_suffix("").parts for file in files]
    modules = {"_".join(parts): ".".join(["gptjax", *parts]) for parts in paths}
    return {
        name: module
        for name, module in modules.items()
        if '\nif __name__ == "__main__":\n' in _file(module).read_text()
    }


def _file(module: str) -> Path:
    return PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")


def _first_sentence(text: str) -> str:
    """The first sentence of a file's docstring, up to where it shows how the program is called."""
    words = " ".join((ast.get_docstring(ast.parse(text)) or "").split())
    return re.split(r"(?<=[.?]) | \(|: `python|, (?:for )?`", words)[0].rstrip(".")


def run() -> None:
    """The command `gptjax`."""
    cli.run(main)


if __name__ == "__main__":
    run()
