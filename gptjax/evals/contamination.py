"""Which items of a task a corpus has: GPT-3 Appendix C's analysis of test sets, and GPT-2 section
4's share of n-grams.

An item's text is its context with its right completion, as a demonstration shows it, without what
stands before all of them. So lengths come to those of the paper's Table C.1: 9 words of a SAT
analogy, 2 of a scrambled word, 7 of one with insertions. Where the right completion is not
known, its text is the context with each of them."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from gptjax.config.decontamination import OverlapRule
from gptjax.config.evaluation import Protocol
from gptjax.curate import ngrams
from gptjax.data import tokenize
from gptjax.evals import task_data
from gptjax.evals.task import Item, Task

Array = np.ndarray
ReadRows = Callable[[Task, Protocol, str], task_data.Rows]  # the rows of a task's split


@dataclasses.dataclass(frozen=True)
class TaskTexts:
    """A task's texts; items of one group (the answers of a question) share one. texts: by key.
    items: id of an item -> key. is_generated:
    is it made from a seed, so that short texts are no chance hits?"""

    name: str
    texts: dict[str, str]
    items: dict[str, str]
    is_generated: bool


def collect_texts(task: Task, splits: Iterable[str], read_rows: ReadRows) -> TaskTexts:
    """The items of some splits of a task, all together; keys of a second split begin with its
    name."""
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
    if item.right or item.demonstration:
        return item.as_demonstration
    return "\n".join(context + completion for context, completion in item.pairs) or item.contexts[0]


def test_splits(task: Task) -> tuple[str, ...]:
    """The splits that no corpus should have: all but those for training."""
    return tuple(dict.fromkeys(split for split in task.splits if not split.startswith("train")))


def match_length(texts: TaskTexts, rule: OverlapRule) -> tuple[int, Array]:
    """(N of the task, how many words of each text are a match: N, or all its words where it has
    fewer, or 0 if it is not compared)."""
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
    """The numbers of texts, and as many hashes of n-grams in them, n being matches[number];
    batch after batch."""
    for offset, n_texts, words in _hash_batches(texts):
        lengths = matches[offset : offset + n_texts]
        for n, hashes, first in ngrams.hash_ngrams(words, set(lengths[lengths > 0].tolist())):
            owners = words.texts[first]
            is_match = lengths[owners] == n
            yield owners[is_match] + offset, hashes[is_match]


def ngram_hashes(texts: TaskTexts, matches: Array) -> Array:
    """All n-grams of `occurrences`, sorted, none twice."""
    parts = [np.unique(batch) for _, batch in occurrences(texts, matches)]
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.uint64)


def find_dirty_items(
    texts: TaskTexts, matches: Array, hash_set: ngrams.HashSet
) -> tuple[dict[str, bool], int, int]:
    """(id of an item -> has it an n-gram that was seen, how many n-grams the task has, how many of
    them were seen), each as often as it stands there."""
    is_dirty, n, n_seen = np.zeros(len(texts.texts), bool), 0, 0
    for owners, batch in occurrences(texts, matches):
        hits, _ = hash_set.lookup(batch)
        is_dirty[owners[hits]] = True
        n, n_seen = n + len(batch), n_seen + len(hits)
    by_key = dict(zip(texts.texts, is_dirty.tolist(), strict=True))
    return {item: by_key[key] for item, key in texts.items.items()}, n, n_seen


def _hash_batches(texts: TaskTexts) -> Iterator[tuple[int, int, ngrams.Words]]:
    """(texts before, texts, their words)."""
    offset = 0
    for batch in tokenize.group_by_length(texts.texts.values(), ngrams.CHUNK_CHARS, len):
        yield offset, len(batch), ngrams.hash_words(batch)
        offset += len(batch)
