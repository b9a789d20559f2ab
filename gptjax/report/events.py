"""The record of a run: metrics.jsonl, which is the truth, and the same numbers for TensorBoard.

A line of metrics.jsonl is {"step": n, name: value, ...}. The names that plots.py draws and console.py shows:
tokens (seen so far), loss (nats per token), lr, tokens_per_s, mfu (0 to 1), validation_loss (nats per token), perplexity and
bits_per_byte; any others are kept too. Floats are written in full, so that two curves can be compared bit for bit. JSON has no NaN: the
three values that are not numbers are the strings "NaN", "Infinity" and "-Infinity", and `read` turns them back.
"""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from gptjax.config import parse

NAME = "metrics.jsonl"
NOT_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Events:
    """Writes the record of `run`, from `resume_step` on: the lines of that step and later are dropped first, as their steps will be
    taken again. 0 starts a new record. A context manager; process 0 only."""

    def __init__(self, run: Path, resume_step: int):
        from tensorboardX import SummaryWriter

        logging.getLogger("tensorboardX").setLevel(logging.ERROR)  # or every NaN is a line on the console
        file = Path(run) / NAME
        kept = [line for line, record in _lines(file) if record["step"] < resume_step]
        fresh = file.with_suffix(".tmp")
        fresh.write_text("".join(f"{line}\n" for line in kept))
        fresh.replace(file)
        self._file = file.open("a")
        # TensorBoard hides what earlier files hold at purge_step and later. Their names tell seconds only: hence the suffix.
        self._board = SummaryWriter(str(Path(run) / "tensorboard"), purge_step=resume_step, filename_suffix=f".from{resume_step}")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def write(self, step: int, values: Mapping[str, float | str | int]) -> None:
        """Append one line, flushed to the operating system before returning: a kill of the process does not lose it."""
        values = {name: _plain(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step} | {n: _spelled(v) for n, v in values.items()}, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, str):
                self._board.add_text(name, value, step)
            else:
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


class Silent:
    """The record that every process but 0 keeps: none."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def write(self, step: int, values: Mapping[str, float | str | int]) -> None:
        pass


def read(run: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl, oldest first; [] if there is none yet. A last line that a kill tore is left out.

    ValueError names any other line that is not JSON.
    """
    records = [record for _, record in _lines(Path(run) / NAME)]
    return [{n: NOT_NUMBERS.get(v, v) if isinstance(v, str) else v for n, v in record.items()} for record in records]


def _lines(file: Path) -> list[tuple[str, dict]]:
    """The whole lines of `file`, each with what it says: a JSON object that has a step. A torn last one is dropped."""
    lines = file.read_bytes().splitlines() if file.exists() else []
    found = []
    for i, line in enumerate(lines):
        try:
            record = parse.json_value(line, "")
        except ValueError:
            if i == len(lines) - 1:
                return found
            record = None
        if not isinstance(record, dict) or "step" not in record:
            raise ValueError(
                f"{file}, line {i + 1}, is not a record of a step: {parse.shown(line.decode(errors='replace'))}; remove that line"
            )
        found.append((line.decode(), record))
    return found


def _plain(value):
    """A Python number or string; arrays of one element become floats."""
    return value if isinstance(value, (str, int, float)) else float(value)


def _spelled(value):
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
