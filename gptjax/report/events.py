"""The record of a run: metrics.jsonl, and the same numbers for TensorBoard.

A line of metrics.jsonl is {"step": n, name: value, ...}. loss_plot.py and console.py use these
names: tokens (seen so far), loss (nats per token), lr, tokens_per_s, mfu (0 to 1), validation_loss
(nats per token), perplexity and bits_per_byte; others are stored too. Floats are written in full,
so that two curves can be compared bit for bit. JSON has no NaN: the three non-finite values are the
strings "NaN", "Infinity" and "-Infinity", which `read` converts back.

A checkpoint stores the length and digest of the record up to it (`Events.seal`), so that a run
continues only with the record that it had (`check`).
"""

import contextlib
import hashlib
import itertools
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gptjax.config import parse
from gptjax.runtime import errors, run_dir

FILE_NAME = "metrics.jsonl"
# First line of a record that replaces a lost one.
LOST_NOTE = "the record of the steps before is lost"
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Events:
    """Writes the record of a run from `resume_step` on; later lines are dropped first, since those
    steps will run again. 0 starts a new record. A context manager; for process 0 only.

    Raises OSError with the file and the step if the disk does not accept a line.
    """

    def __init__(
        self,
        directory: Path,
        resume_step: int,
        record_bytes: int | None = None,
        warn: Callable[[str], None] = lambda line: None,
    ):
        """record_bytes: bytes to keep, as returned by `check`; None: the lines of earlier steps.
        warn: called if TensorBoard's files cannot be written."""
        self._path = Path(directory) / FILE_NAME
        if record_bytes is None:
            record_bytes = resume_step and sum(
                len(line) + 1
                for line, record in _read_lines(self._path)
                if record["step"] < resume_step
            )
        # Unbuffered, so that closing has nothing left to write.
        self._file = self._path.open("ab", buffering=0)
        self._file.truncate(min(record_bytes, self._path.stat().st_size))
        content = self._path.read_bytes()
        # A kill can leave a line without its newline.
        if content and not content.endswith(b"\n"):
            self._file.write(b"\n")
            content += b"\n"
        self._n_bytes, self._digest = len(content), hashlib.sha256(content)
        self._board, self._warn = None, warn
        self._try_board(lambda: TensorBoardWriter(Path(directory) / "tensorboard", resume_step))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def write(self, step: int, values: Mapping[str, float | str | int]) -> None:
        """Appends one line, passed to the operating system before returning, so that killing the
        process does not lose it.
        """
        values = {name: _to_python(value) for name, value in values.items()}
        line = (
            json.dumps(
                {"step": step} | {n: _encode_float(v) for n, v in values.items()}, allow_nan=False
            ).encode()
            + b"\n"
        )
        self._append(line, step)
        self._n_bytes += len(line)
        self._digest.update(line)
        if self._board is not None:
            board = self._board
            self._try_board(lambda: board.write(step, values))

    def seal(self, step: int) -> dict[str, Any]:
        """Syncs the record to disk and returns its length and digest, for the
        checkpoint of `step`.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._add_context(error, step) from None
        return {"bytes": self._n_bytes, "sha256": self._digest.hexdigest()}

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._board is not None:
            self._try_board(self._board.close)

    def _append(self, line: bytes, step: int) -> None:
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise self._add_context(error, step) from None

    def _add_context(self, error: OSError, step: int) -> OSError:
        message = (
            f"cannot be written at step {step:,} ({error.strerror or error}); fix that, and the "
            "same command continues"
        )
        return OSError(error.errno, message, str(self._path))

    def _try_board(self, fn: Callable[[], Any]) -> None:
        """Calls fn for TensorBoard's files, which are optional: after a first error they are closed
        with a warning, and training continues.
        """
        board, self._board = self._board, None
        try:
            result = fn()
        except Exception as error:
            self._warn(
                f"TensorBoard receives no more of this run: {errors.classify_error(error)[1]}"
            )
            if board is not None:
                with contextlib.suppress(Exception):
                    board.close()
        else:
            self._board = board or result


class NullEvents:
    """The record of processes other than 0, which write none."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def write(self, step: int, values: Mapping[str, float | str | int]) -> None:
        """Does nothing."""
        pass

    def seal(self, step: int) -> dict[str, Any]:
        """Returns {}."""
        return {}


def _event_proto() -> Any:
    """TensorBoard's protocol messages, which type checkers cannot analyze."""
    from tensorboardX.proto import event_pb2

    return event_pb2


@contextlib.contextmanager
def _hide_torch():
    """tensorboardX imports torch, where that is installed, for a writer that is not used here:
    two seconds of the start of a run."""
    modules: dict[str, Any] = sys.modules
    is_hidden = modules.setdefault("torch", None) is None
    try:
        yield
    finally:
        if is_hidden:
            del modules["torch"]


