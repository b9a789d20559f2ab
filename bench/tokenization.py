"""How fast text becomes GPT-2's ids, compared with tiktoken's encode_ordinary_batch: processor time
on one core.

    python -m bench.tokenization [--text corpus/*.txt.xz] [--rounds=7]

Without --text: English (Python's help), code (its library) and French (the system's messages). Each
text is encoded as documents of 3,000 characters, and as one document; all must give the same ids.
Medians of interleaved rounds; a ratio is that of one round. For each --text also how fast
gptjax.prepare is in one process: reading, encoding and writing shards.
"""

import argparse
import gettext
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pydoc_data import topics

from gptjax.config import data, parse
from gptjax.data import tokenize
from gptjax.data.sources import files, stdlib_corpus
from gptjax.data.tokenizers import byte_level_bpe, gpt2_bpe, openai_files

Encoder = Callable[[list[str]], list[list[int]]]
DOCUMENT_CHARS = 3000
# tiktoken_ext/openai_public.py; its own constructor would download the two files
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def tiktoken_encoding():
    """Returns tiktoken's "gpt2", made of encoder.json."""
    import tiktoken

    ids = json.loads(openai_files.load(gpt2_bpe.FILES, None)["encoder.json"])
    byte_of = {byte_level_bpe.byte_symbol(byte): byte for byte in range(256)}
    end = ids.pop("<|endoftext|>")
    ranks = {bytes(byte_of[symbol] for symbol in token): i for token, i in ids.items()}
    return tiktoken.Encoding(
        "gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": end}
    )


def read_texts(patterns: list[str]) -> dict[str, str]:
    """Returns the texts to encode, by name."""
    if patterns:
        return {
            pattern: "\n\n".join(doc.text for doc in files.documents(pattern, "text"))
            for pattern in patterns
        }
    code = "\n\n".join(doc.text for doc in stdlib_corpus.documents())
    french = [
        message
        for path in sorted(pathlib.Path("/usr/share/locale/fr/LC_MESSAGES").glob("*.mo"))
        for key, message in gettext.GNUTranslations(path.open("rb"))._catalog.items()  # type: ignore
        if key
    ]
    texts = {
        "English": "\n\n".join(topics.topics.values()),
        "code": code[: len(code) // 4],
        "French": "\n".join(french),
    }
    return {name: text for name, text in texts.items() if text}


def time_encoders(
    texts: list[str], rounds: int, encoders: dict[str, Encoder]
) -> dict[str, list[float]]:
    """Returns each encoder's MB/s on `texts` in each round. Raises AssertionError if their ids
    differ."""
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    batches = list(tokenize.group_by_length(texts, tokenize.BATCH_CHARS, len))
    speeds: dict[str, list[float]] = {name: [] for name in encoders}
    for number in range(rounds):
        names = [*encoders][number % len(encoders) :] + [*encoders][: number % len(encoders)]
        results = []
        for name in names:  # each is the first in turn
            start = time.process_time()
            ids = [encoders[name](batch) for batch in batches]
            speeds[name].append(megabytes / (time.process_time() - start))
            results.append(ids)
        assert all(ids == results[0] for ids in results), "the ids differ"
    return speeds


def time_prepare(path: str, rounds: int) -> None:
    """Prints how fast the text of `path` becomes shards, and the share of the time that encoding
    has."""

    class Timed(gpt2_bpe.Gpt2Tokenizer):
        seconds = 0.0

        def encode_batch(self, texts):
            start = time.process_time()
            ids = super().encode_batch(texts)
            self.seconds += time.process_time() - start
            return ids

    tokenizer, speeds, shares = Timed(None), [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as directory:
            tokenizer.seconds, start = 0.0, time.process_time()
            manifest = tokenize.tokenize_corpus(
                data.Text(path=path),
                "Gpt2Bpe()",
                tokenizer,
                data.ByDocument(),
                pathlib.Path(directory) / "shards",
                lambda fraction: None,
            )
            seconds = time.process_time() - start
        speeds.append(manifest["text"]["bytes"] / 1e6 / seconds)
        shares.append(tokenizer.seconds / seconds)
    print(
        f"{path}: text to shards {statistics.median(speeds):.1f} MB/s, of which encoding has "
        f"{statistics.median(shares):.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", nargs="+", default=[], help="files, directories or globs")
    parser.add_argument("--rounds", type=parse.int_argument(), default=7)
    args = parser.parse_args()
    # one thread in each library
    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    ours, theirs = gpt2_bpe.Gpt2Tokenizer(None), tiktoken_encoding()
    encoders: dict[str, Encoder] = {
        "gptjax": ours.encode_batch,
        "tiktoken": lambda batch: theirs.encode_ordinary_batch(batch, num_threads=1),
        "tokenizers": lambda batch: [
            encoding.ids
            for encoding in ours.rust.encode_batch_fast(batch, add_special_tokens=False)
        ],
    }
    for name, text in read_texts(args.text).items():
        for size in (DOCUMENT_CHARS, len(text)):
            texts = [text[i : i + size] for i in range(0, len(text), size)]
            speeds = time_encoders(texts, args.rounds, encoders)
            ratios = [
                sorted(a / b for a, b in zip(speeds["gptjax"], speeds[other], strict=True))
                for other in ("tiktoken", "tokenizers")
            ]
            print(f"{name}, {len(text.encode()) / 1e6:.1f} MB in {len(texts):,} documents, MB/s:")
            print("  " + ", ".join(f"{n} {statistics.median(v):.1f}" for n, v in speeds.items()))
            print(
                "  as fast as tiktoken, tokenizers: "
                + ", ".join(
                    f"{statistics.median(r):.2f} x ({r[0]:.2f} to {r[-1]:.2f})" for r in ratios
                )
            )
    for path in args.text:
        time_prepare(path, args.rounds)


if __name__ == "__main__":
    main()
