"""`python -m gptjax`: what programs there are."""

import ast
import re
from pathlib import Path

from gptjax.config import command


def main(arguments: list[str]) -> int:
    """Lists them, each with the first sentence of its file. Status 2 for any other word than --help: it is no program itself."""
    known = programs()
    if arguments and arguments[0] not in ("-h", "--help"):
        wanted = next((name for name in known if name.split(".")[-1] == arguments[0]), "gptjax.PROGRAM")
        raise ValueError(f"gptjax is several programs: python -m {wanted} ...; python -m gptjax lists them")
    width = max(map(len, known))
    print("\n".join(f"python -m {name:{width}}  {about}" for name, about in known.items()))
    print("\nEach has --help. A run from nothing: python -m gptjax.train --config=nano")
    return 0


def programs() -> dict[str, str]:
    """Module -> what it does, for every one that can be run: gptjax's own, and those that bring it onto machines."""
    files = sorted([*command.CHECKOUT.glob("gptjax/[!_]*.py"), *command.CHECKOUT.glob("gptjax/lm_eval.py")])
    files += sorted(command.CHECKOUT.glob("launch/[!_]*.py"))
    texts = {file: file.read_text() for file in files}
    return {_module(file): _about(text) for file, text in texts.items() if '\nif __name__ == "__main__":\n' in text}


def _module(file: Path) -> str:
    return ".".join(file.relative_to(command.CHECKOUT).with_suffix("").parts)


def _about(text: str) -> str:
    """The first sentence of a file's docstring, up to where it shows how the program is called."""
    words = " ".join((ast.get_docstring(ast.parse(text)) or "").split())
    return re.split(r"(?<=[.?]) |: `python|, `", words)[0].rstrip(".")


if __name__ == "__main__":
    command.run(main)
