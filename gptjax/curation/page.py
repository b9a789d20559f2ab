"""A page: a document on its way through the stages of curation."""

import dataclasses
from collections.abc import Callable

# Bits of a page's number: the piece of a page that was cut, the page of a file, the file of a data
# set; above them is the place of the data set in the recipe.
PIECE_BITS, PAGE_BITS, FILE_BITS = 8, 28, 20
CORPUS_SHIFT = PIECE_BITS + PAGE_BITS + FILE_BITS


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """A document of a data set.

    number: orders all documents; does not depend on how the work is cut into parts. id: unique, as
    "common_crawl/a.warc.gz#17". url: "" where there is none. text: valid Unicode.
    """

    number: int
    id: str
    url: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Dropped:
    """Why a stage drops a page. reason: one of few, which are counted. detail: of this page."""

    reason: str
    detail: str = ""


# A stage of pages: the page, unchanged or changed; its pieces; or why it is dropped.
StageFn = Callable[[Page], Page | list[Page] | Dropped]


def first_number(place: int, file: int) -> int:
    """Returns the number of the first page of a file. place: of the data set in the recipe. file:
    its place in the data set."""
    return ((place << FILE_BITS) + file) << (PAGE_BITS + PIECE_BITS)
