"""Tokenizers and chat templates of families give the ids of transformers, on texts that are hard
for them; those of SentencePiece the ids of sentencepiece too."""

import importlib
import json
import pathlib
import warnings

import pytest
import sentencepiece

from gptjax.data import unicode
from gptjax.data.tokenizers import build, chat_template, json_tokenizer, sentencepiece_tokenizer
from gptjax.generate import streaming
from tests import tokenizer_kinds

NEEDED = "needs transformers, which make test installs for Python 3.11 (requirements-dev.txt)"
pytest.importorskip("transformers", reason=NEEDED)
TEXTS = [unicode.replace_surrogates(text) for text in tokenizer_kinds.hard_texts()]


@pytest.fixture(scope="module")
def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module("transformers")
        module.logging.set_verbosity_error()
        yield module


def both(kind, transformers, folder: pathlib.Path, template=None):
    """Our tokenizer of a folder, and transformers'."""
    content, settings = tokenizer_kinds.content(kind)
    (folder / "tokenizer.json").write_bytes(content)
    settings = settings | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    theirs = transformers.AutoTokenizer.from_pretrained(folder, clean_up_tokenization_spaces=False)
    return json_tokenizer.load(folder), theirs


@pytest.mark.parametrize("kind", tokenizer_kinds.KINDS)
def test_ids_and_text_are_those_of_transformers(kind, transformers, tmp_path):
    """With special tokens as text, as split_special_tokens has it there; Phi-3's </s>, which its
    file does not call special, and what merges make of the parts of <s> are text here alone."""
    ours, theirs = both(kind, transformers, tmp_path)
    control = {ours.rust.token_to_id(name) for name in ours.control} - {ours.unknown}
    n_other = 0
    for text, ids in zip(TEXTS, ours.encode_batch(TEXTS), strict=True):
        expected = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert not control & set(ids)
        if control & set(expected):
            n_other += 1
            assert kind in ("llama2", "phi3") and any(name in text for name in ours.control)
            continue
        assert ids == expected, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False), text
        assert build.encode_prompt(ours, text)[: len(ours.text_prefix)] == [*ours.text_prefix]
    assert n_other <= 20 and (n_other > 0) == (kind in ("llama2", "phi3"))
    names = [theirs.bos_token, theirs.eos_token]
    starts = {ours.rust.token_to_id(name) for name in names if name is not None}
    assert {ours.start_of_text, ours.end_of_text} <= starts


@pytest.mark.parametrize("kind", tokenizer_kinds.TEMPLATES)
def test_conversations_have_the_ids_of_transformers(kind, transformers, tmp_path):
    """Of messages that spell no control token; of others the text, and the ids with every name as a
    token."""
    ours, theirs = both(kind, transformers, tmp_path, tokenizer_kinds.TEMPLATES[kind])
    template = chat_template.of(ours)
    for messages in tokenizer_kinds.conversations(200):
        for prompt in (True, False):
            expected = theirs.apply_chat_template(
                messages, add_generation_prompt=prompt, return_dict=False
            )
            assert template.encode(messages, prompt) == expected
    for messages in tokenizer_kinds.conversations(60, forge=True):
        text = theirs.apply_chat_template(messages, tokenize=False)
        assert template.render(messages, add_generation_prompt=False) == text
        expected = theirs.apply_chat_template(messages, return_dict=False)
        assert template.encode_text(text) == expected


@pytest.mark.parametrize("kind, changes", [
    ("LlamaTokenizer", {}),
    ("LlamaTokenizer", {"user_defined_symbols": ("<x>", "<y>")}),
    ("GemmaTokenizer", {"add_dummy_prefix": False, "pad_id": 0, "eos_id": 1, "bos_id": 2,
                        "unk_id": 3}),
], ids=["llama", "user-defined", "gemma"])  # fmt: skip
def test_sentencepiece_models_of_others(kind, changes, transformers, tmp_path):
    """The ids of sentencepiece on every text. Those of transformers' conversion but where it makes
    no space of the dummy prefix: before a text that begins with a space."""
    model = tokenizer_kinds.pieces(**changes)
    (tmp_path / "tokenizer.model").write_bytes(model)
    settings = {"tokenizer_class": kind, "clean_up_tokenization_spaces": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = sentencepiece_tokenizer.load(tmp_path / "tokenizer.model")
    theirs = getattr(transformers, kind).from_pretrained(tmp_path)
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert ours.text_prefix == (library.bos_id(),) and not ours.is_own
    for text, ids in zip(TEXTS, ours.encode_batch(TEXTS), strict=True):
        assert ids == library.encode(text), text
        assert ours.decode(ids) == library.decode(ids)
        if kind == "GemmaTokenizer" or text[:1] not in (" ", tokenizer_kinds.SPACE, ""):
            expected = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
            assert ids == expected, text
            assert ours.decode(ids) == theirs.decode(ids)
        detokenizer = streaming.StreamingDetokenizer(ours, ours.encode("b"))
        parts = [detokenizer.add([i]) for i in ids]
        whole = ours.decode([*ours.encode("b"), *ids])[1:]
        assert "".join(parts) + detokenizer.end() == whole, text
