"""Config of decontamination: which overlaps between a task and a corpus count, GPT-3 Appendix C.
Values only.
"""

from typing import Annotated

from gptjax.config.record import Bounds, record

Words = Annotated[int, Bounds(1, 10**6)]
Count = Annotated[int, Bounds(0, 10**15)]


@record
class Filter:
    """How a corpus is filtered: matches with evaluation tasks are removed from its documents."""

    n: Words = 13
    """Words of a match."""
    window: Count = 200
    """Characters removed with it on each side (the paper: "a 200 character window around it")
    [chosen]."""
    shortest: Count = 200
    """Fewest characters of a piece that is kept."""
    most_pieces: Count = 10
    """A document split into more pieces is dropped; pieces are counted before short ones are
    dropped [chosen]."""
    most_documents: Count = 10
    """An n-gram that occurs in more documents is ignored."""


@record
class OverlapRule:
    """When an item is dirty: it has an n-gram of the training data. An item with fewer words than n
    is compared as a whole, as GPT-3 section 4 says.
    """

    n: Words | None = None
    """Words of a match, for every task (GPT-2: 8); None: each task's own, the 5th percentile of its
    items' lengths in words."""
    least: Words = 8
    """Lower bound of a task's own n; of generated tasks 1. Shorter items are never dirty, as
    Appendix C says."""
    most: Words = 13
    """Upper bound of a task's own n."""

    def __post_init__(self):
        if self.least > self.most:
            raise ValueError(
                f"least={self.least} and most={self.most}: give at least as much for most"
            )
