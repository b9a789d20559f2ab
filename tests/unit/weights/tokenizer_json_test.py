"""tokenizer.json says what our tokenizers do: the same ids, the same text."""

import io

import pytest
import sentencepiece

from gptjax.data.tokenizers import (
    build,
    byte_level_bpe,
    gpt1_bpe,
    gpt2_bpe,
    sentencepiece_tokenizer,
)
from gptjax.weights import tokenizer_json

HARD = [
    "def f(self, name):\n    if name:\n        return {'a': [1, 22, 333]}\n\n\n# done\n",
    "Hello, world! It's 3.14 now; don't, I'll, o'clock.",
    "na\u00efve caf\u00e9 e\u0301 \u0130stanbul stra\u00dfe \ufb01",
    "\u6f22\u5b57\u304b\u306a\u4ea4\u3058\u308a\u6587 \ud55c\uad6d\uc5b4 \u0e44\u0e17\u0e22 "
    "\u05e9\u05dc\u05d5\u05dd",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7\ufe0f \U0010ffff",
    "\u2581 a literal\u2581one, \u2581\u2581 \u0120 \u010a",
    "<|endoftext|> typed, <unk> <0x41> </s> </w> <|endoftext|>",
    "  a   b    c     \t\td\n\n\n  e \n f\r\n\r\n g   ",
    "".join(map(chr, range(32))) + "\x7f\x80\x85\xa0\u2028\u3000\ufeff",
    " " * 37 + "x" + " " * 5,
    "\n",
    " ",
    "",
]
TRAINED = [
    "the cat sat on the mat, and it's there. " * 60,
    "def f(self, x):\n    return {'a': [1, 22]}\n\n\n" * 60,
    "ababab cababa " * 20,
]


@pytest.fixture(scope="module")
def texts(request):
    """Every tokenizer that has an exact form; GPT-1's only where its files are."""
    found = {
        "bytes": build.ByteTokenizer(),
        "gpt2": gpt2_bpe.Gpt2Tokenizer(None),
        "sentencepiece": sentencepiece_tokenizer.train(TRAINED, 330),
        "trained": byte_level_bpe.train(TRAINED, 290),
    }
    folder = request.config.rootpath.parent / "shared" / "data" / "tokenizers" / "gpt1"
    return found | (
        {"gpt1": gpt1_bpe.Gpt1Tokenizer(str(folder), "basic")} if folder.exists() else {}
    )


@pytest.mark.parametrize(
    "kind",
    ["bytes", "gpt2", "sentencepiece", "trained", pytest.param("gpt1", marks=pytest.mark.shared)],
)
def test_ids_and_text_are_ours(texts, kind):
    ours = texts[kind]
    rust, other = tokenizer_json.convert(ours)
    rust.encode_special_tokens = True  # what split_special_tokens of tokenizer_config.json sets
    assert other == ""
    for text in HARD:
        ids = ours.encode(text)
        assert rust.encode(text, add_special_tokens=False).ids == ids, text
        assert rust.decode(ids, skip_special_tokens=False) == ours.decode(ids), text
    if (end := ours.end_of_text) is not None:
        ids = [end, *ours.encode("a b"), end]
        assert (
            rust.decode(ids, skip_special_tokens=False)
            == ours.decode(ids)
            == "<|endoftext|>a b<|endoftext|>"
        )


def test_bytes_that_are_no_text_are_shown_alike():
    rust, _ = tokenizer_json.convert(build.ByteTokenizer())
    for ids in (
        [0xC3],
        [0x61, 0xE2, 0x82, 256, 0xAC],
        [0xF0, 0x9F, 0x98, 0x41, 0xFF, 0xFE],
        list(range(256)),
    ):
        assert rust.decode(ids, skip_special_tokens=False) == build.ByteTokenizer().decode(ids)


@pytest.mark.shared
def test_gpt1s_words_by_spacy_have_no_form_and_a_line_says_so(shared):
    pytest.importorskip("spacy", reason="spaCy is an extra: pip install -r requirements-eval.txt")
    folder = str(shared / "data" / "tokenizers" / "gpt1")
    rust, other = tokenizer_json.convert(gpt1_bpe.Gpt1Tokenizer(folder, "spacy"))
    assert other == "words are split by BERT's rules there, not by spaCy's"
    assert rust.encode("plain words", add_special_tokens=False).ids == gpt1_bpe.Gpt1Tokenizer(
        folder, "basic"
    ).encode("plain words")


def model(**changes) -> sentencepiece_tokenizer.SentencePieceTokenizer:
    """A SentencePiece model that somebody else trained: as ours, with changes."""
    out = io.BytesIO()
    plain = {
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
    }
    usual = plain | {
        "model_type": "bpe",
        "vocab_size": 320,
        "minloglevel": 3,
        "eos_id": 1,
        "bos_id": -1,
        "pad_id": -1,
        "unk_id": 0,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINED), model_writer=out, **(usual | changes)
    )
    return sentencepiece_tokenizer.SentencePieceTokenizer(out.getvalue())


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model_type": "unigram", "vocab_size": 290}, "is not BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalizes text"),
        ({"add_dummy_prefix": True}, "adds a space before a text"),
        ({"remove_extra_whitespaces": True}, "removes spaces"),
        ({"byte_fallback": False, "vocab_size": 60}, "lacks pieces for some bytes"),
        ({"user_defined_symbols": ["<sep>"]}, "has user-defined pieces"),
        ({"treat_whitespace_as_suffix": True}, "treats spaces as suffixes"),
    ],
)
def test_another_kind_of_sentencepiece_has_no_form_and_a_line_says_so(changes, said):
    assert tokenizer_json.convert(model(**changes)) == (None, f"its SentencePiece model {said}")


def test_the_end_of_text_of_another_is_called_as_there():
    text = model()
    rust, other = tokenizer_json.convert(text)
    assert (
        other == ""
        and rust.token_to_id("</s>") == 1
        and tokenizer_json.tokenizer_config(text, 8)["eos_token"] == "</s>"
    )
    assert rust.encode("the cat", add_special_tokens=False).ids == text.encode("the cat")


def test_symbols_of_bytes_are_gpt2s():
    vocabulary = gpt2_bpe.Gpt2Tokenizer(None).rust.get_vocab()
    assert sorted(map(byte_level_bpe.byte_symbol, range(256))) == sorted(
        s for s, i in vocabulary.items() if i < 256
    )
