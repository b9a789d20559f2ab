"""Input transformations of GPT-1's Figure 1: an example as the sequences that the model reads, each
between a start and an extract token."""

import dataclasses
from collections.abc import Callable

import numpy as np

from gptjax.config.classification import ClassificationTask
from gptjax.config.finetuning import DELIMITER, EXTRACT, START
from gptjax.data.tokenizers import build
from gptjax.training.classification.examples import Example

# of a class, in which a label is kept: STS-B's scores have three decimals at most
LABEL_SCALE = 1000
UNKNOWN_LABEL = -1
PAD_MULTIPLE = 16  # sequences are padded to a multiple of this
NO_LIMIT = 2**31


@dataclasses.dataclass(frozen=True)
class EncodedExamples:
    """Examples as one int32 array (examples, width), a row being: the label in thousandths of a
    class or UNKNOWN_LABEL; of each of C sequences the place of its extract token; and the C
    sequences of n_ctx tokens."""

    rows: np.ndarray
    n_ctx: int
    n_truncated: int  # examples that had to lose tokens
    n_tokens_lost: int  # those tokens


def row_width(n_sequences: int, n_ctx: int) -> int:
    """Returns the number of integers in a row of EncodedExamples."""
    return 1 + n_sequences + n_sequences * n_ctx


def split_rows(rows, n_sequences: int, n_ctx: int):
    """(labels (B,), extract (B, C), tokens (B, C, n_ctx)) of rows of EncodedExamples, NumPy's or
    jax's."""
    return (
        rows[:, 0],
        rows[:, 1 : 1 + n_sequences],
        rows[:, 1 + n_sequences :].reshape(-1, n_sequences, n_ctx),
    )


def build_sequences(
    task: ClassificationTask,
    texts: tuple[list[int], ...],
    answers: tuple[list[int], ...],
    n_vocab: int,
    limit: int,
) -> list[list[int]]:
    """The sequences of one example, each at most `limit` tokens: where one would be longer, its
    longest text loses tokens at the end, again and again. The paper does not say what was cut; its
    released code halves the context between two texts, which this does where both are long.
    n_vocab: of the pre-trained model, whose next ids are the special tokens.

    classification: [s; text; e]. entailment: [s; premise; $; hypothesis; e]. similarity: both
    orders. choice: [s; context; $; answer; e] for each answer, the texts of the context
    following one another without a delimiter."""
    s, delimiter, e = (n_vocab + special for special in (START, DELIMITER, EXTRACT))
    match task.kind:
        case "classification":
            pairs = [(texts, ())]
        case "entailment":
            pairs = [(texts[:1], texts[1:])]
        case "similarity":
            pairs = [(texts[:1], texts[1:]), (texts[1:], texts[:1])]
        case "choice":
            pairs = [(texts, (answer,)) for answer in answers]
    sequences = []
    for first, second in pairs:
        specials = 3 if second else 2
        first, second = _truncate(first, second, limit - specials)
        sequences.append(
            [s, *sum(first, []), *([delimiter, *sum(second, [])] if second else []), e]
        )
    return sequences


def _truncate(first, second, max_tokens: int) -> tuple[list[list[int]], list[list[int]]]:
    parts = [list(part) for part in (*first, *second)]
    assert max_tokens >= 0, max_tokens
    excess = sum(map(len, parts)) - max_tokens
    lengths = [len(part) for part in parts]
    while excess > 0:  # to the length of the next longest, all of the longest at once
        longest = max(lengths)
        longest_indices = [i for i, n in enumerate(lengths) if n == longest]
        next_longest = max([n for n in lengths if n < longest], default=0)
        n_cut = min(excess, (longest - next_longest) * len(longest_indices))
        per_text, remainder = divmod(n_cut, len(longest_indices))
        for rank, i in enumerate(longest_indices):
            lengths[i] -= per_text + (rank < remainder)
        excess -= n_cut
    parts = [part[:n] for part, n in zip(parts, lengths, strict=True)]
    return parts[: len(first)], parts[len(first) :]


ExampleTokens = tuple[
    tuple[list[int], ...], tuple[list[int], ...]
]  # of an example: the tokens of each text, and of each answer


def tokenize_examples(
    examples: list[Example], tokenizer: build.Tokenizer, progress: Callable[[str], None]
) -> list[ExampleTokens]:
    """The tokens of every example; progress is called now and then."""
    parts = []
    for number, example in enumerate(examples, 1):
        texts = example.texts[:1] + tuple(
            f" {part}" if example.answers else part for part in example.texts[1:]
        )
        parts.append(
            (tuple(map(tokenizer.encode, texts)), tuple(map(tokenizer.encode, example.answers)))
        )
        if number % 1000 == 0:
            progress(f"reading examples: {number:,} of {len(examples):,}")
    return parts


def fit_n_ctx(
    task: ClassificationTask, parts: list[ExampleTokens], n_vocab: int, limit: int
) -> int:
    """Returns the n_ctx that holds every sequence, at most `limit`: as in the released code the
    longest length, here rounded up."""
    lengths = (
        len(sequence)
        for tokens in parts
        for sequence in build_sequences(task, *tokens, n_vocab, NO_LIMIT)
    )
    return min(limit, -(-max(lengths) // PAD_MULTIPLE) * PAD_MULTIPLE)


def encode_examples(
    task: ClassificationTask,
    examples: list[Example],
    parts: list[ExampleTokens],
    n_vocab: int,
    n_ctx: int,
) -> EncodedExamples:
    """Returns the examples as EncodedExamples. parts: their tokens."""
    rows, n_tokens_lost = [], 0
    n_truncated = 0
    for example, tokens in zip(examples, parts, strict=True):
        example_sequences, full_sequences = (
            build_sequences(task, *tokens, n_vocab, n_ctx),
            build_sequences(task, *tokens, n_vocab, NO_LIMIT),
        )
        n_missing = sum(map(len, full_sequences)) - sum(map(len, example_sequences))
        n_truncated, n_tokens_lost = n_truncated + (n_missing > 0), n_tokens_lost + n_missing
        label = UNKNOWN_LABEL if example.label is None else round(example.label * LABEL_SCALE)
        padded = [
            token
            for sequence in example_sequences
            for token in sequence + [0] * (n_ctx - len(sequence))
        ]
        rows.append([label, *(len(sequence) - 1 for sequence in example_sequences), *padded])
    return EncodedExamples(
        np.array(rows, np.int32).reshape(len(rows), row_width(task.n_sequences, n_ctx)),
        n_ctx,
        n_truncated,
        n_tokens_lost,
    )
