"""Files that are sent with a message: their text, within limits."""

import subprocess
import sys
import unicodedata
from pathlib import Path

from gptjax.config import parse
from gptjax.data import unicode
from gptjax.runtime import errors
from gptjax.server.chat_page import pdf_text
from gptjax.server.openai_errors import ApiError, invalid

MAX_FILE_BYTES = 10 << 20
MAX_TEXT_CHARS = 1_000_000
MAX_NAME_CHARS = 100
PDF_S = 30.0  # seconds in which a PDF must be read


def read_text(name: str, content: bytes) -> str:
    """Returns the text of a file of type .txt, .md or .pdf. Raises ApiError for another type, and
    for one that cannot be read or has no text or too much."""
    kind = Path(name).suffix.lower()
    if kind in (".txt", ".md"):
        text = _decode(name, content)
    elif kind == ".pdf":
        text = _read_pdf(name, content)
    else:
        raise invalid(f"{parse.quote(name)} is no .txt, .md or .pdf: give one of these", "name")
    if len(text) > MAX_TEXT_CHARS:
        raise _refusal(name, f"has more than {MAX_TEXT_CHARS:,} characters: give a shorter one")
    if not text.strip():
        raise _refusal(name, "has no text; pages that are pictures cannot be read")
    return text


def clean_name(name: str) -> str:
    """The name of a file without its folders, and without characters that are not printed."""
    last = name.replace("\\", "/").rpartition("/")[2]
    shown = "".join(c for c in last if unicodedata.category(c)[0] != "C").strip()
    return shown[-MAX_NAME_CHARS:] or "file"


def add_to_prompt(files: list[dict[str, str]], content: str) -> str:
    """What the model reads of a message: the texts of its files, then what the user wrote."""
    parts = [f"File {file['name']}:\n\n{file['text'].strip()}" for file in files]
    return "\n\n".join([*parts, content] if content else parts)


def _decode(name: str, content: bytes) -> str:
    try:
        return parse.utf8(content, parse.quote(name))
    except ValueError as error:
        raise invalid(str(error), "file", "unreadable_file") from None


def _read_pdf(name: str, content: bytes) -> str:
    """In a process of its own: see pdf_text."""
    command = [sys.executable, "-I", pdf_text.__file__, str(MAX_TEXT_CHARS)]
    try:
        child = subprocess.run(command, input=content, capture_output=True, timeout=PDF_S)
    except subprocess.TimeoutExpired:
        raise _refusal(name, "takes too long to read") from None
    if child.returncode == 0:
        return unicode.replace_surrogates(child.stdout.decode()).replace("\0", "")
    reason = errors.one_line(child.stderr.decode(errors="replace"))[-200:]
    known = child.returncode == pdf_text.REFUSED
    reason = reason if known else "it takes too much memory or time"
    raise _refusal(name, f"cannot be read as a PDF ({reason})")


def _refusal(name: str, what: str) -> ApiError:
    return invalid(f"{parse.quote(name)} {what}", "file", "unreadable_file")
