"""The tokenizer that lies beside weights, compared with the one that a config names."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from gptjax.config import data
from gptjax.data import gpt1, gpt2, pieces, published
from gptjax.data.tokenizer import Tokenizer

MODEL = "tokenizer.model"  # SentencePiece's
NAMED = "gptjax_tokenizer"  # the setting of an exported config.json that names a tokenizer which Hugging Face has no files for
# Vocabulary and merges, as Hugging Face and OpenAI call them.
PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"), ("encoder_bpe_40000.json", "vocab_40000.bpe"))


@dataclasses.dataclass(frozen=True)
class Own:
    """A byte-pair vocabulary: symbol -> id, and the merges in their order."""

    file: Path
    symbols: dict[str, int]
    merges: list[tuple[str, str]]


def own(folder: Path) -> Own | None:
    """What lies in the folder, if anything does. ValueError if it is damaged, or no byte-pair encoding."""
    file = folder
    try:
        for file, merges in ((folder / a, folder / b) for a, b in PAIRS):
            if file.exists() and merges.exists():
                lines = [line for line in merges.read_text(encoding="utf-8").split("\n") if line and not line.startswith("#version")]
                return Own(file, json.loads(file.read_text(encoding="utf-8")), [_pair(line) for line in lines])
        file = folder / "tokenizer.json"
        if file.exists():
            whole = json.loads(file.read_text(encoding="utf-8"))
            if whole["model"]["type"] != "BPE":
                raise ValueError(f"{file}: a tokenizer of type {whole['model']['type']}; gptjax reads BPE")
            added = {token["content"]: token["id"] for token in whole["added_tokens"]}
            return Own(file, whole["model"]["vocab"] | added, [_pair(merge) for merge in whole["model"]["merges"]])
    except (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}: {error}); fetch it again") from None
    return None


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def beside(folder: Path, usual: data.Tokenizer) -> data.Tokenizer:
    """The tokenizer of a folder of weights: SentencePiece's model in it, else `usual`, of the published files where they are in it."""
    if (folder / MODEL).exists():
        return data.SentencePiece(path=str(folder / MODEL))
    if isinstance(usual, data.Gpt1Bpe) and published.beside(gpt1.FILES, folder):
        return dataclasses.replace(usual, path=str(folder))
    return usual


def check(folder: Path, n_vocab: int, named: data.Tokenizer, text: Tokenizer) -> None:
    """ValueError unless the tokenizer `text`, which a config names so, is that of the weights in `folder`, which have n_vocab ids."""
    there = own(folder)
    doing = "set data.tokenizer to the one that the weights were trained with"
    if text.n_vocab != n_vocab:
        raise ValueError(f"{folder}: the weights have {n_vocab:,} ids, but data.tokenizer={named} has {text.n_vocab:,}; {doing}")
    if there is None:
        return
    if not isinstance(text, gpt1.Gpt1 | gpt2.Gpt2):
        raise ValueError(f"the weights' own tokenizer is {there.file}, but data.tokenizer={named}; {doing}")
    difference = _difference(there, text)
    if difference:
        raise ValueError(
            f"{there.file} is not data.tokenizer={named}: {difference}; weights of another vocabulary cannot be used with it: {doing} "
            "(Gpt2Bpe, Gpt1Bpe, Bytes, SentencePiece)"
        )


def _difference(there: Own, text: gpt1.Gpt1 | gpt2.Gpt2) -> str:
    symbols = text.rust.get_vocab()
    if there.symbols != symbols:
        name = next((s for s in {**there.symbols, **symbols} if there.symbols.get(s) != symbols.get(s)), "")
        ours, its = (f"id {d[name]}" if name in d else "absent" for d in (symbols, there.symbols))
        return f"{len(there.symbols):,} symbols against {len(symbols):,}, for one {name!r} is {its} there and {ours} here"
    merges = [_pair(merge) for merge in json.loads(text.rust.to_str())["model"]["merges"]]
    if there.merges != merges:
        at = next((i for i, (a, b) in enumerate(zip(there.merges, merges, strict=False)) if a != b), min(len(merges), len(there.merges)))
        return f"its merges differ from merge {at + 1:,} on"
    return ""


def save(folder: Path, named: data.Tokenizer, text: Tokenizer) -> dict[str, Any]:
    """Write what belongs to the tokenizer beside exported weights; returns what config.json is to say of it."""
    match text:
        case pieces.Pieces(model=model):
            (folder / MODEL).write_bytes(model)
        case gpt1.Gpt1() | gpt2.Gpt2():
            files = gpt1.FILES if isinstance(text, gpt1.Gpt1) else gpt2.FILES
            for name, content in zip(PAIRS[0], _contents(files, named), strict=True):
                (folder / name).write_bytes(content)
            kind = "OpenAIGPTTokenizer" if isinstance(text, gpt1.Gpt1) else "GPT2Tokenizer"
            (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}, indent=1) + "\n")
        case _:
            return {NAMED: repr(named)}
    return {}


def _contents(files: published.Published, named: Any) -> list[bytes]:
    """Vocabulary and merges, as published."""
    contents = published.files(files, named.path)
    return [contents[name] for name in files.digests]
