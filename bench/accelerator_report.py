"""The rows of bench.accelerator as lines of a terminal and as a page."""

import itertools
import textwrap
from collections.abc import Iterable

from bench.accelerator_rows import FAILURES, Row, show_figures, show_verdict

PARTS = {
    "a": "Kernels: error against the float32 reference",
    "b": "A run: killed, resumed, sampled",
    "c": "Training steps",
    "d": "Banded and dense attention by length",
    "e": "Prefill and decoding",
    "f": "Where the time of a training step goes",
}
# Columns of a terminal of 80: what, figures, verdict; a wider one gives more to the first two.
WIDTHS = 31, 32, 13
UNMEASURED = "out of time", "not measured"
FACTS = ("card", "driver", "python", "jax", "jaxlib", "flax", "torch", "transformers")


def line(row: Row, width: int) -> str:
    """A row as one or more lines of at most `width` columns, in three columns."""
    more = max(0, min(width, 160) - 80)
    widths = WIDTHS[0] + more // 3, WIDTHS[1] + more // 3, WIDTHS[2] + more - 2 * (more // 3)
    cells = (row["what"], show_figures(row), show_verdict(row))
    wrapped = [textwrap.wrap(cell, n) for cell, n in zip(cells, widths, strict=True)]
    lines = itertools.zip_longest(*wrapped, fillvalue="")
    padded = (
        " ".join(cell.ljust(n) for cell, n in zip(cells, widths, strict=True)) for cells in lines
    )
    return "\n".join(f"  {text}".rstrip() for text in padded)


def header(facts: Row, width: int) -> str:
    """Card and versions, in lines of at most `width` columns."""
    words = ", ".join(f"{name} {facts[name]}" for name in FACTS if name in facts)
    return textwrap.fill(words, width)


def newest(rows: Iterable[Row]) -> list[Row]:
    """The newest row of each case. What a later call did not measure stays as an earlier one found
    it; rows about a job as a whole, and about what was not measured, are of its last call alone."""
    rows = list(rows)
    calls = {(row["part"], row["job"]): row["call"] for row in rows}
    found: dict[tuple, Row] = {}
    for row in rows:
        is_unmeasured = row.get("verdict") in UNMEASURED
        is_last = row["call"] == calls[row["part"], row["job"]]
        key = row["part"], row["job"], row["what"]
        if (is_last or not is_unmeasured and row["what"] != row["job"]) and not (
            is_unmeasured and key in found
        ):
            found[key] = row
    return list(found.values())


def page(rows: list[Row]) -> str:
    """The report: what failed, targets, and every figure by part, with card, versions, dates and
    commands."""
    rows = newest(rows)
    if not rows:
        return "# bench.accelerator\n\nNothing was measured.\n"
    cards = list(dict.fromkeys(row["card"] for row in rows))
    text = f"# bench.accelerator on {', '.join(cards)}\n\n"
    if any(row["device"] == "cpu" for row in rows):
        text += "**Toy sizes on a CPU: they check the program, and say nothing of speed.**\n\n"
    software = dict.fromkeys(
        ", ".join(f"{name} {row[name]}" for name in FACTS if name in row) for row in rows
    )
    dates = sorted(row["date"] for row in rows)
    text += "".join(f"- {words}\n" for words in software) + f"- {dates[0]} to {dates[-1]}\n"
    text += "".join(f"- `{command}`\n" for command in dict.fromkeys(r["command"] for r in rows))
    last = max(row["call"] for row in rows)
    rows = [row if row["call"] == last else row | {"of": row["date"]} for row in rows]
    if failed := [row for row in rows if row.get("verdict") in FAILURES]:
        text += "\n## Wrong or failed\n\n" + table(failed)
    if targets := [row for row in rows if "target" in row]:
        text += "\n## Targets\n\n" + table(targets)
    for part, title in PARTS.items():
        if found := [row for row in rows if row["part"] == part]:
            text += f"\n## {part}. {title}\n\n" + table(found)
    return text


def table(rows: list[Row]) -> str:
    """Rows as a table in Markdown."""
    cells = [(row["what"], show_figures(row), show_verdict(row)) for row in rows]
    lines = [("what", "figures", "verdict or target"), ("---",) * 3, *cells]
    return "".join(f"| {' | '.join(c.replace('|', '/') for c in cells)} |\n" for cells in lines)


def summary(rows: list[Row]) -> str:
    """How many of the rows are right, wrong, and meet their targets, in a line."""
    verdicts = [row.get("verdict") for row in rows]
    names = ("ok", *FAILURES, "out of memory", "out of time", "not measured")
    counts = {name: verdicts.count(name) for name in names}
    met = [row["met"] for row in rows if "target" in row]
    parts = [f"{n} {name}" for name, n in counts.items() if n]
    parts += [f"{sum(met)} of {len(met)} targets met"] if met else []
    return ": ".join([f"{len(rows)} rows", *[", ".join(parts)] * bool(parts)])
