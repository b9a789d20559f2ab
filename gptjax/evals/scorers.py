"""Scores of written answers, as the data sets' own scorers give them: each from 0 to 1, written here from the scorers named."""

import collections
import functools
import itertools
import operator
import re
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gptjax.evals.task import Item

Score = Callable[[str, str, Item], float]  # (metric, what was written, item): a task's `score`
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = frozenset(string.punctuation)
QUOTES = "\u2018\u2019\u00b4`"


# --- texts ---------------------------------------------------------------------------------------------------------------------


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, one space between words: SQuAD, evaluate-v2.0.py; CoQA's and QuAC's are the same."""
    plain = "".join(character for character in text.lower() if character not in PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", plain).split())


def trivia_normalised(text: str) -> str:
    """The same, but punctuation and some quotation marks become spaces: TriviaQA, utils/triviaqa_evaluation.py. ("U.S." is "u s".)"""
    plain = "".join(" " if character in PUNCTUATION or character in QUOTES else character for character in text.lower())
    return " ".join(ARTICLES.sub(" ", plain).split())


def word_f1(written: str, right: str) -> float:
    """F1 of the two bags of normalised words: SQuAD, compute_f1."""
    return shared_f1(normalised(written).split(), normalised(right).split())


def shared_f1(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """Where one has no words, whether both have none."""
    if not ours or not theirs:
        return float(ours == theirs)
    shared = (collections.Counter(ours) & collections.Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs))


def same(written: str, right: str) -> float:
    return float(normalised(written) == normalised(right))


PAIRED = {"exact_match": same, "f1": word_f1}


# --- scores of an item ---------------------------------------------------------------------------------------------------------


def plain(metric: str, written: str, item: Item) -> float:
    """exact_match: the text itself, without the space around it, as of tasks that ask for a number or a word; f1: of words."""
    return float(written.strip() in item.answers) if metric == "exact_match" else closed_book(metric, written, item)


def closed_book(metric: str, written: str, item: Item) -> float:
    """The best over the right answers, normalised as SQuAD's: Natural Questions and WebQuestions, as Lee et al. 2019 (1906.00300) and
    Roberts et al. 2020 (2002.08910) score them."""
    return max((PAIRED[metric](written, right) for right in item.answers), default=0.0)


def trivia(metric: str, written: str, item: Item) -> float:
    """Is it one of the aliases, or what is the best F1 of words with one? TriviaQA, utils/triviaqa_evaluation.py."""
    said, right = trivia_normalised(written), {trivia_normalised(right) for right in item.answers}
    return float(said in right) if metric == "exact_match" else max((shared_f1(said.split(), one.split()) for one in right), default=0.0)


def squad(metric: str, written: str, item: Item) -> float:
    """The best over the right answers; a question without one is answered by nothing, or by `item.facts["none"]`: SQuAD,
    evaluate-v2.0.py, where the model's own word for no answer has become the empty text before."""
    said = "" if normalised(written) == normalised(item.facts["none"]) else written
    right = [answer for answer in item.answers if normalised(answer)] or [""]
    return max(PAIRED[metric](said, answer) for answer in right)


def left_out(metric: str, written: str, right: Sequence[str]) -> float:
    """The mean, over each reference left out in turn, of the best over the others, so that people, who cannot be compared with
    themselves, are measured alike: CoQA's evaluate-v1.0.py, QuAC's scorer.py."""
    scores = [PAIRED[metric](written, answer) for answer in right]
    if len(scores) < 2:
        return max(scores, default=0.0)
    return sum(max(scores[:i] + scores[i + 1 :]) for i in range(len(scores))) / len(scores)


def coqa(metric: str, written: str, item: Item) -> float:
    """left_out over the answers of all the people who were asked: CoQA, evaluate-v1.0.py."""
    return left_out(metric, written, item.answers)


CANNOT = "CANNOTANSWER"


def quac(metric: str, written: str, item: Item) -> float:
    """left_out over the answers, of which those that say CANNOTANSWER are dropped if they are fewer than the others, and stand alone if
    not: QuAC, scorer.py, its unfiltered F1. Its F1 leaves out questions on which people agree too little; GPT-3 counts all 7,353."""
    cannot = [answer for answer in item.answers if answer.casefold() == CANNOT.casefold()]  # some tokenizers have no capitals
    if 2 * len(cannot) >= len(item.answers):
        return float(written.strip() in (cannot or [CANNOT]))
    return left_out(metric, written, [answer for answer in item.answers if answer not in cannot])


