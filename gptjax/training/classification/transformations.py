"""GPT-1 Figure 1: an example as the sequences that the model reads, each between a start and an extract token."""

import dataclasses
from collections.abc import Callable

import numpy as np

from gptjax.config.classification import Task
from gptjax.config.finetuning import DELIMITER, EXTRACT, START
from gptjax.data.tokenizers import build
from gptjax.training.classification.examples import Example

PARTS = 1000  # of a class, in which a label is kept: STS-B's scores have three decimals at most
UNKNOWN = -1
ROUND = 16  # sequences are padded to a multiple of this
NO_LIMIT = 2**31


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Examples as one int32 array (examples, width), a row being: the label in thousandths of a class or UNKNOWN; of each of C sequences
    the place of its extract token; and the C sequences of n_ctx tokens."""

    rows: np.ndarray
    n_ctx: int
    shortened: int  # examples that had to lose tokens
    lost: int  # those tokens


def width(n_sequences: int, n_ctx: int) -> int:
    """Integers of a row of Encoded."""
    return 1 + n_sequences + n_sequences * n_ctx


def split(rows, n_sequences: int, n_ctx: int):
    """(labels (B,), extract (B, C), tokens (B, C, n_ctx)) of rows of Encoded, NumPy's or jax's."""
    return rows[:, 0], rows[:, 1 : 1 + n_sequences], rows[:, 1 + n_sequences :].reshape(-1, n_sequences, n_ctx)


def sequences(task: Task, texts: tuple[list[int], ...], answers: tuple[list[int], ...], n_vocab: int, limit: int) -> list[list[int]]:
    """The sequences of one example, each at most `limit` tokens: where one would be longer, its longest text loses tokens at the end,
    again and again. The paper does not say what was cut; its released code halves the context between two texts, which this does where
    both are long. n_vocab: of the pre-trained model, whose next ids are the special tokens.

    classification: [s; text; e]. entailment: [s; premise; $; hypothesis; e]. similarity: both orders. choice: [s; context; $; answer; e]
    for each answer, the texts of the context following one another without a delimiter."""
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
    made = []
    for first, second in pairs:
        specials = 3 if second else 2
        first, second = _shortened(first, second, limit - specials)
        made.append([s, *sum(first, []), *([delimiter, *sum(second, [])] if second else []), e])
    return made


def _shortened(first, second, room: int) -> tuple[list[list[int]], list[list[int]]]:
    parts = [list(part) for part in (*first, *second)]
    assert room >= 0, room
    over = sum(map(len, parts)) - room
    lengths = [len(part) for part in parts]
    while over > 0:  # to the length of the next longest, all of the longest at once
        longest = max(lengths)
        those = [i for i, n in enumerate(lengths) if n == longest]
        floor = max([n for n in lengths if n < longest], default=0)
        taken = min(over, (longest - floor) * len(those))
        each, more = divmod(taken, len(those))
        for turn, i in enumerate(those):
            lengths[i] -= each + (turn < more)
        over -= taken
    parts = [part[:n] for part, n in zip(parts, lengths, strict=True)]
    return parts[: len(first)], parts[len(first) :]


Parts = tuple[tuple[list[int], ...], tuple[list[int], ...]]  # of an example: the tokens of each text, and of each answer


def tokenised(examples: list[Example], text: build.Tokenizer, progress: Callable[[str], None]) -> list[Parts]:
    """The tokens of every example; progress is told, now and then, how far it is."""
    parts = []
    for number, example in enumerate(examples, 1):
        joined = example.texts[:1] + tuple(f" {one}" if example.answers else one for one in example.texts[1:])
        parts.append((tuple(map(text.encode, joined)), tuple(map(text.encode, example.answers))))
        if number % 1000 == 0:
            progress(f"reading examples: {number:,} of {len(examples):,}")
    return parts


def longest(task: Task, parts: list[Parts], n_vocab: int, limit: int) -> int:
    """The n_ctx that holds every sequence, up to `limit`: as in the released code, no longer than it need be, but for rounding."""
    lengths = (len(one) for each in parts for one in sequences(task, *each, n_vocab, NO_LIMIT))
    return min(limit, -(-max(lengths) // ROUND) * ROUND)


def encoded(task: Task, examples: list[Example], parts: list[Parts], n_vocab: int, n_ctx: int) -> Encoded:
    """The examples, whose tokens are `parts`, as arrays."""
    rows, lost = [], 0
    shortened = 0
    for example, each in zip(examples, parts, strict=True):
        made, whole = sequences(task, *each, n_vocab, n_ctx), sequences(task, *each, n_vocab, NO_LIMIT)
        missing = sum(map(len, whole)) - sum(map(len, made))
        shortened, lost = shortened + (missing > 0), lost + missing
        label = UNKNOWN if example.label is None else round(example.label * PARTS)
        padded = [token for one in made for token in one + [0] * (n_ctx - len(one))]
        rows.append([label, *(len(one) - 1 for one in made), *padded])
    return Encoded(np.array(rows, np.int32).reshape(len(rows), width(task.n_sequences, n_ctx)), n_ctx, shortened, lost)
