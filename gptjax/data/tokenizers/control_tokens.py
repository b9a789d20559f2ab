"""Control tokens, such as begin-of-text: which tokens of a tokenizer.json they are, how a text that
spells one stays text, and how a rendered conversation keeps both apart.

A tokenizer.json lists added tokens, which the `tokenizers` library cuts out of a text before
anything else. Those that it calls special are control tokens. The others are pieces of text, such
as Gemma's runs of newlines, except those with a role: Phi-3's </s> is not called special, but ends
a text.
"""

import copy
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from gptjax.config import parse

# The names of end-of-text and begin-of-text, where no tokenizer_config.json names them.
END_NAMES = ("<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "<|im_end|>")
START_NAMES = ("<|begin_of_text|>", "<|startoftext|>", "<s>", "<bos>")
# Noncharacters of Unicode, which no text for interchange has. PRIVATE makes a control token's name
# one that no text spells; OPEN and CLOSE stand around a name that is meant as text.
PRIVATE, OPEN, CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
NONCHARACTERS = re.compile(f"[{PRIVATE}{OPEN}{CLOSE}]")


def named_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """The tokens that a tokenizer_config.json gives a role, such as {"eos_token": "</s>"}; in the
    forms of transformers 5 and of earlier versions."""
    values = {name: value for name, value in settings.items() if name.endswith("_token")}
    contents = {name: _content(value) for name, value in values.items()}
    return {name: content for name, content in contents.items() if content is not None}


def _content(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def find(parsed: dict[str, Any], settings: dict[str, Any]) -> frozenset[str]:
    """The names of the control tokens of a tokenizer.json: its special tokens, and those of its
    added tokens that the settings, or their usual names, give a role."""
    named = {*named_tokens(settings).values(), *START_NAMES, *END_NAMES}
    for key in ("additional_special_tokens", "extra_special_tokens"):
        if isinstance(settings.get(key), list | dict):
            values = settings[key].values() if isinstance(settings[key], dict) else settings[key]
            named |= {content for content in map(_content, values) if content is not None}
    tokens = added_tokens(parsed)
    return frozenset(t["content"] for t in tokens if t["special"] or t["content"] in named)


def added_tokens(parsed: dict[str, Any]) -> list[dict[str, Any]]:
    """The added tokens of a tokenizer.json that the library has read, so that it is none with
    errors."""
    return parsed.get("added_tokens") or []


def spelled_as_text(parsed: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """The tokenizer.json of which the library, with encode_special_tokens, reads `names` as text:
    they are special, and no merge makes one of its parts."""
    changed = {**parsed, "added_tokens": copy.deepcopy(added_tokens(parsed))}
    for token in changed["added_tokens"]:
        token["special"] |= token["content"] in names
    merges = parsed["model"].get("merges")
    if merges:
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
        kept = [m for m, pair in zip(merges, pairs, strict=True) if "".join(pair) not in names]
        if len(kept) < len(merges):
            changed["model"] = {**parsed["model"], "merges": kept}
    return changed


def mark(value: Any, pattern: re.Pattern[str]) -> Any:
    """`value`, texts in lists and dicts, with OPEN and CLOSE around each control token that a text
    spells. Raises ValueError for a text with one of the noncharacters that this needs."""
    match value:
        case str():
            if NONCHARACTERS.search(value):
                raise ValueError(
                    f"a message has one of the noncharacters U+{ord(PRIVATE):04X} to "
                    f"U+{ord(CLOSE):04X}, which no text for interchange has: leave it out"
                )
            return pattern.sub(f"{OPEN}\\g<0>{CLOSE}", value)
        case list():
            return [mark(item, pattern) for item in value]
        case dict():
            return {key: mark(item, pattern) for key, item in value.items()}
    return value


class MarkedEncoder:
    """Encodes text in which names of control tokens are these tokens, as transformers does by
    default, except those that `mark` has marked, which are text.

    It is the tokenizer itself with one change: the control tokens have names that no text spells.
    So all rules of the library about the text between tokens hold.
    """

    def __init__(self, parsed: dict[str, Any], names: frozenset[str], open_json: Any):
        """names: the control tokens. open_json: a parsed tokenizer.json -> tokenizers.Tokenizer
        that reads special tokens as text."""
        from tokenizers import AddedToken

        self._rust = open_json(spelled_as_text(parsed, names))
        tokens = [token for token in added_tokens(parsed) if token["content"] in names]
        flags = ("single_word", "lstrip", "rstrip", "normalized")
        self._rust.add_tokens([
            AddedToken(_private(t["content"]), special=False, **{flag: t[flag] for flag in flags})
            for t in tokens
        ])  # fmt: skip
        self._ids = {
            self._rust.token_to_id(_private(name)): self._rust.token_to_id(name) for name in names
        }
        self.pattern = name_pattern(names)
        self._parts = re.compile(f"{OPEN}({self.pattern.pattern}){CLOSE}|{self.pattern.pattern}")

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text; marks are no part of it."""
        named = self._parts.sub(lambda m: m[1] if m[1] is not None else _private(m[0]), text)
        text = named.replace(OPEN, "").replace(CLOSE, "")
        ids = self._rust.encode(text, add_special_tokens=False).ids
        return [self._ids.get(i, i) for i in ids]


def _private(name: str) -> str:
    return f"{PRIVATE}{name}{PRIVATE}"


@functools.lru_cache(16)
def name_pattern(names: frozenset[str]) -> re.Pattern[str]:
    """A regular expression of any of the names, the longest first; of none if there are none."""
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def check_text(encode: Any, vocabulary: dict[str, int], names: Iterable[str], where: str) -> None:
    """Raises ValueError if a text that spells one of the control tokens becomes it all the same, as
    some tokenizers that are not BPE do. encode: texts -> ids of each."""
    spelled: Sequence[str] = sorted(names)
    for name, ids in zip(spelled, encode(spelled), strict=True):
        if vocabulary[name] in ids:
            raise ValueError(
                f"{where}: a text that spells the control token {parse.quote(name)} becomes this "
                "token, so that text could end a document; gptjax reads no such tokenizer"
            )
