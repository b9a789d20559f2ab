"""Characters that look alike, as one: digits of any script as 0 to 9, dashes, spaces, and letters
that look Latin. Characters that are not seen are left out.

Only for searching: the text itself stays as it is. What a character becomes does not depend on
those around it, so that a text may come in parts.
"""

import unicodedata
from collections.abc import Sequence

LETTERS = dict(
    zip(
        "АВЕКМНОРСТУХІЈЅаеорсухіјѕΑΒΕΖΗΙΚΜΝΟΡΤΥΧο",  # Cyrillic, then Greek
        "ABEKMHOPCTYXIJSaeopcyxijsABEZHIKMNOPTYXo",
        strict=True,
    )
)
QUOTES = dict.fromkeys("\u2018\u2019\u02bc\u2032", "'")
MAX_HIDDEN = 4  # characters in sequence that are left out; more are a gap, so that delay is bounded
GAP = "\ufffd"


class _Table(dict[int, str]):
    """Code point -> its character as it is searched for; "" if it is not seen. For str.translate,
    and filled as characters are met."""

    def __missing__(self, code: int) -> str:
        self[code] = folded = _fold(chr(code))
        return folded


def _fold(char: str) -> str:
    if char.isascii():
        return char
    category = unicodedata.category(char)
    # Formats, such as zero-width spaces; combining marks, such as strokes.
    if category in ("Cf", "Mn", "Me"):
        return ""
    digit = unicodedata.digit(char, None)
    if digit is not None:
        return str(digit)
    compatible = unicodedata.normalize("NFKC", char)
    plain = compatible if len(compatible) == 1 else char
    if unicodedata.category(plain) == "Pd" or plain == "\u2212":
        return "-"
    if category == "Zs":
        return " "
    return LETTERS[plain] if plain in LETTERS else QUOTES[plain] if plain in QUOTES else plain


TABLE = _Table()


class Folder:
    """Folds a text that comes in parts."""

    def __init__(self):
        self._n_hidden = 0  # in sequence, at the end of what has come

    def fold(self, text: str) -> tuple[str, Sequence[int]]:
        """Returns (the folded text, of each of its characters the position in `text`)."""
        if text.isascii():
            self._n_hidden = self._n_hidden if not text else 0
            return text, range(len(text))
        folded = text.translate(TABLE)
        if len(folded) == len(text):
            self._n_hidden = 0
            return folded, range(len(text))
        chars, places = [], []
        for place, char in enumerate(text):
            char = TABLE[ord(char)]
            self._n_hidden = 0 if char else self._n_hidden + 1
            if char or self._n_hidden > MAX_HIDDEN:
                chars.append(char or GAP)
                places.append(place)
        return "".join(chars), places
