"""Tokenizer, the interface of all tokenizers, and the tokenizer that a config names.

Every tokenizer takes any str: lone surrogates, which UTF-8 cannot encode, become U+FFFD first
(data/unicode.py). No encoding adds end-of-text: it is put between documents when they are written
to shards (data/tokenize.py).
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, assert_never

from gptjax.config import data, parse
from gptjax.data import unicode
from gptjax.data.tokenizers import (
    byte_level_bpe,
    chat_tokens,
    gpt1_bpe,
    gpt2_bpe,
    json_tokenizer,
    openai_files,
    sentencepiece_tokenizer,
    tiktoken_file,
)
from gptjax.runtime import atomic


class Tokenizer(Protocol):
    """The interface of tokenizers.

    n_vocab: number of ids. end_of_text: the id after each document, or None. start_of_text: the id
    from which an empty prompt is continued: end_of_text if there is one, else the newline.
    text_prefix: the ids that stand before every prompt, such as the begin-of-text of Llama 3 and
    Gemma; () for GPTs. unknown:
    the id of text that has no other, or None if every text has ids. digest: equal for two
    tokenizers that encode every text alike."""

    n_vocab: int
    end_of_text: int | None
    start_of_text: int
    text_prefix: tuple[int, ...]
    unknown: int | None
    digest: str

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class ByteTokenizer:
    """Bytes of UTF-8 as ids 0 to 255, and end-of-text as 256."""

    n_vocab = 257
    end_of_text: int | None = 256
    start_of_text = 256
    text_prefix: tuple[int, ...] = ()
    unknown: int | None = None
    digest = hashlib.sha256(b"bytes, end-of-text 256").hexdigest()

    def encode(self, text: str) -> list[int]:
        return list(unicode.replace_surrogates(text).encode())

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`, with end-of-text as <|endoftext|> and bytes that are not UTF-8
        as U+FFFD."""
        return b"".join(b"<|endoftext|>" if i == 256 else bytes([i]) for i in ids).decode(
            errors="replace"
        )


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the ids of a text that a model continues: what stands before every prompt, and the
    text; of an empty one at least the start of a text."""
    return [*tokenizer.text_prefix, *tokenizer.encode(text)] or [tokenizer.start_of_text]


def save_files(tokenizer: Tokenizer, spec: data.Tokenizer, run: pathlib.Path) -> None:
    """Writes into a run the files of its tokenizer that the config names by a path, or that were
    trained for it."""
    match tokenizer, spec:
        case chat_tokens.ChatTokens(base=base), data.ChatTokens(base=base_spec):
            save_files(base, base_spec, run)
        case sentencepiece_tokenizer.SentencePieceTokenizer(model=model, config=config), _:
            if config is not None:
                atomic.save(run / sentencepiece_tokenizer.CONFIG_FILE, config)
            atomic.save(run / sentencepiece_tokenizer.FILE, model)
        case byte_level_bpe.TrainedTokenizer(content=content), _:
            atomic.save(run / byte_level_bpe.FILE, content)
        case json_tokenizer.JsonTokenizer(content=content, config=config), _:
            if config is not None:
                atomic.save(run / json_tokenizer.CONFIG_FILE, config)
            atomic.save(run / json_tokenizer.FILE, content)
        case _, data.Gpt1Bpe(path=str(path)) | data.Gpt2Bpe(path=str(path)):
            for name, content in openai_files.load(_published_files(spec), path).items():
                atomic.save(run / name, content)


def spec_in(spec: data.Tokenizer, run: pathlib.Path) -> data.Tokenizer:
    """Returns the config of a run's tokenizer with the path of the files that `save_files` wrote;
    `spec` itself if there are none."""
    if isinstance(spec, data.ChatTokens):
        return dataclasses.replace(spec, base=spec_in(spec.base, run))
    if isinstance(spec, data.SentencePiece | data.TrainedBpe):
        return dataclasses.replace(spec, path=str(run / trained_file(spec)))
    if (
        isinstance(spec, data.TokenizerJson | data.Tiktoken)
        and (run / json_tokenizer.FILE).exists()
    ):
        return data.TokenizerJson(path=str(run))
    if isinstance(spec, data.Gpt1Bpe | data.Gpt2Bpe) and all(
        (run / name).exists() for name in _published_files(spec).digests
    ):
        return dataclasses.replace(spec, path=str(run))
    return spec


def is_trained(spec: data.Tokenizer) -> bool:
    """Whether a tokenizer is trained on the run's own text."""
    return isinstance(spec, data.SentencePiece | data.TrainedBpe) and spec.path is None


