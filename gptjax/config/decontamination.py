"""What of a task counts as being in a corpus: GPT-3 Appendix C. Values only."""

from typing import Annotated

from gptjax.config.record import Bounds, record

Words = Annotated[int, Bounds(1, 10**6)]
Count = Annotated[int, Bounds(0, 10**15)]


@record
class Filter:
    """What is taken out of a corpus (GPT-3 Appendix C)."""

    n: Words = 13
    """Words of a match."""
    window: Count = 200
    """Characters on each side that are removed with it (the paper: "a 200 character window around
    it") [chosen]."""
    shortest: Count = 200
    """Characters of a piece that is kept, at least."""
    most_pieces: Count = 10
    """A document that is cut into more pieces is dropped; counted before short pieces go
    [chosen]."""
    most_documents: Count = 10
    """An n-gram that more documents have is left alone."""


@record
class OverlapRule:
    """When an item counts as dirty (GPT-3 Appendix C). An item of fewer than n words is
    compared whole, as GPT-3 section 4 says."""

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
