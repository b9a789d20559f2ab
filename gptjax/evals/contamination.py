"""Contamination analysis: which items of a task occur in a corpus (GPT-3 Appendix C), and GPT-2
section 4's share of overlapping n-grams.

An item's text is its context with its correct completion, as in a demonstration, without the text
before all demonstrations. This matches the lengths of the paper's Table C.1: 9 words for a SAT
analogy, 2 for a scrambled word, 7 for one with insertions. If the correct completion is unknown,
the text is the context with each completion.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from gptjax.config.decontamination import OverlapRule
from gptjax.config.evaluation import Protocol
from gptjax.curation import ngrams
from gptjax.data import tokenize
from gptjax.evals import task_data
from gptjax.evals.task import Item, Task

Array = np.ndarray
ReadRows = Callable[[Task, Protocol, str], task_data.Rows]  # the rows of a task's split


@dataclasses.dataclass(frozen=True)
class TaskTexts:
    """The texts of a task; items of one group (the answers of a question) share one. texts: by key.
    items: item id -> key. is_generated: whether the task is generated from a seed, so that matches
    of short texts are not chance.
    """

    name: str
    texts: dict[str, str]
    items: dict[str, str]
    is_generated: bool


def collect_texts(task: Task, splits: Iterable[str], read_rows: ReadRows) -> TaskTexts:
    """Returns the texts of some splits of a task together; keys of the second split onward start
    with the split's name.
    """
    texts, items = {}, {}
    for number, split in enumerate(splits):
        prefix = f"{split} " if number else ""
        for row in read_rows(task, task.protocol, split).rows:
            for item in task.items(row, task.protocol, 1):
                key = prefix + (item.group or item.id)
                items[prefix + item.id] = key
                texts[key] = item_text(item)
    return TaskTexts(task.name, texts, items, task.make_rows is not None)


def item_text(item: Item) -> str:
    """The text of an item that is searched for in the corpus."""
    if item.right or item.demonstration:
        return item.as_demonstration
    return "\n".join(context + completion for context, completion in item.pairs) or item.contexts[0]


def test_splits(task: Task) -> tuple[str, ...]:
    """The splits that should not be in a corpus: all but those for training."""
    return tuple(dict.fromkeys(split for split in task.splits if not split.startswith("train")))


def match_length(texts: TaskTexts, rule: OverlapRule) -> tuple[int, Array]:
    """Returns (N of the task, matching words of each text): N, or all words of a shorter text, or 0
    for texts that are not compared.
    """
    counts = np.concatenate(
        [np.bincount(words.texts, minlength=n) for _, n, words in _hash_batches(texts)]
        or [np.zeros(0, np.int64)]
    )
    min_length = 1 if texts.is_generated else rule.least
    n = rule.n
    if n is None:
        n = (
            int(np.clip(np.percentile(counts, 5), min_length, max(min_length, rule.most)))
            if len(counts)
            else rule.most
        )
    return n, np.where(counts >= n, n, np.where(counts >= min(min_length, n), counts, 0))


def occurrences(texts: TaskTexts, matches: Array) -> Iterator[tuple[Array, Array]]:
    """Yields, in batches, indices of texts and hashes of n-grams in them, with n =
    matches[index].
    """
    for offset, n_texts, words in _hash_batches(texts):
        lengths = matches[offset : offset + n_texts]
        for n, hashes, first in ngrams.hash_ngrams(words, set(lengths[lengths > 0].tolist())):
            owners = words.texts[first]
            is_match = lengths[owners] == n
            yield owners[is_match] + offset, hashes[is_match]


def ngram_hashes(texts: TaskTexts, matches: Array) -> Array:
    """Returns the distinct n-gram hashes of `occurrences`, sorted."""
    parts = [np.unique(batch) for _, batch in occurrences(texts, matches)]
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.uint64)


def find_dirty_items(
    texts: TaskTexts, matches: Array, hash_set: ngrams.HashSet
) -> tuple[dict[str, bool], int, int]:
    """Returns (item id -> whether one of its n-grams was seen, n-grams of the task, how many of
    them were seen), counting repetitions.
    """
    is_dirty, n, n_seen = np.zeros(len(texts.texts), bool), 0, 0
    for owners, batch in occurrences(texts, matches):
        hits, _ = hash_set.lookup(batch)
        is_dirty[owners[hits]] = True
        n, n_seen = n + len(batch), n_seen + len(hits)
    by_key = dict(zip(texts.texts, is_dirty.tolist(), strict=True))
    return {item: by_key[key] for item, key in texts.items.items()}, n, n_seen


def _hash_batches(texts: TaskTexts) -> Iterator[tuple[int, int, ngrams.Words]]:
    """Yields (number of texts before the batch, texts in the batch, their hashed words)."""
    offset = 0
    for batch in tokenize.group_by_length(texts.texts.values(), ngrams.CHUNK_CHARS, len):
        yield offset, len(batch), ngrams.hash_words(batch)
        offset += len(batch)
