"""Text as every tokenizer sees it: valid Unicode, and long texts in chunks."""

import re
from collections.abc import Iterator

SURROGATE = re.compile("[\ud800-\udfff]")
SPACE_AFTER_TEXT = re.compile(r"(?<=\S)(?=[ \n])")


def replace_surrogates(text: str) -> str:
    """`text` with every lone surrogate replaced by U+FFFD; a pair of surrogates becomes the one
    character that it spells.

    A str may hold surrogates (from JSON's escapes, or file names), UTF-8 may not: OpenAI's encoder
    raises on them. Going through UTF-16 is what tiktoken does.
    """
    if not SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def chunks(text: str, size: int) -> Iterator[str]:
    """Consecutive parts of `text`, each of `size` characters and what follows up to the next space
    or newline; joined, they are `text`.

    A part ends after a visible character and before a space or newline. No match of GPT-2's
    pre-split pattern crosses such a place, so encoding part by part is exact there; it bounds the
    memory that a tokenizer needs for one long document.
    """
    start = 0
    while start < len(text):
        cut = SPACE_AFTER_TEXT.search(text, start + size) if start + size < len(text) else None
        stop = cut.start() if cut else len(text)
        yield text[start:stop]
        start = stop
