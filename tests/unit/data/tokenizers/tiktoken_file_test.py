"""tiktoken's files: the ids of its algorithm on texts that are hard for it, the published special
ids, and damage as one line."""

import base64
import dataclasses

import pytest
import regex

from gptjax.config import data
from gptjax.data import unicode
from gptjax.data.tokenizers import build, json_tokenizer, tiktoken_file
from gptjax.weights import tokenizer_files
from tests import tokenizer_kinds

PATTERNS = {"llama3": tiktoken_file.CL100K, "o200k_base": tiktoken_file.O200K}


def encode(text, ranks, pattern):
    """tiktoken's algorithm: a part that is a token is that token; else the two neighbors that form
    the token of the lowest rank, the leftmost first, become one."""
    ids = []
    for part in regex.findall(pattern, text):
        symbols = [bytes([byte]) for byte in part.encode()]
        symbols = [part.encode()] if part.encode() in ranks else symbols
        while True:
            pairs = [a + b for a, b in zip(symbols, symbols[1:], strict=False)]
            known = [(ranks[pair], i) for i, pair in enumerate(pairs) if pair in ranks]
            if not known:
                break
            i = min(known)[1]
            symbols[i : i + 2] = [pairs[i]]
        ids += [ranks[symbol] for symbol in symbols]
    return ids


def write(path, ranks):
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
    path.write_bytes(b"".join(lines))
    return path


@pytest.fixture
def small(monkeypatch):
    """The families with files as small as those of the tests."""
    for name, family in tiktoken_file.FAMILIES.items():
        changed = dataclasses.replace(family, n_ranks=500)
        monkeypatch.setitem(tiktoken_file.FAMILIES, name, changed)


@pytest.mark.parametrize("family", PATTERNS)
def test_ids_are_those_of_the_algorithm(family, small, tmp_path):
    ranks = tokenizer_kinds.ranks(PATTERNS[family])
    path = write(tmp_path / "x.tiktoken", ranks)
    ours = build.build(data.Tiktoken(path=str(path), family=family))
    texts = [unicode.replace_surrogates(text) for text in tokenizer_kinds.hard_texts()]
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        assert ids == encode(text, ranks, PATTERNS[family]), text
        assert ours.decode(ids) == text
        parts = ours.rust.pre_tokenizer.pre_tokenize_str(text)
        assert [text[slice(*part[1])] for part in parts] == regex.findall(PATTERNS[family], text)


