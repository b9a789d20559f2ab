"""Detokenizers: test sets that were split into words, restored to natural text (GPT-2 section 3.1's
de-tokenizers).

OpenAI's own are not published. WikiText: the operations of the community's copy, one for one and in
its order, including its mistakes (EleutherAI/lm-evaluation-harness,
lm_eval/tasks/wikitext/preprocess_wikitext.py); it processes a page at a time, while here quotation
marks are paired over the whole file [chosen]. Penn Treebank, 1 Billion Words and Children's Book
Test: the same idea [chosen]. Metrics are normalized by counts of the original text.
"""

import re

# (pattern, replacement) pairs, applied in order.
WIKITEXT = [
    (r"s '", "s'"),
    (
        r"/' [0-9]/",
        r"/'[0-9]/",
    ),  # the copy's mistake: a pattern between slashes, which never occurs
    (r" @-@ ", "-"),
    (r" @,@ ", ","),
    (r" @\.@ ", "."),
    # Each mark separately: in " . , " both use the space between them.
    *((f" {re.escape(mark)} ", f"{mark} ") for mark in ":;.!?,"),
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
    """Applies the rules to `text`, in order."""
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text