# --- DROP ----------------------------------------------------------------------------------------------------------------------


def _number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def drop_words(text: str) -> list[str]:
    """A span's normalised words; words are split at hyphens too, and numbers are all of one form ("5" and "5.0"): DROP's drop_eval.py."""
    words = []
    for word in re.split(" |-", text.lower()):
        plain = word if _number(word) else "".join(character for character in word if character not in PUNCTUATION)
        plain = str(float(plain)) if _number(plain) else plain
        words += ARTICLES.sub(" ", plain).split()
    return words


def _bag_f1(ours: set[str], theirs: set[str]) -> float:
    """0 where the right answer has numbers and the other has none of them."""
    numbers = {word for word in theirs if _number(word)}
    if numbers and not numbers & ours:
        return 0.0
    shared = len(ours & theirs)
    precision, recall = (shared / len(ours) if ours else 1.0), (shared / len(theirs) if theirs else 1.0)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def spans_score(metric: str, written: Sequence[str], right: Sequence[str]) -> float:
    """Exact match, or the mean F1 of spans paired as well as can be, over as many as the longer list has: DROP's drop_eval.py."""
    ours, theirs = [drop_words(span) for span in written], [drop_words(span) for span in right]
    if metric == "exact_match":
        return float(len(ours) == len(theirs) and {" ".join(x) for x in ours} == {" ".join(x) for x in theirs})
    import scipy.optimize

    table = [[_bag_f1(set(one), set(other)) for one in ours] for other in theirs]
    paired = zip(*scipy.optimize.linear_sum_assignment(table, maximize=True), strict=True)
    return round(sum(table[i][j] for i, j in paired) / max(len(ours), len(theirs)), 2)


def readings(written: str, n: int) -> list[list[str]]:
    """The spans that a text may be, written with ", " between them as demonstrations show them [chosen], where spans may have commas of
    their own ("Portland, Oregon"): one span, one from each comma to the next, and every way to make n of these parts."""
    parts = written.strip().split(", ")
    found = [[", ".join(parts)], parts]
    if n < len(parts) <= 12:
        for cuts in itertools.combinations(range(1, len(parts)), n - 1):
            found.append([", ".join(parts[i:j]) for i, j in itertools.pairwise((0, *cuts, len(parts)))])
    return found


def drop(metric: str, written: str, item: Item) -> float:
    """The best over the right answers of facts["spans"], each a list of spans, and over what spans the text may be (`readings`)."""
    right = [spans for spans in item.facts["spans"] if any(spans)]
    return max((spans_score(metric, ours, spans) for spans in right for ours in readings(written, len(spans))), default=0.0)


# --- ROUGE and BLEU ------------------------------------------------------------------------------------------------------------

SENTENCE = re.compile(r"(?<=[.!?])[\"')\u2019\u201d]*\s+")


def sentences(text: str) -> list[str]:
    """A plain cut after . ! ? and what closes a quotation, and at line ends: for what models write, of which papers keep the first few."""
    parts, start = [], 0
    for match in SENTENCE.finditer(text):
        parts.append(text[start : match.end()])
        start = match.end()
    lines = (line.strip() for part in [*parts, text[start:]] for line in part.split("\n"))
    return [line for line in lines if line]


def kept(written: str, item: Item) -> str:
    """The first facts["sentences"] sentences, a line each; all, as it is, if that says nothing."""
    return "\n".join(sentences(written)[: item.facts["sentences"]]) if "sentences" in item.facts else written


ROUGES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeLsum"}


def rouge(metric: str, written: str, item: Item) -> float:
    """F1 of stemmed words, pairs, and longest common sequences sentence by sentence (ROUGE-1.5.5 -m by Google's rouge-score), the best over
    the right answers; "rouge": the mean of the three. Two cases that it leaves at 0 [chosen]: a right answer of one word has no pairs, so
    its words count; one without any letter of a to z or digit is taken by the words of its own script."""
    names = list(ROUGES) if metric == "rouge" else [metric]
    return max((sum(_rouge_f1(name, kept(written, item), right) for name in names) / len(names) for right in item.answers), default=0.0)


