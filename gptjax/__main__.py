"""`gptjax`, or `python -m gptjax`: lists the programs and runs them."""

import ast
import importlib
import re
import sys
from pathlib import Path

from gptjax import __version__, cli
from gptjax.runtime import errors

PACKAGE = Path(__file__).parent


def main(arguments: list[str]) -> int | None:
    """`PROGRAM ARGUMENT ...` runs `python -m gptjax.PROGRAM ARGUMENT ...`; nothing or --help lists
    the programs, each with the first sentence of its file. ValueError for a word that is no
    program."""
    programs = list_programs()
    word = arguments[0] if arguments else "--help"
    if word == "--version":
        print(f"gptjax {__version__}")
        return 0
    if word in ("-h", "--help"):
        command = "gptjax" if Path(sys.argv[0]).name == "gptjax" else "python -m gptjax"
        width = max(map(len, programs))
        for name, file in programs.items():
            print(f"{command} {name:{width}}  {_first_sentence(file.read_text())}")
        print(f"\nEach has --help. A run from nothing: {command} train --config=nano")
        return 0
    program = word.replace("-", "_")
    if program not in programs:
        raise ValueError(
            f"no program is called {errors.one_line(word)}; there are {', '.join(programs)}"
        )
    module = ".".join(["gptjax", *programs[program].relative_to(PACKAGE).with_suffix("").parts])
    sys.argv = [f"{sys.argv[0]} {word}", *arguments[1:]]
    return importlib.import_module(module).main(arguments[1:])


def list_programs() -> dict[str, Path]:
    """Name -> file of every program: gptjax's own, then launch_NAME of those that bring it onto
    machines."""
    folders = {"": PACKAGE, "launch_": PACKAGE / "launch"}
    return {
        f"{prefix}{file.stem}": file
        for prefix, folder in folders.items()
        for file in sorted(folder.glob("[!_]*.py"))
        if '\nif __name__ == "__main__":\n' in file.read_text()
    }


def _first_sentence(text: str) -> str:
    """The first sentence of a file's docstring, up to where it shows how the program is called."""
    words = " ".join((ast.get_docstring(ast.parse(text)) or "").split())
    return re.split(r"(?<=[.?]) |: `python|, `", words)[0].rstrip(".")


def run() -> None:
    """The command `gptjax`."""
    cli.run(main)


if __name__ == "__main__":
    run()
