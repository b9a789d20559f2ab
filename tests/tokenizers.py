"""Tokenizers of every kind, small or published, for what must hold of all of them."""

import functools
import io
import pathlib
import re

import pytest

from gptjax.config import data
from gptjax.data.tokenizers import build as tokenizer
from gptjax.data.tokenizers import byte_level_bpe, gpt1_bpe, sentencepiece_tokenizer

TEXT = (
    "The plural of dog is dogs. She is unlikely to answer: it's 1,000 or -42 (U.S.)\n\nclass "
    "Test(unittest.TestCase):\n    assertEqual\n"
)
GPT1 = pathlib.Path(__file__).parents[2] / "shared" / "data" / "tokenizers" / "gpt1"


class WordTokenizer:
    """As GPT-1's: no capitals, a space after each word, a newline that no text begins with; but
    it splits plainly, and needs no files."""

    end_of_text = None
    start_of_text, text_prefix, unknown = 0, (), None
    digest = "words"

    def __init__(self):
        self.words, self.n_vocab = ["\n "], 100_000

    def encode(self, text):
        words = re.findall(r"\n|\w+|[^\w\s]", re.sub(r"\s*\n\s*", "\n", text.lower()).strip())
        tokens = [f"{word} " for word in words]
        self.words += [word for word in dict.fromkeys(tokens) if word not in self.words]
        return [self.words.index(word) for word in tokens]

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def decode(self, ids):
        return "".join(self.words[i] for i in ids)


def _train_prefixed():
    """As SentencePiece trains by default: a space before each text, spaces and variants of
    characters made one."""
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 50),
        model_writer=out,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=3,
    )
    return sentencepiece_tokenizer.SentencePieceTokenizer(out.getvalue())


BUILDERS = {
    "bytes": tokenizer.ByteTokenizer,
    "gpt2": lambda: tokenizer.build(data.Gpt2Bpe()),
    "trained": lambda: byte_level_bpe.train([TEXT] * 50, 300),
    "pieces": lambda: sentencepiece_tokenizer.train([TEXT] * 50, 400),
    "prefixed": _train_prefixed,
    "words": WordTokenizer,
    "gpt1": lambda: gpt1_bpe.Gpt1Tokenizer(str(GPT1), "basic"),
    "gpt1 spacy": lambda: gpt1_bpe.Gpt1Tokenizer(str(GPT1), "spacy"),
}
EXACT = ("bytes", "gpt2", "trained", "pieces")  # decoding gives back the text
ALL = [
    pytest.param(name, marks=[pytest.mark.shared] * name.startswith("gpt1")) for name in BUILDERS
]


@functools.cache
def build(name):
    if name == "gpt1 spacy":
        pytest.importorskip(
            "spacy", reason="spaCy is an extra: pip install -r requirements-eval.txt"
        )
    return BUILDERS[name]()
