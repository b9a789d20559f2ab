"""Tokenizer files next to weights: reading, writing, and checking them against a config's
tokenizer.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptjax.config import data, parse
from gptjax.data.tokenizers import (
    build,
    byte_level_bpe,
    gpt1_bpe,
    gpt2_bpe,
    json_tokenizer,
    openai_files,
    sentencepiece_tokenizer,
    tiktoken_file,
)
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.runtime import atomic
from gptjax.weights import tokenizer_json

MODEL_FILE = "tokenizer.model"  # SentencePiece's
OTHER_MODEL_FILE = "sentencepiece.model"  # one that transformers has no equivalent of
# The setting of an exported config.json that holds the config's tokenizer.
TOKENIZER_KEY = "gptjax_tokenizer"
# Rows of a token table for each id of its tokenizer, at most; some families pad to a round number.
MAX_PADDING = 1.25
PUBLISHED_SIZES = {data.Gpt2Bpe: 50_257, data.Gpt1Bpe: 40_478}  # ids
# Vocabulary and merges, in Hugging Face's and OpenAI's naming.
FILE_PAIRS = (
    ("vocab.json", "merges.txt"),
    ("encoder.json", "vocab.bpe"),
    ("encoder_bpe_40000.json", "vocab_40000.bpe"),
)


@dataclasses.dataclass(frozen=True)
class BPEFiles:
    """A byte-pair vocabulary. vocab: symbol -> id. merges: in order of priority."""

    file: Path
    vocab: dict[str, int]
    merges: list[tuple[str, str]]


def read_bpe(folder: Path) -> BPEFiles | None:
    """Reads the byte-pair vocabulary in the folder; None if there is none. Raises ValueError if it
    is damaged or of another type.
    """
    for file, merges in ((folder / a, folder / b) for a, b in FILE_PAIRS):
        if file.exists() and merges.exists():
            lines = [
                line
                for line in parse.read_text(merges).split("\n")
                if line and not line.startswith("#version")
            ]
            return BPEFiles(
                file,
                _check_vocab(parse.read_json(file), file),
                [_parse_merge(line, merges) for line in lines],
            )
    file = folder / tokenizer_json.TOKENIZER_FILE
    if not file.exists():
        return None
    content = parse.read_json(file)
    model = parse.member(content, "model", dict, str(file))
    # Versions of tokenizers before 0.9 do not state the type.
    model_type = parse.member(model, "type", str, str(file)) if "type" in model else "BPE"
    if model_type != "BPE":
        raise ValueError(f"{file}: a tokenizer of type {parse.quote(model_type)}; gptjax reads BPE")
    vocab = _check_vocab(parse.member(model, "vocab", dict, str(file)), file)
    for token in (
        parse.member(content, "added_tokens", list, str(file)) if "added_tokens" in content else []
    ):
        if not isinstance(token, dict):
            raise ValueError(
                f"{file} is damaged: {parse.quote(token)} is not an added token; fetch it again"
            )
        vocab |= {
            parse.member(token, "content", str, str(file)): parse.member(
                token, "id", int, str(file)
            )
        }
    return BPEFiles(
        file,
        vocab,
        [_parse_merge(merge, file) for merge in parse.member(model, "merges", list, str(file))],
    )


def _check_vocab(vocab: dict[str, Any], file: Path) -> dict[str, int]:
    bad_symbol = next((symbol for symbol, i in vocab.items() if type(i) is not int), None)
    if bad_symbol is not None:
        raise ValueError(
            f"{file} is damaged: the id of {parse.quote(bad_symbol)} is "
            f"{parse.quote(vocab[bad_symbol])}; fetch it again"
        )
    return dict(vocab)


def _parse_merge(merge: Any, file: Path) -> tuple[str, str]:
    match merge.split(" ") if isinstance(merge, str) else merge:
        case [str(left), str(right)]:
            return left, right
    raise ValueError(
        f"{file} is damaged: {parse.quote(merge)} is not a pair of symbols; fetch it again"
    )


def detect_tokenizer(folder: Path, default: data.Tokenizer) -> data.Tokenizer:
    """Returns the tokenizer of a folder of weights: its tokenizer.json, else a tiktoken file or
    SentencePiece model in it, else `default`, with the published files if they are in it.
    """
    if (folder / json_tokenizer.FILE).exists():
        match default:
            case data.TokenizerJson():
                return dataclasses.replace(default, path=str(folder))
            case data.TrainedBpe():
                return dataclasses.replace(default, path=str(folder / json_tokenizer.FILE))
    for model in (folder / MODEL_FILE, folder / OTHER_MODEL_FILE):
        family = tiktoken_file.detect(model) if model.exists() else None
        if family is not None:
            return data.Tiktoken(path=str(model), family=family)
        if model.exists():
            return data.SentencePiece(path=str(model))
    if isinstance(default, data.Gpt1Bpe) and openai_files.has_files(gpt1_bpe.FILES, folder):
        return dataclasses.replace(default, path=str(folder))
    return default


def published_size(folder: Path, spec: data.Tokenizer) -> int | None:
    """Number of ids of the published tokenizer of `spec` if its files are in the folder, possibly
    with added symbols; else None.
    """
    n = PUBLISHED_SIZES[type(spec)] if type(spec) in PUBLISHED_SIZES else None
    stored = read_bpe(folder) if n is not None else None
    if n is None or stored is None or {i for i in stored.vocab.values() if i < n} != set(range(n)):
        return None
    return n


def check(folder: Path, rows: int, spec: data.Tokenizer, tokenizer: Tokenizer) -> list[str]:
    """Checks that `tokenizer` is that of the weights in `folder`; returns symbols added in the
    folder with later ids, such as a padding token.

    rows: used rows of the weights' token table. spec: how the config names the tokenizer. Raises
    ValueError for another tokenizer.
    """
    advice = "set data.tokenizer to the one that the weights were trained with"
    if isinstance(tokenizer, json_tokenizer.JsonTokenizer):
        _check_json_tokenizer(folder, rows, spec, tokenizer, advice)
        return []
    if tokenizer.n_vocab != rows:
        hint = (
            f"; if the rest is padding, --set model.n_vocab={tokenizer.n_vocab}"
            if tokenizer.n_vocab < rows
            else ""
        )
        raise ValueError(
            f"{folder}: the weights have {rows:,} ids, but data.tokenizer={spec} has "
            f"{tokenizer.n_vocab:,}{hint}; {advice}"
        )
    model = next(
        (folder / name for name in (MODEL_FILE, OTHER_MODEL_FILE) if (folder / name).exists()), None
    )
    if model is not None and isinstance(tokenizer, sentencepiece_tokenizer.SentencePieceTokenizer):
        if parse.read_bytes(model) != tokenizer.model:
            raise ValueError(
                f"the weights' own tokenizer is {model}, but data.tokenizer={spec}; {advice}"
            )
        return []
    stored, fast_tokenizer = read_bpe(folder), _fast_tokenizer(tokenizer)
    if stored is None:
        return []
    if fast_tokenizer is None:
        raise ValueError(
            f"the weights' own tokenizer is {stored.file}, but data.tokenizer={spec}; {advice}"
        )
    extra_symbols = sorted(
        (symbol for symbol, i in stored.vocab.items() if i >= tokenizer.n_vocab),
        key=lambda symbol: stored.vocab[symbol],
    )
    difference = _describe_difference(
        dataclasses.replace(
            stored, vocab={s: i for s, i in stored.vocab.items() if i < tokenizer.n_vocab}
        ),
        fast_tokenizer,
    )
    if difference:
        raise ValueError(
            f"{stored.file} is not data.tokenizer={spec}: {difference}; weights of another "
            f"vocabulary cannot be used with it: {advice} "
            "(Gpt2Bpe, Gpt1Bpe, Bytes, SentencePiece, TrainedBpe)"
        )
    return extra_symbols


def _check_json_tokenizer(
    folder: Path,
    rows: int,
    spec: data.Tokenizer,
    tokenizer: json_tokenizer.JsonTokenizer,
    advice: str,
) -> None:
    """Raises ValueError unless the folder's tokenizer.json, if it has one, is this one. Token
    tables of families may have more rows than the tokenizer has ids, but not many, and a control
    token that text never becomes may be beyond them, as Gemma 3's image token is."""
    n = tokenizer.n_needed_ids
    if not n <= rows <= tokenizer.n_vocab * MAX_PADDING:
        has = "more" if n > rows else "far fewer"
        raise ValueError(
            f"{folder}: the weights have {rows:,} ids, but data.tokenizer={spec} has "
            f"{tokenizer.n_vocab:,}, {has}: it is another model's; {advice}"
        )
    file = folder / json_tokenizer.FILE
    if file.exists() and parse.read_bytes(file) != tokenizer.content:
        raise ValueError(
            f"the weights' own tokenizer is {file}, but data.tokenizer={spec}; {advice}"
        )


