"""Test sets that were cut into words, put together again as text: GPT-2 section 3.1's
de-tokenisers.

OpenAI's own are not published. For WikiText: the operations of the community's copy, one for one
and in its order, slips included (EleutherAI/lm-evaluation-harness,
lm_eval/tasks/wikitext/preprocess_wikitext.py); it takes a page at a time, here quotation marks are
paired over the whole file [chosen]. For the Penn Treebank, the 1 Billion Words and the
Children's Book Test the same idea [chosen]. What a measure divides by is counted on the text as
it was."""

import re

# (what stands there, what it becomes), one after the other.
WIKITEXT = [
    (r"s '", "s'"),
    (r"/' [0-9]/", r"/'[0-9]/"),  # the copy's slip: of a pattern between slashes, which no text has
    (r" @-@ ", "-"),
    (r" @,@ ", ","),
    (r" @\.@ ", "."),
    *(
        (f" {re.escape(mark)} ", f"{mark} ") for mark in ":;.!?,"
    ),  # each mark by itself: in " . , " both have the space between
    (r"\(\s*([^)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r'"\s*([^"]*?)\s*"', r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"= = = =", "===="),
    (r"= = =", "==="),
    (r"= =", "=="),
    (r" \u00b0 ", "\u00b0"),
    (r" \n", "\n"),
    (r"\n ", "\n"),
    (r" N ", " 1 "),
    (r" 's", "'s"),
]
PTB = [
    (r" (n't|'(?:s|re|ve|ll|d|m)|')(?=\s)", r"\1"),
    (r" N(?=\W)", " 1"),
    (r"([$#]) (?=\S)", r"\1"),
    (r" %", "%"),
    (r" ?\n ?", "\n"),
]
_SUFFIXES = (r" (n't|'(?:s|re|ve|ll|d|m|S|RE|VE|LL|D|M))(?=\W|$)", r"\1")
LM1B = [
    _SUFFIXES,
    (r" ([,.;:!?%)])(?=\W|$)", r"\1"),
    (r"([($#]) (?=\S)", r"\1"),
    (r'"\s*([^"]*?)\s*"', r'"\1"'),
]
CBT = [
    ("-LRB-", "("),
    ("-RRB-", ")"),
    _SUFFIXES,
    (r" '(?=\s|$)", "'"),
    (r" ([,.;:!?%)])(?=\W|$)", r"\1"),
    (r"([($#]) (?=\S)", r"\1"),
    (r"`` ", '"'),
    (r" ''", '"'),
    (r"(?<!\S)` ", "'"),
]


def apply(text: str, rules: list[tuple[str, str]]) -> str:
    """`text` after all the rules."""
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text
