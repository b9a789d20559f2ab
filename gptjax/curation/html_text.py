"""Text of an HTML page; as a program, the child process that `extract.Extractor` starts."""

import codecs
import logging
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable

from gptjax.data import unicode

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
REQUEST = struct.Struct("<II")  # bytes of the charset's name, of the page; both follow
REPLY = struct.Struct("<I")  # bytes of the text, which follows


def extractor(library: str, main_content: bool) -> Callable[[str], str]:
    """Returns the function from HTML to text of a library, which it imports. main_content: whether
    menus, footers and the like are left out."""
    if library == "trafilatura":
        import trafilatura  # pyright: ignore[reportMissingImports]  not in the requirements

        if main_content:
            return lambda html: trafilatura.extract(html) or ""
        return trafilatura.html2txt
    from resiliparse.extract.html2text import extract_plain_text

    return lambda html: extract_plain_text(html, main_content=main_content)


def decode(html: bytes, charset: str | None) -> str:
    """Decodes a page by its byte order mark, else the HTTP header's charset, else <meta>, else what
    its bytes look like: the order of the HTML standard, section 13.2.3.2. Bytes that the encoding
    does not have become U+FFFD."""
    from resiliparse.parse import encoding

    for mark, name in BYTE_ORDER_MARKS.items():
        if html.startswith(mark):
            return html[len(mark) :].decode(name, "replace")
    name = encoding.map_encoding_to_html5(charset.strip(), fallback_utf8=False) if charset else None
    if name is None:
        name = encoding.detect_encoding(html, from_html_meta=True) or "utf-8"
        if name.startswith("utf-16"):  # a <meta> that could be read is not in UTF-16
            name = "utf-8"
    return encoding.bytes_to_str(html, name, errors="replace", fallback_encodings=())


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # rare, and slower to search for than to encode
        return unicode.replace_surrogates(text).encode()


def main(library: str, main_content: str, seconds: str, memory_bytes: str) -> None:
    """Answers pages from standard input, a socket, with their texts until that ends. A page that
    takes more CPU time or memory than allowed ends the process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # a parent that loaded libtpu ignores it
    logging.disable()
    extract = extractor(library, main_content == "True")
    decode(b"", None)  # imports what it needs
    if sys.platform == "linux":  # others do not enforce it
        resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes), int(memory_bytes)))
    stream = socket.socket(fileno=0).makefile("rwb")
    stream.write(REPLY.pack(0))  # ready
    stream.flush()
    while header := stream.read(REQUEST.size):
        n_charset, n_html = REQUEST.unpack(header)
        charset, html = stream.read(n_charset).decode(), stream.read(n_html)
        # CPU time, so that the same pages are kept on a busy machine; it ends by SIGPROF.
        signal.setitimer(signal.ITIMER_PROF, float(seconds))
        text = _encode(extract(decode(html, charset or None)))
        signal.setitimer(signal.ITIMER_PROF, 0)
        stream.write(REPLY.pack(len(text)) + text)
        stream.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
