"""How fast a corpus is searched for n-grams, compared with a Python set of tuples: processor time
on one core.

    python -m bench.overlap --text='corpus/*.txt.xz' [--grams=1000000] [--rounds=5]

The corpus is searched for every 50th of its 13-grams, and for others up to --grams. The baseline
splits words by a regular expression and looks them up in a set of tuples. Reading and decompression
are excluded. Medians of interleaved rounds.
"""

import argparse
import re
import statistics
import time

import numpy as np

from gptjax.config import parse
from gptjax.curation import ngrams
from gptjax.data import tokenize
from gptjax.data.sources import files

N = 13
WORD = re.compile(r"[^\W_]+")


def tuple_ngrams(document: str) -> list[tuple[str, ...]]:
    """Returns the N-grams of a document, each a tuple of words: the plain implementation."""
    words = WORD.findall(document.lower())
    return [tuple(words[i : i + N]) for i in range(len(words) - N + 1)]


def batch_hashes(batch: list[str]) -> np.ndarray:
    """Returns the hashes of the N-grams of a batch of documents, as gptjax computes them."""
    return next(
        iter(ngrams.hash_ngrams(ngrams.hash_words(batch), [N])), (N, np.zeros(0, np.uint64), None)
    )[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", required=True, help="a file, a directory or a glob")
    parser.add_argument("--grams", type=parse.int_argument(), default=1_000_000)
    parser.add_argument("--rounds", type=parse.int_argument(), default=5)
    parser.add_argument(
        "--piece", type=parse.int_argument(), default=3000, help="characters of a document"
    )
    args = parser.parse_args()
    texts = [document.text for document in files.documents(args.text, "text")]
    documents = [
        text[i : i + args.piece] for text in texts for i in range(0, len(text), args.piece)
    ]
    batches = list(tokenize.group_by_length(documents, ngrams.CHUNK_CHARS, len))
    megabytes = sum(len(document.encode()) for document in documents) / 1e6

    corpus_ngrams = {gram for document in documents[::50] for gram in tuple_ngrams(document)}
    other_ngrams = {
        tuple(f"x{n}y{k}" for k in range(N)) for n in range(max(0, args.grams - len(corpus_ngrams)))
    }
    ngram_set = corpus_ngrams | other_ngrams
    hash_set = ngrams.HashSet(
        np.unique(np.concatenate([batch_hashes([" ".join(gram)]) for gram in ngram_set]))
    )
    print(
        f"{megabytes:.1f} MB, {len(documents):,} documents; {len(ngram_set):,} n-grams, "
        f"{len(hash_set):,} hashes"
    )

    def count_hashed() -> int:
        return sum(len(hash_set.lookup(batch_hashes(batch))[0]) for batch in batches)

    def count_tuples() -> int:
        return sum(gram in ngram_set for document in documents for gram in tuple_ngrams(document))

    seconds: dict[str, list[float]] = {"ours": [], "a set of tuples": []}
    for _ in range(args.rounds):
        counts = []
        for name, run in zip(seconds, (count_hashed, count_tuples), strict=True):
            start = time.process_time()
            counts.append(run())
            seconds[name].append(time.process_time() - start)
        assert counts[0] == counts[1], counts
    for name, times in seconds.items():
        print(f"{name:16} {megabytes / statistics.median(times):6.1f} MB/s")
    ratios = sorted(b / a for a, b in zip(*seconds.values(), strict=True))
    print(
        f"{counts[0]:,} matches each; {statistics.median(ratios):.1f} x as fast ({ratios[0]:.1f} "
        f"to {ratios[-1]:.1f})"
    )
    print(
        "memory of the n-grams: "
        f"{(hash_set.hashes.nbytes + hash_set.bits.nbytes) / len(hash_set):.1f} bytes each"
    )


if __name__ == "__main__":
    main()
