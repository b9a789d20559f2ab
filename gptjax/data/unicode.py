"""Valid Unicode for every tokenizer, and long texts in chunks."""

import re
from collections.abc import Iterator

SPACE_AFTER_TEXT = re.compile(r"(?<=\S)(?=[ \n])")


def replace_surrogates(text: str) -> str:
    """Returns `text` with every lone surrogate replaced by U+FFFD, and every pair of surrogates by
    the character that it encodes.

    A str may hold surrogates (from JSON's escapes, or file names), UTF-8 may not: OpenAI's encoder
    raises on them. Conversion through UTF-16 is what tiktoken does (github.com/openai/tiktoken).
    """
    try:
        text.encode()  # a third of the time of a search, or less
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def chunks(text: str, size: int, boundary: re.Pattern[str] = SPACE_AFTER_TEXT) -> Iterator[str]:
    """Yields consecutive parts of `text`, each of `size` characters and the rest up to the next
    match of `boundary`; joined, they are `text`.

    By default a part ends after a visible character and before a space or newline. No piece of
    SentencePiece and no match of GPT-2's pre-split pattern crosses such a position, so the ids of
    the parts, joined, are those of the text. This bounds the memory that a tokenizer needs for one
    long document.
    """
    start = 0
    while start < len(text):
        cut = boundary.search(text, start + size) if start + size < len(text) else None
        stop = cut.start() if cut else len(text)
        yield text[start:stop]
        start = stop
