"""Control tokens of conversations for a tokenizer that has none, such as GPT-2's, and the template
that uses them."""

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

ROLES = ("system", "user", "assistant")
NAMES = (*(f"<|{role}|>" for role in ROLES), "<|end|>")


class ChatTokens:
    """The tokenizer `base`, whose ids are followed by those of NAMES. Text that spells a name is
    encoded as text. Both are a tokenizers.build.Tokenizer."""

    def __init__(self, base: Any):
        self.base, self.first = base, base.n_vocab
        self.n_vocab: int = base.n_vocab + len(NAMES)
        self.end_of_text: int | None = base.end_of_text
        self.start_of_text: int = base.start_of_text
        self.text_prefix: tuple[int, ...] = base.text_prefix
        self.unknown: int | None = base.unknown
        self.digest: str = hashlib.sha256(f"{base.digest} and {NAMES}".encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text."""
        return self.base.encode(text)

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Returns the ids of each text."""
        return self.base.encode_batch(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`, the four tokens by their names."""
        runs = itertools.groupby(ids, lambda i: i >= self.first)
        return "".join(
            "".join(NAMES[i - self.first] for i in run) if is_name else self.base.decode(list(run))
            for is_name, run in runs
        )

    def id(self, name: str) -> int:
        """Returns the id of one of NAMES."""
        return self.first + NAMES.index(name)
