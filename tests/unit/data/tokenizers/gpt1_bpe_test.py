"""GPT-1's tokenizer against a plain writing of text_utils.py's algorithm, on odd text. Its two
files are only in ../shared."""

import itertools
import json
import string
import sys
import types

import ftfy
import pytest

from gptjax.config import data
from gptjax.data import unicode
from gptjax.data.tokenizers import build, gpt1_bpe

TEXTS = {
    "prose": (
        "\u201cDon't!\u201d she said\u2014quietly\u2026 It was 3.\n\n   The U.S. (of old) had "
        "1,000 ships;  didn't it?\r\nYes."
    ),
    "emoji": "smile \U0001f600 and \U0001f468\u200d\U0001f469\u200d\U0001f467 flags",
    "cjk": "\u6f22\u5b57\u304b\u306a\u4ea4\u3058\u308a \ud55c\uad6d\uc5b4",
    "accents": "Caf\u00e9 na\u00efve \u00c5ngstr\u00f6m \u0130stanbul stra\u00dfe",
    "control": "a\x00b\x01c\x1cd\x85e\u2028f\u3000g\ufeffh",
    "surrogates": "a\ud800b \ud83d\ude00 c",
    "long word": "antidisestablishmentarianism" * 60,
    "punctuation": '--- ~~~ !!! "" ;; ?? ++ ,, )) (( \\\\ // ** [[ ]] }} {{ || __ a-b_c/d',
    "mojibake": (
        "The Mona Lisa doesn\u00c3\u00a2\u00e2\u201a\u00ac\u00e2\u201e\u00a2t have eyebrows."
    ),
    "spaces": "  leading \t and   trailing  \n \n \n x \n",
    "only newlines": "\n\n",
    "empty": "",
}


def reference(directory, split):
    """text_utils.py as an algorithm, one word at a time; split(text) yields the words."""
    ids = json.loads((directory / "encoder_bpe_40000.json").read_text(encoding="utf-8"))
    lines = (directory / "vocab_40000.bpe").read_text(encoding="utf-8").split("\n")[1:-1]
    rank = {tuple(line.split()): n for n, line in enumerate(lines)}

    def word_ids(word: str) -> list[int]:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            best = min(itertools.pairwise(parts), key=lambda pair: rank.get(pair, len(rank)))
            if best not in rank:
                break
            merged, i = [], 0
            while i < len(parts):
                both = tuple(parts[i : i + 2]) == best
                merged.append("".join(best) if both else parts[i])
                i += 2 if both else 1
            parts = merged
        if parts == ["\n", " </w>"]:
            parts = ["\n</w>"]
        return [ids.get(part, 0) for part in parts]

    return lambda text: [i for word in split(text) for i in word_ids(word.lower())]


@pytest.fixture(scope="module")
def directory(request):
    return request.config.rootpath.parent / "shared" / "data" / "tokenizers" / "gpt1"


@pytest.mark.shared
@pytest.mark.parametrize("name", TEXTS)
def test_words_by_spacy_are_the_published_algorithm(directory, name):
    spacy = pytest.importorskip(
        "spacy", reason="spaCy is an extra: pip install -r requirements-eval.txt"
    )
    whole = spacy.blank("en")  # over the whole text at once, as text_utils.py does
    exact = reference(
        directory,
        lambda text: [
            word.text
            for word in whole(gpt1_bpe.standardize(ftfy.fix_text(unicode.replace_surrogates(text))))
        ],
    )
    spoken = build.build(data.Gpt1Bpe(path=str(directory)))
    assert spoken.encode(TEXTS[name]) == exact(TEXTS[name])


@pytest.mark.shared
def test_words_by_berts_rules(directory):
    spoken = build.build(data.Gpt1Bpe(path=str(directory), words="basic"))
    words = "caf\u00e9 isn't far , he said ; go \U0001f600".split()
    plain = [w for word in words for w in word.replace("'", " ' ").replace("\u00e9", "e").split()]
    assert spoken.encode("Caf\u00e9 isn't far, he said;\ngo \U0001f600") == reference(
        directory, lambda _: plain
    )("")
    assert (spoken.n_vocab, spoken.end_of_text) == (40478, None)
    assert spoken.decode(spoken.encode("Hello, World")) == "hello , world "


@pytest.mark.shared
def test_known_ids(directory):
    spoken = build.build(data.Gpt1Bpe(path=str(directory), words="basic"))
    ids = json.loads((directory / "encoder_bpe_40000.json").read_text(encoding="utf-8"))
    assert spoken.encode("The \u4e94") == [ids["the</w>"], 0]
    assert spoken.newline == spoken.start_of_text == 40477
    assert spoken.encode("\n") == spoken.encode(" ") == []  # what `start_of_text` is for


@pytest.mark.shared
def test_without_spacy_the_line_says_what_to_do(directory, monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    line = (
        r"pip install -r requirements-eval.txt, .*; or take BERT's splitting with --set "
        r"data\.tokenizer\.words=basic; .* gptjax\.convert"
    )
    with pytest.raises(ValueError, match=line) as error:
        build.build(data.Gpt1Bpe(path=str(directory)))
    assert "\n" not in str(error.value)


def test_published_words_are_repaired_lowered_and_spaced_and_lines_end_with_a_token(monkeypatch):
    """With a vocabulary of single characters, and words between spaces for spaCy's."""
    symbols = [
        "<unk>",
        *(c + end for c in "abcdefghijklmnopqrstuvwxyz?!'\"[]{}" for end in ("", "</w>")),
        "\n</w>",
    ]
    files = {
        "encoder_bpe_40000.json": json.dumps({symbol: n for n, symbol in enumerate(symbols)}),
        "vocab_40000.bpe": "#version: 0.2\n",
    }
    monkeypatch.setattr(
        gpt1_bpe.openai_files,
        "load",
        lambda *_: {name: text.encode() for name, text in files.items()},
    )
    monkeypatch.setattr(
        gpt1_bpe,
        "load_spacy",
        lambda: lambda line: [types.SimpleNamespace(text=word) for word in line.split()],
    )
    monkeypatch.setattr(gpt1_bpe.importlib.metadata, "version", lambda name: "0")
    spoken = gpt1_bpe.Gpt1Tokenizer(None, "spacy")
    assert (
        spoken.decode(spoken.encode("He\nSaid? \u201cIt isn\u00e2\u20ac\u2122t\u201d [So]"))
        == 'he \n said ? " it isn\'t " [ so ] '
    )


def test_standardized():
    assert gpt1_bpe.standardize("(a)[b]{c}*d") == "( a ) [ b ] { c } * d"
    assert (
        gpt1_bpe.standardize("wait\u2014what\u2026  no!!  \n\n (a_b)")
        == "wait - what... no !! \n ( a _ b )"
    )
    assert (
        gpt1_bpe.standardize("C:\\dir a\\\\b\\\n+\\+") == "C:\\dir a\\\\b\\ \n + \\ +"
    )  # the code's pattern has no backslash
    spaced = [
        mark
        for mark in string.punctuation
        if gpt1_bpe.standardize(f"a{mark * 2}b") == f"a {mark * 2} b"
    ]
    assert spaced == list('!"()*+,-/;?[]_{|}~')
    assert gpt1_bpe.standardize("it\u00b4s \t 5\u20136") == "it's 5 - 6"
