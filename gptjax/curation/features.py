"""Features of texts for the quality classifier: those of Spark's Tokenizer and HashingTF, which
GPT-3's used (Appendix A).

Spark's Tokenizer puts text into lower case and splits it at each white-space character (Java's
[ \\t\\n\\x0B\\f\\r]), so that punctuation stays with its word, and two spaces have an empty word
between them; empty words at the end are left out. HashingTF counts each word at the remainder of
its murmur3 (32 bits, seed 42, of UTF-8) by the number of features.
"""

import re

import numpy as np

SPACE = re.compile("[ \t\n\x0b\f\r]")
MURMUR_SEED = 42  # of org.apache.spark.ml.feature.HashingTF


def words(text: str) -> list[str]:
    """Returns the words of Spark's Tokenizer."""
    found = SPACE.split(text.lower())
    if len(found) > 1:  # as Java's String.split, which returns a text without a space as it is
        while found and not found[-1]:
            found.pop()
    return found


def hashing_tf(text: str, n_features: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (indices of a text's features, ascending; how often it has each), both int64."""
    import mmh3

    index: dict[str, int] = {}
    counts: dict[int, int] = {}
    for word in words(text):
        if word not in index:
            index[word] = mmh3.hash(word, MURMUR_SEED) % n_features
        counts[index[word]] = counts.get(index[word], 0) + 1
    indices = np.fromiter(counts, np.int64, len(counts))
    order = np.argsort(indices)
    return indices[order], np.fromiter(counts.values(), np.int64, len(counts))[order]