def _rouge_f1(metric: str, written: str, right: str) -> float:
    right = "\n".join(sentences(right))
    cut = _rouge(bool(re.search("[a-z0-9]", right.lower())))
    kind = "rouge1" if metric == "rouge_2" and len(cut._tokenizer.tokenize(right)) < 2 else ROUGES[metric]
    return cut.score(right, written)[kind].fmeasure


@functools.cache
def _rouge(latin: bool) -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(list(ROUGES.values()), use_stemmer=True, tokenizer=None if latin else _Scripts())


class _Scripts:
    """A tokenizer of rouge-score for other scripts than Latin."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())


ORDERS = 4  # BLEU's n-grams have up to so many words


def corpus(metric: str, written: Sequence[str], items: Sequence[Item]) -> float:
    """The score of all that was written, of a metric that is no mean over items: `bleu` of all their counts together."""
    return bleu(metric, bleu_counts(metric, written, items).sum(0))


def bleu_counts(metric: str, written: Sequence[str], items: Sequence[Item]) -> np.ndarray:
    """(texts, 2 + 3 * ORDERS): all that BLEU needs of each text: its words; those of the right answer nearest in length; n-grams of 1 to
    ORDERS words that a right answer has too; all its n-grams; those of the longest right answer. Sums of rows are the counts of a corpus,
    so texts are cut once.

    "bleu" is of SacreBLEU's words by tokenisation intl; "bleu_mb" of words as XLM's scripts cut them with Moses', in the language
    facts["language"], "en", ... Right answers are `answers`."""
    counts = []
    for text, item in zip(written, items, strict=True):
        cut = _intl() if metric == "bleu" else words(item.facts["language"])
        ours, *right = (cut(" ".join(one.split())).split() for one in (kept(text, item), *item.answers))
        lengths = [len(answer) for answer in right] or [0]
        matches, totals = [], []
        for n in range(1, ORDERS + 1):
            grams = _grams(ours, n)
            most = functools.reduce(operator.or_, (_grams(answer, n) for answer in right), collections.Counter())
            matches.append((grams & most).total())
            totals.append(grams.total())
        nearest = min(lengths, key=lambda length: (abs(length - len(ours)), length))
        possible = [max(0, max(lengths) - n) for n in range(ORDERS)]
        counts.append([len(ours), nearest, *matches, *totals, *possible])
    return np.array(counts, np.int64).reshape(len(written), 2 + 3 * ORDERS)


def _grams(words: Sequence[str], n: int) -> collections.Counter[tuple[str, ...]]:
    return collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(metric: str, counts: np.ndarray) -> float:
    """BLEU from summed `bleu_counts`: "bleu" smoothed as SacreBLEU's, "bleu_mb" not at all, as multi-bleu.perl's. Where no right answer of
    all has four words, which leaves BLEU undefined, n-grams count up to the longest that one has [chosen]."""
    import sacrebleu

    ours, theirs, *grams = counts.tolist()
    matches, totals, possible = (grams[i * ORDERS : (i + 1) * ORDERS] for i in range(3))
    n = max(1, sum(map(bool, possible)))
    smooth = "exp" if metric == "bleu" else "none"
    return sacrebleu.BLEU.compute_bleu(matches[:n], totals[:n], ours, theirs, smooth, max_ngram_order=n).score / 100


@functools.cache
def _intl() -> Callable[[str], str]:
    from sacrebleu.tokenizers import tokenizer_intl

    return tokenizer_intl.TokenizerV14International()


# XLM's normalize-romanian.py and remove-diacritics.py, one after the other: what is left of the letters.
ROMANIAN = str.maketrans("\u0218\u0219\u015e\u015f\u021a\u021b\u0162\u0163\u0102\u0103\u00c2\u00e2\u00ce\u00ee", "SsSsTtTtAaAaIi")


@functools.cache
def words(language: str) -> Callable[[str], str]:
    """A text -> its words by Moses, a space between them, as XLM's tools/tokenize.sh: punctuation made plain, nothing escaped; of Romanian,
    letters without their marks."""
    import sacremoses

    plain = sacremoses.MosesPunctNormalizer(language, pre_replace_unicode_punct=True, post_remove_control_chars=True)
    tokens = sacremoses.MosesTokenizer(language)

    def cut(text: str) -> str:
        found = " ".join(tokens.tokenize(plain.normalize(text), escape=False))
        return found.translate(ROMANIAN) if language == "ro" else found

    return cut
