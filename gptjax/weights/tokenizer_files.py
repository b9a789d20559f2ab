"""The tokenizer that lies beside weights, compared with the one that a config names."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptjax.config import data, parse
from gptjax.data.tokenizers import build, gpt1_bpe, gpt2_bpe, openai_files, sentencepiece_tokenizer
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.runtime import atomic
from gptjax.weights import tokenizer_json

MODEL, OTHER_MODEL = "tokenizer.model", "sentencepiece.model"  # SentencePiece's; and one that transformers has no form for
NAMED = "gptjax_tokenizer"  # the setting of an exported config.json that names the tokenizer as a config does
PUBLISHED = {data.Gpt2Bpe: 50_257, data.Gpt1Bpe: 40_478}  # ids
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
    for file, merges in ((folder / a, folder / b) for a, b in PAIRS):
        if file.exists() and merges.exists():
            lines = [line for line in parse.text_file(merges).split("\n") if line and not line.startswith("#version")]
            return Own(file, _symbols(parse.json_file(file), file), [_pair(line, merges) for line in lines])
    file = folder / tokenizer_json.FILE
    if not file.exists():
        return None
    whole = parse.json_file(file)
    model = parse.member(whole, "model", dict, str(file))
    kind = parse.member(model, "type", str, str(file)) if "type" in model else "BPE"  # versions before 0.9 do not say it
    if kind != "BPE":
        raise ValueError(f"{file}: a tokenizer of type {parse.quote(kind)}; gptjax reads BPE")
    symbols = _symbols(parse.member(model, "vocab", dict, str(file)), file)
    for token in parse.member(whole, "added_tokens", list, str(file)) if "added_tokens" in whole else []:
        if not isinstance(token, dict):
            raise ValueError(f"{file} is damaged: {parse.quote(token)} is no added token; fetch it again")
        symbols |= {parse.member(token, "content", str, str(file)): parse.member(token, "id", int, str(file))}
    return Own(file, symbols, [_pair(merge, file) for merge in parse.member(model, "merges", list, str(file))])


def _symbols(found: dict[str, Any], file: Path) -> dict[str, int]:
    wrong = next((symbol for symbol, i in found.items() if type(i) is not int), None)
    if wrong is not None:
        raise ValueError(f"{file} is damaged: the id of {parse.quote(wrong)} is {parse.quote(found[wrong])}; fetch it again")
    return dict(found)


def _pair(merge: Any, file: Path) -> tuple[str, str]:
    match merge.split(" ") if isinstance(merge, str) else merge:
        case [str(left), str(right)]:
            return left, right
    raise ValueError(f"{file} is damaged: {parse.quote(merge)} is no pair of symbols; fetch it again")


def beside(folder: Path, usual: data.Tokenizer) -> data.Tokenizer:
    """The tokenizer of a folder of weights: SentencePiece's model in it, else `usual`, of the published files where they are in it."""
    for model in (folder / MODEL, folder / OTHER_MODEL):
        if model.exists():
            return data.SentencePiece(path=str(model))
    if isinstance(usual, data.Gpt1Bpe) and openai_files.beside(gpt1_bpe.FILES, folder):
        return dataclasses.replace(usual, path=str(folder))
    return usual


def size(folder: Path, named: data.Tokenizer) -> int | None:
    """How many ids the published tokenizer that is `named` has, if its files are in the folder, perhaps with more symbols after its own."""
    n = PUBLISHED[type(named)] if type(named) in PUBLISHED else None
    there = own(folder) if n is not None else None
    if n is None or there is None or {i for i in there.symbols.values() if i < n} != set(range(n)):
        return None
    return n


