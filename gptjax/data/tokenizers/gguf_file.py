"""GGUF files by the `gguf` package: their settings, and their vocabulary as a tokenizer.json."""

import dataclasses
import json
import pathlib
from typing import Any

from gptjax.config import parse
from gptjax.data.tokenizers import tiktoken_file

SUFFIX = ".gguf"
CONTROL, USER_DEFINED = 3, 4  # kinds of tokens: one that stands for no text, one found before BPE
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclasses.dataclass(frozen=True)
class Split:
    """How text is prepared for BPE. patterns: regular expressions of the parts that no token
    crosses, one after the other. nfc: whether it is normalized. whole: whether a part that is
    itself a token is taken whole. adds_start: whether begin-of-text stands before a prompt, where
    the file does not say."""

    patterns: tuple[str, ...]
    nfc: bool = False
    whole: bool = False
    adds_start: bool = False


# tokenizer.ggml.pre -> the rule (github.com/ggml-org/llama.cpp, src/llama-vocab.cpp), with the
# normalization that the model's own tokenizer.json has and llama.cpp leaves out.
SPLITS = {
    "gpt-2": Split((GPT2,)),
    "smollm": Split((r"\p{N}", GPT2)),
    "llama-bpe": Split((tiktoken_file.CL100K,), whole=True, adds_start=True),
    "qwen2": Split((tiktoken_file.CL100K.replace(r"\p{N}{1,3}", r"\p{N}"),), nfc=True),
}


def open_reader(path: pathlib.Path) -> Any:
    """Returns the gguf.GGUFReader of a file. Raises a one-line ValueError if it is missing or
    damaged."""
    import gguf

    if not path.is_file():
        raise ValueError(f"{path} is no file: give the .gguf file itself")
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # of the package: ValueError, IndexError, struct.error and others
        line = parse.one_line(str(error), 200)
        raise ValueError(f"{path} is no GGUF file, or damaged: {line}; fetch it again") from None


def settings(reader: Any) -> dict[str, Any]:
    """The settings of a file, by their names; arrays are left out."""
    import gguf

    return {
        name: field.contents()
        for name, field in reader.fields.items()
        if field.types and field.types[0] != gguf.GGUFValueType.ARRAY
    }


def tokenizer_files(path: pathlib.Path) -> tuple[bytes, bytes]:
    """Returns the vocabulary of a file as (tokenizer.json, tokenizer_config.json). Raises
    ValueError for a kind of tokenizer, or a way to split text, that gptjax does not know."""
    reader = open_reader(path)
    plain = settings(reader)
    kind, rule = plain.get("tokenizer.ggml.model"), plain.get("tokenizer.ggml.pre")
    if kind != "gpt2" or rule not in SPLITS:
        raise ValueError(
            f"{path}: its tokenizer is {parse.quote(kind)}, split by {parse.quote(rule)}; gptjax "
            f"reads 'gpt2', split by {', '.join(map(repr, SPLITS))}: give the model's "
            "tokenizer.json, data.tokenizer=TokenizerJson(path=...)"
        )
    symbols, kinds, merges = (
        _array(reader, path, name) for name in ("tokens", "token_type", "merges")
    )
    if len(kinds) != len(symbols) or len(set(symbols)) != len(symbols):
        raise ValueError(
            f"{path}: its {len(symbols):,} tokens have {len(kinds):,} types, or are not different: "
            "the file is damaged; fetch it again"
        )
    split = SPLITS[rule]
    config: dict[str, Any] = {"add_bos_token": split.adds_start}
    for name in ("bos", "eos"):
        number = plain.get(f"tokenizer.ggml.{name}_token_id")
        if number is not None and not 0 <= number < len(symbols):
            raise ValueError(
                f"{path}: tokenizer.ggml.{name}_token_id is {number}, of {len(symbols):,} tokens; "
                "fetch it again"
            )
        if number is not None:
            config[f"{name}_token"] = symbols[number]
    if "tokenizer.ggml.add_bos_token" in plain:
        config["add_bos_token"] = plain["tokenizer.ggml.add_bos_token"]
    if "tokenizer.chat_template" in plain:
        config["chat_template"] = plain["tokenizer.chat_template"]
    tokenizer = _tokenizer(symbols, kinds, merges, split, path)
    return tokenizer.to_str().encode(), json.dumps(config).encode()


def _array(reader: Any, path: pathlib.Path, name: str) -> list[Any]:
    key = f"tokenizer.ggml.{name}"
    if key not in reader.fields:
        raise ValueError(f"{path} has no {key}: give the model's tokenizer.json, or fetch it again")
    return reader.fields[key].contents()


def _tokenizer(
    symbols: list[str], kinds: list[int], merges: list[str], split: Split, path: pathlib.Path
) -> Any:
    """The vocabulary as a tokenizers.Tokenizer. Raises ValueError for merges that are damaged."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
    )

    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    pairs: list[Any] = [tuple(merge.split(" ")) for merge in merges]
    try:
        model = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=split.whole)
    except Exception as error:  # the library raises a bare Exception
        line = parse.one_line(str(error), 200)
        raise ValueError(f"{path}: its merges are damaged: {line}; fetch it again") from None
    tokenizer = Tokenizer(model)
    if split.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = [
        AddedToken(symbol, normalized=False, special=kind == CONTROL)
        for symbol, kind in zip(symbols, kinds, strict=True)
        if kind in (CONTROL, USER_DEFINED)
    ]
    tokenizer.add_tokens(added)
    return tokenizer