class TensorBoardWriter:
    """TensorBoard's event file of a run; hides events of earlier files at `step` and later. Written
    synchronously: in tensorboardX's own thread a full disk would print a trace.
    """

    def __init__(self, directory: Path, step: int):
        with _hide_torch():
            from tensorboardX import event_file_writer

        # tensorboardX would print a line for every NaN.
        logging.getLogger("tensorboardX").setLevel(logging.ERROR)
        directory.mkdir(exist_ok=True)
        # File names have a resolution of seconds: hence the suffix.
        self._writer = event_file_writer.EventsWriter(str(directory / "events"), f".from{step}")
        start = _event_proto().SessionLog(status=_event_proto().SessionLog.START)
        self._write_event(_event_proto().Event(wall_time=time.time(), step=step, session_log=start))

    def write(self, step: int, values: Mapping[str, float | str | int]) -> None:
        """Writes the values of a step."""
        from tensorboardX import summary

        for name, value in values.items():
            summary_proto = (
                summary.text(name, value) if isinstance(value, str) else summary.scalar(name, value)
            )
            self._writer.write_event(
                _event_proto().Event(wall_time=time.time(), step=step, summary=summary_proto)
            )
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def _write_event(self, event: Any) -> None:
        self._writer.write_event(event)
        self._writer.flush()


def read(directory: Path) -> list[dict]:
    """Returns the lines of a run's metrics.jsonl, oldest first, without an incomplete last line; []
    if there is none yet.

    Raises ValueError for any other line that is not JSON.
    """
    records = [record for _, record in _read_lines(Path(directory) / FILE_NAME)]
    return [
        {n: NON_FINITE.get(v, v) if isinstance(v, str) else v for n, v in record.items()}
        for record in records
    ]


def check(directory: Path, step: int, seal: Mapping[str, Any] | None) -> int:
    """Returns the bytes of a run's record up to the checkpoint of `step`.

    seal: stored in that checkpoint; None if an earlier version wrote it, and then every step must
    have its line. Raises a one-line ValueError if the record has changed, with what is wrong and
    what to do.
    """
    file = Path(directory) / FILE_NAME
    content = file.read_bytes() if file.is_file() else b""
    if seal and hashlib.sha256(content[: seal["bytes"]]).hexdigest() == seal["sha256"]:
        return seal["bytes"]
    fault = ""
    try:
        lines = [(line, record) for line, record in _read_lines(file) if record["step"] <= step]
        steps = [record["step"] for _, record in lines if "loss" in record]
        gap = next(
            (n for n, logged in enumerate([*steps, 0], 1) if n <= step and logged != n), None
        )
        if gap is not None:
            fault = f"the line of step {gap:,} is not where it should be"
        elif not seal:
            return sum(len(line) + 1 for line, _ in lines)
    except ValueError as error:
        fault = str(error).removeprefix(f"{file}, ").partition(";")[0]
    raise ValueError(
        f"{file} is not as it was when step {step:,} was saved: "
        f"{fault or 'some lines were changed'}; put a copy of it back, "
        f"give another --run_dir, or {run_dir.NEW_RECORD_HINT}"
    )


def starts_at(directory: Path, step: int) -> bool:
    """Whether the record starts with LOST_NOTE at the checkpoint of `step`. It then has only values
    from that checkpoint on, which can be measured again, and later checkpoints seal it.
    """
    file = Path(directory) / FILE_NAME
    with contextlib.suppress(ValueError):
        return file.is_file() and parse.json_value(
            file.read_bytes().partition(b"\n")[0], FILE_NAME
        ) == {"step": step, "note": LOST_NOTE}
    return False


def move_aside(directory: Path, step: int) -> None:
    """Renames a damaged record, so that another can start in its place at the
    checkpoint of `step`.
    """
    file = Path(directory) / FILE_NAME
    if file.exists() and not starts_at(directory, step):
        names = (file.with_name(f"{FILE_NAME}.lost-{number}") for number in itertools.count(1))
        file.rename(next(name for name in names if not name.exists()))


def last_step(directory: Path) -> int:
    """The last step in the record, ignoring any damage; 0 if there is none."""
    last = 0
    for line in (
        (Path(directory) / FILE_NAME).read_bytes().split(b"\n")
        if (Path(directory) / FILE_NAME).is_file()
        else []
    ):
        with contextlib.suppress(ValueError):
            last = max(
                last, parse.member(parse.json_object(line, FILE_NAME), "step", int, FILE_NAME)
            )
    return last


def _read_lines(file: Path) -> list[tuple[bytes, dict]]:
    """Returns the complete lines of `file` with their JSON objects, which must have a step; an
    incomplete last line is dropped.
    """
    records = []
    lines = file.read_bytes().split(b"\n") if file.exists() else [b""]
    with contextlib.suppress(ValueError):
        parse.json_value(lines[-1], FILE_NAME)
        lines.append(b"")  # complete except for its newline
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = parse.json_object(line, FILE_NAME)
            parse.member(record, "step", int, FILE_NAME)
        except ValueError:
            excerpt = parse.quote(line[:100].decode(errors="replace"))
            raise ValueError(
                f"{file}, line {number}, is not a record of a step: {excerpt}; remove that line"
            ) from None
        records.append((line, record))
    return records


def _to_python(value):
    """Converts to a Python number or string; arrays of one element become floats."""
    return value if isinstance(value, (str, int, float)) else float(value)


def _encode_float(value):
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
