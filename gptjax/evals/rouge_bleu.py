"""ROUGE of summaries and BLEU of translations, from 0 to 1: which n-grams of the correct answers a
generated text has, counted by the packages that reproduce the official scripts."""

import collections
import functools
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gptjax.evals.task import Item

SENTENCE = re.compile(r"(?<=[.!?])[\"')\u2019\u201d]*\s+")


def split_sentences(text: str) -> list[str]:
    """Splits text after . ! ? with closing quotes, and at newlines: a simple rule for generated
    text, of which papers keep the first few sentences.
    """
    parts, start = [], 0
    for match in SENTENCE.finditer(text):
        parts.append(text[start : match.end()])
        start = match.end()
    lines = (line.strip() for part in [*parts, text[start:]] for line in part.split("\n"))
    return [line for line in lines if line]


def first_sentences(prediction: str, item: Item) -> str:
    """The first facts["sentences"] sentences, one per line; the unchanged text if that fact is
    missing.
    """
    return (
        "\n".join(split_sentences(prediction)[: item.facts["sentences"]])
        if "sentences" in item.facts
        else prediction
    )


ROUGE_TYPES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeLsum"}


def rouge(metric: str, prediction: str, item: Item) -> float:
    """ROUGE F1 of stemmed unigrams, bigrams and sentence-level longest common subsequences
    (ROUGE-1.5.5 -m by Google's rouge-score), the best over the correct answers; "rouge": the mean
    of the three.

    Two cases that it scores as 0 differ [chosen]: a correct answer of one word has no bigrams, so
    its unigrams count; one without any letter a to z or digit is split into the words of its own
    script.
    """
    names = list(ROUGE_TYPES) if metric == "rouge" else [metric]
    return max(
        (
            sum(_rouge_f1(name, first_sentences(prediction, item), reference) for name in names)
            / len(names)
            for reference in item.answers
        ),
        default=0.0,
    )


def _rouge_f1(metric: str, prediction: str, reference: str) -> float:
    reference = "\n".join(split_sentences(reference))
    scorer = _rouge_scorer(bool(re.search("[a-z0-9]", reference.lower())))
    rouge_type = (
        "rouge1"
        if metric == "rouge_2" and len(scorer._tokenizer.tokenize(reference)) < 2
        else ROUGE_TYPES[metric]
    )
    return scorer.score(reference, prediction)[rouge_type].fmeasure


@functools.cache
def _rouge_scorer(latin: bool) -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(
        list(ROUGE_TYPES.values()),
        use_stemmer=True,
        tokenizer=None if latin else _UnicodeTokenizer(),
    )


class _UnicodeTokenizer:
    """rouge-score tokenizer for scripts other than Latin."""

    def tokenize(self, text: str) -> list[str]:
        """The words of a text, in lower case."""
        return re.findall(r"\w+", text.lower())


MAX_ORDER = 4  # of BLEU's n-grams


def corpus_bleu(metric: str, predictions: Sequence[str], items: Sequence[Item]) -> float:
    """Corpus BLEU of all predictions: `bleu` of their summed counts."""
    return bleu(metric, bleu_counts(metric, predictions, items).sum(0))


def bleu_counts(metric: str, predictions: Sequence[str], items: Sequence[Item]) -> np.ndarray:
    """Returns counts (texts, 2 + 3 * MAX_ORDER), all that BLEU needs from each text; sums of rows
    are the counts of a corpus.

    Columns: words of the prediction; words of the correct answer nearest in length; n-grams of 1 to
    MAX_ORDER words that also occur in a correct answer; all n-grams; n-grams of the longest correct
    answer. "bleu" uses SacreBLEU's intl tokenization, "bleu_mb" Moses tokenization as in XLM's
    scripts, in the language facts["language"] ("en", ...). Correct answers are `answers`.
    """
    counts = []
    for text, item in zip(predictions, items, strict=True):
        tokenize = (
            _intl_tokenizer() if metric == "bleu" else moses_tokenizer(item.facts["language"])
        )
        predicted, *references = (
            tokenize(" ".join(candidate.split())).split()
            for candidate in (first_sentences(text, item), *item.answers)
        )
        lengths = [len(answer) for answer in references] or [0]
        matches, totals = [], []
        for n in range(1, MAX_ORDER + 1):
            grams = _ngrams(predicted, n)
            reference_max = functools.reduce(
                operator.or_, (_ngrams(answer, n) for answer in references), collections.Counter()
            )
            matches.append((grams & reference_max).total())
            totals.append(grams.total())
        nearest = min(lengths, key=lambda length: (abs(length - len(predicted)), length))
        possible = [max(0, max(lengths) - n) for n in range(MAX_ORDER)]
        counts.append([len(predicted), nearest, *matches, *totals, *possible])
    return np.array(counts, np.int64).reshape(len(predictions), 2 + 3 * MAX_ORDER)


def _ngrams(words: Sequence[str], n: int) -> collections.Counter[tuple[str, ...]]:
    return collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(metric: str, counts: np.ndarray) -> float:
    """BLEU from summed `bleu_counts`: "bleu" smoothed as SacreBLEU's, "bleu_mb" unsmoothed as
    multi-bleu.perl's.

    If no correct answer has four words, which leaves BLEU undefined, n-grams count up to the
    longest that one has [chosen].
    """
    import sacrebleu

    predicted_length, reference_length, *grams = counts.tolist()
    matches, totals, possible = (grams[i * MAX_ORDER : (i + 1) * MAX_ORDER] for i in range(3))
    n = max(1, sum(map(bool, possible)))
    smooth = "exp" if metric == "bleu" else "none"
    return (
        sacrebleu.BLEU.compute_bleu(
            matches[:n], totals[:n], predicted_length, reference_length, smooth, max_ngram_order=n
        ).score
        / 100
    )


@functools.cache
def _intl_tokenizer() -> Callable[[str], str]:
    from sacrebleu.tokenizers import tokenizer_intl

    return tokenizer_intl.TokenizerV14International()


# XLM's normalize-romanian.py and remove-diacritics.py combined: letters without their marks.
ROMANIAN_LETTERS = str.maketrans(
    "\u0218\u0219\u015e\u015f\u021a\u021b\u0162\u0163\u0102\u0103\u00c2\u00e2\u00ce\u00ee",
    "SsSsTtTtAaAaIi",
)


@functools.cache
def moses_tokenizer(language: str) -> Callable[[str], str]:
    """Returns a function that tokenizes text with Moses as XLM's tools/tokenize.sh does:
    punctuation normalized, nothing escaped, and for Romanian, letters without diacritics.
    """
    import sacremoses

    normalizer = sacremoses.MosesPunctNormalizer(
        language, pre_replace_unicode_punct=True, post_remove_control_chars=True
    )
    tokenizer = sacremoses.MosesTokenizer(language)

    def tokenize(text: str) -> str:
        tokenized = " ".join(tokenizer.tokenize(normalizer.normalize(text), escape=False))
        return tokenized.translate(ROMANIAN_LETTERS) if language == "ro" else tokenized

    return tokenize
