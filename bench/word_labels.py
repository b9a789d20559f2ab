"""Precision and recall of a classifier of words on annotated texts, by threshold; how much of them
is held back as they come character by character; and the time of a word. A table in Markdown.

    python -m bench.word_labels --model=runs/words:person --text=annotated.jsonl

The texts are those of gptjax.word_examples. A word within a span that the classifier never reads,
as one in lower case, counts as missed.
"""

import argparse
import sys
import time
from collections.abc import Iterator

from gptjax.config import parse, safety
from gptjax.safety import fold, stream_filter, word_classifier
from gptjax.training.classification import text_classifier

THRESHOLDS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
Words = list[tuple[int | None, float]]  # of a text: the span that each is in, and its score


def read_words(
    row: dict, label: str, scorer: word_classifier.WordScorer, where: str
) -> Iterator[tuple[int | None, float]]:
    """Yields the words of an annotated text."""
    text, places = fold.Folder().fold(parse.member(row, "text", str, where))
    spans = [span for span in row["spans"] if span[2] == label]
    inside = {i: number for number, (a, b, _) in enumerate(spans) for i in range(a, b)}
    scored = [word for group in word_classifier.groups(text, 0, True) for word in group]
    pairs = [word_classifier.window(text, *word) for word in scored]
    scores = scorer(pairs) if pairs else []
    found = {word: score[label] for word, score in zip(scored, scores, strict=True)}
    for match in word_classifier.WORD.finditer(text):
        start, end = match.span()
        numbers = [inside[place] for place in places[start:end] if place in inside]
        yield (numbers[0] if numbers else None), found.get((start, end), 0.0)


def table(texts: list[Words]) -> Iterator[str]:
    """Yields the lines of the table of thresholds."""
    words = [word for text in texts for word in text]
    n_true = sum(span is not None for span, _ in words)
    spans: dict[tuple[int, int], float] = {}  # the lowest score of the words of each
    for number, text in enumerate(texts):
        for span, score in text:
            if span is not None:
                spans[number, span] = min(score, spans.get((number, span), 1.0))
    yield f"{len(texts):,} texts of {len(words):,} words; {n_true:,} in {len(spans):,} spans"
    yield "| threshold | precision | recall | whole spans | texts with a match |"
    yield "|---|---|---|---|---|"
    for threshold in THRESHOLDS:
        found = [span is not None for span, score in words if score >= threshold]
        n_whole = sum(score >= threshold for score in spans.values())
        n_texts = sum(any(score >= threshold for _, score in text) for text in texts)
        pairs = [(sum(found), len(found)), (sum(found), n_true), (n_whole, len(spans))]
        shares = [f"{a / max(1, b):.1%}" for a, b in [*pairs, (n_texts, len(texts))]]
        yield f"| {threshold:g} | {' | '.join(shares)} |"


def delay(text: str, rules: tuple[stream_filter.Rule, ...]) -> str:
    """Returns how many characters of a text are held back, on average and at most."""
    used, held = stream_filter.StreamFilter(rules, b""), []
    for char in text:
        used.add(char)
        held.append(used.n_held)
    return f"held back: {sum(held) / len(held):.1f} characters on average, {max(held)} at most"


def main(arguments: list[str]) -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", metavar="DIR:LABEL", required=True)
    parser.add_argument("--text", metavar="FILE", required=True)
    args = parser.parse_args(arguments)
    path, _, label = args.model.rpartition(":")
    scorer = text_classifier.load_pairs(path, word_classifier.FIELDS, print)
    rows = [
        parse.json_object(line, f"{args.text}, line {i}")
        for i, line in enumerate(parse.read_text(parse.path(args.text)).splitlines(), 1)
    ]
    print("\n".join(table([list(read_words(row, label, scorer, args.text)) for row in rows])))
    spec = safety.WordClassifier(model=path, labels=(label,))
    cached = word_classifier.opener(lambda _: scorer)
    text = "\n".join(row["text"] for row in rows)[:150_000]
    start = time.perf_counter()
    print(delay(text, stream_filter.rules([spec], cached)))
    n = sum(map(len, word_classifier.groups(text, 0, True)))
    both, start = time.perf_counter() - start, time.perf_counter()
    delay(text, stream_filter.rules([spec], cached))  # all windows are known
    print(f"{1000 * (both - time.perf_counter() + start) / n:.1f} ms a word that is read, of {n:,}")


if __name__ == "__main__":
    main(sys.argv[1:])