def _fast_tokenizer(tokenizer: Tokenizer) -> Any:
    return (
        tokenizer.rust
        if isinstance(tokenizer, gpt1_bpe.Gpt1Tokenizer | byte_level_bpe.ByteLevelTokenizer)
        else tokenizer_json.convert(tokenizer)[0]
    )


def _describe_difference(stored: BPEFiles, fast_tokenizer: Any) -> str:
    vocab = fast_tokenizer.get_vocab()
    if stored.vocab != vocab:
        name = next(
            (s for s in {**stored.vocab, **vocab} if stored.vocab.get(s) != vocab.get(s)), ""
        )
        our_id, stored_id = (
            f"id {d[name]}" if name in d else "absent" for d in (vocab, stored.vocab)
        )
        return (
            f"{len(stored.vocab):,} symbols against {len(vocab):,}, for one {name!r} is "
            f"{stored_id} there and {our_id} here"
        )
    merges = [
        _parse_merge(merge, stored.file)
        for merge in json.loads(fast_tokenizer.to_str())["model"]["merges"]
    ]
    if stored.merges != merges:
        index = next(
            (i for i, (a, b) in enumerate(zip(stored.merges, merges, strict=False)) if a != b),
            min(len(merges), len(stored.merges)),
        )
        return f"its merges differ from merge {index + 1:,} on"
    return ""