def test_a_part_that_is_a_token_is_taken_whole():
    """Even if no merges lead to it; inside a longer part it is none then."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"abcd": 256}
    files = tiktoken_file.convert(ranks, tiktoken_file.FAMILIES["llama3"])
    ours = json_tokenizer.JsonTokenizer(*files, "x")
    assert ours.encode("abcd") == [256] and ours.encode("abcde") == [*b"abcde"]


def test_the_two_patterns_differ_on_these_texts():
    """So that one in the place of the other is noticed."""
    ways = [[regex.findall(p, text) for text in tokenizer_kinds.BY_HAND] for p in PATTERNS.values()]
    assert ways[0] != ways[1]


@pytest.mark.parametrize("family, ids", [
    ("llama3", {"<|begin_of_text|>": 128000, "<|end_of_text|>": 128001,
                "<|finetune_right_pad_id|>": 128004, "<|start_header_id|>": 128006,
                "<|end_header_id|>": 128007, "<|eom_id|>": 128008, "<|eot_id|>": 128009,
                "<|python_tag|>": 128010, "<|reserved_special_token_2|>": 128011,
                "<|reserved_special_token_246|>": 128255}),
    ("cl100k_base", {"<|endoftext|>": 100257, "<|fim_suffix|>": 100260,
                     "<|endofprompt|>": 100276}),
    ("o200k_base", {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}),
    ("o200k_harmony", {"<|startoftext|>": 199998, "<|endoftext|>": 199999, "<|return|>": 200002,
                       "<|constrain|>": 200003, "<|channel|>": 200005, "<|start|>": 200006,
                       "<|end|>": 200007, "<|message|>": 200008, "<|call|>": 200012,
                       "<|reserved_201087|>": 201087}),
])  # fmt: skip
def test_published_special_ids(family, ids, small, tmp_path):
    """Those of github.com/meta-llama/llama-models and tiktoken's openai_public.py, of files with as
    many ranks as the published."""
    published = {"llama3": 128_000, "cl100k_base": 100_256}.get(family, 199_998)
    path = write(tmp_path / "x", tokenizer_kinds.ranks(tiktoken_file.CL100K))
    ours = build.build(data.Tiktoken(path=str(path), family=family))
    vocabulary = ours.rust.get_vocab()
    found = {name: vocabulary[name] - 500 + published for name in ids if name in vocabulary}
    assert found == ids
    assert ours.n_vocab - 500 + published == max(ids.values()) + 1
    assert sorted(vocabulary.values()) == [*range(ours.n_vocab)]
    start = () if family != "llama3" else (vocabulary["<|begin_of_text|>"],)
    assert (
        ours.text_prefix == start
        and ours.end_of_text == vocabulary["<|end_of_text|>" if start else "<|endoftext|>"]
    )
    assert not set(ours.encode("".join(ids))) & {vocabulary[name] for name in found}


def test_sizes_of_the_published_files():
    sizes = {name: family.n_ranks for name, family in tiktoken_file.FAMILIES.items()}
    assert sizes == {
        "llama3": 128_000,
        "cl100k_base": 100_256,
        "o200k_base": 199_998,
        "o200k_harmony": 199_998,
    }


def damaged(change):
    lines = [base64.b64encode(bytes([byte])) + b" %d" % byte for byte in range(256)]
    return b"\n".join(change(lines))


@pytest.mark.parametrize("content, line", [
    (damaged(lambda lines: [*lines, b"AAA 256"]), "line 257: 'AAA 256' is not a token in base64"),
    (damaged(lambda lines: [*lines, b"QUI="]), "line 257: 'QUI=' is not a token in base64 and its"),
    (damaged(lambda lines: [*lines, b"QUI= x"]), "line 257: 'QUI= x' is not"),
    (damaged(lambda lines: [*lines, b"QUI= 7"]), "line 257: the rank or token of line 8 again"),
    (damaged(lambda lines: [*lines, b"QQ== 256"]), "line 257: the rank or token of line 66 again"),
    (damaged(lambda lines: [*lines, b"QUI= 300"]), "has no rank 256: it is no tiktoken file, or"),
    (damaged(lambda lines: lines[:-1]), "has no token of the byte 255: it is no tiktoken file"),
    (b"", "has no token"),
    (b"\xff\xfe\0", "line 1: "),
    (damaged(list), "has 256 tokens, llama3's file 128,000: give its family (llama3 128,000, "),
    (None, "cannot be read"),
])  # fmt: skip
def test_damaged_files_are_one_line(content, line, tmp_path):
    path = tmp_path / "tokenizer.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        build.build(data.Tiktoken(path=str(path)))
    assert line in str(error.value) and "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_it_must_be_named():
    with pytest.raises(ValueError, match="names no file: give the model's, Tiktoken"):
        build.build(data.Tiktoken())


def test_a_folder_of_weights_is_searched_for_one(small, tmp_path):
    """And it is told from SentencePiece's file of the same name; a run keeps it."""
    write(tmp_path / "tokenizer.model", tokenizer_kinds.ranks(tiktoken_file.CL100K))
    found = tokenizer_files.detect_tokenizer(tmp_path, data.TokenizerJson())
    path = str(tmp_path / "tokenizer.model")
    assert found == data.Tiktoken(path=path, family="o200k_harmony")  # the last of this size
    with pytest.raises(ValueError, match="is a file of tiktoken, as Llama 3 has: give data.tokeni"):
        build.build(data.SentencePiece(path=path))
    spec = data.Tiktoken(path=str(tmp_path))
    ours, run = build.build(spec), tmp_path / "run"
    run.mkdir()
    build.save_files(ours, spec, run)
    assert build.spec_in(spec, run) == data.TokenizerJson(path=str(run))
    kept = json_tokenizer.load(run)
    assert kept.digest == ours.digest and kept.text_prefix == ours.text_prefix