def trained_file(spec: data.SentencePiece | data.TrainedBpe) -> str:
    """Returns the name of the file of a tokenizer that is trained on a run's own text."""
    match spec:
        case data.SentencePiece():
            return sentencepiece_tokenizer.FILE
        case data.TrainedBpe():
            return byte_level_bpe.FILE


def without_path(spec: data.Tokenizer) -> data.Tokenizer:
    """Returns the config of a tokenizer without the path of its files, as config.json next to such
    files has it."""
    match spec:
        case data.Bytes():
            return spec
        case data.ChatTokens(base=base):
            return dataclasses.replace(spec, base=without_path(base))
    return dataclasses.replace(spec, path=None)


def _published_files(spec: data.Gpt1Bpe | data.Gpt2Bpe) -> openai_files.PublishedFiles:
    return gpt1_bpe.FILES if isinstance(spec, data.Gpt1Bpe) else gpt2_bpe.FILES


def build(
    spec: data.Tokenizer,
    model_path: pathlib.Path | None = None,
    texts: Callable[[], Iterable[str]] | None = None,
) -> Tokenizer:
    """Returns the tokenizer that `spec` names.

    model_path, texts: only for SentencePiece and TrainedBpe without a path. The file `model_path`
    is opened if it exists; else the tokenizer is trained on `texts()` and saved there. Raises a
    one-line ValueError for a missing or damaged file and for too little text to train on.
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
        case data.TrainedBpe(path=str(path)):
            return byte_level_bpe.load(parse.path(path))
        case data.SentencePiece() | data.TrainedBpe():
            if model_path is not None and model_path.exists():
                return build(dataclasses.replace(spec, path=str(model_path)))
            if texts is None:
                name = type(spec).__name__
                raise ValueError(
                    f"data.tokenizer={name}(): there is no text here to train it on; give its "
                    f"{trained_file(spec)}: {name}(path=...)"
                )
            return _train(spec, model_path, texts())
        case data.TokenizerJson(path=str(path)):
            return json_tokenizer.load(parse.path(path))
        case data.TokenizerJson():
            raise ValueError(
                "data.tokenizer=TokenizerJson() names no file, and none lies next to the weights: "
                "put the model's tokenizer.json there, or give TokenizerJson(path=...)"
            )
        case data.ChatTokens(base=base):
            return chat_tokens.ChatTokens(build(base, model_path, texts))
        case data.Tiktoken():
            return json_tokenizer.JsonTokenizer(*tiktoken_file.tokenizer_files(spec))
        case _:
            assert_never(spec)


def _train(
    spec: data.SentencePiece | data.TrainedBpe, path: pathlib.Path | None, texts: Iterable[str]
) -> Tokenizer:
    """Returns the tokenizer of `spec` trained on `texts`; its file is saved at `path`."""
    match spec:
        case data.SentencePiece(n_pieces=n_pieces):
            tokenizer = sentencepiece_tokenizer.train(texts, n_pieces)
            content = tokenizer.model
        case data.TrainedBpe(n_vocab=n_vocab):
            tokenizer = byte_level_bpe.train(texts, n_vocab)
            content = tokenizer.content
    if path is not None:
        atomic.save(path, content)
    return tokenizer
