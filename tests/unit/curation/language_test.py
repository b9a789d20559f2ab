"""Languages of documents: which are kept, and where in a document they are told."""

import pytest

from gptjax.config.curation import Language
from gptjax.curation import language
from gptjax.curation.page import Dropped, Page

pytest.importorskip("py3langid", reason="needs requirements-curation.txt")

ENGLISH = "The ship left the harbour at noon, and nobody on the quay knew when she would be back. "
FRENCH = (
    "Le navire a quitté le port à midi, et personne sur le quai ne savait quand il reviendrait. "
)
GERMAN = "Das Schiff verließ den Hafen am Mittag, und niemand am Kai wusste, wann es zurückkäme. "


def outcomes(*languages):
    stage = language.keep_languages(Language(languages=languages))
    pages = [Page(n, f"a#{n}", "", text) for n, text in enumerate((ENGLISH, FRENCH, GERMAN))]
    kept = [stage(page) for page in pages]
    return ["kept" if one == page else one for one, page in zip(kept, pages, strict=True)]


def test_documents_in_other_languages_are_dropped():
    assert outcomes("en") == [
        "kept",
        Dropped("language", "fr 1.00"),
        Dropped("language", "de 0.99"),
    ]
    assert outcomes("fr", "de") == [Dropped("language", "en 1.00"), "kept", "kept"]


def test_the_middle_of_a_document_decides():
    around = FRENCH * 20
    assert language.detect(around + ENGLISH * 20 + around)[0] == "en"
    assert language.detect(ENGLISH * 3 + FRENCH * 50)[0] == "fr"


@pytest.mark.parametrize("text", ["", " \n", "?"])
def test_what_has_no_letters_is_in_no_language(text):
    stage = language.keep_languages(Language(languages=("en", "sr")))
    outcome = stage(Page(0, "a#0", "", text))
    assert isinstance(outcome, Dropped) and outcome.detail.startswith("und ")


def test_an_unknown_language_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match="English, xy is not a language .* there are .* en eo "):
        language.keep_languages(Language(languages=("fr", "English", "xy")))
