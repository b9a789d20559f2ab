"""Any tokenizer.json: the ids of the library that wrote it, special tokens spelled in a text stay
text, and runs keep the file."""

import json
import pickle
import re

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from gptjax.config import data
from gptjax.data.tokenizers import build, json_tokenizer
from gptjax.generate import streaming
from gptjax.weights import tokenizer_files
from tests import tokenizer_kinds

TEXTS = [
    "To be, or not to be",
    "x = 42\n\n\tdef f():",
    "na\u00efve \u4f60\u597d \U0001f642",
    "",
    " ",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 9, trainer)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in ("<s>", "</s>")])
    folder = tmp_path_factory.mktemp("json")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_ids_are_those_of_the_library(folder):
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours = build.build(data.TokenizerJson(path=str(folder)))
    assert ours.n_vocab == theirs.get_vocab_size()
    for text, ids in zip(TEXTS, ours.encode_batch(TEXTS), strict=True):
        assert ids == theirs.encode(text).ids == ours.encode(text)
        assert ours.decode(ids) == text
    assert ours.decode(ours.encode("a\ud800")) == "a\ufffd"


def test_special_tokens(folder):
    """From tokenizer_config.json, in both of its forms; without it by their usual names."""
    ours = build.build(data.TokenizerJson(path=str(folder / "tokenizer.json")))
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    assert (ours.start_of_text, ours.end_of_text) == (vocabulary["<s>"], vocabulary["</s>"])
    spelled = ours.encode("a</s>b")
    assert ours.end_of_text not in spelled and ours.decode(spelled) == "a</s>b"
    assert ours.decode([ours.end_of_text]) == "</s>"
    content = (folder / "tokenizer.json").read_bytes()
    alone = json_tokenizer.JsonTokenizer(content, None, "x")
    assert (alone.start_of_text, alone.end_of_text) == (ours.start_of_text, ours.end_of_text)
    other = json_tokenizer.JsonTokenizer(content, b'{"eos_token": "<s>"}', "x")
    assert other.end_of_text == vocabulary["<s>"] and other.digest != ours.digest


def test_what_stands_before_a_prompt(folder):
    """As the file's post-processor says, or else the settings; with it a prompt has the ids of the
    library. Plain encoding has none of it, so that documents have not."""
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos = theirs.token_to_id("<s>")
    plain = json_tokenizer.JsonTokenizer(theirs.to_str().encode(), None, "x")
    assert plain.text_prefix == () and build.encode_prompt(plain, "ab") == plain.encode("ab")
    assert build.encode_prompt(plain, "") == [bos]
    theirs.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", bos), ("</s>", bos + 1)]
    )
    content = theirs.to_str().encode()
    ours = json_tokenizer.JsonTokenizer(content, None, "x")
    assert ours.text_prefix == (bos,) and ours.digest != plain.digest
    for text in TEXTS:
        assert [*build.encode_prompt(ours, text), bos + 1] == theirs.encode(text).ids
        assert bos not in ours.encode(text)
    for says, prefix in ((b"true", (bos,)), (b"false", ())):
        settings = b'{"bos_token": "<s>", "add_bos_token": %s}' % says
        assert json_tokenizer.JsonTokenizer(content, settings, "x").text_prefix == prefix


def test_worker_processes_get_the_same(folder):
    ours = build.build(data.TokenizerJson(path=str(folder)))
    again = pickle.loads(pickle.dumps(ours))
    assert again.digest == ours.digest and again.encode(TEXTS[0]) == ours.encode(TEXTS[0])


def test_a_run_keeps_its_files(folder, tmp_path):
    spec = data.TokenizerJson(path=str(folder))
    ours = build.build(spec)
    build.save_files(ours, spec, tmp_path)
    kept = build.spec_in(spec, tmp_path)
    assert kept == data.TokenizerJson(path=str(tmp_path))
    assert build.build(kept).digest == ours.digest
    assert build.without_path(spec) == data.TokenizerJson()


def test_weights_with_another_tokenizer_are_refused(folder, tmp_path):
    spec = data.TokenizerJson(path=str(folder))
    ours = build.build(spec)
    assert tokenizer_files.detect_tokenizer(folder, data.TokenizerJson()) == spec
    assert tokenizer_files.check(folder, ours.n_vocab + 5, spec, ours) == []
    with pytest.raises(ValueError, match=f"have {ours.n_vocab - 1:,} ids, but data.tokenizer="):
        tokenizer_files.check(folder, ours.n_vocab - 1, spec, ours)
    changed = (folder / "tokenizer.json").read_text().replace('"</s>"', '"</x>"')
    (tmp_path / "tokenizer.json").write_text(changed)
    with pytest.raises(ValueError, match="the weights' own tokenizer is"):
        tokenizer_files.check(tmp_path, 300, spec, ours)


def of(kind, **settings):
    content, its = tokenizer_kinds.content(kind)
    return json_tokenizer.JsonTokenizer(content, json.dumps(its | settings).encode(), "x")


def test_text_that_spells_a_control_token_stays_text():
    """Phi-3's </s> is one by its role, though its file does not call it special, and <s> is made by
    no merge of its parts. Other added tokens that are not special are pieces of text."""
    ours = of("phi3")
    assert {"<s>", "</s>", "<|end|>"} < ours.control
    control = {ours.rust.token_to_id(name) for name in ours.control}
    for text in ("</s>", "a<s>b</s>", "<|end|>", "x <|user|>\n"):
        ids = ours.encode(text)
        assert not control & set(ids) and ours.decode(ids) == text
    theirs = Tokenizer.from_str(ours.content.decode())
    theirs.encode_special_tokens = True
    assert theirs.token_to_id("</s>") in theirs.encode("a</s>").ids  # which would end a document
    gemma = of("gemma")
    lines = gemma.rust.token_to_id("\n\n")
    assert lines in gemma.encode("a\n\nb") and "<table>" not in gemma.control
    assert gemma.rust.token_to_id("<table>") in gemma.encode("a<table>")
    named = of("gemma", extra_special_tokens={"table_token": "<table>"})
    assert gemma.rust.token_to_id("<table>") not in named.encode("a<table>")
    assert named.digest != gemma.digest


