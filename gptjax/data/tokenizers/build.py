"""From text to ids and back: the tokenizer that a config names.

Every tokenizer takes any str: lone surrogates, which UTF-8 cannot carry, become U+FFFD first
(unicode.py says why). No encoding adds end-of-text: that is put between documents when they are
written to shards.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, assert_never

from gptjax.config import data, parse
from gptjax.data import unicode
from gptjax.data.tokenizers import gpt1_bpe, gpt2_bpe, openai_files, sentencepiece_tokenizer
from gptjax.runtime import atomic


class Tokenizer(Protocol):
    """n_vocab: number of ids; end_of_text: the id between documents, or None; start_of_text: the id
    that a text without tokens begins with, which is end_of_text where there is one, else the
    newline; unknown: the id that stands for what has none, or None where all has one; digest:
    equal for two tokenizers that encode alike."""

    n_vocab: int
    end_of_text: int | None
    start_of_text: int
    unknown: int | None
    digest: str

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class ByteTokenizer:
    """The 256 bytes of UTF-8, then end-of-text."""

    n_vocab = 257
    end_of_text: int | None = 256
    start_of_text = 256
    unknown: int | None = None
    digest = hashlib.sha256(b"bytes, end-of-text 256").hexdigest()

    def encode(self, text: str) -> list[int]:
        return list(unicode.replace_surrogates(text).encode())

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD, end-of-text is shown as
        <|endoftext|>."""
        return b"".join(b"<|endoftext|>" if i == 256 else bytes([i]) for i in ids).decode(
            errors="replace"
        )


def save_files(tokenizer: Tokenizer, spec: data.Tokenizer, run: pathlib.Path) -> None:
    """Write into a run the files of its tokenizer that its config names by a path, or that were
    made for it."""
    match tokenizer, spec:
        case sentencepiece_tokenizer.SentencePieceTokenizer(model=model), _:
            atomic.save(run / "tokenizer.model", model)
        case _, data.Gpt1Bpe(path=str(path)) | data.Gpt2Bpe(path=str(path)):
            for name, content in openai_files.load(_published_files(spec), path).items():
                atomic.save(run / name, content)


def spec_in(spec: data.Tokenizer, run: pathlib.Path) -> data.Tokenizer:
    """The tokenizer whose files `save_files` wrote into the run; as it was given, where there
    are none."""
    if isinstance(spec, data.SentencePiece):
        return dataclasses.replace(spec, path=str(run / "tokenizer.model"))
    if isinstance(spec, data.Gpt1Bpe | data.Gpt2Bpe) and all(
        (run / name).exists() for name in _published_files(spec).digests
    ):
        return dataclasses.replace(spec, path=str(run))
    return spec


def without_path(spec: data.Tokenizer) -> data.Tokenizer:
    """How a directory's own config names a tokenizer whose files lie in that directory: without
    a path."""
    return spec if isinstance(spec, data.Bytes) else dataclasses.replace(spec, path=None)


def _published_files(spec: data.Gpt1Bpe | data.Gpt2Bpe) -> openai_files.PublishedFiles:
    return gpt1_bpe.FILES if isinstance(spec, data.Gpt1Bpe) else gpt2_bpe.FILES


def build(
    spec: data.Tokenizer,
    model_path: pathlib.Path | None = None,
    texts: Callable[[], Iterable[str]] | None = None,
) -> Tokenizer:
    """The tokenizer that `spec` names.

    model_path, texts: only for SentencePiece without a path. The model file `model_path` is opened
    if it exists; else the model is trained on `texts()` and saved there. ValueError, in one line,
    for a missing or damaged file and for text too small to train on.
    """
    match spec:
        case data.Bytes():
            return ByteTokenizer()
        case data.Gpt2Bpe(path=path):
            return gpt2_bpe.Gpt2Tokenizer(path)
        case data.Gpt1Bpe(path=path, words=words):
            return gpt1_bpe.Gpt1Tokenizer(path, words)
        case data.SentencePiece(path=str(path)):
            return sentencepiece_tokenizer.load(parse.path(path))
        case data.SentencePiece(n_pieces=n_pieces):
            if model_path is not None and model_path.exists():
                return sentencepiece_tokenizer.load(model_path)
            if texts is None:
                raise ValueError(
                    "data.tokenizer=SentencePiece(): there is no text here to train it on; give "
                    "its model: SentencePiece(path=...)"
                )
            model = sentencepiece_tokenizer.train(texts(), n_pieces)
            if model_path is not None:
                atomic.save(model_path, model.model)
            return model
        case _:
            assert_never(spec)
