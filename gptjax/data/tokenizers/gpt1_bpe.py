"""GPT-1's lower-cased BPE, as in openai/finetune-transformer-lm's text_utils.py."""

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from gptjax.data import unicode
from gptjax.data.tokenizers import openai_files
from gptjax.runtime import errors

FILES = openai_files.PublishedFiles(
    config="Gpt1Bpe",
    digests={
        "encoder_bpe_40000.json": "fdf49b19e7de236852091da09b84a7a3cd5e7b0e79916376cf45f6b8127b8078",  # noqa: E501
        "vocab_40000.bpe": "0ea9b51ae695073cd871e0358f7016311d671a7ff3963e367d5236522f294725",
    },
    url="https://raw.githubusercontent.com/openai/finetune-transformer-lm/master/model",
    package=None,
)
DASHES = str.maketrans(
    {"\u2014": "-", "\u2013": "-", "\u2015": "-", "\u2026": "...", "\u00b4": "'"}
)
# No backslash: the code's pattern is no raw string, so that its `\\+`, too, means a plus.
RUNS = re.compile(r"""(-+|~+|!+|"+|;+|\?+|\++|,+|\)+|\(+|/+|\*+|\[+|\]+|}+|{+|\|+|_+)""")
NEWLINE = " \n "


class Gpt1Tokenizer:
    """GPT-1's tokenizer of 40,478 ids: <unk>, 476 symbols, 40,000 merges, newline. It lower-cases
    and changes spaces, so decoding gives readable text, not the original.

    words: how a line is split before BPE. "spacy": by spaCy's English tokenizer, as published
    (spaCy's rules have changed a little since 2018; its version is part of the digest). "basic": by
    BERT's rules, accents and newlines dropped, without `ftfy`: what Hugging Face's
    OpenAIGPTTokenizer does where spaCy is not installed.
    """

    end_of_text: int | None = None
    text_prefix: tuple[int, ...] = ()
    unknown: int | None = 0

    def __init__(self, path: str | None, words: Literal["spacy", "basic"]):
        """path: the directory of the two files, or None to download them. Raises ValueError if
        they, or spaCy, are missing."""
        import tokenizers
        from tokenizers import models, normalizers, pre_tokenizers

        contents = openai_files.load(FILES, path)
        vocabulary = json.loads(contents["encoder_bpe_40000.json"])
        merges = openai_files.parse_merges(contents["vocab_40000.bpe"])
        model = models.BPE(
            vocab=vocabulary, merges=merges, unk_token="<unk>", end_of_word_suffix="</w>"
        )
        self.rust = tokenizers.Tokenizer(model)
        self.n_vocab = len(vocabulary)
        # A text of white space alone has no tokens: it begins with a newline.
        self.newline = self.start_of_text = vocabulary["\n</w>"]
        self.symbols = {i: symbol for symbol, i in vocabulary.items()}
        versions = "tokenizers"
        if words == "basic":
            self.spacy = None
            self.rust.normalizer = normalizers.BertNormalizer(lowercase=True)
            self.rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        else:
            self.spacy = load_spacy()
            versions = " ".join(
                f"{name} {importlib.metadata.version(name)}" for name in ("ftfy", "spacy")
            )
            versions += " backslashes as they are"  # tokens made when they were spaced are others
        self.digest = hashlib.sha256(
            f"gpt1 {words} {versions} {' '.join(FILES.digests.values())}".encode()
        ).hexdigest()
        self.init_args = path, words

    def __reduce__(self):
        return Gpt1Tokenizer, self.init_args

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`; a symbol outside the vocabulary is 0, <unk>."""
        text = unicode.replace_surrogates(text)
        if self.spacy is None:
            return self.rust.encode(text, add_special_tokens=False).ids
        return list(self._encode_with_spacy(text))

    def _encode_with_spacy(self, text: str) -> Iterator[int]:
        import ftfy

        assert self.spacy is not None
        # spaCy splits at whitespace first, so line by line is exact; the newline between is the
        # token that text_utils.py patches in.
        for number, line in enumerate(standardize(ftfy.fix_text(text)).split(NEWLINE)):
            if number:
                yield self.newline
            words = [word.text.lower() for word in self.spacy(line)]
            yield from self.rust.encode(words, is_pretokenized=True, add_special_tokens=False).ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`, lower-case, with a space after every word."""
        return "".join(self.symbols[int(i)] for i in ids).replace("</w>", " ")


def standardize(text: str) -> str:
    """Returns the text as text_standardize of text_utils.py does: plain dashes and dots, spaces
    around runs of one punctuation mark (not of a backslash), single spaces, ' \\n ' for newlines.
    """
    text = RUNS.sub(r" \1 ", text.translate(DASHES))
    text = re.sub(r"\s*\n\s*", NEWLINE, text)
    return re.sub(r"[^\S\n]+", " ", text).strip()


def load_spacy():
    """Returns spaCy's English tokenizer. Raises ValueError, with what to do, if spaCy is not
    installed."""
    try:
        import spacy  # type: ignore[import-not-found]
    except ModuleNotFoundError:
        raise ValueError(
            "data.tokenizer=Gpt1Bpe(): GPT-1 splits words with spaCy, which is not installed: "
            f"{errors.install_hint('eval')}; "
            "or take BERT's splitting with --set data.tokenizer.words=basic; weights that sample "
            "or evaluate shall read become a run "
            "with it by python -m gptjax.convert"
        ) from None
    return spacy.blank("en").tokenizer
