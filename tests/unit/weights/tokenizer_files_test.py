"""The tokenizer beside weights: the published files are known by either name, another vocabulary
is named."""

import dataclasses
import json

import pytest

from gptjax.config import data
from gptjax.data.tokenizers import build, gpt1_bpe, gpt2_bpe, openai_files
from gptjax.weights import tokenizer_files

GPT2 = data.Gpt2Bpe()


@pytest.fixture(scope="module")
def text() -> build.Tokenizer:
    return build.build(GPT2)


@pytest.fixture
def folder(tmp_path, text):
    """GPT-2's files as Hugging Face calls them."""
    assert tokenizer_files.save(tmp_path, GPT2, text, 1024, pytest.fail) == {
        "gptjax_tokenizer": "Gpt2Bpe(path=None)"
    }
    (tmp_path / "tokenizer.json").unlink()
    return tmp_path


def check(folder, text) -> None:
    tokenizer_files.check(folder, 50_257, GPT2, text)


def test_saved_files_are_the_published_ones(folder, text):
    check(folder, text)
    assert openai_files.has_files(gpt2_bpe.FILES, folder) and not openai_files.has_files(
        gpt1_bpe.FILES, folder
    )
    again = build.build(data.Gpt2Bpe(path=str(folder)))
    assert again.encode("There and back again.") == text.encode("There and back again.")


def test_tokenizer_json_is_read(folder, text):
    (folder / "tokenizer.json").write_text(text.rust.to_str())  # type: ignore[attr-defined]
    (folder / "vocab.json").unlink()
    check(folder, text)
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["model"]["merges"] = [
        " ".join(merge) for merge in whole["model"]["merges"]
    ]  # as versions before 0.20 wrote them
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    check(folder, text)
    whole["model"]["merges"][7], whole["model"]["merges"][8] = (
        whole["model"]["merges"][8],
        whole["model"]["merges"][7],
    )
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(
        ValueError,
        match="tokenizer.json is not data.tokenizer=Gpt2Bpe.*its merges differ from merge 8 on",
    ):
        check(folder, text)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram"}}))
    with pytest.raises(ValueError, match="a tokenizer of type 'Unigram'; gptjax reads BPE"):
        check(folder, text)


def test_another_vocabulary_is_named(folder, text):
    symbols = json.loads((folder / "vocab.json").read_text())
    symbols["<pad>"] = 50_257
    (folder / "vocab.json").write_text(json.dumps(symbols))
    assert tokenizer_files.check(folder, 50_257, GPT2, text) == ["<pad>"]
    symbols["!"], symbols["<pad>"] = symbols["<pad>"], symbols["!"]
    (folder / "vocab.json").write_text(json.dumps(symbols))
    with pytest.raises(
        ValueError,
        match="50,257 symbols against 50,257, for one '<pad>' is id 0 there and absent here",
    ):
        check(folder, text)
    (folder / "vocab.json").write_text("{")
    with pytest.raises(ValueError, match="vocab.json is not JSON"):
        check(folder, text)


def test_a_config_of_another_tokenizer_is_named(folder, text):
    with pytest.raises(
        ValueError, match="the weights have 50,304 ids, but data.tokenizer=.* has 50,257"
    ):
        tokenizer_files.check(folder, 50_304, GPT2, text)
    with pytest.raises(
        ValueError, match="vocab.json is not data.tokenizer=Bytes.*257 symbols against 257"
    ):
        tokenizer_files.check(folder, 257, data.Bytes(), build.ByteTokenizer())


def test_what_hugging_face_has_no_files_for_is_named_in_the_config(tmp_path):
    assert tokenizer_files.save(tmp_path, data.Bytes(), build.ByteTokenizer(), 12, pytest.fail) == {
        "gptjax_tokenizer": "Bytes()"
    }
    assert tokenizer_files.check(tmp_path, 257, data.Bytes(), build.ByteTokenizer()) == []
    (tmp_path / "tokenizer.model").write_bytes(b"")
    assert tokenizer_files.detect_tokenizer(tmp_path, GPT2) == data.SentencePiece(
        path=str(tmp_path / "tokenizer.model")
    )


@pytest.mark.shared
def test_gpt1s_published_files_are_used_where_they_lie(shared, tmp_path):
    folder = shared / "data" / "tokenizers" / "gpt1"
    basic = data.Gpt1Bpe(words="basic")
    spoken = tokenizer_files.detect_tokenizer(folder, basic)
    assert spoken == dataclasses.replace(basic, path=str(folder))
    text = build.build(spoken)
    tokenizer_files.check(folder, 40_478, spoken, text)
    tokenizer_files.save(tmp_path, spoken, text, 512, pytest.fail)
    assert tokenizer_files.detect_tokenizer(tmp_path, basic) == dataclasses.replace(
        basic, path=str(tmp_path)
    )
    tokenizer_files.check(tmp_path, 40_478, spoken, text)
    with pytest.raises(ValueError, match="is not data.tokenizer=Gpt2Bpe"):
        tokenizer_files.check(tmp_path, 50_257, GPT2, build.build(GPT2))
