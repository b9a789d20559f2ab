"""GGUF files by the `gguf` package: their settings, and their vocabulary as a tokenizer.json."""

import json
import pathlib
from typing import Any

from gptjax.config import parse

SUFFIX = ".gguf"
# Names of the ways to split text before BPE, of which gptjax knows these.
SPLITS = ("smollm", "gpt-2", "default")
CONTROL = 3  # kind of a token that stands for no text


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
    ValueError for a kind of tokenizer that gptjax does not know."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    reader = open_reader(path)
    plain = settings(reader)
    kind, split = plain.get("tokenizer.ggml.model"), plain.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in SPLITS:
        raise ValueError(
            f"{path}: its tokenizer is {parse.quote(kind)}, split by {parse.quote(split)}; gptjax "
            f"reads gpt2, split by {', '.join(SPLITS)}: give the model's tokenizer.json, "
            "data.tokenizer=TokenizerJson(path=...)"
        )
    symbols = reader.fields["tokenizer.ggml.tokens"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    merges = [
        tuple(merge.split(" ")) for merge in reader.fields["tokenizer.ggml.merges"].contents()
    ]
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        if split == "smollm"
        else byte_level
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(symbol, normalized=False)
            for symbol, kind in zip(symbols, kinds, strict=True)
            if kind == CONTROL
        ]
    )
    config = {
        name: symbols[plain[key]]
        for name, key in (
            ("bos_token", "tokenizer.ggml.bos_token_id"),
            ("eos_token", "tokenizer.ggml.eos_token_id"),
        )
        if key in plain
    }
    if "tokenizer.ggml.add_bos_token" in plain:
        config["add_bos_token"] = plain["tokenizer.ggml.add_bos_token"]
    if "tokenizer.chat_template" in plain:
        config["chat_template"] = plain["tokenizer.chat_template"]
    return tokenizer.to_str().encode(), json.dumps(config).encode()
