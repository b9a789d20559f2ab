"""Extraction of text from HTML in a child process, so that no page stops or ends a run."""

import contextlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from typing import Self

from gptjax.config.curation import ReadPages
from gptjax.curation import html_text
from gptjax.curation.page import Dropped
from gptjax.runtime import child

START_SECONDS = 60
# The child ends itself after ReadPages.seconds of CPU time. If it has not after so many times as
# many seconds of the clock, it hangs.
HANG_FACTOR = 20
OUT_OF_MEMORY = re.compile(r"MemoryError|emory allocation|\(Error 2\)")  # Python, Rust, resiliparse
TIMED_OUT = "extraction timed out"


class Extractor:
    """Text of HTML pages, from a child process that is started once, and again after a page that
    takes too much time or memory or crashes it.

    A context manager. Enter it in the main thread: the child ends with the thread that starts it.
    Raises ImportError or ValueError, on entry, if the library is not installed or does not start.
    """

    def __init__(self, rule: ReadPages):
        self._rule = rule
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        _check_installed(self._rule.library)
        self._start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._process:
            self._stop()

    def extract(self, html: bytes, charset: str | None = None) -> str | Dropped:
        """Returns the text of a page, valid Unicode, or why there is none.

        charset: the encoding that the HTTP header names. A page that crashes the child or takes
        too much memory is tried once more in a fresh one: the memory of earlier pages, or
        whatever killed the child, may be at fault, and the same pages must be kept wherever they
        are processed.
        """
        text = self._ask(html, charset or "")
        if isinstance(text, Dropped) and text.reason != TIMED_OUT:
            text = self._ask(html, charset or "")
        return text if isinstance(text, Dropped) or text.strip() else Dropped("no text")

    def _ask(self, html: bytes, charset: str) -> str | Dropped:
        if self._process is None:
            self._start()
        name = charset.encode()
        try:
            # in one piece: two would wake the child twice
            self._socket.sendall(html_text.REQUEST.pack(len(name), len(html)) + name + html)
            return self._read_reply().decode()
        except TimeoutError:
            self._stop()
            return Dropped(TIMED_OUT, "it hangs")
        except (ConnectionError, EOFError):
            return self._cause_of_end()
        except BaseException:  # Ctrl-C: this reply would be taken for the next page's
            self._stop()
            raise

    def _start(self) -> None:
        rule = self._rule
        arguments = [rule.library, str(rule.main_content), str(rule.seconds)]
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(START_SECONDS)
        self._stream = self._socket.makefile("rb")
        self._log = tempfile.TemporaryFile()
        with theirs:
            self._process = subprocess.Popen(
                child.command(["-m", html_text.__name__, *arguments, str(rule.memory_bytes)]),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "RUST_BACKTRACE": "0"},
                start_new_session=True,  # Ctrl-C is for this process alone
            )
        try:
            self._read_reply()
        except (TimeoutError, ConnectionError, EOFError):
            cause = self._cause_of_end()
            raise ValueError(
                f"the process that extracts text by {rule.library} does not start "
                f"({cause.detail}): is the package whole, and memory_bytes={rule.memory_bytes:,} "
                "enough?"
            ) from None
        self._socket.settimeout(HANG_FACTOR * rule.seconds)

    def _read_reply(self) -> bytes:
        """Returns what the child replies. Raises EOFError if it ends instead."""
        return self._read(*html_text.REPLY.unpack(self._read(html_text.REPLY.size)))

    def _read(self, n: int) -> bytes:
        content = self._stream.read(n)
        if len(content) < n:
            raise EOFError
        return content

    def _stop(self) -> int:
        """Ends the child, if it still runs, and returns its exit status."""
        assert self._process
        self._process.kill()
        self._stream.close()
        self._socket.close()
        self._log.close()
        process, self._process = self._process, None
        return process.wait()

    def _cause_of_end(self) -> Dropped:
        """Returns why the child has ended."""
        assert self._process
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._log.seek(0)
        log = self._log.read().decode(errors="replace").strip()
        status = self._stop()
        detail = log.splitlines()[-1] if log else f"exit status {status}"
        if status == -signal.SIGPROF:
            return Dropped(TIMED_OUT)
        if OUT_OF_MEMORY.search(log):
            return Dropped("extraction took too much memory", detail)
        return Dropped("extraction crashed", detail)


def _check_installed(library: str) -> None:
    """Raises ImportError or ValueError for a library that is not there, or resiliparse, which
    decodes pages for all."""
    for name in ("resiliparse", library):
        if importlib.util.find_spec(name):
            continue
        if name == "trafilatura":
            raise ValueError(
                "ReadPages(library='trafilatura') needs the package trafilatura, which is not "
                "installed: pip install trafilatura==2.3.1 lxml_html_clean==0.4.6, or take "
                "'resiliparse'"
            )
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
