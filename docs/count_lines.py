"""Writes the line counts of docs/weekend.md anew: `python -m docs.count_lines`.

A row of its tables that begins with a file in backquotes ends with two counts: lines of code, and
lines of text, which are docstrings and comments on lines of their own. Blank lines count as
neither.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "weekend.md"
ROW = re.compile(r"^\| `([\w/.]+\.py)` \|(.*)\| [\d,]+ \| [\d,]+ \|$", re.M)
TOTAL = re.compile(r"[\d,]+ lines of code and [\d,]+ of text")


def count(source: str) -> tuple[int, int]:
    """(lines of code, lines of text) of a Python file."""
    lines = source.splitlines()
    blank = {number for number, line in enumerate(lines, 1) if not line.strip()}
    text = {number for number, line in enumerate(lines, 1) if line.lstrip().startswith("#")}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                text |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    text -= blank
    return len(lines) - len(blank) - len(text), len(text)


def files(page: str) -> list[str]:
    """The files that the page walks through, in order."""
    return [path for path, _ in ROW.findall(page)]


def rewrite(page: str) -> str:
    """The page with every count, and the total, as the files are now."""
    counts = {path: count((ROOT / path).read_text()) for path in files(page)}
    code, text = (sum(column) for column in zip(*counts.values(), strict=True))

    def row(match: re.Match) -> str:
        return "| `{}` |{}| {:,} | {:,} |".format(match[1], match[2], *counts[match[1]])

    return TOTAL.sub(f"{code:,} lines of code and {text:,} of text", ROW.sub(row, page))


if __name__ == "__main__":
    PAGE.write_text(rewrite(PAGE.read_text()))
