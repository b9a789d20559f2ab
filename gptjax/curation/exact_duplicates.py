"""Pages with the same text, or the same URL; and the stage that drops pages by their number."""

import hashlib
import pathlib
from collections.abc import Iterable

import numpy as np

from gptjax.config.curation import ExactDuplicates
from gptjax.curation import links
from gptjax.curation.page import Dropped, Page
from gptjax.runtime import checksums

Array = np.ndarray


def key_rows(pages: Iterable[Page], rule: ExactDuplicates) -> Array:
    """Returns (key, key, number) of each page, int64 of shape (pages, 3): a digest of 128 bits of
    what is compared. Pages without a URL are left out where URLs are compared."""
    rows = [np.zeros((0, 3), np.int64)]
    for page in pages:
        if rule.by == "text":
            compared = " ".join(page.text.split())
        else:
            compared = links.normalize_url(page.url)
        if compared:
            digest = hashlib.blake2b(compared.encode(), digest_size=16).digest()
            rows.append(np.array([[*np.frombuffer(digest, np.int64), page.number]]))
    return np.concatenate(rows)


class DuplicateFilter:
    """The stage: drops the pages that a table names. path: of the table, as saved by
    `save_duplicates`; reason: why they are dropped.
    """

    def __init__(self, path: pathlib.Path, reason: str):
        self._reason = reason
        self._table = checksums.read_array(path)

    def __call__(self, page: Page) -> Page | Dropped:
        index = int(np.searchsorted(self._table[:, 0], page.number))
        if index < len(self._table) and self._table[index, 0] == page.number:
            return Dropped(self._reason, f"of page {self._table[index, 1]}")
        return page


def save_duplicates(path: pathlib.Path, table: Array) -> None:
    """Saves (number, number of the page that is kept), int64 of shape (n, 2), in order of number.

    A last row of the largest number, which no page has, keeps the table from being empty.
    """
    table = table[np.argsort(table[:, 0], kind="stable")]
    end = np.full((1, 2), np.iinfo(np.int64).max)
    checksums.save_array(path, np.concatenate([table, end]))
