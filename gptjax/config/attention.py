"""Attention patterns: which keys may a query see? The predicates are in
model/attention/patterns.py."""

from typing import Annotated

from gptjax.config.record import Bounds, record

Context = Annotated[int, Bounds(1, 2**24)]  # tokens of a row


@record
class Dense:
    """Attention to every key up to the query itself."""


@record
class Banded:
    """Attention to the last `window` keys, including the query's own (OpenAI's `local` mode: q - k
    < window). GPT-3 section 2.1.
    """

    window: Context
    """Keys that a query sees, its own included."""


@record
class Strided:
    """Sparse Transformer's (1904.10509) strided attention with both heads merged: the last `stride`
    keys, and every `stride`-th before them.
    """

    stride: Context
    """Length of the recent window, and the distance between the keys seen before it."""


@record
class Fixed:
    """Sparse Transformer's fixed attention with both heads merged: the query's own block, and the
    last `summary` keys of each earlier block.
    """

    block: Context
    """Tokens of a block."""
    summary: Context
    """Last columns of each earlier block that every later query sees; at most `block`."""

    def __post_init__(self):
        if self.summary > self.block:
            raise ValueError(
                f"Fixed.summary={self.summary} is more than block={self.block}: a summary is the "
                "last columns of a block"
            )


@record
class BlockSparse:
    """Phi-3-small's block-sparse attention (2404.14219, section 2; rule of its released code): the
    query's own block and the last `local_blocks - 1` before it, and of all earlier blocks each
    `stride`-th, another one for each head: those with (key block + head + 1) % stride == 0.
    """

    block: Context
    """Tokens of a block."""
    local_blocks: Context
    """Blocks that a query sees whole up to itself, its own included."""
    stride: Context
    """Every stride-th earlier block is seen."""


Attention = Dense | Banded | Strided | Fixed | BlockSparse
