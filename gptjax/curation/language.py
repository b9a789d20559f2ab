"""Keeps documents in some languages, which py3langid (github.com/adbar/py3langid) identifies: naive
Bayes on n-grams of bytes.

Of 1,000 English texts of 100, 200 and 500 characters (prose, glosses, a handbook) it recognizes
98.5, 99.9 and 99.8%; resiliparse's detector, 20 to 50 times faster, 95, 90 and 98%. Croatian is
often taken for Bosnian or Serbian ("bs", "sr"), and Norwegian is "no" or "nn": name all.
"""

import functools
import tempfile
from typing import Any

from gptjax.config.curation import Language
from gptjax.config.parse import quote
from gptjax.curation.page import Dropped, Page, StageFn

# Characters that are looked at: with more, hardly another text is recognized. They are those in the
# middle, since menus and notices on cookies stand first and last.
SAMPLE_CHARACTERS = 1000
# Of 140 languages; text without letters, as digits, has less in each, and is in none.
LEAST_PROBABILITY = 0.1


def keep_languages(rule: Language) -> StageFn:
    """Returns a stage that drops documents in other languages, as Dropped("language", "fr 0.93"):
    the likeliest language, or "und" for none, and its probability.

    Raises ValueError for a language that the detector does not know.
    """
    known = _detector().labels
    if unknown := [name for name in rule.languages if name not in known]:
        raise ValueError(
            f"Language(languages={quote(rule.languages)}): {', '.join(unknown)} is not a language "
            f"that can be identified; there are {' '.join(known)}"
        )

    def stage(page: Page) -> Page | Dropped:
        language, probability = detect(page.text)
        if language in rule.languages:
            return page
        return Dropped("language", f"{language} {probability:.2f}")

    return stage


def detect(text: str) -> tuple[str, float]:
    """Returns (ISO 639 code of the language of a text, "und" if it has none; its probability)."""
    start = max(0, (len(text) - SAMPLE_CHARACTERS) // 2)
    language, probability = _detector().classify(text[start : start + SAMPLE_CHARACTERS])
    return language, float(probability)


@functools.cache
def _detector() -> Any:
    """The detector, once a process: it takes about a second and 70 MB, in a temporary file, too."""
    from py3langid import langid

    try:
        return langid.LanguageIdentifier.from_model_file(
            langid.MODEL_FILE, norm_probs=True, min_confidence=LEAST_PROBABILITY
        )
    except OSError as error:
        place = error.filename or tempfile.gettempdir()
        raise OSError(error.errno, f"py3langid needs it: {error.strerror}", place) from None