def save(
    folder: Path,
    spec: data.Tokenizer,
    tokenizer: Tokenizer,
    n_ctx: int,
    warn: Callable[[str], None],
) -> dict[str, Any]:
    """Writes the tokenizer's files next to exported weights, for transformers and for gptjax;
    returns the settings for config.json.

    warn: called if transformers has no equivalent, so that it opens a different tokenizer or none.
    """
    if isinstance(tokenizer, json_tokenizer.JsonTokenizer):
        build.save_files(tokenizer, spec, folder)
        return {TOKENIZER_KEY: repr(data.TokenizerJson())}
    fast_tokenizer, difference = tokenizer_json.convert(tokenizer)
    if difference:
        effect = (
            "it cannot open one" if fast_tokenizer is None else "it gives other ids for some texts"
        )
        warn(
            f"transformers has no tokenizer like {spec}: {difference}; {effect}: encode with "
            "gptjax, or with the tokenizer's own library"
        )
    (folder / tokenizer_json.CONFIG_FILE).write_bytes(
        atomic.json_bytes(tokenizer_json.tokenizer_config(tokenizer, n_ctx))
    )
    if fast_tokenizer is not None:
        (folder / tokenizer_json.TOKENIZER_FILE).write_text(
            fast_tokenizer.to_str(pretty=True) + "\n", encoding="utf-8"
        )
    match tokenizer:
        case sentencepiece_tokenizer.SentencePieceTokenizer(model=model):
            # Without a tokenizer.json, transformers would misread a tokenizer.model as one of its
            # own kinds.
            (folder / (MODEL_FILE if fast_tokenizer is not None else OTHER_MODEL_FILE)).write_bytes(
                model
            )
        case gpt1_bpe.Gpt1Tokenizer() | gpt2_bpe.Gpt2Tokenizer():
            files = (
                gpt1_bpe.FILES if isinstance(tokenizer, gpt1_bpe.Gpt1Tokenizer) else gpt2_bpe.FILES
            )
            for name, content in zip(FILE_PAIRS[0], _published_contents(files, spec), strict=True):
                (folder / name).write_bytes(content)
    return {TOKENIZER_KEY: repr(build.without_path(spec))}


def _published_contents(files: openai_files.PublishedFiles, spec: Any) -> list[bytes]:
    """The published vocabulary and merges."""
    contents = openai_files.load(files, spec.path)
    return [contents[name] for name in files.digests]
