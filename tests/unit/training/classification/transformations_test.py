"""The four transformations, token by token; what is cut; and the rows that a batch is made of."""

import dataclasses
import random

import numpy as np
import pytest

from gptjax.config.classification import ClassificationTask
from gptjax.data.tokenizers import build
from gptjax.training.classification import transformations
from gptjax.training.classification.examples import Example

S, D, E = 100, 101, 102  # start, delimiter and extract after a vocabulary of 100
TASK = {
    "classification": ClassificationTask(
        kind="classification", fields=("a",), label="y", labels=("0", "1"), metric="accuracy"
    ),
    "entailment": ClassificationTask(
        kind="entailment", fields=("a", "b"), label="y", labels=("0", "1", "2"), metric="accuracy"
    ),
    "similarity": ClassificationTask(
        kind="similarity", fields=("a", "b"), label="y", labels=("0", "1"), metric="f1"
    ),
    "choice": ClassificationTask(
        kind="choice",
        fields=("a", "b"),
        answers=("c",),
        label="y",
        labels=("0", "1", "2"),
        metric="accuracy",
    ),
}


def sequences(kind, texts, answers=(), limit=transformations.NO_LIMIT):
    return transformations.build_sequences(TASK[kind], texts, answers, 100, limit)


def test_the_four_transformations():
    assert sequences("classification", ([1, 2],)) == [[S, 1, 2, E]]
    assert sequences("entailment", ([1, 2], [3])) == [[S, 1, 2, D, 3, E]]
    assert sequences("similarity", ([1, 2], [3])) == [[S, 1, 2, D, 3, E], [S, 3, D, 1, 2, E]]
    chosen = [[S, 1, 2, 3, D, 4, E], [S, 1, 2, 3, D, 5, 6, E], [S, 1, 2, 3, D, 7, E]]
    assert sequences("choice", ([1, 2], [3]), ([4], [5, 6], [7])) == chosen


def naive(parts, room):
    """One token at a time from the end of the longest; of several, the first."""
    parts = [list(part) for part in parts]
    while sum(map(len, parts)) > room:
        max(parts, key=len).pop()
    return parts


def test_the_longest_text_is_cut_first():
    draw = random.Random(0)
    for _ in range(500):
        lengths, room = (
            [draw.randint(0, 12) for _ in range(draw.randint(1, 4))],
            draw.randint(0, 30),
        )
        parts = [list(range(n)) for n in lengths]
        cut = draw.randint(0, len(parts))
        first, second = transformations._truncate(parts[:cut], parts[cut:], room)
        assert len(first) == cut and sorted(first + second) == sorted(naive(parts, room)), (
            lengths,
            room,
        )
        assert [len(x) for x in first + second] == [len(x) for x in naive(parts, room)]


def test_no_sequence_is_over_the_limit_and_the_answer_outlives_a_long_context():
    long = sequences("choice", (list(range(50)), [7, 8]), ([1, 2, 3], [4], [5]), limit=20)
    assert [len(s) for s in long] == [20, 20, 20]
    assert long[0] == [S, *range(12), 7, 8, D, 1, 2, 3, E] and long[1] == [
        S,
        *range(14),
        7,
        8,
        D,
        4,
        E,
    ]
    assert (
        sequences("similarity", (list(range(30)), list(range(40))), limit=13)
        == [[S, *range(5), D, *range(5), E]] * 2
    )


def examples(kind, *labels, text="ab"):
    texts, answers = {
        "classification": ((text,), ()),
        "choice": ((text, "?"), ("x", "yy", "z")),
    }.get(kind, ((text, "c"), ()))
    return [Example(texts, answers, label, "0") for label in labels]


@pytest.mark.parametrize("kind", TASK)
def test_rows_are_taken_apart_again(kind):
    task, text = TASK[kind], build.ByteTokenizer()
    given = examples(kind, 1.0, None, 0.4)
    parts = transformations.tokenize_examples(given, text, lambda line: None)
    n_ctx = transformations.fit_n_ctx(task, parts, text.n_vocab, 512)
    made = transformations.encode_examples(task, given, parts, text.n_vocab, n_ctx)
    assert (
        n_ctx == transformations.PAD_MULTIPLE
        and (made.n_truncated, made.n_tokens_lost) == (0, 0)
        and made.rows.dtype == np.int32
    )
    labels, extract, tokens = transformations.split_rows(made.rows, task.n_sequences, n_ctx)
    assert labels.tolist() == [1000, transformations.UNKNOWN_LABEL, 400]
    wanted = transformations.build_sequences(task, *parts[0], text.n_vocab, n_ctx)
    assert tokens.shape == (3, len(wanted), n_ctx) and made.rows.shape[
        1
    ] == transformations.row_width(task.n_sequences, n_ctx)
    for c, sequence in enumerate(wanted):
        assert (
            extract[0, c] == len(sequence) - 1 and tokens[0, c, extract[0, c]] == text.n_vocab + 2
        )
        assert tokens[0, c].tolist() == sequence + [0] * (n_ctx - len(sequence))


def test_what_was_cut_is_counted():
    task, text = TASK["similarity"], build.ByteTokenizer()
    given = examples("similarity", 1.0) + examples("similarity", 0.0, text="abcdefghijklmnopqrst")
    parts = transformations.tokenize_examples(given, text, lambda line: None)
    assert (
        transformations.fit_n_ctx(task, parts, text.n_vocab, 512) == 32
        and transformations.fit_n_ctx(task, parts, text.n_vocab, 20) == 20
    )
    made = transformations.encode_examples(task, given, parts, text.n_vocab, 20)
    assert (made.n_truncated, made.n_tokens_lost) == (1, 2 * (20 + 1 + 3 - 20))


def test_the_texts_of_a_context_are_words_apart():
    (((context, question), answers),) = transformations.tokenize_examples(
        examples("choice", 0.0), build.ByteTokenizer(), lambda line: None
    )
    assert bytes(context + question) == b"ab ?" and [bytes(a) for a in answers] == [
        b"x",
        b"yy",
        b"z",
    ]
    ((pair, _),) = transformations.tokenize_examples(
        examples("similarity", 0.0), build.ByteTokenizer(), lambda line: None
    )
    assert [bytes(one) for one in pair] == [b"ab", b"c"]


def test_progress_is_reported():
    lines = []
    transformations.tokenize_examples(
        examples("similarity", *[1.0] * 2000), build.ByteTokenizer(), lines.append
    )
    assert lines == ["reading examples: 1,000 of 2,000", "reading examples: 2,000 of 2,000"]


def test_every_kind_says_how_much_the_model_reads_and_answers():
    assert {kind: (task.n_sequences, task.n_outputs) for kind, task in TASK.items()} == {
        "classification": (1, 2),
        "entailment": (1, 3),
        "similarity": (2, 2),
        "choice": (3, 1),
    }
    assert (
        dataclasses.replace(TASK["similarity"], labels=tuple("012345"), metric="pearson").n_outputs
        == 6
    )
