"""SentencePiece models of others: their library's ids, spaces and control pieces, in streams too;
damage as one line."""

import json
import pickle

import pytest
import sentencepiece

from gptjax.config import data
from gptjax.data import unicode
from gptjax.data.tokenizers import build, sentencepiece_tokenizer
from gptjax.generate import streaming
from gptjax.weights import tokenizer_json
from tests import tokenizer_kinds

TEXTS = [unicode.replace_surrogates(text) for text in tokenizer_kinds.hard_texts()]
KINDS = {
    "llama": {},
    "gemma": {"add_dummy_prefix": False, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},
    "user-defined": {"user_defined_symbols": ("<x>", "<y>"), "control_symbols": ("<c>",)},
    "no bytes": {"byte_fallback": False, "vocab_size": 300},
    "default": {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_library(kind):
    model = tokenizer_kinds.pieces(**KINDS[kind])
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = sentencepiece_tokenizer.SentencePieceTokenizer(model)
    control = {i for i in range(ours.n_vocab) if library.is_control(i)}
    for text, ids in zip(TEXTS, ours.encode_batch(TEXTS), strict=True):
        assert ids == library.encode(text) == ours.encode(text), text
        assert ours.decode(ids) == library.decode(ids)
        assert not control & set(ids)  # "</s>" is spelled
        if kind in ("llama", "gemma"):
            assert ours.decode(ids) == text.replace(tokenizer_kinds.SPACE, " ")
    long = "a " * 150_000 + tokenizer_kinds.SPACE + "b"
    assert ours.encode(long) == library.encode(long)  # one dummy prefix
    end = library.eos_id()
    assert ours.decode([end, *ours.encode("ab"), end]) == "</s>ab</s>"


@pytest.mark.parametrize("kind", KINDS)
def test_streams_are_the_text(kind):
    """One token at a time, after a prompt, after begin-of-text, and from the middle of a
    character."""
    ours = sentencepiece_tokenizer.SentencePieceTokenizer(tokenizer_kinds.pieces(**KINDS[kind]))
    start = [ours.processor.bos_id()]
    for prompt in (ours.encode("b"), start, [*start, *ours.encode("x ")], ours.encode("你")):
        for text in TEXTS[::3]:
            ids = ours.encode(text)
            detokenizer = streaming.StreamingDetokenizer(ours, prompt)
            parts = [detokenizer.add([i]) for i in ids] + [detokenizer.end()]
            expected = ours.decode([*prompt, *ids])[len(ours.decode(prompt)) :]
            if ours.decode(prompt) == ours.decode(prompt[-1:]):
                assert "".join(parts) == expected, text
    cut = ours.encode("a你")
    assert ours.decode(cut[:-1]).rstrip("\ufffd") == "a" or kind == "no bytes"


@pytest.mark.parametrize("settings, adds", [
    (None, False),
    ({}, False),
    ({"add_bos_token": True}, True),
    ({"tokenizer_class": "LlamaTokenizer"}, True),
    ({"tokenizer_class": "GemmaTokenizerFast"}, True),
    ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}, False),
    ({"tokenizer_class": "T5Tokenizer"}, False),
])  # fmt: skip
def test_begin_of_text_stands_before_a_prompt_where_the_family_has_it(settings, adds, tmp_path):
    """Before a prompt alone, and with it the digest is another; a run keeps both files."""
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tokenizer_kinds.pieces())
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    spec = data.SentencePiece(path=str(path))
    ours = build.build(spec)
    bare = sentencepiece_tokenizer.SentencePieceTokenizer(ours.model)
    assert ours.text_prefix == ((1,) if adds else ()) and (ours.digest != bare.digest) == adds
    assert ours.encode("a") == bare.encode("a")
    assert build.encode_prompt(ours, "a") == [*ours.text_prefix, *ours.encode("a")]
    run = tmp_path / "run"
    run.mkdir()
    build.save_files(ours, spec, run)
    kept = build.build(build.spec_in(spec, run))
    again = pickle.loads(pickle.dumps(kept))
    assert kept.digest == ours.digest == again.digest and again.text_prefix == ours.text_prefix


def test_an_export_keeps_begin_of_text():
    settings = b'{"add_bos_token": true}'
    ours = sentencepiece_tokenizer.SentencePieceTokenizer(tokenizer_kinds.pieces(), settings)
    exported = tokenizer_json.tokenizer_config(ours, 8)
    assert (exported["bos_token"], exported["eos_token"]) == ("<s>", "</s>")
    again = json.dumps(exported).encode()
    again = sentencepiece_tokenizer.SentencePieceTokenizer(ours.model, again)
    assert again.text_prefix == ours.text_prefix == (1,)


@pytest.mark.parametrize("content, settings, line", [
    (b"", None, "tokenizer.model: the SentencePiece model is damaged: give a file that"),
    (b"\n\xff", None, "the SentencePiece model is damaged"),
    (tokenizer_kinds.pieces()[:-900], None, "the SentencePiece model is damaged"),
    (tokenizer_kinds.pieces(), "[]", "tokenizer_config.json of "),
    (tokenizer_kinds.pieces(), '{"added_tokens_decoder": {"0": {}, "32000": {}}}',
     "has 600 pieces, but its tokenizer_config.json adds token 32,000: give the model's token"),
])  # fmt: skip
def test_damaged_files_are_one_line(content, settings, line, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(content)
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(settings)
    with pytest.raises(ValueError) as error:
        build.build(data.SentencePiece(path=str(tmp_path / "tokenizer.model")))
    assert line in str(error.value) and "\n" not in str(error.value)
