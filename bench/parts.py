"""What the experiments of bench/ share: parts that are each computed once, arguments, files."""

import json
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any


def run_parts(
    work: Path, parts: dict[str, Callable[[], dict[str, Any]]], only: Collection[str] = ()
) -> dict[str, Any]:
    """Returns the results of parts, by name, those that are in WORK/NAME.json from there; all
    others, or those of `only`, are computed and written to it, with their seconds."""
    results = {}
    for name, compute in parts.items():
        file = work / f"{name}.json"
        if not file.exists() and (not only or name in only):
            start = time.perf_counter()
            result = compute()
            file.write_text(json.dumps({"seconds": time.perf_counter() - start} | result))
        if file.exists():
            results[name] = json.loads(file.read_text())
    return results


def sets(*assignments: str) -> list[str]:
    """The arguments of a program that assign fields: --set A --set B."""
    return [part for text in assignments for part in ("--set", text)]


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes a row a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_json(results: dict[str, Any]) -> str:
    """JSON with a line for each part, floats rounded to 5 digits."""

    def shorten(value: Any) -> Any:
        match value:
            case float():
                return float(f"{value:.5g}")
            case dict():
                return {key: shorten(part) for key, part in value.items()}
            case list():
                return [shorten(part) for part in value]
        return value

    lines = [f"{json.dumps(name)}: {json.dumps(shorten(part))}" for name, part in results.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"
