"""What of a task counts as being in a corpus: GPT-3 Appendix C. Values only."""

from typing import Annotated

from gptjax.config.record import Bounds, record

Words = Annotated[int, Bounds(1, 10**6)]
Count = Annotated[int, Bounds(0, 10**15)]


@record
class Filter:
    """What is taken out of a corpus. n: words of a match. window: characters that go with it, on
    each side (the paper: "a 200 character window around it") [chosen]. shortest: characters of a
    piece that stays. most_pieces: a document cut into more is dropped; pieces are counted before
    the short ones go [chosen]. most_documents: an n-gram that more documents have is left alone."""

    n: Words = 13
    window: Count = 200
    shortest: Count = 200
    most_pieces: Count = 10
    most_documents: Count = 10


@record
class OverlapRule:
    """When an item is dirty. n: words of a match, of every task (GPT-2's overlaps: 8); None: a
    task's own, the 5th percentile of its items' lengths in words, at least `least` (of tasks that
    are made: 1) and at most `most`. An item of fewer words is compared whole, as GPT-3 section 4
    says, but below `least` never, as Appendix C says."""

    n: Words | None = None
    least: Words = 8
    most: Words = 13

    def __post_init__(self):
        if self.least > self.most:
            raise ValueError(
                f"least={self.least} and most={self.most}: give at least as much for most"
            )
