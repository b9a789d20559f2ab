"""Prints the text of the PDF on standard input; run as a program of its own, with little memory and
time, since a PDF of strangers may ask for any amount of both.

It imports nothing of gptjax, whose packages would take more memory than the limit.
"""

import io
import logging
import resource
import sys
from typing import NoReturn

MAX_MEMORY_BYTES = 768 << 20
MAX_CPU_S = 20
REFUSED = 3  # exit status: it cannot be read; the reason is a line on standard error


def main() -> None:
    """Runs the program."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import pypdf  # within the limits

    logging.disable(logging.CRITICAL)
    max_chars = int(sys.argv[1])
    try:
        reader = pypdf.PdfReader(io.BytesIO(sys.stdin.buffer.read()))
        if reader.is_encrypted and not reader.decrypt(""):
            fail("it is encrypted")
        n_chars = 0
        for page in reader.pages:
            text = page.extract_text() + "\n\n"
            n_chars += len(text)
            if n_chars > max_chars:
                fail(f"it has more than {max_chars:,} characters")
            sys.stdout.buffer.write(text.encode(errors="replace"))
    except MemoryError:
        fail("it takes too much memory")
    except Exception as error:  # pypdf raises many kinds for what is no PDF
        fail(type(error).__name__)


def fail(reason: str) -> NoReturn:
    """Ends the program."""
    print(reason, file=sys.stderr)
    sys.exit(REFUSED)


if __name__ == "__main__":
    main()
