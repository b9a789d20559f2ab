"""Files of OpenAI's tiktoken, in which Meta publishes Llama 3's tokenizer too: each line a token in
base64 and its rank. Read as a tokenizer.json, by the `tokenizers` library.

A file has neither the regular expression that splits a text nor the special tokens: both belong to
the family, whose values are in FAMILIES.
"""

import base64
import binascii
import dataclasses
import json
import pathlib
import re
from typing import Literal

from gptjax.config import data, parse
from gptjax.data.tokenizers import byte_level_bpe

FamilyName = Literal["llama3", "cl100k_base", "o200k_base", "o200k_harmony"]
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
CL100K = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """What a tiktoken file does not say. pattern: the regular expression of the parts of a text
    that no token crosses. n_ranks: tokens in the published file. special: name -> id minus n_ranks;
    the ids between them are reserved. start, end: the names of begin-of-text and end-of-text.
    adds_start: whether begin-of-text stands before every prompt."""

    pattern: str
    n_ranks: int
    special: dict[str, int]
    start: str | None
    end: str
    adds_start: bool = False


def _number_names(*names: str) -> dict[str, int]:
    return {name: offset for offset, name in enumerate(names)}


# github.com/meta-llama/llama-models, models/llama3/tokenizer.py (Llama 3.1's names: Llama 3 has
# the same ids, reserved where a name is newer); tiktoken_ext/openai_public.py.
FAMILIES: dict[FamilyName, Family] = {
    "llama3": Family(
        pattern=CL100K,
        n_ranks=128_000,
        special=_number_names(
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|reserved_special_token_0|>",
            "<|reserved_special_token_1|>",
            "<|finetune_right_pad_id|>",
            "<|step_id|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eom_id|>",
            "<|eot_id|>",
            "<|python_tag|>",
            *(f"<|reserved_special_token_{number}|>" for number in range(2, 247)),
        ),
        start="<|begin_of_text|>",
        end="<|end_of_text|>",
        adds_start=True,
    ),
    "cl100k_base": Family(
        pattern=CL100K,
        n_ranks=100_256,
        special={
            "<|endoftext|>": 1,
            "<|fim_prefix|>": 2,
            "<|fim_middle|>": 3,
            "<|fim_suffix|>": 4,
            "<|endofprompt|>": 20,
        },
        start=None,
        end="<|endoftext|>",
    ),
    "o200k_base": Family(
        pattern=O200K,
        n_ranks=199_998,
        special={"<|endoftext|>": 1, "<|endofprompt|>": 20},
        start=None,
        end="<|endoftext|>",
    ),
    "o200k_harmony": Family(
        pattern=O200K,
        n_ranks=199_998,
        special={
            "<|startoftext|>": 0,
            "<|endoftext|>": 1,
            "<|return|>": 4,
            "<|constrain|>": 5,
            "<|channel|>": 7,
            "<|start|>": 8,
            "<|end|>": 9,
            "<|message|>": 10,
            "<|call|>": 14,
            "<|endofprompt|>": 20,
            "<|reserved_201087|>": 1089,
        },
        start="<|startoftext|>",
        end="<|endoftext|>",
    ),
}


def tokenizer_files(spec: data.Tiktoken) -> tuple[bytes, bytes, str]:
    """Returns (tokenizer.json, tokenizer_config.json, the file) of a tiktoken file. Raises
    ValueError, in one line, if it is missing, damaged, or another family's."""
    if spec.path is None:
        raise ValueError(
            f"data.tokenizer={spec} names no file: give the model's, Tiktoken(path=...)"
        )
    path, family = parse.path(spec.path), FAMILIES[spec.family]
    path = path / "tokenizer.model" if path.is_dir() else path
    ranks = read_ranks(parse.read_bytes(path), path)
    if len(ranks) != family.n_ranks:
        known = ", ".join(f"{name} {other.n_ranks:,}" for name, other in FAMILIES.items())
        raise ValueError(
            f"{path} has {len(ranks):,} tokens, {spec.family}'s file {family.n_ranks:,}: give its "
            f"family ({known})"
        )
    return *convert(ranks, family), str(path)


def detect(path: pathlib.Path) -> FamilyName | None:
    """The family of a file by its number of tokens; None if it is no tiktoken file."""
    content = parse.read_bytes(path)
    if not re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", content):
        return None
    n = content.count(b"\n")
    # Of the two with as many, gpt-oss's weights are published and have the last.
    names: list[FamilyName] = [name for name in FAMILIES if FAMILIES[name].n_ranks == n]
    return names[-1] if names else "llama3"


def read_ranks(content: bytes, path: pathlib.Path) -> dict[bytes, int]:
    """Returns token -> rank of a file. Raises ValueError, with the line, for one that is not base64
    and a rank, and unless the ranks are 0, 1 ... and every byte is a token."""
    ranks: dict[bytes, int] = {}
    taken: dict[int, int] = {}  # rank -> line
    for number, line in enumerate(content.splitlines(), 1):
        if not line:
            continue
        try:
            text, rank_text = line.split()
            token, rank = base64.b64decode(text, validate=True), int(rank_text)
        except (ValueError, binascii.Error):
            shown = parse.quote(line.decode(errors="replace"))
            raise ValueError(
                f"{path}, line {number}: {shown} is not a token in base64 and its rank; a tiktoken "
                "file has nothing else"
            ) from None
        if rank in taken or token in ranks:
            first = taken[rank if rank in taken else ranks[token]]
            raise ValueError(
                f"{path}, line {number}: the rank or token of line {first} again; fetch the file "
                "again"
            )
        ranks[token], taken[rank] = rank, number
    missing = next((rank for rank in range(len(ranks)) if rank not in taken), None)
    no_token = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
    if not ranks or missing is not None or no_token is not None:
        what = "no token" if not ranks else f"no token of the byte {no_token}"
        what = what if no_token is not None else f"no rank {missing}"
        raise ValueError(f"{path} has {what}: it is no tiktoken file, or cut; fetch it again")
    return ranks


def convert(ranks: dict[bytes, int], family: Family) -> tuple[bytes, bytes]:
    """Returns (tokenizer.json, tokenizer_config.json).

    tiktoken joins any two neighbors that form a token, the lowest rank first, and takes a part that
    is itself a token whole. That is BPE whose merges are all pairs that form a token, by its rank,
    with ignore_merges.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    alphabet = [byte_level_bpe.byte_symbol(byte) for byte in range(256)]
    symbols = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    merges = [
        (symbols[token[:cut]], symbols[token[cut:]])
        for token in sorted(ranks, key=ranks.__getitem__)
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    n = len(ranks)
    names = {offset: name for name, offset in family.special.items()}
    special = [names.get(offset, f"<|reserved_{n + offset}|>") for offset in range(max(names) + 1)]
    vocabulary = {symbols[token]: rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(family.pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    config = {
        "bos_token": family.start,
        "eos_token": family.end,
        "add_bos_token": family.adds_start,
    }
    return tokenizer.to_str().encode(), json.dumps(config).encode()
