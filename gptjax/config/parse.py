"""Parsers for user input: JSON, paths and numbers. Every error is one line: what was given, what is
allowed.
"""

import argparse
import errno
import json
import math
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

BYTE_ORDER_MARK = "\ufeff"
MAX_INT = 2**63 - 1  # of integers on the command line, unless a flag has a tighter bound


def json_value(content: bytes | str, where: str) -> Any:
    """Parses JSON text; a byte order mark is ignored. where: names the source in errors (a file, or
    a file and a line).

    Raises a one-line ValueError for bytes that are not UTF-8, text that is not JSON, nesting beyond
    Python's recursion limit, and integers with more digits than Python parses (4,300).
    """
    text = (
        utf8(content, where)
        if isinstance(content, bytes)
        else content.removeprefix(BYTE_ORDER_MARK)
    )
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where} is not JSON: {error.msg}, at line {error.lineno:,} column {error.colno:,}"
        ) from None
    except RecursionError:
        raise ValueError(f"{where} is JSON nested too deeply to be read") from None
    except ValueError:
        raise ValueError(f"{where} holds an integer of too many digits to be read") from None


def json_object(content: bytes | str, where: str) -> dict[str, Any]:
    """Parses JSON text that must be an object. Raises ValueError for anything else: see
    `json_value`.
    """
    value = json_value(content, where)
    if not isinstance(value, dict):
        raise ValueError(
            f"{where} holds a JSON {type(value).__name__}, not an object with a name for each value"
        )
    return value


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object from a file. Raises a one-line ValueError if the file is missing,
    unreadable or holds anything else.
    """
    return json_object(read_bytes(file), str(file))


def disk_bytes(file: Path) -> bytes:
    """Reads the bytes of a regular file. Raises OSError if it cannot be read, and for a pipe or
    device, which might never end.
    """
    mode = file.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a pipe or device, not a file", str(file))
    return file.read_bytes()


def read_bytes(file: Path) -> bytes:
    """Reads the bytes of a file. Raises a one-line ValueError if it is missing or unreadable."""
    try:
        return disk_bytes(file)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None


def read_text(file: Path) -> str:
    """Reads the UTF-8 text of a file, without a byte order mark. Raises ValueError if it is
    missing, unreadable or not text.
    """
    return utf8(read_bytes(file), str(file))


def utf8(content: bytes | bytearray, where: str) -> str:
    """Decodes UTF-8, without a byte order mark. Raises ValueError, with the first bad byte, for
    input that is not UTF-8 or has a zero byte, as binary files and UTF-16 do.
    """
    if (zero := content.find(0)) >= 0:
        raise ValueError(f"{where} is not text: a zero byte at offset {zero:,}; give UTF-8 text")
    try:
        return content.decode().removeprefix(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} is not UTF-8 text: byte 0x{content[error.start]:02x} at offset "
            f"{error.start:,}; convert it"
        ) from None


TYPE_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def member(record: dict[str, Any], name: str, kind: type, where: str) -> Any:
    """Returns record[name], checked to be of `kind`: int, float (an int is converted), str, bool,
    list or dict.

    A bool is not an int, and a float must be finite. Raises ValueError with `where` and `name`.
    """
    if name not in record:
        raise ValueError(f"{where} has no {name!r}: it must hold {TYPE_WORDS[kind]} of that name")
    value = record[name]
    if kind is float and type(value) is int and abs(value) < 2**1023:
        value = float(value)
    if type(value) is not kind or kind is float and not math.isfinite(value):
        raise ValueError(f"{where}: {name!r} is {quote(value)}; it must be {TYPE_WORDS[kind]}")
    return value


def quote(value: Any, limit: int = 60) -> str:
    """Formats a value for an error message: one line of at most `limit` characters, for a value of
    any size or depth.
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of too many digits; nested too deeply
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def one_line(text: str, limit: int = 1000) -> str:
    """Formats text as one line of an error message: control characters and lone surrogates escaped,
    cut at `limit` characters.
    """
    clipped = text if len(text) <= limit else f"{text[: limit - 3]}..."
    return "".join(c if c == " " or c.isprintable() else repr(c)[1:-1] for c in clipped)


def path(text: str) -> Path:
    """Parses a path, with ~ for the home directory. Raises ValueError for empty text, an unknown
    ~user or a zero byte.
    """
    if not text:
        raise ValueError(
            "an empty path: give the name of a file or directory, or . for the current directory"
        )
    if "\0" in text:
        raise ValueError(f"{text!r} holds a zero byte, which no path can")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{text}: there is no home directory of {text.split('/')[0]}; write the path in full"
        ) from None


# --- types of command-line arguments; argparse shows their ArgumentTypeError after the flag's name


def path_argument(text: str) -> Path:
    """Argument type: a local path. A bucket URL is refused, since it would become a folder called
    "gs:".
    """
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{quote(text)}: give a file or directory of this machine, and no bucket"
        )
    try:
        return path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def int_argument(low: int = 1, high: int = MAX_INT) -> Callable[[str], int]:
    """Argument type: a whole number from low to high; 1e6 and 500_000 are whole numbers too."""

    def read(text: str) -> int:
        try:
            value = int(text) if len(text) < 4000 else None
        except ValueError:
            try:
                real = float(text)
                value = int(real) if math.isfinite(real) and real.is_integer() else None
            except ValueError:
                value = None
        if value is None or not in_range(value, low, high):
            raise argparse.ArgumentTypeError(
                f"{quote(text)}: give {describe_range(int, low, high)}"
            )
        return value

    return read


def float_argument(
    low: float, high: float = math.inf, above: bool = False
) -> Callable[[str], float]:
    """Argument type: a finite number from low to high. above: exclude low itself."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and in_range(value, low, high, above)):
            raise argparse.ArgumentTypeError(
                f"{quote(text)}: give {describe_range(float, low, high, above)}"
            )
        return value

    return read


def seed_argument(text: str) -> int:
    """Argument type: a seed, of 32 bits like those of jax keys."""
    return int_argument(0, 2**32 - 1)(text)


def line_argument(text: str) -> str:
    """Argument type: a non-empty line without control characters, for use in a command
    or script.
    """
    if not text.strip() or one_line(text) != text:
        raise argparse.ArgumentTypeError(
            f"{quote(text)}: give a text of one line, without control characters"
        )
    return text


# --- bounds of numbers, for arguments above and for config fields (record.py) ---------------------


def in_range(value: float, low: float, high: float, above: bool = False) -> bool:
    """Whether low <= value <= high; `above` excludes low. False for NaN."""
    return low <= value <= high and not (above and value == low)


def describe_range(kind: type, low: float, high: float, above: bool = False) -> str:
    """Describes in words what `in_range` allows: "a whole number from 1 to 10"."""
    low_text, high_text = (f"{x:,}" if isinstance(x, int) else f"{x:g}" for x in (low, high))
    first, open_ended = (
        f"above {low_text}" if above else f"from {low_text}",
        high in (math.inf, MAX_INT),
    )
    rest = "" if open_ended else f" and at most {high_text}" if above else f" to {high_text}"
    return (
        f"{TYPE_WORDS[kind]} "
        f"{f'of {low_text} or more' if open_ended and not above else first + rest}"
    )
