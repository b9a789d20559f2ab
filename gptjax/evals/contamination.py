"""Which items of a task a corpus has: GPT-3 Appendix C's analysis of test sets, and GPT-2 section 4's share of n-grams.

An item's text is its context with its right completion, as a demonstration shows it, without what stands before all of them. So lengths
come to those of the paper's Table C.1: 9 words of a SAT analogy, 2 of a scrambled word, 7 of one with insertions. Where the right
completion is not known, its text is the context with each of them."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from gptjax.config.decontamination import Measure
from gptjax.config.evaluation import Protocol
from gptjax.curate import ngrams
from gptjax.data import tokenize
from gptjax.evals import task_data
from gptjax.evals.task import Item, Task

Array = np.ndarray
Read = Callable[[Task, Protocol, str], task_data.Found]  # the rows of a task's split


@dataclasses.dataclass(frozen=True)
class Asked:
    """A task's texts; items of one group (the answers of a question) share one. texts: by key. items: id of an item -> key. made: is it
    made from a seed, so that short texts are no chance hits?"""

    name: str
    texts: dict[str, str]
    items: dict[str, str]
    made: bool


def asked(task: Task, splits: Iterable[str], read: Read) -> Asked:
    """The items of some splits of a task, all together; keys of a second split begin with its name."""
    texts, items = {}, {}
    for number, split in enumerate(splits):
        prefix = f"{split} " if number else ""
        for row in read(task, task.protocol, split).rows:
            for item in task.items(row, task.protocol, 1):
                key = prefix + (item.group or item.id)
                items[prefix + item.id] = key
                texts[key] = item_text(item)
    return Asked(task.name, texts, items, task.made is not None)


def item_text(item: Item) -> str:
    if item.right or item.demonstration:
        return item.shown
    return "\n".join(context + completion for context, completion in item.pairs) or item.contexts[0]


def tested(task: Task) -> tuple[str, ...]:
    """The splits that no corpus should have: all but those for training."""
    return tuple(dict.fromkeys(split for split in task.splits if not split.startswith("train")))


def compared(these: Asked, rule: Measure) -> tuple[int, Array]:
    """(N of the task, how many words of each text are a match: N, or all its words where it has fewer, or 0 if it is not compared)."""
    counts = np.concatenate([np.bincount(found.texts, minlength=n) for _, n, found in _batches(these)] or [np.zeros(0, np.int64)])
    least = 1 if these.made else rule.least
    n = rule.n
    if n is None:
        n = int(np.clip(np.percentile(counts, 5), least, max(least, rule.most))) if len(counts) else rule.most
    return n, np.where(counts >= n, n, np.where(counts >= min(least, n), counts, 0))


def occurrences(these: Asked, matches: Array) -> Iterator[tuple[Array, Array]]:
    """The numbers of texts, and as many hashes of n-grams in them, n being matches[number]; batch after batch."""
    for before, n_texts, found in _batches(these):
        mine = matches[before : before + n_texts]
        for n, hashes, first in ngrams.grams(found, set(mine[mine > 0].tolist())):
            owners = found.texts[first]
            right = mine[owners] == n
            yield owners[right] + before, hashes[right]


def hashes(these: Asked, matches: Array) -> Array:
    """All n-grams of `occurrences`, sorted, none twice."""
    parts = [np.unique(found) for _, found in occurrences(these, matches)]
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.uint64)


def dirty(these: Asked, matches: Array, seen: ngrams.Known) -> tuple[dict[str, bool], int, int]:
    """(id of an item -> has it an n-gram that was seen, how many n-grams the task has, how many of them were seen), each as often as it
    stands there."""
    marks, n, n_seen = np.zeros(len(these.texts), bool), 0, 0
    for owners, found in occurrences(these, matches):
        at, _ = seen.found(found)
        marks[owners[at]] = True
        n, n_seen = n + len(found), n_seen + len(at)
    of_text = dict(zip(these.texts, marks.tolist(), strict=True))
    return {item: of_text[key] for item, key in these.items.items()}, n, n_seen


def _batches(these: Asked) -> Iterator[tuple[int, int, ngrams.Words]]:
    """(texts before, texts, their words)."""
    before = 0
    for batch in tokenize.grouped(these.texts.values(), ngrams.CHUNK, len):
        yield before, len(batch), ngrams.words(batch)
        before += len(batch)
