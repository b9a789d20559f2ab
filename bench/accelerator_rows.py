"""What bench.accelerator measures: rows of JSON, a line each, as soon as each is known.

    python -m bench.accelerator_rows

prints what every row holds besides its figures: the card and the versions of the software.
"""

import argparse
import datetime
import gc
import importlib.metadata
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from gptjax.config import parse
from gptjax.runtime import units

FILE_NAME = "rows.jsonl"
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "Ran out of memory", "out of memory")
FAILURES = ("WRONG", "failed")
# How figures are shown, in this order; others are in the file alone.
FORMATS: dict[str, Callable[[Any], str]] = {
    "error": "relative error {:.1e}".format,
    "difference": "losses differ by {:.1e}".format,
    "tokens_per_s": "{:,.0f} tokens/s".format,
    "mfu": "MFU {:.1%}".format,
    "to_dense": "{:.2f} x dense".format,
    "to_nanogpt": "{:.2f} x nanoGPT's speed".format,
    "to_transformers": "{:.2f} x transformers' speed".format,
    "to_floor": "{:.2f} x the floor".format,
    "share": "{:.1%}".format,
    "gb_per_s": "{:,.3g} GB/s".format,
    "ms": lambda ms: f"{units.sig3(ms)} ms",
    "peak_bytes": lambda n: f"peak {units.human_bytes(n)}",
    "seconds": "{:.0f} s".format,
    "note": str,
    "of": "of {}".format,  # an earlier call
}
Row = dict[str, Any]
Figures = dict[str, Any]


class OutOfTime(Exception):
    """The time of a part is over."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether jax or torch reports a lack of memory."""
    return any(words in str(error) for words in OUT_OF_MEMORY)


def append(out: Path, row: Mapping[str, Any]) -> None:
    """Appends one row to the file under `out`, in one write."""
    with open(out / FILE_NAME, "ab", buffering=0) as file:
        file.write(json.dumps(row).encode() + b"\n")


def read(out: Path) -> list[Row]:
    """Returns the rows so far; a last line that is not complete is left out. ValueError with the
    number of a line that is no row."""
    path, rows = out / FILE_NAME, []
    for number, line in enumerate(path.read_text().splitlines(True) if path.exists() else (), 1):
        if not line.endswith("\n"):
            break
        try:
            row = json.loads(line)
        except ValueError:
            row = {}
        if not isinstance(row, dict) or not row.keys() >= {"part", "what", "job", "call", "date"}:
            raise ValueError(f"{path}:{number} is no row of bench.accelerator: delete it")
        rows.append(row)
    return rows


def show_figures(row: Row) -> str:
    """The figures of a row as text."""
    shown = [FORMATS[key](row[key]) for key in FORMATS if row.get(key) is not None]
    return ", ".join(shown)


def show_verdict(row: Row) -> str:
    """Whether the row is right, failed, or meets its target: "" for a mere figure."""
    if "target" in row:
        return ("met: " if row["met"] else "not met: ") + row["target"]
    return row.get("verdict", "")


def today() -> str:
    """The present time in UTC, to seconds."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Recorder:
    """Records the rows of one job, until its time is over.

    facts: what each row holds besides its figures, such as `job` and the time of the `call`.
    is_toy: sizes for a CPU."""

    def __init__(self, part: str, out: Path, work: Path, facts: Row, seconds: float):
        self.out, self.work = out, work
        self.is_toy, self.card = facts["device"] == "cpu", facts["card"]
        self.part, self._facts = part, facts
        self._deadline = time.monotonic() + seconds
        self._longest = 0.0

    @property
    def seconds_left(self) -> float:
        """Seconds until the part is ended from outside."""
        return self._deadline - time.monotonic()

    def add(self, what: str, **figures: Any) -> None:
        """Records a measurement. A `target` comes with `met`."""
        row = {"part": self.part, "what": what} | figures
        append(self.out, row | self._facts | {"date": today()})

    def leave_out(self, names: Iterable[str]) -> None:
        """Records that there was no time for these cases."""
        for name in names:
            self.add(name, verdict="out of time", note="not begun")

    def best(self, what: str) -> Row | None:
        """The fastest row of this call of bench.accelerator that begins with `what`, None if there
        is none. Earlier calls may have measured other code."""
        rows = [row for row in read(self.out) if row["call"] == self._facts["call"]]
        found = [row for row in rows if row["what"].startswith(what) and "tokens_per_s" in row]
        return max(found, key=lambda row: row["tokens_per_s"], default=None)

    def measure(self, cases: Iterable[tuple[str, Callable[[], Figures | None]]]) -> None:
        """Computes and records each case's figures: (what, function), None for no row of its own.

        A case that lacks memory or fails leaves a row that says so, and the next one begins. No
        case begins that would not be over in time if it took as long as the longest before it;
        those that are left out have rows that say so."""
        cases = iter(cases)
        for what, compute in cases:
            if self.seconds_left < 1.2 * self._longest:
                return self.leave_out([what, *(name for name, _ in cases)])
            start = time.monotonic()
            print(f"{what} ...", flush=True)
            try:
                figures = compute()
            except Exception as error:
                figures = failure(error)
            self._longest = max(self._longest, time.monotonic() - start)
            if figures is not None:
                self.add(what, **figures)


def failure(error: Exception) -> Figures:
    """The row of a case that did not end well; prints the trace of what is no lack of memory."""
    if is_out_of_memory(error):
        traceback.clear_frames(error.__traceback__)  # they hold arrays of the device
        gc.collect()
        return {"verdict": "out of memory"}
    if isinstance(error, OutOfTime):
        return {"verdict": "out of time", "note": str(error)}
    traceback.print_exc()
    first_line = (str(error).splitlines() or [""])[0]
    return {"verdict": "failed", "note": f"{type(error).__name__}: {first_line}"[:300]}


def target(words: str, met: bool | None) -> Figures:
    """The fields of a row with a target; none where it does not apply (met None)."""
    return {} if met is None else {"target": words, "met": bool(met)}


def run_part(measure: Callable[[Recorder, list[str]], None]) -> None:
    """The main function of a part's module: measure(recorder, names) with what bench.accelerator
    gives it in arguments."""
    parser = argparse.ArgumentParser(description="A part of bench.accelerator, which starts it.")
    parser.add_argument("--part", required=True)
    parser.add_argument("--out", type=parse.path_argument, required=True)
    parser.add_argument(
        "--work", type=parse.path_argument, required=True, help="for files that are not kept"
    )
    parser.add_argument("--facts", type=json.loads, required=True, help="JSON")
    parser.add_argument(
        "--seconds", type=parse.float_argument(0, 1e6), required=True, help="until it is killed"
    )
    parser.add_argument("names", nargs="*", help="what to measure")
    args = parser.parse_args()
    recorder = Recorder(args.part, args.out, args.work, args.facts, args.seconds)
    measure(recorder, args.names)


def facts() -> Row:
    """Returns the card and the versions of what computes on it."""
    import jax

    device = jax.devices()[0]
    found = {"card": device.device_kind, "device": device.platform}
    if device.platform == "cpu":
        found["card"] = f"{os.cpu_count()} CPU cores"
    found |= {"python": sys.version.split()[0]}
    for name in ("jax", "jaxlib", "flax", "torch", "transformers"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if device.platform not in ("cpu", "tpu"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
            found["driver"] = done.stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            pass
    return found


if __name__ == "__main__":
    print(json.dumps(facts()))
