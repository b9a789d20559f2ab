"""The split of documents into training and validation text."""

import hashlib
from typing import Literal, assert_never

from gptjax.config import data
from gptjax.data.sources.document import Document

SPLITS = ("train", "validation")
Split = Literal["train", "validation"]


def split_document(document: Document, rule: data.ValidationSplit) -> list[tuple[Split, str]]:
    """Returns the parts of a document, each with its split. None is empty, and in order they are
    the document's text."""
    match rule:
        case data.ByDocument(fraction=fraction):
            hash_fraction = (
                int.from_bytes(hashlib.sha256(document.key.encode()).digest()[:8], "big") / 2**64
            )
            return [("validation" if hash_fraction < fraction else "train", document.text)]
        case data.Tail(fraction=fraction):
            cut = len(document.text) - int(len(document.text) * fraction)
            halves: list[tuple[Split, str]] = [
                ("train", document.text[:cut]),
                ("validation", document.text[cut:]),
            ]
            return [(split, text) for split, text in halves if text]
        case data.Separate():
            return [("train", document.text)]
        case _:
            assert_never(rule)


def describe(rule: data.ValidationSplit) -> str:
    """Returns the rule as the manifest of a shard directory records it. The source of Separate is
    left out: it does not change the directories of other sources."""
    return "Separate(source=...)" if isinstance(rule, data.Separate) else repr(rule)


def advice(rule: data.ValidationSplit, split: Split) -> str:
    """Returns what to change in the config if `split` has too little text: the end of an error."""
    match rule:
        case data.ByDocument(fraction=fraction):
            more = "raise" if split == "validation" else "lower"
            return (
                f"{more} data.validation.fraction={fraction}, or cut every document: --set "
                '"data.validation=Tail(fraction=0.1)"'
            )
        case data.Tail(fraction=fraction):
            return (
                f"{'raise' if split == 'validation' else 'lower'} "
                f"data.validation.fraction={fraction}"
            )
        case data.Separate():
            return "give data.validation another source"
        case _:
            assert_never(rule)