def check(folder: Path, rows: int, named: data.Tokenizer, text: Tokenizer) -> list[str]:
    """The symbols that were added in the folder, with ids after those of `text`: one for padding, perhaps.

    ValueError unless the tokenizer `text`, which a config names so, is that of the weights in `folder`, of whose table `rows` are taken."""
    doing = "set data.tokenizer to the one that the weights were trained with"
    if text.n_vocab != rows:
        hint = f"; if the rest is padding, --set model.n_vocab={text.n_vocab}" if text.n_vocab < rows else ""
        raise ValueError(f"{folder}: the weights have {rows:,} ids, but data.tokenizer={named} has {text.n_vocab:,}{hint}; {doing}")
    model = next((folder / name for name in (MODEL, OTHER_MODEL) if (folder / name).exists()), None)
    if model is not None and isinstance(text, sentencepiece_tokenizer.Pieces):
        if parse.content(model) != text.model:
            raise ValueError(f"the weights' own tokenizer is {model}, but data.tokenizer={named}; {doing}")
        return []
    there, rust = own(folder), _rust(text)
    if there is None:
        return []
    if rust is None:
        raise ValueError(f"the weights' own tokenizer is {there.file}, but data.tokenizer={named}; {doing}")
    added = sorted((symbol for symbol, i in there.symbols.items() if i >= text.n_vocab), key=lambda symbol: there.symbols[symbol])
    difference = _difference(dataclasses.replace(there, symbols={s: i for s, i in there.symbols.items() if i < text.n_vocab}), rust)
    if difference:
        raise ValueError(
            f"{there.file} is not data.tokenizer={named}: {difference}; weights of another vocabulary cannot be used with it: {doing} "
            "(Gpt2Bpe, Gpt1Bpe, Bytes, SentencePiece)"
        )
    return added


def _rust(text: Tokenizer) -> Any:
    return text.rust if isinstance(text, gpt1_bpe.Gpt1 | gpt2_bpe.Gpt2) else tokenizer_json.convert(text)[0]


def _difference(there: Own, rust: Any) -> str:
    symbols = rust.get_vocab()
    if there.symbols != symbols:
        name = next((s for s in {**there.symbols, **symbols} if there.symbols.get(s) != symbols.get(s)), "")
        ours, its = (f"id {d[name]}" if name in d else "absent" for d in (symbols, there.symbols))
        return f"{len(there.symbols):,} symbols against {len(symbols):,}, for one {name!r} is {its} there and {ours} here"
    merges = [_pair(merge, there.file) for merge in json.loads(rust.to_str())["model"]["merges"]]
    if there.merges != merges:
        at = next((i for i, (a, b) in enumerate(zip(there.merges, merges, strict=False)) if a != b), min(len(merges), len(there.merges)))
        return f"its merges differ from merge {at + 1:,} on"
    return ""


def save(folder: Path, named: data.Tokenizer, text: Tokenizer, n_ctx: int, warn: Callable[[str], None]) -> dict[str, Any]:
    """Write what belongs to the tokenizer beside exported weights, for transformers and for gptjax; returns what config.json is to say of
    it. warn is told what transformers has no form for: it then opens another tokenizer, or refuses to open one."""
    rust, other = tokenizer_json.convert(text)
    if other:
        effect = "it refuses to open one" if rust is None else "of some texts it finds other ids"
        warn(f"transformers has no tokenizer like {named}: {other}; {effect}: encode with gptjax, or with what the tokenizer is of")
    (folder / tokenizer_json.CONFIG).write_bytes(atomic.json_bytes(tokenizer_json.settings(text, n_ctx)))
    if rust is not None:
        (folder / tokenizer_json.FILE).write_text(rust.to_str(pretty=True) + "\n", encoding="utf-8")
    match text:
        case sentencepiece_tokenizer.Pieces(model=model):
            # Where there is no tokenizer.json, transformers would take a tokenizer.model for one of its own kinds.
            (folder / (MODEL if rust is not None else OTHER_MODEL)).write_bytes(model)
        case gpt1_bpe.Gpt1() | gpt2_bpe.Gpt2():
            files = gpt1_bpe.FILES if isinstance(text, gpt1_bpe.Gpt1) else gpt2_bpe.FILES
            for name, content in zip(PAIRS[0], _contents(files, named), strict=True):
                (folder / name).write_bytes(content)
    return {NAMED: repr(build.without_path(named))}


def _contents(files: openai_files.Published, named: Any) -> list[bytes]:
    """Vocabulary and merges, as published."""
    contents = openai_files.files(files, named.path)
    return [contents[name] for name in files.digests]
