"""Byte-level BPE with GPT-2's pre-split pattern: encoding by tiktoken, and vocabularies that the
`tokenizers` library trains on a run's own text."""

import functools
import hashlib
import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from gptjax.config import parse
from gptjax.data import unicode

FILE = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
# tiktoken_ext/openai_public.py: equal to the pattern of GPT-2's src/encoder.py, but faster
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
CHUNK_CHARS = 200_000  # characters encoded at once
# Where a text may be cut and its parts encoded alone: before white space, and before the last of
# more white space, without which tiktoken panics at a run of a million. Python takes the separators
# U+001C to U+001F for white space, PATTERN does not.
BOUNDARY = re.compile(r"(?<=\S)(?=[ \n])|(?<=[^\S\x1c-\x1f])(?=[^\S\x1c-\x1f]\S)")


class ByteLevelTokenizer:
    """Byte-level BPE: 256 bytes, a token for each merge, end-of-text. Exactly reversible. The
    algorithm of openai/gpt-2's src/encoder.py."""

    text_prefix: tuple[int, ...] = ()
    unknown: int | None = None

    def __init__(self, merges: Sequence[tuple[str, str]], digest: str):
        """merges: pairs of tokens in GPT-2's characters, of highest priority first."""
        import tiktoken

        self.merges, self.digest = merges, digest
        tokens = [*sorted(map(byte_symbol, range(256))), *map("".join, merges)]
        self.vocabulary = {token: i for i, token in enumerate([*tokens, END_OF_TEXT])}
        self.n_vocab = len(tokens) + 1
        self.end_of_text: int | None = len(tokens)
        self.start_of_text = len(tokens)
        byte_of = {byte_symbol(byte): byte for byte in range(256)}
        self.tiktoken = tiktoken.Encoding(
            "gptjax",
            pat_str=PATTERN,
            mergeable_ranks={bytes(map(byte_of.__getitem__, t)): i for i, t in enumerate(tokens)},
            special_tokens={END_OF_TEXT: len(tokens)},
        )

    @functools.cached_property
    def rust(self) -> Any:
        """The same as a tokenizers.Tokenizer, of which other libraries know the form."""
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers

        rust = tokenizers.Tokenizer(models.BPE(vocab=self.vocabulary, merges=list(self.merges)))
        rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        rust.decoder = decoders.ByteLevel()
        return rust

    def __getstate__(self):
        return self.merges, self.digest

    def __setstate__(self, state):
        ByteLevelTokenizer.__init__(self, *state)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`. The string "<|endoftext|>" in it is encoded as ordinary text,
        so that text cannot end a document."""
        text = unicode.replace_surrogates(text)
        if len(text) <= CHUNK_CHARS:
            return self.tiktoken.encode_ordinary(text)
        parts = unicode.chunks(text, CHUNK_CHARS, BOUNDARY)
        return [*itertools.chain.from_iterable(map(self.tiktoken.encode_ordinary, parts))]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Returns the ids of each text, computed by one thread."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`; bytes that are not UTF-8 become U+FFFD, as in OpenAI's
        code."""
        return self.tiktoken.decode([int(i) for i in ids])


class TrainedTokenizer(ByteLevelTokenizer):
    """Byte-level BPE that `train` made. content: its tokenizer.json, which transformers reads
    too."""

    def __init__(self, merges: Sequence[tuple[str, str]]):
        super().__init__(
            merges, hashlib.sha256(f"byte-level BPE {json.dumps(merges)}".encode()).hexdigest()
        )

    @property
    def content(self) -> bytes:
        from tokenizers import AddedToken, Tokenizer

        complete = Tokenizer.from_str(self.rust.to_str())
        complete.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
        return f"{complete.to_str(pretty=True)}\n".encode()


def load(path: pathlib.Path) -> TrainedTokenizer:
    """Returns the tokenizer of a tokenizer.json that `train` made. Raises a one-line ValueError for
    any other file."""
    parsed = parse.json_object(parse.read_bytes(path), str(path))
    match parsed:
        case {
            "normalizer": None,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            "model": {"vocab": dict(vocabulary), "merges": list(merges)},
        } if all(_is_pair(merge, vocabulary) for merge in merges):
            tokenizer = TrainedTokenizer([(left, right) for left, right in merges])
            if tokenizer.vocabulary == vocabulary:
                return tokenizer
    raise ValueError(
        f"data.tokenizer=TrainedBpe(path=...): {path} is not the tokenizer.json of a byte-level "
        f"BPE that gptjax trained: give TokenizerJson(path={str(path)!r})"
    )


def _is_pair(merge: Any, vocabulary: dict[str, Any]) -> bool:
    return (
        isinstance(merge, list)
        and len(merge) == 2
        and all(isinstance(part, str) and part in vocabulary for part in merge)
    )


def byte_symbol(byte: int) -> str:
    """GPT-2's character for a byte (src/encoder.py, bytes_to_unicode): the byte itself if
    printable, else the next code point from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(byte if byte in printable else 256 + byte - sum(other < byte for other in printable))


def train(texts: Iterable[str], n_vocab: int) -> TrainedTokenizer:
    """Returns the tokenizer of `n_vocab` ids trained on `texts`: again and again the most frequent
    pair of tokens becomes one, of equally frequent ones that with the lowest ids. The same texts
    give the same merges, in any order and by any number of threads. Raises ValueError if they are
    too little."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    rust = tokenizers.Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab - 1,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rust.train_from_iterator(map(unicode.replace_surrogates, texts), trainer)
    merges = [(left, right) for left, right in json.loads(rust.to_str())["model"]["merges"]]
    if len(merges) + 257 < n_vocab:
        raise ValueError(
            f"data.tokenizer=TrainedBpe(n_vocab={n_vocab}): its training text is too small for so "
            f"many; ask for at most {len(merges) + 257}, or use Bytes()"
        )
    return TrainedTokenizer(merges)
