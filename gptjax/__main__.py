"""`python -m gptjax`: what programs there are."""

import ast
import re
from pathlib import Path

from gptjax import cli
from gptjax.runtime import errors


def main(arguments: list[str]) -> int:
    """Lists them, each with the first sentence of its file. Status 2 for any other word than
    --help: it is no program itself."""
    known_programs = list_programs()
    if arguments and arguments[0] not in ("-h", "--help"):
        program = next(
            (name for name in known_programs if name.split(".")[-1] == arguments[0]),
            "gptjax.PROGRAM",
        )
        raise ValueError(
            f"gptjax is several programs: python -m {program} ...; python -m gptjax lists them"
        )
    width = max(map(len, known_programs))
    print(
        "\n".join(
            f"python -m {name:{width}}  {summary}" for name, summary in known_programs.items()
        )
    )
    print("\nEach has --help. A run from nothing: python -m gptjax.train --config=nano")
    return 0


def list_programs() -> dict[str, str]:
    """Module -> what it does, for every one that can be run: gptjax's own, and those that bring
    it onto machines."""
    files = [
        *sorted(errors.REPO_ROOT.glob("gptjax/[!_]*.py")),
        *sorted(errors.REPO_ROOT.glob("launch/[!_]*.py")),
    ]
    texts = {file: file.read_text() for file in files}
    return {
        _module_name(file): _first_sentence(text)
        for file, text in texts.items()
        if '\nif __name__ == "__main__":\n' in text
    }


def _module_name(file: Path) -> str:
    return ".".join(file.relative_to(errors.REPO_ROOT).with_suffix("").parts)


def _first_sentence(text: str) -> str:
    """The first sentence of a file's docstring, up to where it shows how the program is called."""
    words = " ".join((ast.get_docstring(ast.parse(text)) or "").split())
    return re.split(r"(?<=[.?]) |: `python|, `", words)[0].rstrip(".")


if __name__ == "__main__":
    cli.run(main)