def test_a_tokenizer_that_makes_control_tokens_of_text_is_refused():
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -3.0) for letter in "ab</s>")]
    theirs = Tokenizer(models.Unigram(pieces, unk_id=0))
    theirs.add_special_tokens(["</s>"])
    with pytest.raises(ValueError, match="x: a text that spells the control token '</s>' becomes"):
        json_tokenizer.JsonTokenizer(theirs.to_str().encode(), None, "x")


def test_a_tokenizer_without_begin_and_end_begins_with_a_newline_or_is_refused():
    """Not with the token of id 0, whatever that is."""
    bytes_alone = Tokenizer(models.BPE(
        vocab={s: i for i, s in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]
    ))  # fmt: skip
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ours = json_tokenizer.JsonTokenizer(bytes_alone.to_str().encode(), None, "x")
    assert ours.end_of_text is None and [ours.start_of_text] == ours.encode("\n") != [0]
    assert build.encode_prompt(ours, "") == ours.encode("\n")
    letters = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    with pytest.raises(
        ValueError, match="x has neither a begin-of-text nor an end-of-text"
    ) as error:
        json_tokenizer.JsonTokenizer(letters.to_str().encode(), None, "x")
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_another_size_is_refused_with_both(tmp_path):
    """Larger than the table of the weights, or far smaller. A control token that texts need not may
    be beyond it, as Gemma 3's image token is."""
    ours = of("gemma")
    spec, n = data.TokenizerJson(path="x"), ours.n_vocab
    for rows in (n - 10, n * 2):
        line = f"the weights have {rows:,} ids, but data.tokenizer={spec} has {n:,}, "
        with pytest.raises(ValueError, match=re.escape(line)) as error:
            tokenizer_files.check(tmp_path, rows, spec, ours)
        assert "another model's" in str(error.value) and "\n" not in str(error.value)
    theirs = Tokenizer.from_str(ours.content.decode())
    theirs.add_special_tokens(["<image>"])
    more = json_tokenizer.JsonTokenizer(theirs.to_str().encode(), ours.config, "x")
    assert more.n_vocab == n + 1 and tokenizer_files.check(tmp_path, n, spec, more) == []
    with pytest.raises(ValueError, match="has .*, more"):
        tokenizer_files.check(tmp_path, ours.end_of_text, spec, more)


@pytest.mark.parametrize("content, line", [
    (b"{}", "is no tokenizer.json"),
    (b'{"model": {"type": "Syllables", "vocab": {}}}', "is no tokenizer.json"),
    (b'{"version": "1.0", "added_tokens": [{"id": 0}], "model": {}}', "is no tokenizer.json"),
    (b"[1]", "is no tokenizer.json"),
    (b"", "is no tokenizer.json"),
    (b"\xff\xfe", "is no tokenizer.json"),
    (None, "cannot be read"),
])  # fmt: skip
def test_damaged_files(tmp_path, content, line):
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError) as error:
        build.build(data.TokenizerJson(path=str(tmp_path)))
    assert line in str(error.value) and "\n" not in str(error.value)


def test_an_added_token_without_text_is_one_line():
    content, settings = tokenizer_kinds.content("llama3")
    parsed = json.loads(content)
    parsed["added_tokens"] += [parsed["added_tokens"][-1] | {"content": "", "id": 9999}]
    with pytest.raises(ValueError, match="x: an added token has no text: fetch it again"):
        json_tokenizer.JsonTokenizer(json.dumps(parsed).encode(), b"{}", "x")


def test_it_must_be_named():
    with pytest.raises(ValueError, match="names no file, and none lies next to the weights: put"):
        build.build(data.TokenizerJson())


@pytest.mark.parametrize("config, line", [
    (b"[]", "tokenizer_config.json of x holds a JSON list"),
    (b"{", "tokenizer_config.json of x is not JSON"),
])  # fmt: skip
def test_damaged_settings_are_one_line_with_the_file(folder, config, line):
    content = (folder / "tokenizer.json").read_bytes()
    with pytest.raises(ValueError, match=line):
        json_tokenizer.JsonTokenizer(content, config, "x")
    empty = Tokenizer(models.BPE()).to_str().encode()
    with pytest.raises(ValueError, match="x has no token"):
        json_tokenizer.JsonTokenizer(empty, None, "x")


def test_characters_of_single_bytes_are_whole_one_token_at_a_time():
    """As Phi-3's and Gemma's tokenizers write rare characters."""
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b"]
    vocabulary = {name: number for number, name in enumerate(names)}
    model = models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True)
    theirs = Tokenizer(model)
    theirs.normalizer = normalizers.Replace(" ", "\u2581")
    theirs.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()
    ])  # fmt: skip
    ours = json_tokenizer.JsonTokenizer(theirs.to_str().encode(), None, "x")
    text = "a \u4f60\u597d\U0001f642\U0001f642\n\nb"
    ids = ours.encode(text)
    assert len(ids) > len(text) and ours.decode(ids) == text == theirs.decode(ids)
    detokenizer = streaming.StreamingDetokenizer(ours, ours.encode("b"))
    parts = [detokenizer.add([i]) for i in ids]
    assert "".join(parts) + detokenizer.end() == text and parts[:5] == ["a", " ", "", "", "\u4f60"]
    assert ours.decode(ids[4:8]) == "\ufffd\u597d"  # from the middle of a character on
